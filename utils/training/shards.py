"""What this process holds of the trained state of a DeepSpeed engine, read out and put back in pieces.

ZeRO divides master weights and moments over the processes, each stage in its own way. A piece says which elements of
which parameter it has, so a checkpoint made of pieces depends neither on the number of processes nor on the stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.errors import InputError
from utils import dist

from .optimizer import MUON_MARK
from .parts import (
    ADAM,
    FROZEN,
    MASTER,
    MUON,
    Divided,
    Part,
    Piece,
    ReadTensor,
    Views,
    Whole,
    own_stretch,
    put_weight,
)

if TYPE_CHECKING:
    from .engine import Engine

_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def trained_parameters(engine: Engine) -> dict[str, nn.Parameter]:
    """By their names."""
    return {name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad}


def named_tensors(engine: Engine) -> dict[str, Tensor]:
    """Parameters and buffers by their names."""
    return {**dict(engine.module.named_parameters()), **dict(engine.module.named_buffers())}


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
            yield own_stretch(FROZEN, name, tensor)
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
            put_weight(parameter, read(MASTER, name))
        for name, tensor in _untrained(engine, frozen).items():
            put_weight(tensor, read(FROZEN, name))
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


def _parts(engine: Engine) -> dict[str, Part]:
    """This process's part of every trained parameter that it has one of."""
    named = trained_parameters(engine)
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return {name: Divided(parameter, _moments_of(parameter)) for name, parameter in named.items()}
    momenta = _muon_momenta(engine) if stage else {}
    parts: dict[str, Part] = {}
    masters = {} if stage else _undivided_masters(engine)
    for name, parameter in named.items():
        if not stage:
            state = _inner(engine).state[masters[parameter]]
            moments = {kind: state[kind] for kind in _moments_of(parameter)}
            parts[name] = Whole({MASTER: masters[parameter], **moments})
        elif (mapping := parameter._hp_mapping) is not None:  # pyright: ignore[reportAttributeAccessIssue]
            start = mapping.lp_fragment_address.start
            views = {MASTER: mapping.hp_fragment, **(mapping.optim_fragment or {})}
            wanted = (MASTER, *_moments_of(parameter))
            found = {kind: (start, view) for kind, view in views.items() if kind in wanted}
            if parameter in momenta:
                found[MUON[0]] = (0, momenta[parameter])
            parts[name] = Views(found)
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
        buffer, offset = _inner(engine).state[flat][MUON[0]], 0
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
            state.update({kind: torch.zeros_like(flat.detach()) for kind in ADAM})
            state["step"] = torch.tensor(0.0) if isinstance(inner, torch.optim.AdamW) else 0
        elif stage in (1, 2):
            size = sum(parameter.numel() for parameter in zero.params_in_partition[index])
            state[MUON[0]] = torch.zeros(size, device=flat.device)
        else:
            state[MUON[0]] = torch.zeros_like(flat.detach())
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
    return MUON if _is_muons(parameter) else ADAM


def _inner(engine: Engine) -> torch.optim.Optimizer:
    """The optimizer of ours, which DeepSpeed wraps unless it has nothing to divide or to cast."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _untrained(engine: Engine, names: set[str]) -> dict[str, Tensor]:
    tensors = named_tensors(engine)
    missing = sorted(names - set(tensors))
    if missing:
        raise InputError(f"the checkpoint has {missing[0]}, which is no weight of this run's network")
    return {name: tensor for name, tensor in tensors.items() if name in names}
