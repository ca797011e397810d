"""One update: forward and backward passes over a global batch, then a step of the optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from model.configuration import PRECISIONS
from model.errors import InputError
from model.image import photo_resizers
from model.losses import LossWeights, pixellm_loss
from model.structures import Batch, LossTerms
from utils import dist
from utils.cli.config import RunConfig
from utils.evaluation.blanks import Blanks, count_blanks

from .costs import peak_memory
from .engine import Engine
from .feature_cache import FeatureCache
from .gradients import GradientGuard
from .normalization import UpdateShares
from .report import DataCounts, UpdateReport

_PARTS = ("total", "ce", "bce", "dice", "refine")


def images_per_update(run: RunConfig) -> int:
    """Of all processes together."""
    return run.batch_size * run.grad_accumulation_steps * dist.world_size()


def check_images_per_update(run: RunConfig) -> None:
    """Hold the batch of an update to ``--images_per_update``, by which a preset says for how many processes it is.

    Raises:
        InputError: if it is another, with the flags that keep it.
    """
    wanted, found, processes = run.images_per_update, images_per_update(run), dist.world_size()
    if not wanted or wanted == found or run.eval_only or run.overfit_one_batch:
        return
    of_pass = run.batch_size * processes
    remedy = (
        f"give --grad_accumulation_steps={wanted // of_pass} to keep {wanted}"
        if wanted % of_pass == 0
        else f"give a --batch_size by which, times {processes}, {wanted} can be divided"
    )
    raise InputError(
        f"{processes} process(es) x --batch_size={run.batch_size} x --grad_accumulation_steps="
        f"{run.grad_accumulation_steps} make {found} images an update, but --images_per_update is {wanted}; {remedy}, "
        f"or --images_per_update={found} to train otherwise"
    )


class Updates:
    """Makes one update after the other; every process calls ``make`` at the same time.

    Args:
        gradients: made before the engine.
        covered_size: of the network's configuration.
        sources: names of the datasets that samples are drawn from.
        cache: of the tower's features; what collates the batches asks it, too.
    """

    def __init__(
        self,
        run: RunConfig,
        engine: Engine,
        gradients: GradientGuard,
        *,
        device: torch.device,
        covered_size: int,
        sources: Sequence[str],
        cache: FeatureCache | None = None,
    ) -> None:
        self._covered_size, self._cache, self._data = covered_size, cache, DataCounts(sources)
        self._run, self._engine, self._gradients, self._device = run, engine, gradients, device
        self._weights = LossWeights(run.ce_loss_weight, run.bce_loss_weight, run.dice_loss_weight, run.refine_alpha)
        self._learned: list[Batch] = []  # the passes of the last update that was made

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
        agreed, num_skipped = 0, self._gradients.num_skipped
        self._engine.train()
        passes, shares, counted = UpdateShares.read(
            batches, run.grad_accumulation_steps, run.loss_normalization, self._data
        )
        # Until the last pass is made, nothing asks the device for a number, so that it always has work ahead.
        for left, on_cpu in zip(reversed(range(len(passes))), passes, strict=True):
            batch = on_cpu.to(self._device, PRECISIONS[run.precision])
            terms = self._losses(batch, on_cpu)
            part = shares.part_of(terms, on_cpu)
            self._engine.backward(self._gradients.watch(part.total, terms, batch))
            if left:
                self._engine.step()  # DeepSpeed only counts this pass
            else:
                agreed = self._gradients.step(self._engine, update=number, agree=agree())
            losses += torch.stack([getattr(part, name).detach().float() for name in _PARTS])
            blanks += count_blanks(terms.areas, batch.masks)
        if self._gradients.num_skipped == num_skipped:
            self._learned = passes
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
            self._data.read(counted),
            self._gradient_norm(),
            peak_memory(self._device),
        )
        return report, agreed

    def _gradient_norm(self) -> float | None:
        """As DeepSpeed has computed it for the last update, if it has.

        With Muon, its ZeRO stages 1 to 3 measure the orthogonal updates that stand in the place of gradients.
        """
        if self._run.optimizer == "muon" and self._engine.zero_optimization_stage():
            return None
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    @torch.no_grad()
    def has_diverged(self) -> bool:
        """Whether the last update has made weights for which the loss of its own batch is not finite.

        Such weights may still be finite themselves, but a run that goes on from them never gets away. Passed-over
        updates do not count: their samples may be at fault.
        """
        self._engine.eval()
        dtype = PRECISIONS[self._run.precision]
        losses = [self._losses(batch.to(self._device, dtype), batch).total for batch in self._learned]
        bad = torch.tensor([float(not all(bool(torch.isfinite(loss)) for loss in losses))], device=self._device)
        return bool(dist.all_reduce_max(bad))

    def _losses(self, batch: Batch, on_cpu: Batch) -> LossTerms:
        inputs = batch.inputs(photo_logits=False)
        if self._cache:
            inputs |= {"pixel_values": None, "tower_features": self._cache.complete(batch)}
        output = self._engine(**inputs)
        assert on_cpu.rows is not None  # the collator of training lays them out
        return pixellm_loss(
            output.loss,
            output.mask_logits,
            batch.masks,
            on_cpu.rows.group_conversation,
            self._weights,
            ignore=batch.ignore,
            resize=photo_resizers(on_cpu.valid_hw, batch.orig_hw, size=self._covered_size),
        )
