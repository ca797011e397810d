"""What this process holds of one trained parameter, by the way in which ZeRO has divided it, as pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from utils import dist

# Kinds of pieces beside the moments, which have the optimizer's own names.
MASTER = "master"  # a trained weight in float32
FROZEN = "frozen"  # a weight that is not trained, or a buffer, in its own precision
ADAM = ("exp_avg", "exp_avg_sq")
MUON = ("momentum_buffer",)

ReadTensor = Callable[[str, str], Tensor]


@dataclass(frozen=True)
class Piece:
    """Elements ``start`` to ``start + n`` of a flattened tensor.

    Attributes:
        kind: ``MASTER``, ``FROZEN``, or the name of a moment.
        name: of the parameter or buffer, as the engine's module names it.
        values: (n,), on any device; it may be a view.
    """

    kind: str
    name: str
    start: int
    values: Tensor


class Part(Protocol):
    """This process's part of one trained parameter."""

    def pieces(self, name: str) -> Iterator[Piece]: ...

    def put(self, name: str, read: ReadTensor) -> None: ...


@dataclass(frozen=True)
class Whole:
    """The whole parameter, which every process has: ZeRO 0. Each gives an equal stretch of it.

    Attributes:
        tensors: kind -> the optimizer's tensor.
    """

    tensors: dict[str, Tensor]

    def pieces(self, name: str) -> Iterator[Piece]:
        for kind, tensor in self.tensors.items():
            size = -(-tensor.numel() // dist.world_size())
            start = min(size * dist.rank(), tensor.numel())
            yield Piece(kind, name, start, tensor.detach().flatten()[start : start + size])

    def put(self, name: str, read: ReadTensor) -> None:
        for kind, tensor in self.tensors.items():
            tensor.copy_(read(kind, name))


@dataclass(frozen=True)
class Views:
    """Memory of this process, a stretch of the parameter: ZeRO 1 and 2.

    Attributes:
        views: kind -> (where its first element lies in the parameter, (n,) view of the optimizer's memory).
    """

    views: dict[str, tuple[int, Tensor]]

    def pieces(self, name: str) -> Iterator[Piece]:
        for kind, (start, view) in self.views.items():
            yield Piece(kind, name, start, view)

    def put(self, name: str, read: ReadTensor) -> None:
        for kind, (start, view) in self.views.items():
            view.copy_(read(kind, name).flatten()[start : start + len(view)])


@dataclass(frozen=True)
class Divided:
    """An equal part of every parameter, filled up with zeros: ZeRO-3, also where its states lie on a disk."""

    parameter: nn.Parameter
    moments: tuple[str, ...]

    def pieces(self, name: str) -> Iterator[Piece]:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        yield own_stretch(MASTER, name, self.parameter, safe_get_local_fp32_param(self.parameter))
        for kind in self.moments:
            yield own_stretch(kind, name, self.parameter, safe_get_local_optimizer_state(self.parameter, kind))

    def put(self, name: str, read: ReadTensor) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        safe_set_local_fp32_param(self.parameter, _padded_stretch(self.parameter, read(MASTER, name)))
        for kind in self.moments:
            values = _padded_stretch(self.parameter, read(kind, name))
            safe_set_local_optimizer_state(self.parameter, values, kind)


def own_stretch(kind: str, name: str, tensor: Any, values: Tensor | None = None) -> Piece:
    """This process's part of what ZeRO-3 has divided, without the zeros that fill it up."""
    part = tensor.ds_tensor if values is None else values
    start = tensor.ds_tensor.numel() * dist.rank()
    size = max(0, min(tensor.ds_tensor.numel(), tensor.ds_numel - start))
    return Piece(kind, name, min(start, tensor.ds_numel), part.detach().flatten()[:size])


def _padded_stretch(tensor: Any, whole: Tensor) -> Tensor:
    size = tensor.ds_tensor.numel()
    stretch = whole.flatten()[size * dist.rank() : size * (dist.rank() + 1)]
    return torch.nn.functional.pad(stretch, (0, size - len(stretch))).to(tensor.ds_tensor.device)


def put_weight(tensor: Any, whole: Tensor) -> None:
    """Set what the network computes with."""
    if hasattr(tensor, "ds_tensor"):
        tensor.ds_tensor.copy_(_padded_stretch(tensor, whole))
    else:
        tensor.data.copy_(whole)
