"""Folders to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .hub import files_read

# transformers' names for how a folder is uploaded, among the options of its ``save_pretrained``.
_UPLOAD_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr")


def take_upload_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of the options of a ``save_pretrained`` what ``upload_folder`` reads."""
    return {name: options.pop(name) for name in _UPLOAD_OPTIONS if name in options}


def upload_folder(
    folder: Path,
    *,
    repo_id: str = "",
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload the model, or processor, in a folder as one commit; a card that the repository has stays.

    transformers would put a card of its own, with nothing filled in, in the place of ours.

    Args:
        repo_id: default is the folder's name; the repository is made if it is missing.
    Returns:
        address of the commit, or of the pull request with ``create_pr``.
    """
    # Imported here: most models are never uploaded.
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    names = [file.name for file in files_read(str(folder)) if file.parent == folder]
    repository = api.create_repo(repo_id or folder.name, private=private, exist_ok=True).repo_id
    if revision and not create_pr:
        api.create_branch(repository, branch=revision, exist_ok=True)
    if not api.file_exists(repository, "README.md", revision=revision):
        names.append("README.md")
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message=commit_message or "Upload model",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
        allow_patterns=names,  # whatever else lies there is nobody's business
    )
    return commit.pr_url or commit.commit_url
