"""A loss or a gradient that is not finite: found before the update, told by name, or passed over.

DeepSpeed looks for such gradients under fp16 alone, and its ZeRO stages free them during the backward pass. So a hook
of every trained parameter takes the largest entry of each gradient while it is there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import InputError
from model.structures import Batch, LossTerms
from utils import dist

from .engine import Engine

logger = logging.getLogger(__name__)

_LOSS_PARTS = ("total", "ce", "bce", "dice")
# Gradients are measured together, since one kernel for each would take longer than the reading. Until then they stay
# in memory: at most this many numbers.
_MEASURED_TOGETHER = 2**24
# How DeepSpeed's dynamic loss scale says that it has found no scale at which fp16 does not overflow.
_LOWEST_SCALE = "loss scale already at minimum"


@dataclass(frozen=True)
class Finding:
    """The first forward pass of a process whose loss or gradients are not finite.

    Attributes:
        process: its rank.
        losses: total, ce, bce, dice.
        parameter, size: the largest gradient; of those that are not finite, the one nearest to the loss.
    """

    process: int
    samples: list[str]
    losses: list[float]
    parameter: str
    size: float

    def describe(self, update: int) -> str:
        """One sentence, without its end."""
        total, *parts = self.losses
        named = ", ".join(f"{name} {value:.4g}" for name, value in zip(_LOSS_PARTS[1:], parts, strict=True))
        where = f"in update {update}, at samples {', '.join(self.samples)} of process {self.process}"
        if math.isfinite(total):
            return f"the gradient of {self.parameter} is {self.size} {where} (loss {total:.4g}: {named})"
        return f"the loss is {total} {where} ({named}; the gradient of {self.parameter} is {self.size:.4g})"


class GradientGuard:
    """Makes the update that ends a number of backward passes, unless one of them was not finite on any process.

    Under fp16 gradients that overflow are part of the search for a loss scale, and left to DeepSpeed; a loss that is
    not finite is not.

    Args:
        model: its trained parameters get a hook; before DeepSpeed wraps it, because hooks run in the order in which
            they were made, and DeepSpeed's take the gradients away.
        scales_loss: whether the precision is fp16.
        max_skips: updates that may be passed over.
    """

    def __init__(self, model: nn.Module, *, scales_loss: bool, max_skips: int) -> None:
        self._scales_loss, self._max_skips = scales_loss, max_skips
        self.num_skipped = 0
        self._names: list[str] = []
        self._forget()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._hook(len(self._names)))
                self._names.append(name)

    def _forget(self) -> None:
        self._samples: list[list[str]] = []
        self._losses: list[Tensor] = []
        self._waiting: list[Tensor] = []
        self._num_waiting = 0
        # Of every gradient so far: its largest entry, and the pass and the parameter that it belongs to.
        self._sizes: list[Tensor] = []
        self._owners: list[tuple[int, int]] = []

    def _hook(self, number: int) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None, "DeepSpeed's hook came first"
            if not self._waiting:
                # At the end of the pass, before gradients become sums over all processes.
                torch.autograd.Variable._execution_engine.queue_callback(self._measure)
            self._owners.append((len(self._samples) - 1, number))
            self._waiting.append(gradient.detach())
            self._num_waiting += gradient.numel()
            if self._num_waiting >= _MEASURED_TOGETHER:
                self._measure()

        return take

    def _measure(self) -> None:
        if self._waiting:
            sizes = torch._foreach_norm(self._waiting, math.inf)  # pyright: ignore[reportPrivateImportUsage]
            self._sizes.append(torch.stack(sizes).float())
        self._waiting, self._num_waiting = [], 0

    def watch(self, loss: Tensor, terms: LossTerms, batch: Batch) -> Tensor:
        """Called before each backward pass.

        Args:
            loss: what the pass is to start from; a number.
            terms, batch: what it was made of.
        Returns:
            the loss to start from in its place: equal to it, and if it is not finite, no gradient is, so that DeepSpeed
            notices, which looks at gradients alone.
        """
        self._samples.append(list(batch.sample_ids))
        self._losses.append(torch.stack([getattr(terms, part).detach().float() for part in _LOSS_PARTS]))
        return loss * (loss.detach() * 0 + 1)

    def step(self, engine: Engine, *, update: int, agree: int = 0) -> int:
        """The last ``engine.step()`` of an update, unless it must not be made.

        Args:
            update: its number, as users count.
            agree: a number of this process.
        Returns:
            the largest ``agree`` of all processes: the one exchange of an update carries it, too.
        Raises:
            InputError: on every process if loss or gradients are not finite and no more updates may be passed over,
                or if fp16 overflows at the lowest loss scale. Weights and optimizer are as before.
        """
        losses, sizes = torch.stack(self._losses), torch.cat(self._sizes)
        bad = torch.stack([~torch.isfinite(losses).all(), ~torch.isfinite(sizes).all()]).float()
        loss_is_bad, gradient_is_bad, agreed = dist.all_reduce_max(torch.cat([bad, bad.new_tensor([agree])])).tolist()
        if loss_is_bad or (gradient_is_bad and not self._scales_loss):
            findings = [found for found in dist.gather_objects(self._find(losses, sizes)) if found]
            self._pass_over(engine, update, findings)
            _drop(engine)
        else:
            _step(engine, update)
        self._forget()
        return int(agreed)

    def _find(self, losses: Tensor, sizes: Tensor) -> Finding | None:
        values: list[list[float]] = losses.tolist()
        gradients = [(*owner, size) for owner, size in zip(self._owners, sizes.tolist(), strict=True)]
        for number, samples in enumerate(self._samples):
            mine = [(parameter, size) for owner, parameter, size in gradients if owner == number]
            worst = [(parameter, size) for parameter, size in mine if not math.isfinite(size)]
            if worst or not math.isfinite(values[number][0]):
                parameter, size = worst[0] if worst else max(mine, key=lambda pair: pair[1])
                return Finding(dist.rank(), samples, values[number], self._names[parameter], size)
        return None

    def _pass_over(self, engine: Engine, update: int, findings: list[Finding]) -> None:
        found = findings[0].describe(update)
        if findings[1:]:
            found += f", and likewise on {len(findings) - 1} other processes"
        self.num_skipped += 1
        if self.num_skipped > self._max_skips:
            before = f"{self._max_skips} updates like it were passed over. " if self._max_skips else ""
            raise InputError(
                f"{found}; nothing was updated. {before}Lower --lr, use --precision bf16 or fp32, or look at these "
                "samples; --skip_nonfinite N passes over up to N such updates"
            )
        logger.warning(
            "update %d is passed over (%d of --skip_nonfinite %d): %s",
            update, self.num_skipped, self._max_skips, found,
        )  # fmt: skip


def _step(engine: Engine, update: int) -> None:
    try:
        engine.step()
    except Exception as err:  # DeepSpeed raises this very class
        if _LOWEST_SCALE not in str(err):
            raise
        raise InputError(
            f"gradients overflow fp16 in update {update}, at the lowest loss scale; nothing was updated. Lower --lr, "
            "or use --precision bf16 or fp32"
        ) from err


def _drop(engine: Engine) -> None:
    """Go through ``engine.step()`` with gradients that are not finite, and update nothing but the schedule.

    Where DeepSpeed's optimizer has an ``overflow``, it looks for it, and then clears the gradients that it has kept
    (its ZeRO optimizers are told to look with ``check_grad_overflow``). An optimizer of torch, which is what ZeRO 0 has
    in fp32, would use them.
    """
    optimizer: Any = engine.optimizer
    if hasattr(optimizer, "overflow"):
        checks = getattr(optimizer, "check_grad_overflow", False)
        optimizer.check_grad_overflow = True
        engine.step()
        optimizer.check_grad_overflow = checks
        assert not engine.was_step_applied(), "DeepSpeed has used gradients that are not finite"
        engine.lr_scheduler.step()
    else:
        step = optimizer.step
        optimizer.step = optimizer.zero_grad
        engine.step()
        optimizer.step = step
