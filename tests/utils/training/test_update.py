"""The passes of an update wait for no device: it is asked for numbers when the last of them is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.PixelLM import PixelLMForCausalLM
from model.structures import Batch
from tests.support.tiny_data import write_dataset
from utils.cli.config import RunConfig
from utils.data.collate import Collator
from utils.data.encode import Encoder
from utils.data.paths import DatasetPaths
from utils.data.sources.muse import MuseTrain
from utils.training.gradients import GradientGuard
from utils.training.lora import set_trained, wrap_lora
from utils.training.start import set_checkpointing
from utils.training.update import Updates

META = torch.device("meta")


class Device(TorchDispatchMode):
    """Lets the meta device stand for a GPU: notes what would wait for it, and gives zeros for what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = [tensor for tensor in tensors if tensor.is_meta]
        if name == "_local_scalar_dense" and on_device:
            self.waits.append("a number is read")
            return 0.0 if tensors[0].is_floating_point() else 0
        if name == "_to_copy" and len(tensors) == 1:
            to = torch.device(kwargs.get("device") or tensors[0].device)
            if to != tensors[0].device and not kwargs.get("non_blocking"):
                self.waits.append(f"a copy from {tensors[0].device} to {to}")
            if on_device and to.type == "cpu":
                return torch.zeros(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        elif on_device and name in ("nonzero", "equal", "masked_select", "_unique2", "bincount"):
            self.waits.append(name)
        elif on_device and name.startswith("index") and any(not t.is_meta and t.dim() for t in tensors):
            self.waits.append(f"{name} by numbers that are not on the device")
        return func(*args, **kwargs)


class Engine:
    """As much of an engine as an update uses; its optimizer does nothing."""

    optimizer = None

    def __init__(self, network: nn.Module, device: Device) -> None:
        self._network, self._device = network, device

    def __call__(self, **inputs: Any) -> Any:
        return self._network(**inputs)

    def train(self) -> None:
        self._network.train()

    def get_lr(self) -> list[float]:
        return [0.1]

    def get_global_grad_norm(self) -> None:
        return None

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        self._device.waits.append("end of a pass")

    def step(self) -> None:
        self._device.waits.append("step")


def passes_of(folder: Path, encoder: Encoder, *, shared_prefix: bool) -> list[Batch]:
    """Two passes over photos with one target, several of one question, and several questions."""
    source = MuseTrain(DatasetPaths(write_dataset(folder)), expand=False)
    samples = [encoder(source.get(index, np.random.default_rng(0))) for index in range(len(source))]
    collator = Collator(encoder.config, 0, shared_prefix=shared_prefix)
    return [collator(samples[:2]), collator(samples[1:])]


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("pads", [True, False])
def test_no_pass_waits_for_the_device(
    make_encoder: Callable[..., Encoder], tmp_path: Path, *, pads: bool, shared_prefix: bool
):
    encoder = make_encoder(pad_train_clip_images=pads)
    with torch.device("meta"):
        network = PixelLMForCausalLM(encoder.config)
    wrapped = wrap_lora(network, rank=2, alpha=4, dropout=0.1, names=["q_proj", "v_proj"])
    set_trained(wrapped, train_mask_decoder=True, released_set=False)
    set_checkpointing(network.model, enabled=True)
    run = RunConfig(grad_accumulation_steps=2, precision="fp32")
    gradients, device = GradientGuard(wrapped, scales_loss=False, max_skips=0), Device()
    engine: Any = Engine(wrapped, device)
    updates = Updates(run, engine, gradients, device=META, covered_size=encoder.config.covered_size, sources=["custom"])
    batches = iter(passes_of(tmp_path, encoder, shared_prefix=shared_prefix))
    with device:
        updates.make(batches, 1, agree=lambda: 0)
    # Where every conversation is a row, transformers asks in each pass whether any of them is padded.
    waits = [wait for wait in device.waits if shared_prefix or wait != "a number is read"]
    looked = "a copy from meta to cpu"
    assert waits == ["end of a pass", "step", "end of a pass", looked, "step", looked]
