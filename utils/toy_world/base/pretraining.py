"""Pre-training of both base models: much learned in few steps, because minutes are all they get."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

_WARMUP = 0.1
_WEIGHT_DECAY = 0.05
_MAX_GRADIENT_NORM = 1.0


class Pretrainer:
    """Muon for the weight matrices of transformer blocks, AdamW for everything else, one learning-rate cycle.

    Muon makes every update orthogonal, so that rare directions learn as fast as common ones. After a few
    hundred steps the toy tower names twice as many shapes with it as with AdamW alone.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        blocks: nn.Module,
        muon_lr: float,
        adam_lr: float,
        steps: int,
    ) -> None:
        """Train ``parameters``, which include those of the transformer blocks, for so many steps."""
        self.parameters = list(parameters)
        matrices = [parameter for parameter in blocks.parameters() if parameter.ndim == 2]
        by_muon = set(matrices)
        others = [parameter for parameter in self.parameters if parameter not in by_muon]
        self.steps, self.done = steps, 0
        self.optimizers = [
            torch.optim.Muon(matrices, lr=muon_lr, weight_decay=_WEIGHT_DECAY),
            torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.peak_lrs = [muon_lr, adam_lr]

    def step(self, loss: Tensor) -> None:
        """One update against the gradient of ``loss``."""
        for optimizer, peak_lr in zip(self.optimizers, self.peak_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = peak_lr * self._cycle()
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, _MAX_GRADIENT_NORM, error_if_nonfinite=True)
        for optimizer in self.optimizers:
            optimizer.step()
        self.done += 1

    def _cycle(self) -> float:
        """Linear warm-up, then a cosine down to zero."""
        share = (self.done + 1) / (self.steps + 1)
        if share < _WARMUP:
            return share / _WARMUP
        return 0.5 * (1 + math.cos(math.pi * (share - _WARMUP) / (1 - _WARMUP)))


def draw_batches(count: int, *, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The items (batch_size,) of each step, out of ``count``: all of them once, in a new order every round."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        batch, order = order.split([batch_size, len(order) - batch_size])
        yield batch
