"""What this process holds of the trained state of a DeepSpeed engine, read out and put back in pieces.

ZeRO divides master weights and moments over the processes, each stage in its own way. A piece says which elements of
which parameter it has, so a checkpoint made of pieces depends neither on the number of processes nor on the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from model.errors import InputError
from utils import dist

from .optimizer import MUON_MARK

if TYPE_CHECKING:
    from .engine import Engine

# Kinds of pieces beside the moments, which have the optimizer's own names.
MASTER = "master"  # a trained weight in float32
FROZEN = "frozen"  # a weight that is not trained, or a buffer, in its own precision
_ADAM = ("exp_avg", "exp_avg_sq")
_MUON = ("momentum_buffer",)
MOMENTS = _ADAM + _MUON
_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")

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


class _Part(Protocol):
    """This process's part of one trained parameter."""

    def pieces(self, name: str) -> Iterator[Piece]: ...

    def put(self, name: str, read: ReadTensor) -> None: ...


def trained_parameters(engine: Engine) -> dict[str, nn.Parameter]:
    """By their names."""
    return {name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad}


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """The whole shape, also where ZeRO-3 has divided the tensor."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def own_pieces(engine: Engine, frozen: set[str]) -> Iterator[Piece]:
    """The part of this process; those of all processes together hold every element.

    Args:
        frozen: names of weights and buffers that are not trained and are wanted nevertheless.
    """
    _make_moments(engine)
    for name, part in _parts(engine).items():
        yield from part.pieces(name)
    for index, (name, tensor) in enumerate(_untrained(engine, frozen).items()):
        if hasattr(tensor, "ds_tensor"):
            yield _own_stretch(FROZEN, name, tensor)
        elif index % dist.world_size() == dist.rank():
            yield Piece(FROZEN, name, 0, tensor.detach().flatten())


@torch.no_grad()
def put_back(engine: Engine, frozen: set[str], read: ReadTensor, *, steps: int) -> None:
    """Put master weights, moments and untrained tensors into an engine that may be divided otherwise.

    Args:
        frozen: names of untrained weights and buffers that ``read`` has.
        read: (kind, name) -> the whole tensor.
        steps: updates that the optimizer has made.
    Raises:
        InputError: on every process, if ``read`` raises it on one.
    """
    _make_moments(engine)
    divided = engine.zero_optimization_stage() == 3
    if divided:
        engine.optimizer.checkpoint_event_prologue()
    with dist.stop_together():  # in the epilogue, processes wait for one another
        for name, part in _parts(engine).items():
            part.put(name, read)
        for name, parameter in trained_parameters(engine).items():  # also those of which others have the masters
            _put_weight(parameter, read(MASTER, name))
        for name, tensor in _untrained(engine, frozen).items():
            _put_weight(tensor, read(FROZEN, name))
    for state in _inner(engine).state.values():
        if "step" in state:
            state["step"] = torch.full_like(state["step"], steps) if torch.is_tensor(state["step"]) else steps
    if divided:
        engine.optimizer.checkpoint_event_epilogue()


def steps_of(engine: Engine) -> int:
    """Updates that the optimizer has made; fewer than the run's where overflowing ones were skipped."""
    return max((int(state["step"]) for state in _inner(engine).state.values() if "step" in state), default=0)


def read_loss_scale(engine: Engine) -> dict[str, float]:
    """The state of fp16's loss scale; empty in other precisions."""
    scaler = _scaler(engine)
    return {name: getattr(scaler, name) for name in _SCALE if getattr(scaler, name, None) is not None}


def put_loss_scale(engine: Engine, scale: dict[str, float]) -> None:
    """What ``read_loss_scale`` gave; without effect in other precisions."""
    scaler = _scaler(engine)
    for name, value in scale.items():
        if getattr(scaler, name, None) is not None:
            setattr(scaler, name, value if name == "cur_scale" else int(value))


def _scaler(engine: Engine) -> Any:
    if not engine.fp16_enabled():
        return None
    return getattr(engine.optimizer, "loss_scaler", None) or engine.optimizer.loss_scale_config


@dataclass(frozen=True)
class _Whole:
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
class _Views:
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
class _Divided:
    """An equal part of every parameter, filled up with zeros: ZeRO-3, also where its states lie on a disk."""

    parameter: nn.Parameter
    moments: tuple[str, ...]

    def pieces(self, name: str) -> Iterator[Piece]:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        yield _own_stretch(MASTER, name, self.parameter, safe_get_local_fp32_param(self.parameter))
        for kind in self.moments:
            yield _own_stretch(kind, name, self.parameter, safe_get_local_optimizer_state(self.parameter, kind))

    def put(self, name: str, read: ReadTensor) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        safe_set_local_fp32_param(self.parameter, _padded_stretch(self.parameter, read(MASTER, name)))
        for kind in self.moments:
            values = _padded_stretch(self.parameter, read(kind, name))
            safe_set_local_optimizer_state(self.parameter, values, kind)


def _parts(engine: Engine) -> dict[str, _Part]:
    """This process's part of every trained parameter that it has one of."""
    named = trained_parameters(engine)
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return {name: _Divided(parameter, _moments_of(parameter)) for name, parameter in named.items()}
    momenta = _muon_momenta(engine) if stage else {}
    parts: dict[str, _Part] = {}
    masters = {} if stage else _undivided_masters(engine)
    for name, parameter in named.items():
        if not stage:
            state = _inner(engine).state[masters[parameter]]
            moments = {kind: state[kind] for kind in _moments_of(parameter)}
            parts[name] = _Whole({MASTER: masters[parameter], **moments})
        elif (mapping := parameter._hp_mapping) is not None:  # pyright: ignore[reportAttributeAccessIssue]
            start = mapping.lp_fragment_address.start
            views = {MASTER: mapping.hp_fragment, **(mapping.optim_fragment or {})}
            wanted = (MASTER, *_moments_of(parameter))
            found = {kind: (start, view) for kind, view in views.items() if kind in wanted}
            if parameter in momenta:
                found[_MUON[0]] = (0, momenta[parameter])
            parts[name] = _Views(found)
    return parts


def _undivided_masters(engine: Engine) -> dict[nn.Parameter, Tensor]:
    """Each trained parameter and what the optimizer updates: itself, or in 16 bits its float32 copy."""
    optimizer: Any = engine.optimizer
    if not hasattr(optimizer, "fp32_groups"):
        return {parameter: parameter for parameter in trained_parameters(engine).values()}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {low: master for lows, masters in pairs for low, master in zip(lows, masters, strict=True)}


def _muon_momenta(engine: Engine) -> dict[nn.Parameter, Tensor]:
    """ZeRO 1 and 2 keep the whole momentum of every matrix of which a process has a part, one after the other."""
    zero: Any = engine.optimizer
    momenta = {}
    for flat, parameters in zip(_flat_masters(engine), getattr(zero, "params_in_partition", []), strict=False):
        if not parameters or not _is_muons(parameters[0]):
            continue
        buffer, offset = _inner(engine).state[flat][_MUON[0]], 0
        for parameter in parameters:
            momenta[parameter] = buffer[offset : offset + parameter.numel()]
            offset += parameter.numel()
    return momenta


def _make_moments(engine: Engine) -> None:
    """Optimizers make their moments in the first update; here they begin at zero, as they would there."""
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    inner = _inner(engine)
    for index, flat in enumerate(_flat_masters(engine)):
        state = inner.state[flat]
        if state:
            continue
        if not _is_flat_of_muon(engine, index, flat):
            state.update({kind: torch.zeros_like(flat.detach()) for kind in _ADAM})
            state["step"] = torch.tensor(0.0) if isinstance(inner, torch.optim.AdamW) else 0
        elif stage in (1, 2):
            size = sum(parameter.numel() for parameter in zero.params_in_partition[index])
            state[_MUON[0]] = torch.zeros(size, device=flat.device)
        else:
            state[_MUON[0]] = torch.zeros_like(flat.detach())
    if stage in (1, 2):
        zero._lazy_init_hp_params_optimizer_state()


def _flat_masters(engine: Engine) -> list[Tensor]:
    """The tensors that the optimizer updates."""
    zero: Any = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups"):
        if hasattr(zero, name):  # ZeRO 3; 1 with sums of gradients in float32; 1 and 2
            return list(getattr(zero, name))
    return list(_undivided_masters(engine).values())


def _is_flat_of_muon(engine: Engine, index: int, flat: Tensor) -> bool:
    zero: Any = engine.optimizer
    groups = _inner(engine).param_groups
    if engine.zero_optimization_stage() == 3:
        return bool(groups[zero.sub_group_to_group_id[index]].get(MUON_MARK))
    if engine.zero_optimization_stage():
        return bool(groups[index].get(MUON_MARK))
    return any(flat is tensor for group in groups if group.get(MUON_MARK) for tensor in group["params"])


def _is_muons(parameter: nn.Parameter) -> bool:
    return bool(getattr(parameter, MUON_MARK, False))


def _moments_of(parameter: nn.Parameter) -> tuple[str, ...]:
    return _MUON if _is_muons(parameter) else _ADAM


def _inner(engine: Engine) -> torch.optim.Optimizer:
    """The optimizer of ours, which DeepSpeed wraps unless it has nothing to divide or to cast."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _untrained(engine: Engine, names: set[str]) -> dict[str, Tensor]:
    tensors = {**dict(engine.module.named_parameters()), **dict(engine.module.named_buffers())}
    missing = sorted(names - set(tensors))
    if missing:
        raise InputError(f"the checkpoint has {missing[0]}, which is no weight of this run's network")
    return {name: tensor for name, tensor in tensors.items() if name in names}


def _own_stretch(kind: str, name: str, tensor: Any, values: Tensor | None = None) -> Piece:
    """This process's part of what ZeRO-3 has divided, without the zeros that fill it up."""
    part = tensor.ds_tensor if values is None else values
    start = tensor.ds_tensor.numel() * dist.rank()
    size = max(0, min(tensor.ds_tensor.numel(), tensor.ds_numel - start))
    return Piece(kind, name, min(start, tensor.ds_numel), part.detach().flatten()[:size])


def _padded_stretch(tensor: Any, whole: Tensor) -> Tensor:
    size = tensor.ds_tensor.numel()
    stretch = whole.flatten()[size * dist.rank() : size * (dist.rank() + 1)]
    return torch.nn.functional.pad(stretch, (0, size - len(stretch))).to(tensor.ds_tensor.device)


def _put_weight(tensor: Any, whole: Tensor) -> None:
    """Set what the network computes with."""
    if hasattr(tensor, "ds_tensor"):
        tensor.ds_tensor.copy_(_padded_stretch(tensor, whole))
    else:
        tensor.data.copy_(whole)
