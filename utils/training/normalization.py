"""How much one forward pass counts in the loss of its update.

An update is one global batch, cut into micro-batches: one for each process and each of ``--grad_accumulation_steps``.
DeepSpeed adds up the gradients of their losses and divides by the number of micro-batches. What the cutting changes is
what a micro-batch's own means stand for: a micro-batch of few tokens or masks would weigh as much as one of many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.losses import supervised_tokens
from model.structures import Batch, LossTerms
from utils import dist
from utils.cli.config import LossNormalization

from .report import DataCounts


@dataclass(frozen=True)
class Counts:
    """What the losses of a batch are means of.

    Attributes:
        tokens: supervised ones, as ``PixelLMForCausalLM.lm_loss`` counts them.
        masks: ground-truth masks.
    """

    tokens: int
    masks: int

    @classmethod
    def of(cls, batch: Batch) -> Counts:
        return cls(int(supervised_tokens(batch.labels).sum()), sum(len(masks) for masks in batch.masks))


@dataclass(frozen=True)
class UpdateShares:
    """Turns the means of a micro-batch into its part of the loss of the update.

    Attributes:
        whole: of all micro-batches of all processes.
        num_passes: micro-batches of all processes, by which DeepSpeed divides.
        normalization: ``local`` leaves every mean as it is, which is the release's mean of means.
    """

    whole: Counts
    num_passes: int
    normalization: LossNormalization

    @classmethod
    def read(
        cls, batches: Iterator[Batch], number: int, normalization: LossNormalization, data: DataCounts | None = None
    ) -> tuple[list[Batch], UpdateShares, list[int]]:
        """Read and count an update before its first forward pass; every process has to call this at the same time.

        The counts travel with what has gone wrong in one exchange between CPUs, so that no GPU is waited for.

        Args:
            batches: of this process, on the CPU.
            number: of micro-batches of this process.
            data: what else is counted.
        Returns:
            the micro-batches of this process, their shares, and the sums of ``data`` over all processes.
        Raises:
            InputError: on every process, if a batch of any of them cannot be used.
        """
        passes: list[Batch] = []
        sums = [0] * (2 + (data.size if data else 0))
        with dist.stop_together(sums):
            passes += [next(batches) for _ in range(number)]
            own = [Counts.of(batch) for batch in passes]
            supervised = sum(counts.tokens for counts in own), sum(counts.masks for counts in own)
            sums[:] = [*supervised, *(data.of(passes) if data else ())]
        tokens, masks, *others = sums
        return passes, cls(Counts(tokens, masks), number * dist.world_size(), normalization), others

    def part_of(self, terms: LossTerms, batch: Batch) -> LossTerms:
        """The terms such that their mean over all micro-batches is the loss of the update.

        Text becomes the sum over the tokens of this micro-batch divided by the tokens of the update, masks likewise.
        Both are zero, and stay in the graph, where the micro-batch or the whole update has none.

        Args:
            terms: means over this micro-batch, as ``pixellm_loss`` gives them.
            batch: the micro-batch, as ``read`` gave it.
        """
        if self.normalization == "local":
            return terms
        own = Counts.of(batch)
        return terms.scaled(
            text=self.num_passes * own.tokens / max(self.whole.tokens, 1),
            masks=self.num_passes * own.masks / max(self.whole.masks, 1),
        )
