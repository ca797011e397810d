"""What a run records about itself in the config.json of its model (``model/recipe.py``)."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from model.errors import one_line
from model.files import is_folder
from model.recipe import RECIPE_OF_PUBLISHED_WEIGHTS, DataPart, DataTerms, Recipe
from utils import dist
from utils.cli.config import RunConfig
from utils.data.family import Download
from utils.data.options import DataOptions
from utils.data.registry import find_family
from utils.data.sources import custom

_OF_A_MERGE = "hf_model"  # what most merged folders are called: the one above says which it is


def recipe_of(run: RunConfig, *, before: Recipe | None = None) -> Recipe:
    """The record of a run, with what its flags plan; how many updates were made of that is known to a merge.

    Args:
        before: of the model that the run starts from.
    """
    start = {"base": shown_name(run.version)}
    if run.init_from:
        start = {"init_from": shown_name(run.init_from)}
    record = {
        **{name: getattr(run, name) for name in ("release_recipe", *RECIPE_OF_PUBLISHED_WEIGHTS)},
        **start,
        "vision_tower": shown_name(run.vision_tower),
        "data": _data(DataOptions.of(run), by_rate=run.epoch_mode == "rates"),
        "data_terms": _data_terms(DataOptions.of(run)),
        "epochs": run.epochs,
        "updates_per_epoch": run.steps_per_epoch if run.epoch_mode == "rates" else None,
        "images_per_update": run.batch_size * run.grad_accumulation_steps * dist.world_size(),
        "lora": {
            "rank": run.lora_r,
            "alpha": run.lora_alpha,
            "layers": [name.strip() for name in run.lora_target_modules.split(",")],
        },
        **({"base_bits": 4} if run.load_in_4bit else {}),
        "precision": run.precision,
        "optimizer": run.optimizer,
        "lr": run.lr,
        **({"muon_lr": run.muon_lr} if run.optimizer == "muon" else {}),
        "code": _version(),
    }
    if before:
        last = {key: value for key, value in before.items() if key != "earlier"}
        record["earlier"] = [last, *before.get("earlier", [])]
    return Recipe(**record)


def shown_name(name: str) -> str:
    """A hub name as it is, a local folder by its own name: nobody else has its path."""
    folder = os.path.expanduser(name)
    if not is_folder(folder):
        return one_line(name)
    path = Path(os.path.abspath(folder))
    return one_line(path.parent.name if path.name == _OF_A_MERGE and path.parent.name else path.name)


def _data(options: DataOptions, *, by_rate: bool) -> list[DataPart]:
    total = sum(options.rates)
    found: list[DataPart] = []
    for name, rate in zip(options.datasets, options.rates, strict=True):
        parts = find_family(name).parts(options)
        share = round(rate / total / len(parts), 4) if by_rate else None
        names = [f"{name}: {_file_name(part)}" if part else name for part in parts]
        found += [DataPart(name=name, share=share) for name in names]
    return found


def _data_terms(options: DataOptions) -> list[DataTerms]:
    """Every download of the mixture once, as ``utils/data/`` declares it."""
    found: dict[str, DataTerms] = {}
    for name in options.datasets:
        family = find_family(name)
        for part in family.parts(options):
            for download in family.downloads(part):
                terms = _terms_of_own_file(part) if family is custom.FAMILY else _terms(download)
                found.setdefault(terms["title"], terms)
        for download in family.extra_downloads(options).values():
            found.setdefault(download.title, _terms(download))
    return list(found.values())


def _terms(download: Download) -> DataTerms:
    return {"title": download.title, "source": download.source, "license": download.license}


def _terms_of_own_file(file: str) -> DataTerms:
    return {"title": f"own data: {_file_name(file)}", "source": "who trained the model", "license": "not known here"}


def _file_name(part: str) -> str:
    """Parts that are files of the user by their names."""
    return one_line(Path(part).name)


def _version() -> str:
    try:
        return metadata.version("pixellm")
    except metadata.PackageNotFoundError:  # run from a folder that was not installed
        return "unknown"
