"""Training weights -> a merged Hugging Face folder that is checked before anyone relies on it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaTokenizer

from model.configuration import PRECISIONS, PixelLMConfig
from model.errors import InputError
from model.hub import portable_path, resolve_folder
from model.outputs import check_output_folder, output_folder
from model.part_configs import read_base_config, read_tower_config
from model.PixelLM import PixelLMForCausalLM
from model.precision import settle_precision
from model.processor import PixelLMProcessor
from model.structures import Batch
from model.text.conversation import IMAGE, SEG_MARK, get_conversation
from model.text.tokenizer import load_tokenizer
from model.text.tokens import IGNORE_INDEX, encode_conversation, seg_strings
from model.values import Precision
from model.weights.bases import read_tower
from model.weights.card import keep_own_card
from model.weights.checkpoint import MERGED_MODEL
from model.weights.quantization import check_quantization, nf4
from model.weights.released import config_of_weights
from utils.cli.config import MergeConfig

from .lora import load_lora, lora_module_names, lora_rank, merge_lora, split_training_state, wrap_lora
from .run_description import RunDescription
from .run_weights import estimate_size, find_moved, read_training_weights
from .steps import is_step, updates_of

logger = logging.getLogger(__name__)

# Largest relative difference (norm of the difference over norm of the reference) that rounding the weights to the
# saved precision may cause.
_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-1, "fp16": 2e-2}


@dataclass
class _Run:
    """What is known of the run that trained the weights."""

    config: PixelLMConfig
    tokenizer: LlamaTokenizer
    lora_alpha: int
    load_in_4bit: bool = False


def merge(flags: MergeConfig, *, given: Collection[str] = ("version", "vision_tower")) -> dict[str, float]:
    """Merge LoRA into its base, save, reload, and compare with the unmerged model; all or nothing.

    Args:
        given: names of the flags that were given. Defaults of the others are hub names that nobody asked for, and are
            not looked for in place of a base or tower that has moved.
    Returns:
        how far logits and masks are from those of the 4-bit model that was trained; empty if it had 16 bits.
    Raises:
        InputError: if weights, base or tower are missing or do not fit together, if ``save_path`` may not be written,
            or if the saved model answers otherwise than the unmerged one.
    """
    if not flags.weight:
        raise InputError("--weight is missing: give pytorch_model.bin, a folder of shards, or a run's ckpt_model")
    weight, folder = Path(flags.weight), Path(flags.save_path)
    check_output_folder(
        folder,
        kind=MERGED_MODEL,
        flag="--save_path",
        inputs=[weight, flags.version, flags.vision_tower],
        size=estimate_size(weight),
    )
    with output_folder(folder, kind=MERGED_MODEL) as unchecked:
        keep_own_card(folder, unchecked)
        flags = replace(flags, precision=saved_precision(flags))
        moved = {name: getattr(flags, name) if name in given else "" for name in ("version", "vision_tower")}
        expected, distance = _write_merged(flags, unchecked, moved)
        verify(unchecked, expected, precision=flags.precision)
    logger.info("saved %s", folder)
    return distance


def _write_merged(
    flags: MergeConfig, folder: Path, moved: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Write the merged model into an existing folder.

    Returns:
        what ``probe`` finds in the unmerged one, and the distance as of ``merge``.
    """
    weight = Path(flags.weight)
    weights = read_training_weights(weight, **moved)
    base, lora = split_training_state(weights)
    run = _describe(base, flags)
    if updates := updates_of(weight):
        run.config.recipe = {**run.config.recipe, "updates": updates}
    if not flags.save_vision_tower:
        place = find_moved(run.config.vision_tower, moved["vision_tower"], flag="--vision-tower")
        run.config.vision_tower = portable_path(place)
        base = _with_tower_of_folder(base, run.config)
    network = PixelLMForCausalLM.from_state(run.config, base, dtype=torch.float32, source=str(weight))
    network.processor = PixelLMProcessor.of(run.config, run.tokenizer)
    distance: dict[str, float] = {}
    if lora:
        rank = lora_rank(lora)
        logger.info(
            "merging LoRA of rank %d, alpha %g, on %s", rank, run.lora_alpha, ", ".join(lora_module_names(lora))
        )
        wrapped = _with_lora(network, lora, run)
        expected = probe(network, run.tokenizer)
        if run.load_in_4bit:
            distance = _tell_distance(expected, run, base, lora, source=str(weight))
        merge_lora(wrapped)
    else:
        logger.info("the weights hold no LoRA; they are saved as they are")
        expected = probe(network, run.tokenizer)
    network.to(dtype=PRECISIONS[flags.precision])  # pyright: ignore[reportCallIssue]
    network.save_pretrained(folder, save_vision_tower=flags.save_vision_tower)
    return expected, distance


def _with_lora(network: PixelLMForCausalLM, lora: dict[str, Tensor], run: _Run) -> nn.Module:
    names = lora_module_names(lora)
    wrapped = wrap_lora(network, rank=lora_rank(lora), alpha=run.lora_alpha, dropout=0.0, names=names).eval()
    load_lora(wrapped, lora)
    return wrapped


def _tell_distance(
    expected: dict[str, Tensor], run: _Run, base: dict[str, Tensor], lora: dict[str, Tensor], *, source: str
) -> dict[str, float]:
    """Say how far the merged model is from the one that was trained, whose language model had 4 bits.

    LoRA is merged into the 16-bit base. Added to the 4-bit weights, it would be rounded with them once more.
    """
    try:
        config = check_quantization(nf4(torch.float32))
    except InputError as err:
        logger.warning("how far the merged model is from the 4-bit one that was trained is not measured: %s", err)
        return {}
    trained = PixelLMForCausalLM.from_state(
        run.config, base, source=source, dtype=torch.float32, device_map={"": "cpu"}, quantization_config=config
    )
    _with_lora(trained, lora, run)
    found = probe(trained, run.tokenizer)
    distance = {name: _difference(expected[name], reference) for name, reference in found.items()}
    logger.info(
        "the run trained on a 4-bit base, and LoRA is merged into the 16-bit one: this moves logits by %.1e and masks "
        "by %.1e of their size",
        distance["logits"], distance["masks"],
    )  # fmt: skip
    return distance


def _difference(found: Tensor, reference: Tensor) -> float:
    """Norm of the difference over norm of the reference."""
    return float((found - reference).norm() / reference.norm().clamp(min=1e-12))


def saved_precision(flags: MergeConfig) -> Precision:
    """With ``auto``, that of the run; where nothing describes it, that of this machine."""
    wanted = flags.precision
    if wanted == "auto" and (description := RunDescription.of_weight(Path(flags.weight))):
        wanted = description.read_flags().precision
        logger.info("--precision auto: %s, because the run was trained in it", wanted)
    return settle_precision(wanted, "cuda" if torch.cuda.is_available() else "cpu")


def _describe(base: dict[str, Tensor], flags: MergeConfig) -> _Run:
    """The checkpoint that the weights are of tells everything; where none does, the weights and the flags have to."""
    description = RunDescription.of_weight(Path(flags.weight))
    return _from_description(description) if description else _from_weights(base, flags)


def _from_description(description: RunDescription) -> _Run:
    run = description.read_flags()
    config, tokenizer = description.read_model()
    old = "" if is_step(description.folder) else "; the checkpoint itself, of an older version, does not say them"
    logger.info("rank, alpha, token counts and sizes are taken from %s%s", description.folder, old)
    return _Run(config, tokenizer, run.lora_alpha, run.load_in_4bit)


def _from_weights(base: dict[str, Tensor], flags: MergeConfig) -> _Run:
    """A checkpoint of the release: counts and sizes are read off its tensors, the rest is released behavior."""
    folder = resolve_folder(flags.version, flag="--version")
    tower = resolve_folder(flags.vision_tower, flag="--vision-tower")
    tokenizer = load_tokenizer(folder, model_max_length=flags.model_max_length)
    flat, vision = read_base_config(folder), read_tower_config(tower)
    config = config_of_weights(
        {name: tuple(tensor.shape) for name, tensor in base.items()},
        flat=flat,
        vision=vision,
        vision_tower=portable_path(flags.vision_tower),
        tokenizer=tokenizer,
        pad=flags.pad_train_clip_images,
        conv_type=flags.conv_type,
        model_max_length=flags.model_max_length,
        source=f"--weight {flags.weight}",
    )
    return _Run(config, tokenizer, flags.lora_alpha)


def _with_tower_of_folder(base: dict[str, Tensor], config: PixelLMConfig) -> dict[str, Tensor]:
    """Use the tower that the merged folder will refer to; the checkpoint's copy must be the same, up to rounding."""
    folder = resolve_folder(config.vision_tower, flag="--vision-tower")
    tower = read_tower(folder, config)
    for name, tensor in tower.items():
        trained = base.get(name)
        if trained is None or name.endswith("position_ids"):
            continue
        if trained.shape != tensor.shape or not torch.allclose(trained.float(), tensor.float(), rtol=1e-2, atol=1e-2):
            raise InputError(
                f"the run was trained with another vision tower than {folder} ({name} differs); "
                "give its own as --vision-tower, or --save_vision_tower to store the run's copy"
            )
    return base | tower


@torch.inference_mode()
def probe(network: PixelLMForCausalLM, tokenizer: LlamaTokenizer) -> dict[str, Tensor]:
    """What the network makes of one fixed image and conversation, in float32.

    Returns:
        logits: (1, L, vocabulary) of the language model.
        masks: (1, h, w) mask logits before resizing.
    """
    config = network.config
    rendered = get_conversation(config.conv_type).render(
        [("What is this?", f"It is {SEG_MARK}.")],
        image=IMAGE,
        group=seg_strings(config.image_feature_scale_num, config.seg_token_num),
    )
    ids, _ = encode_conversation(tokenizer, rendered, num_image_tokens=config.num_image_tokens)
    input_ids = torch.tensor([ids])
    side = config.image_size
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = Batch(
        pixel_values=pixels,
        valid_hw=torch.tensor([[side, side]]),
        input_ids=input_ids,
        labels=torch.full_like(input_ids, IGNORE_INDEX),
        attention_mask=torch.ones_like(input_ids, dtype=torch.bool),
        image_index=torch.zeros(1, dtype=torch.long),
        masks=[torch.zeros(1, side, side, dtype=torch.bool)],
        orig_hw=[(side, side)],
        sample_ids=["probe"],
    )
    output = network(**batch.inputs())
    return {"logits": network.lm_head(output.last_hidden_state).float(), "masks": output.mask_logits[0].float()}


def verify(folder: Path, expected: dict[str, Tensor], *, precision: str) -> None:
    """Reload a merged folder and compare its logits and masks with those of the unmerged model.

    Args:
        expected: what ``probe`` returned for the unmerged model.
        precision: of the saved weights; it decides how far the two may differ.
    Raises:
        InputError: if they differ by more.
    """
    network = PixelLMForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = probe(network, network.require_processor().tokenizer)
    limit = _TOLERANCE[precision]
    for name, reference in expected.items():
        difference = _difference(found[name], reference)
        logger.info("reloaded %s differ from the unmerged model by %.2e (limit %.0e)", name, difference, limit)
        if not difference <= limit:
            raise InputError(
                f"the merged model's {name} differ from the unmerged model's by {difference:.2e}, more than "
                f"{limit:.0e} for {precision}; nothing was saved. Try --precision fp32"
            )
