"""Folders of weights by the names that users give: a local folder, or a folder of a repository on the Hugging Face hub.

A hub name is ``owner/repository``, with ``/folder`` where the model lies deeper and ``@revision`` where another
version than ``main`` is meant. Only files that are read here are downloaded, and the cache serves without a network.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .errors import InputError
from .files import is_file, is_folder, read_object, read_shard_names

# Repositories named alone are searched in this order: the release keeps its models one level down.
_PLACES = ("", "hf_model")
_SETTINGS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "chat_template.jinja",
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_WEIGHTS = tuple(
    re.compile(rf"{stem}\b.*\.{suffix}(\.index\.json)?")
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin"))
)
# How the hub is asked, under the names that transformers has for it.
_ACCESS = ("token", "cache_dir", "local_files_only", "force_download")
_LONGEST_NAME = 96  # of a repository, with its owner
_HUB_NAME = re.compile(
    r"(?P<repository>\w([\w.-]*\w)?/\w([\w.-]*\w)?)(?P<folder>(/\w[\w.-]*)*)(@(?P<revision>\w[\w./-]*))?"
)
# What other pages and the release say, and what it is called where it can be had.
_KNOWN_AS = {
    "LLaVA-Lightning-7B-v1-1": "mmaaz60/LLaVA-7B-Lightening-v1-1",
    "PixelLM-13B-llama2-v1": "maverickrzw/PixelLM-13B",
}


@dataclass(frozen=True)
class HubName:
    """A folder on the hub.

    Attributes:
        repository: ``owner/name``.
        folder: below the repository; "" if the name does not say one.
        revision: a branch, tag or commit.
    """

    repository: str
    folder: str
    revision: str

    @property
    def places(self) -> tuple[str, ...]:
        """Folders that may be meant, the likeliest first."""
        return (self.folder,) if self.folder else _PLACES

    @property
    def download_command(self) -> str:
        """The command that fetches it, for messages."""
        include = f' --include "{self.folder}/*"' if self.folder else ""
        revision = f" --revision {self.revision}" if self.revision != "main" else ""
        return f"`hf download {self.repository}{include}{revision} --local-dir DIR`"


def take_hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of the options of a ``from_pretrained`` what ``resolve_folder`` reads."""
    taken = {name: options.pop(name) for name in ("subfolder", "revision", *_ACCESS) if name in options}
    return {name: value for name, value in taken.items() if value}


def resolve_folder(name: str, *, flag: str = "", subfolder: str = "", revision: str = "", **access: Any) -> Path:
    """The local folder behind a name: itself, or where the hub's cache has it after a download, if one is needed.

    Args:
        flag: names the folder in messages.
        subfolder, revision: what the name itself does not say.
        access: ``token``, ``cache_dir``, ``local_files_only``, ``force_download``, as in transformers.
    Raises:
        InputError: if it is neither a local folder nor to be had from the hub or its cache.
    """
    path, place = Path(os.path.expanduser(name), subfolder), f"{flag} {name}".strip()
    if is_folder(path):
        return _first_with_config(path, _PLACES) or path
    wanted = parse_hub_name(name)
    if wanted is None or is_folder(wanted.repository):
        raise InputError(f"{place}: no such folder; give a folder or a hub id such as {_suggestion(name)}")
    wanted = replace(wanted, folder=subfolder or wanted.folder, revision=revision or wanted.revision)
    try:
        if access.pop("local_files_only", False):
            raise LookupError("local_files_only was given")
        return _download(wanted, **access)
    except InputError as err:
        raise InputError(f"{place}: {err}") from err
    except Exception as err:  # network, access, names: every way in which the hub can fail
        cached = _cached_folder(wanted, access.get("cache_dir"))
        if cached is None:
            raise InputError(f"{place}: {_describe(err, wanted)}") from err
        missing = _missing_files(cached)
        if missing:
            raise InputError(
                f"{place}: its copy in {cached} is incomplete and the hub cannot be reached ({_name(err)}); "
                f"it lacks {', '.join(missing)}. Run the command again with a network, which fetches the rest"
            ) from err
        return cached


def portable_path(name: str) -> str:
    """A hub id as it is; a local folder as an absolute path, so that it is found from anywhere."""
    folder = os.path.expanduser(name)
    return os.path.realpath(folder) if is_folder(folder) else name


def upload_folder(
    repository: str,
    write: Callable[[Path], None],
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    **commit: Any,
) -> str:
    """Upload a folder to the hub; the repository is made if it is missing.

    Args:
        write: fills the folder, in which it finds the README.md that the repository has.
        private: of a new repository.
        revision: a branch, which is made if it is missing.
        commit: as of ``HfApi.upload_folder``: ``commit_message``, ``commit_description``, ``create_pr``.
    Returns:
        the address of the commit.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError

    api = HfApi(token=token)
    name = api.create_repo(repository, private=private, exist_ok=True).repo_id
    if revision and not revision.startswith("refs/pr"):
        api.create_branch(name, branch=revision, exist_ok=True)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with suppress(EntryNotFoundError):
            shutil.copyfile(api.hf_hub_download(name, "README.md", revision=revision), folder / "README.md")
        write(folder)
        return str(api.upload_folder(repo_id=name, folder_path=folder, revision=revision, **commit))


def files_read(name: str) -> list[Path]:
    """The files of a local model folder that a command reads; none for a name on the hub."""
    folders = [os.path.join(os.path.expanduser(name), place) for place in _PLACES]
    return [file for folder in folders if is_folder(folder) for file in _files_of(Path(folder))]


def link_model(folder: Path, into: Path) -> None:
    """Put links to the files of a saved model into another folder, for an upload without a copy."""
    for file in _files_of(folder):
        (into / file.name).symlink_to(file.resolve())


def parse_hub_name(name: str) -> HubName | None:
    """The parts of a hub name; None if it cannot be one."""
    match = _HUB_NAME.fullmatch(name)
    if match is None or ".." in name or "--" in match["repository"] or len(match["repository"]) > _LONGEST_NAME:
        return None
    return HubName(match["repository"], match["folder"].strip("/"), match["revision"] or "main")


def _download(wanted: HubName, *, token: str | bool | None = None, **options: Any) -> Path:
    """Fetch what is missing from the cache; returns the folder there."""
    # Imported here: where data are read without a model, none of it is needed.
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi(token=token).model_info(wanted.repository, revision=wanted.revision, timeout=10)
    names = [sibling.rfilename for sibling in info.siblings or []]
    folder = next((place for place in wanted.places if _join(place, "config.json") in names), None)
    if folder is None:
        others = [name.rpartition("/")[0] for name in names if name.endswith("/config.json")]
        models = f"; its models are in {', '.join(others)}" if others else ""
        raise InputError(f"the repository has no {_join(wanted.folder, 'config.json')}{models}")
    read = [_join(folder, name) for name in _read(names, folder)]
    snapshot = snapshot_download(
        wanted.repository, revision=wanted.revision, allow_patterns=read, token=token, **options
    )
    return Path(snapshot) / folder


def _read(names: Iterable[str], folder: str) -> list[str]:
    """The files of a folder that are read here; of two formats of weights, the one that is read first."""
    inside = [name for path in names for parent, _, name in [path.rpartition("/")] if parent == folder]
    formats = [[name for name in inside if pattern.fullmatch(name)] for pattern in _WEIGHTS]
    return [name for name in inside if name in _SETTINGS] + next((found for found in formats if found), [])


def _files_of(folder: Path) -> list[Path]:
    return [folder / name for name in _read(os.listdir(folder), "")]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _first_with_config(root: Path, places: Iterable[str]) -> Path | None:
    return next((root / place for place in places if is_file(root / place / "config.json")), None)


def _cached_folder(wanted: HubName, cache_dir: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for place in wanted.places:
        try:
            config = try_to_load_from_cache(
                wanted.repository, _join(place, "config.json"), cache_dir=cache_dir, revision=wanted.revision
            )
        except (OSError, ValueError):  # the file that names the revision is damaged
            return None
        if isinstance(config, str):
            return Path(config).parent
    return None


def _missing_files(folder: Path) -> list[str]:
    """What a model folder of an interrupted download lacks, by its own index and config."""
    indexes = [folder / f"{stem}.index.json" for stem in ("model.safetensors", "pytorch_model.bin")]
    index = next((path for path in indexes if is_file(path)), None)
    if index is not None:
        missing = [name for name in read_shard_names(index) if not is_file(folder / name)]
    else:
        missing = _none_of(folder, "model.safetensors", "pytorch_model.bin")
    if "clip" not in str(read_object(folder / "config.json").get("model_type")):  # a tower reads no text
        missing += _none_of(folder, "tokenizer.model", "tokenizer.json")
    return missing


def _none_of(folder: Path, *names: str) -> list[str]:
    return [] if any(is_file(folder / name) for name in names) else [" or ".join(names)]


def _describe(err: Exception, wanted: HubName) -> str:
    """Why the hub did not give it, and what helps."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(err, GatedRepoError):
        return (
            f"the hub gives {wanted.repository} only to those who accepted its terms: do so on its page, "
            "then `hf auth login`"
        )
    if isinstance(err, RepositoryNotFoundError):
        return (
            f"neither a folder here nor a repository of the hub, unless it is a private one (`hf auth login`); "
            f"give a folder or a hub id such as {_suggestion(wanted.repository)}"
        )
    if isinstance(err, RevisionNotFoundError):
        return f"{wanted.repository} has no revision {wanted.revision}; leave @{wanted.revision} out for its newest"
    offered = replace(wanted, repository=_KNOWN_AS.get(wanted.repository.rpartition("/")[2], wanted.repository))
    return (
        f"neither a folder here nor in the hub's cache, and the hub cannot be reached ({_name(err)}). "
        f"Where there is a network: {offered.download_command}; then give {f'DIR/{wanted.folder}'.rstrip('/')}"
    )


def _name(err: Exception) -> str:
    text = str(err).strip().splitlines()
    return f"{type(err).__name__}: {text[0][:120]}" if text else type(err).__name__


def _suggestion(name: str) -> str:
    return _KNOWN_AS.get(name.rpartition("/")[2], "openai/clip-vit-large-patch14-336")
