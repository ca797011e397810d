"""PixelLM as a pretrained model of transformers: what its folders are read and written with.

transformers does the reading and placing of weights; this file holds it to the rules of the house: every weight is
accounted for, nothing is silently random, and no file runs code.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from .attention import check_attention
from .configuration import PixelLMConfig
from .errors import InputError
from .files import is_file
from .generation import check_settings, read_generation_config
from .hub import link_model, resolve_folder, take_hub_options, upload_folder
from .outputs import output_files
from .processor import PixelLMProcessor
from .values import shorten
from .weights.bases import TOWER_PREFIX
from .weights.card import keep_own_card, write_card
from .weights.checkpoint import LoadReport, check_fit, read_model, read_weights_of_folder
from .weights.quantization import (
    check_quantization,
    language_model_only,
    use_kernels_that_fit,
)
from .weights.tensors import is_saved_weights, own_storage

logger = logging.getLogger(__name__)

_OF_AN_UPLOAD = ("private", "token", "revision", "create_pr", "commit_message", "commit_description")

_INSTEAD = {
    "load_in_8bit": "quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
    "load_in_4bit": "quantization_config=BitsAndBytesConfig(load_in_4bit=True)",
    "state_dict": "the tensors to PixelLMForCausalLM.from_state",
    "variant": "a folder of its own for each precision",
    "key_mapping": "weights under the released names",
    "gguf_file": "a folder with safetensors",
}


class OwnRules(PreTrainedModel):
    """What holds for the whole network and for the language model in it."""

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the first weight that is on one, as offloaded ones are until they are used."""
        placed = (weight.device for weight in self.parameters() if not weight.is_meta)
        return next(placed, torch.device("cpu" if hasattr(self, "hf_device_map") else "meta"))

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **options: Any) -> str:
        check_attention(attn_implementation)
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **options)

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], *args: Any, **options: Any) -> None:
        check_attention(attn_implementation, dtype=self.dtype)
        super().set_attn_implementation(attn_implementation, *args, **options)


class PixelLMPreTrainedModel(OwnRules):
    """Reading and writing folders, with transformers' options.

    Attributes:
        processor: what turns photos and questions into inputs of these weights; saved along with them. None for a
            network that was not read from a folder.
        load_report: what happened to every weight, None likewise.
    """

    config_class = PixelLMConfig
    config: PixelLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["LlamaDecoderLayer", "VisionTower", "MaskDecoder", "PromptEncoder"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    processor: PixelLMProcessor | None = None
    load_report: LoadReport | None = None

    def require_processor(self) -> PixelLMProcessor:
        """``processor``, for those who cannot do without.

        Raises:
            InputError: if the folder that the network was read from has no tokenizer.
        """
        if self.processor is None:
            raise InputError(f"{self.name_or_path} has no tokenizer; copy the tokenizer files of the model there")
        return self.processor

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        name: str | Path,
        *,
        config: PixelLMConfig | None = None,
        vision_tower: str | None = None,
        conv_type: str | None = None,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Any:
        """Read a merged folder, ours or a published one, here or on the hub, in evaluation mode.

        Args:
            name: a folder, or a name on the hub (docs/weights.md).
            config: default is what the folder says.
            vision_tower: where to read the tower when it is not inside; default is what the folder's config says.
            conv_type: template of a published folder, which does not record it (default llava_v1); a folder of ours
                does.
            output_loading_info: return transformers' dictionary of missing and unexpected weights, too.
            options: transformers' own: ``dtype`` (default is the stored one), ``device_map``, ``max_memory``,
                ``attn_implementation``, ``quantization_config``, ``subfolder``, ``revision``, ``token``, ``cache_dir``.
        Raises:
            InputError: if a file is missing or damaged, files do not belong together, or an option cannot be met here.
        """
        _refuse_options(options)
        check_attention(options.get("attn_implementation"), dtype=options.get("dtype"))
        options["quantization_config"] = check_quantization(options.get("quantization_config"))
        folder = resolve_folder(str(name), **take_hub_options(options))
        found = read_model(folder, vision_tower=vision_tower, conv_type=conv_type)
        config = config or found.config
        state = read_weights_of_folder(folder, config, vision_tower=vision_tower)
        settings = folder / "generation_config.json"
        if not found.published and is_file(settings) and "generation_config" not in options:
            options["generation_config"] = read_generation_config(settings)
        network = cls.from_state(config, state, source=str(folder), **options)
        if found.tokenizer is not None:
            network.processor = PixelLMProcessor.of(config, found.tokenizer)
        network.name_or_path = network.config.name_or_path = str(name)
        return (network, cast(LoadReport, network.load_report).loading_info()) if output_loading_info else network

    @classmethod
    def from_state(
        cls,
        config: PixelLMConfig,
        state: Mapping[str, Tensor],
        *,
        source: str,
        may_initialize: tuple[str, ...] = (),
        **options: Any,
    ) -> Self:
        """Make the network in evaluation mode from tensors, which are taken over as they are where they need no change.

        Args:
            state: tensors under released names.
            source: names the weights in messages.
            may_initialize: prefixes of parameters that may be absent; they are initialized.
            options: as of ``from_pretrained``.
        Raises:
            InputError: for any other missing, left-over or wrongly shaped weight.
        """
        wanted = options.get("attn_implementation", config._attn_implementation)
        check_attention(wanted, dtype=options.get("dtype") or config.dtype)
        with torch.device("meta"):
            plan = cls(config)
        report = check_fit(plan.state_dict(), state, source=source, may_initialize=may_initialize)
        used = {name: tensor for name, tensor in state.items() if name not in report.ignored}
        quantized = language_model_only(options.pop("quantization_config", None), plan)
        with _own_words(), _placement_errors(options.get("device_map")):
            network = cast(
                Self,
                super().from_pretrained(None, config=config, state_dict=used, quantization_config=quantized, **options),
            )
        if quantized is not None:
            use_kernels_that_fit(network)
        network.load_report = report
        logger.info("%s", report.describe())
        return network

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | Path,
        *,
        save_vision_tower: bool = True,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write a whole folder: weights, config, tokenizer, processor and model card.

        All of it takes its place at the end, or nothing does. Safetensors that the folder had go; other files stay.

        Args:
            save_directory: made if it is missing.
            save_vision_tower: store the tower inside, so that the folder stands alone.
            push_to_hub: upload the folder, too; then ``repo_id`` and the like as in transformers.
            options: as in transformers, such as ``max_shard_size``.
        Raises:
            InputError: if the language model is quantized, so that its weights are rounded for good, if a setting of
                ``generation_config`` is wrong or has no effect, or if the folder cannot be written.
        """
        if not options.get("is_main_process", True):
            return
        if getattr(self, "hf_quantizer", None) is not None:
            raise InputError(
                "this model's language model is quantized; save the model that it was read from, and quantize it again "
                "when it is read"
            )
        check_settings(cast(Any, self).generation_config)
        upload = {key: options.pop(key) for key in ("repo_id", *_OF_AN_UPLOAD) if key in options}
        state = options.pop("state_dict", None) or self.state_dict()
        kept = {
            name: own_storage(tensor)
            for name, tensor in state.items()
            if save_vision_tower or not name.startswith(TOWER_PREFIX)
        }
        folder = Path(save_directory)
        with output_files(folder, replaces=is_saved_weights) as partial:  # it may be the folder that this model lies in
            with _own_words():
                super().save_pretrained(partial, state_dict=kept, **options)
            for weights in partial.glob("*.safetensors"):
                weights.chmod(0o644)  # written readable by their owner alone
            if self.processor is not None:
                self.processor.save_pretrained(partial)
            keep_own_card(folder, partial)
            write_card(partial, self.config, has_tower=save_vision_tower)
        if push_to_hub:

            def fill(copy: Path) -> None:
                link_model(folder, copy)
                write_card(copy, self.config, has_tower=save_vision_tower)

            upload_folder(upload.pop("repo_id", folder.name), fill, **upload)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Upload what ``save_pretrained`` writes; transformers' own would put an empty model card in place of ours.

        Args:
            repo_id: ``owner/repository``; made if it is missing. A README.md that somebody wrote or edited there stays.
            options: ``private``, ``token``, ``revision``, ``create_pr``, ``commit_message`` and
                ``commit_description`` as in transformers; the rest goes to ``save_pretrained``.
        Returns:
            the address of the commit.
        """
        upload = {key: options.pop(key) for key in _OF_AN_UPLOAD if key in options}
        return upload_folder(repo_id, lambda folder: self.save_pretrained(folder, **options), **upload)

    def init_weights(self) -> None:
        """Nothing is left to draw: PyTorch's constructors have done it, but for what only a loaded buffer fills."""
        for module in self.modules():
            if hasattr(module, "positional_encoding_gaussian_matrix"):
                cast(Any, module).reset_parameters()


def _refuse_options(options: dict[str, Any]) -> None:
    """Options of other or earlier models that mean something else here; where they ask for nothing they are dropped."""
    for name, instead in _INSTEAD.items():
        if options.pop(name, None):
            raise InputError(f"{name}: no such option; give {instead}")


@contextmanager
def _placement_errors(device_map: Any) -> Iterator[None]:
    """What transformers and accelerate say about a map that cannot be met, in one line."""
    try:
        yield
    except ValueError as err:
        if device_map is None:
            raise
        if "offload_folder" in str(err):
            raise InputError(
                f"with device_map {shorten(device_map)} a part of the model fits neither the GPUs nor the memory that "
                "it may use; give offload_folder, a folder on the disk for it"
            ) from err
        problem = textwrap.shorten(str(err), 250)  # it names every weight
        raise InputError(f"device_map {shorten(device_map)} cannot be met: {problem}") from err


@contextmanager
def _own_words() -> Iterator[None]:
    """Our report says what happened; transformers' table and progress bars would say it again."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
