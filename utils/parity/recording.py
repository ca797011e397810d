"""A folder of recordings -> cases: the network of each, its batch, and the arrays that the release computed.

Nothing about a case is known beforehand: its photos, words, counts and sizes are read from its files. A folder holds

    <tower>/        a CLIP tower                      <base>/  a LLaVA base with its tokenizer
    images/         the photos                        conversations.json, val_datasets.json
    <trained case>/ batch.json|npz, vision.npz, train_step.json|npz, pytorch_model.bin, hf_model/, chat.json|npz
    <seeded case>/  batch.json, masks.npz, expected.npz, train_step.json, config.json, state_dict_shapes.json

A trained case has weights; those of a seeded case are made from their names, and its arrays are thinned out.

Shapes: B images, Q conversations, L tokens, P image tokens, N masks of one image, S scales, g patches per side,
V tower width, D language-model width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaTokenizer

from model.configuration import PixelLMConfig
from model.errors import InputError
from model.files import is_folder, read_json, read_object
from model.part_configs import vision_keys
from model.PixelLM import PixelLMForCausalLM
from model.structures import Batch
from model.text.conversation import CONVERSATIONS
from model.text.tokenizer import load_tokenizer
from model.text.tokens import IMAGE_TOKEN_ID, SegCodebook, seg_text
from model.weights.bases import TOWER_PREFIX
from model.weights.released import config_of_weights
from model.weights.tensors import read_weights
from utils.cli.config import MergeConfig
from utils.data.collate import Collator
from utils.data.encode import Encoder
from utils.data.records import SEG_MARK, RawSample, Turn
from utils.training.lora import PEFT_PREFIX, load_lora, lora_module_names, lora_rank, split_training_state, wrap_lora

# Which elements of an array a seeded case keeps.
_THINNED = {
    "images_clip": np.s_[:, :, ::16, ::16],
    "clip_last": np.s_[:, ::16],
    "multi": np.s_[:, ::16],
    "hidden": np.s_[:, ::16],
    "logits": np.s_[:, ::64, ::8],
    "low_res_masks": np.s_[:, :, ::4, ::4],
}


def find_cases(golden: Path) -> list[Case]:
    """Every case of a folder, in the order of their names.

    Raises:
        InputError: if there is none.
    """
    if not is_folder(golden):
        raise InputError(f"--golden {golden}: no such folder; give a folder of recordings laid out like golden/")
    cases = [Case(path.parent) for path in sorted(golden.glob("*/batch.json"))]
    if not cases:
        raise InputError(f"--golden {golden}: no sub-folder holds a batch.json; expected recorded cases")
    return cases


def seeded_tensor(name: str, shape: Sequence[int]) -> Tensor:
    """A weight that depends on nothing but its released name and shape."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    values = np.random.Generator(np.random.Philox(seed)).standard_normal(shape).astype(np.float32)
    if "positional_encoding_gaussian_matrix" in name:
        return torch.from_numpy(values)
    if len(shape) >= 2:
        return torch.from_numpy((values / np.sqrt(np.prod(shape[1:]))).astype(np.float32))
    return torch.from_numpy(1 + 0.1 * values if name.endswith("weight") else 0.02 * values)


def released_ids(ids: Sequence[int]) -> list[int]:
    """The release has one placeholder for an image where this code has one for each of its P tokens."""
    return [
        token for place, token in enumerate(ids) if token != IMAGE_TOKEN_ID or place == 0 or ids[place - 1] != token
    ]


def template_of(recorded: str) -> str:
    """The ``--conv_type`` that begins a conversation as recorded."""
    fitting = [name for name, conversation in CONVERSATIONS.items() if recorded.startswith(conversation.head)]
    return fitting[0] if fitting else "llava_v1"


class Case:
    """One sub-folder of recordings.

    Args:
        folder: the sub-folder; tower, base and photos lie beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.golden = folder.parent
        self.name = folder.name
        self.is_seeded = (folder / "state_dict_shapes.json").is_file()
        self.published = folder / "hf_model"

    def has(self, *names: str) -> bool:
        """Whether all of these were recorded."""
        return all((self.folder / name).exists() for name in names)

    def json(self, name: str) -> Any:
        return read_json(self.folder / name)

    def npz(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a file; no file can run code."""
        with np.load(self.folder / name, allow_pickle=False) as arrays:
            return dict(arrays)

    @cached_property
    def dialogues(self) -> dict[str, Any]:
        """batch.json: per image its file name, questions and answers; the rendered conversations in one list."""
        return self.json("batch.json")

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """What was recorded, under the names of a trained case; see ``thin``."""
        files = ("expected.npz",) if self.is_seeded else ("batch.npz", "vision.npz", "train_step.npz")
        arrays = {name: array for file in files if self.has(file) for name, array in self.npz(file).items()}
        return {re.sub(r"^multi(\d)", r"multi_\1", name.removesuffix("_sub")): a for name, a in arrays.items()}

    def thin(self, name: str, found: Tensor) -> np.ndarray:
        """The elements of a whole array that the recording of ``name`` kept."""
        array = found.detach().float().numpy()
        return array[_THINNED[name.rstrip("_0123456789")]] if self.is_seeded else array

    @cached_property
    def masks(self) -> list[np.ndarray]:
        """(N, H, W) bool of each image."""
        if self.is_seeded:
            arrays = self.npz("masks.npz")
            return [arrays[f"masks_{index}"] for index in range(len(arrays))]
        shapes, flat = self.arrays["mask_shapes"], self.arrays["masks"]
        ends = np.cumsum(np.prod(shapes, axis=1))[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]

    @cached_property
    def tower(self) -> Path:
        """The tower that the case's own config names, or the only one of the weights' width."""
        flat = read_object(self.published / "config.json") if self.published.is_dir() else {}
        named = self.golden / str(flat.get("mm_vision_tower", "")).rsplit("/", 1)[-1]
        if named in self._neighbors():
            return named
        (width,) = self.shapes[f"{TOWER_PREFIX}embeddings.class_embedding"]
        configs = {path: read_object(path / "config.json") for path in self._neighbors()}
        towers = [path for path, config in configs.items() if "clip" in str(config.get("model_type"))]
        fitting = [path for path in towers if vision_keys(configs[path])["hidden_size"] == width]
        return _only(fitting, f"CLIP tower of width {width}", self.golden)

    @cached_property
    def base(self) -> Path:
        """The LLaVA base: of the case's width where there are several."""
        width = self.shapes["model.embed_tokens.weight"][1]
        bases = [path for path in self._neighbors() if (path / "tokenizer.model").is_file()]
        fitting = [path for path in bases if read_object(path / "config.json").get("hidden_size") == width]
        return _only(fitting, f"LLaVA base of width {width}", self.golden)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The recorded weights as float32, LoRA included, under the names of the file."""
        if self.is_seeded:
            shapes = self.json("state_dict_shapes.json")
            made = {name: shape for name, shape in shapes.items() if not name.endswith(("inv_freq", "position_ids"))}
            return {name: seeded_tensor(name, shape) for name, shape in made.items()}
        stored = read_weights(self.folder / "pytorch_model.bin")
        return {name: tensor.float() for name, tensor in stored.items() if tensor.is_floating_point()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the plain model's weights."""
        plain, _ = split_training_state(self.state)
        return {name: tuple(tensor.shape) for name, tensor in plain.items()}

    @cached_property
    def tokenizer(self) -> LlamaTokenizer:
        """Of the base; it has the codebook once ``config`` was read."""
        return load_tokenizer(self.base)

    @cached_property
    def config(self) -> PixelLMConfig:
        flat = self.json("config.json") if self.is_seeded else read_object(self.base / "config.json")
        whole = {**flat, **(read_object(self.published / "config.json") if self.published.is_dir() else {})}
        return config_of_weights(
            self.shapes,
            flat=whole,
            vision=vision_keys(read_object(self.tower / "config.json")),
            vision_tower=str(self.tower),
            tokenizer=self.tokenizer,
            pad=bool(whole.get("pad_train_clip_images", False)),
            conv_type=template_of(self.dialogues["conversations"][0]),
            # A tokenizer without a limit says 10**30.
            model_max_length=min(self.tokenizer.model_max_length, whole["max_position_embeddings"]),
            source=str(self.folder),
        )

    @property
    def codebook(self) -> SegCodebook:
        return self.config.codebook

    @cached_property
    def network(self) -> PixelLMForCausalLM:
        """The recorded weights; LoRA, where there is some, inside the language model."""
        plain, lora = split_training_state(self.state)
        network = PixelLMForCausalLM.from_state(self.config, plain, dtype=torch.float32, source=str(self.folder))
        if lora:
            names = lora_module_names(lora)
            wrapped = wrap_lora(
                network, rank=lora_rank(lora), alpha=MergeConfig().lora_alpha, dropout=0.0, names=names
            ).eval()
            load_lora(wrapped, lora)
        return network

    def parameter(self, recorded_name: str) -> nn.Parameter:
        """The network's parameter of a recorded name, with or without peft's prefix."""
        return self._parameters[recorded_name.removeprefix(PEFT_PREFIX)]

    @cached_property
    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer, self.codebook, self.config)

    @cached_property
    def batch(self) -> Batch:
        """The recorded photos, words and masks, with a row for each conversation as in the release."""
        return self._collate(shared_prefix=False)

    @cached_property
    def shared_batch(self) -> Batch:
        """The same in rows where conversations share the prefix of their image."""
        return self._collate(shared_prefix=True)

    def _collate(self, *, shared_prefix: bool) -> Batch:
        samples = [self.encoder(self._raw(index), truncate=False) for index in range(len(self.dialogues["images"]))]
        # transformers declares every type that the id of any tokenizer's token may have.
        return Collator(self.config, cast(int, self.tokenizer.pad_token_id), shared_prefix=shared_prefix)(samples)

    def photo(self, name: str) -> Path:
        return self.golden / "images" / name

    def _raw(self, index: int) -> RawSample:
        group = seg_text(self.codebook.scales, self.codebook.tokens)
        conversations, used = [], 0
        for question, answer in zip(self.dialogues["questions"][index], self.dialogues["answers"][index], strict=True):
            marked = answer.replace(group, SEG_MARK)
            count = marked.count(SEG_MARK)
            conversations.append((Turn(question, marked, tuple(range(used, used + count))),))
            used += count
        name = self.dialogues["images"][index]
        return RawSample(name, self.photo(name), tuple(conversations), self.masks[index])

    def _neighbors(self) -> list[Path]:
        return [path.parent for path in sorted(self.golden.glob("*/config.json")) if path.parent != self.folder]


def _only(found: Sequence[Path], what: str, golden: Path) -> Path:
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"{golden}: expected one {what} beside the cases, found {names}")
    return found[0]
