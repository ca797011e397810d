"""One update: forward and backward passes over a global batch, then a step of the optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from model.configuration import PRECISIONS
from model.losses import LossWeights, pixellm_loss
from model.structures import Batch
from utils import dist
from utils.cli.config import RunConfig
from utils.evaluation.blanks import Blanks, count_blanks

from .engine import Engine
from .gradients import GradientGuard
from .journal import UpdateReport
from .normalization import UpdateShares

_PARTS = ("total", "ce", "bce", "dice", "refine")


def images_per_update(run: RunConfig) -> int:
    """Of all processes together."""
    return run.batch_size * run.grad_accumulation_steps * dist.world_size()


class Updates:
    """Makes one update after the other; every process calls ``make`` at the same time.

    Args:
        gradients: made before the engine.
    """

    def __init__(self, run: RunConfig, engine: Engine, gradients: GradientGuard, *, device: torch.device) -> None:
        self._run, self._engine, self._gradients, self._device = run, engine, gradients, device
        self._weights = LossWeights(run.ce_loss_weight, run.bce_loss_weight, run.dice_loss_weight, run.refine_alpha)

    def make(self, batches: Iterator[Batch], number: int, *, agree: Callable[[], int]) -> tuple[UpdateReport, int]:
        """``--grad_accumulation_steps`` passes forward and backward, and a step of the optimizer.

        Args:
            batches: of this process, one for each pass.
            number: of the update; the first one is 1.
            agree: gives a number of this process, and is asked when all passes are made.
        Returns:
            what happened on all processes (with local normalization, losses are means over all passes), and the largest
            ``agree`` of them.
        Raises:
            InputError: if a sample cannot be used, or loss or gradients are not finite. Nothing is updated then.
        """
        run, started, rate = self._run, time.time(), self._engine.get_lr()[0]
        losses, blanks = torch.zeros(len(_PARTS), device=self._device), torch.zeros(3, device=self._device)
        agreed = 0
        self._engine.train()
        with dist.stop_together():
            passes = [next(batches) for _ in range(run.grad_accumulation_steps)]
        shares = UpdateShares.of(passes, run.loss_normalization, device=self._device)
        for left, on_cpu in zip(reversed(range(len(passes))), passes, strict=True):
            batch = on_cpu.to(self._device, PRECISIONS[run.precision])
            output = self._engine(**batch.inputs())
            terms = pixellm_loss(
                output.loss, output.photo_logits, batch.masks, output.query_index, self._weights, ignore=batch.ignore
            )
            part = shares.part_of(terms, on_cpu)
            self._engine.backward(self._gradients.watch(part.total, terms, batch))
            if left:
                self._engine.step()  # DeepSpeed only counts this pass
            else:
                agreed = self._gradients.step(self._engine, update=number, agree=agree())
            losses += torch.stack([getattr(part, name).detach().float() for name in _PARTS])
            blanks += count_blanks(output.photo_logits, batch.masks)
        sums = dist.all_reduce_sum(torch.cat([losses, blanks])).tolist()
        report = UpdateReport(
            number,
            rate,
            time.time() - started,
            shares.whole.masks,
            {name: value / shares.num_passes for name, value in zip(_PARTS, sums, strict=False)},
            images_per_update(run),
            shares.whole.tokens,
            Blanks(*map(int, sums[len(_PARTS) :])),
        )
        return report, agreed
