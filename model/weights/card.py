"""The model card: README.md of a saved folder, from what config.json and its record say; nothing is made up.

A card of ours ends in a checksum. It is written anew as long as nobody has edited it; any other README.md stays.
Everything that stands in a card may come from somebody's files: names are escaped, and only names that the hub can
have become links.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from model.configuration import PixelLMConfig
from model.errors import one_line
from model.files import is_file, write_bytes, write_text
from model.hub import parse_hub_name
from model.recipe import TERMS_OF_BASES, DataTerms, Stage

logger = logging.getLogger(__name__)

CARD = "README.md"
_SEAL = "<!-- Written by PixelLM, and written anew with the model while nobody edits it: "
_HUB_DATASET = "huggingface.co/datasets/"
_LONGEST = 200  # characters of one name
# What has a meaning in Markdown; inside a word an underscore has none.
_MARKUP = re.compile(r"[\\`*{}\[\]<>#|~$&!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_NOT_RECORDED = "not recorded"
_WORDS = {
    "refine_alpha": "alpha of the target refinement loss (1: plain BCE)",
    "loss_normalization": "losses are means over the update (global) or each forward pass (local)",
    "trained_set": "trained besides LoRA",
    "projector_init": "start of the projector",
    "query_init": "start of the mask queries",
    "base_bits": "bits of the language model under LoRA in training",
    "precision": "precision of training",
    "optimizer": "optimizer",
    "lr": "peak learning rate",
    "muon_lr": "peak learning rate of Muon",
    "images_per_update": "images per update",
    "code": "version of the code",
}


def write_card(folder: Path, config: PixelLMConfig, *, has_tower: bool = True) -> None:
    """Write README.md, unless the folder has one that somebody wrote or edited.

    Args:
        config: tells base, data and recipe as far as they are known.
        has_tower: the vision tower is stored in the folder.
    """
    file = folder / CARD
    if is_file(file) and not is_ours(file.read_bytes()):
        logger.info("%s is kept: it is not a card as this code wrote it", file)
        return
    text = render_card(config, has_tower=has_tower)
    write_text(file, f"{text}{_SEAL}{_checksum(text.encode())} -->\n")


def keep_own_card(before: Path, folder: Path) -> None:
    """Take a README.md that somebody wrote or edited over into the folder that will replace its own."""
    file = before / CARD
    if is_file(file) and not is_ours(content := file.read_bytes()):
        write_bytes(folder / CARD, content)


def is_ours(content: bytes) -> bool:
    """Whether a README.md is as ``write_card`` wrote it."""
    text, _, end = content.rpartition(_SEAL.encode())
    return end == f"{_checksum(text)} -->\n".encode()


def render_card(config: PixelLMConfig, *, has_tower: bool = True) -> str:
    """The card of a model: YAML for the hub, and Markdown."""
    stages = _stages(config)
    sections = (
        _what_it_is(config),
        _how_to_use(config, has_tower),
        _architecture(config, has_tower),
        _training(stages),
        _data(stages),
        _terms(config, stages),
    )
    return "\n\n".join([_front_matter(config, stages), *sections]) + "\n\n"


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _stages(config: PixelLMConfig) -> list[Stage]:
    """The runs that made the weights, latest first; none for a network that was not trained."""
    recipe = config.recipe
    return [recipe, *recipe.get("earlier", [])] if recipe else []


def _is_published(stage: Stage) -> bool:
    """Training by this code always records whether it followed the release."""
    return "release_recipe" not in stage


def _front_matter(config: PixelLMConfig, stages: Sequence[Stage]) -> str:
    sources = [entry["source"] for entry in _data_terms(stages) if entry["source"].startswith(_HUB_DATASET)]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["pixellm", "image-segmentation", "reasoning-segmentation"],
        base_model=_repositories(_bases(config, stages).values()),
        datasets=_repositories(source.removeprefix(_HUB_DATASET) for source in sources),
        license="other" if stages else None,
        license_name="terms-of-bases-and-data" if stages else None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _repositories(names: Iterable[str]) -> list[str] | None:
    """Those that are names on the hub, each once; None if there are none."""
    return list(dict.fromkeys(found.repository for name in names if (found := parse_hub_name(name)))) or None


def _what_it_is(config: PixelLMConfig) -> str:
    if not config.recipe:
        origin = "Nothing is recorded about how these weights were trained."
    elif _is_published(config.recipe):
        origin = "These weights were trained with the code of the release."
    else:
        origin = "These weights were trained with this code."
    return (
        "# PixelLM\n\n"
        "PixelLM ([CVPR 2024](https://arxiv.org/abs/2312.02228)) answers a question about a photo in text and draws a\n"
        f"mask for every object that it names. {origin}"
    )


def _how_to_use(config: PixelLMConfig, has_tower: bool) -> str:
    tower = one_line(_portable(config.vision_tower))
    needs, argument, flag = "", "", ""
    if not has_tower:
        needs = "The vision tower is not in this folder; the commands name it. "
        argument, flag = f", vision_tower={tower!r}", f" --vision-tower {shlex.quote(tower)}"
    return (
        "## How to use it\n\n"
        f"{needs}Run it in a checkout of PixelLM's code, which has `model.hf`:\n\n"
        "```python\n"
        "from PIL import Image\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        "import model.hf  # the Auto classes know PixelLM from here on\n\n"
        'folder = "."  # this folder, or its name on the hub\n'
        f"network = AutoModelForImageTextToText.from_pretrained(folder{argument})\n"
        "processor = AutoProcessor.from_pretrained(folder)\n\n"
        'photo = Image.open("photo.jpg").convert("RGB")\n'
        'inputs = processor(images=photo, text="Which objects are red?").to(network.device)\n'
        "generated = network.generate(**inputs, max_new_tokens=128)\n"
        'answer = processor.decode(generated.sequences[0, inputs["input_ids"].shape[1] :])\n'
        "masks = processor.post_process_masks(generated.mask_logits, [(photo.height, photo.width)])[0]\n"
        "print(answer, masks.shape)  # one mask of the photo's size for every target\n"
        "```\n\n"
        "or in one command:\n\n"
        "```bash\n"
        f'python chat.py --version FOLDER{flag} --image photo.jpg --prompt "Which objects are red?"\n'
        "```"
    )


def _architecture(config: PixelLMConfig, has_tower: bool) -> str:
    text, vision = config.text_config, config.vision_config
    tower = f"{vision.num_hidden_layers} layers of width {vision.hidden_size}, patches of {config.patch_size} pixels"
    rows = [
        ("language model", f"{text.num_hidden_layers} layers of width {text.hidden_size}, {text.vocab_size} tokens"),
        ("vision tower (CLIP)", tower + ("" if has_tower else "; not in this folder")),
        ("input", f"{config.image_size} x {config.image_size} pixels, {config.num_image_tokens} image tokens"),
        ("scales of the mask decoder", str(config.image_feature_scale_num)),
        ("segmentation tokens per scale", str(config.seg_token_num)),
        ("width of the mask decoder", str(config.out_dim)),
        ("conversation template", _inline(config.conv_type)),
        ("stored in", _inline(str(config.dtype or "").removeprefix("torch.") or _NOT_RECORDED)),
    ]
    return f"## Architecture\n\n{_table(('', ''), rows)}"


def _training(stages: Sequence[Stage]) -> str:
    """Every run that made the weights with its mixture of data, latest first."""
    parts = ["## Training"]
    if not stages:
        return f"{parts[0]}\n\nNot known: nothing is recorded."
    for place, stage in enumerate(stages):
        if place:
            parts.append(f"It started from {_inline(stages[place - 1].get('init_from', 'another model'))}:")
        if _is_published(stage):
            parts.append(
                "The release does not record base, data, length and learning rate. Its code makes these choices:"
            )
        parts.append(_table(("", ""), _run_rows(stage)))
        if "data" in stage:
            rows = [(_inline(part["name"]), _share(part["share"])) for part in stage["data"]]
            parts.append(_table(("Trained on", "Share of the samples"), rows))
    return "\n\n".join(parts)


def _run_rows(stage: Stage) -> Iterator[tuple[str, str]]:
    if "release_recipe" in stage:
        yield "recipe", f"of the {'release' if stage['release_recipe'] else 'paper'}, with the choices below"
    if "updates" in stage or not _is_published(stage):
        yield "updates", _length(stage)
    if "lora" in stage:
        lora = stage["lora"]
        yield "LoRA", f"rank {lora['rank']}, alpha {lora['alpha']}, on {_inline(', '.join(lora['layers']))}"
    yield from ((words, _inline(str(stage[key]))) for key, words in _WORDS.items() if key in stage)


def _length(stage: Stage) -> str:
    """What was done if a merge knew it, and what was planned."""
    done = str(stage["updates"]) if "updates" in stage else _NOT_RECORDED
    if "epochs" not in stage:
        return done
    each = stage.get("updates_per_epoch")
    return f"{done}; planned: {stage['epochs']} epochs of {f'{each} updates' if each else 'every sample once'}"


def _data(stages: Sequence[Stage]) -> str:
    terms = _data_terms(stages)
    parts = ["## Data"]
    if not terms:
        parts.append("Not known: nothing is recorded.")
    elif any("data" not in stage for stage in stages):
        parts.append("What an earlier run was trained on is not recorded.")
    if terms:
        rows = [tuple(_inline(entry[key]) for key in ("title", "source", "license")) for entry in terms]
        parts.append(_table(("Download", "Where it comes from", "License"), rows))
        parts.append("Licenses are what the makers say, as far as we know; theirs is the word that counts.")
    return "\n\n".join(parts)


def _share(share: float | None) -> str:
    return "every sample once per epoch" if share is None else f"{share:.1%}"


def _data_terms(stages: Sequence[Stage]) -> list[DataTerms]:
    """Every download of all runs once."""
    found = {entry["title"]: entry for stage in reversed(stages) for entry in stage.get("data_terms", [])}
    return list(found.values())


def _terms(config: PixelLMConfig, stages: Sequence[Stage]) -> str:
    rows = []
    for what, name in _bases(config, stages).items():
        found = parse_hub_name(name)
        terms = TERMS_OF_BASES.get(found.repository, "see the base") if found else "not known here; see the base"
        rows.append((what, _inline(name), terms))
    return (
        f"## Bases and licenses\n\n{_table(('What', 'Name', 'License'), rows)}\n\n"
        "The code is under Apache-2.0. These weights are bound by the terms of their bases and of the data.\n"
        "No results are recorded here; add yours."
    )


def _bases(config: PixelLMConfig, stages: Sequence[Stage]) -> dict[str, str]:
    """What the weights were made of -> its name."""
    found: dict[str, str] = {}
    if stages and "init_from" in stages[0]:
        found["model it started from"] = stages[0]["init_from"]
    base = next((stage["base"] for stage in stages if "base" in stage), _NOT_RECORDED)
    tower = next((stage["vision_tower"] for stage in stages if "vision_tower" in stage), config.vision_tower)
    return {**found, "LLaVA base": base, "vision tower": _portable(tower)}


def _portable(name: str) -> str:
    """A hub name as it is, of a path the folder's name: nobody else has the path."""
    return name if parse_hub_name(name) else Path(name).name or _NOT_RECORDED


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _inline(value: Any) -> str:
    """Text of somebody's file as plain words of one line, whatever stands in it."""
    text = one_line(str(value))
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    return _MARKUP.sub(lambda match: f"\\{match[0]}", text)
