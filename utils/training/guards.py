"""Signs that a run does not learn, each told once, with a checklist (docs/training.md).

What is judged is a window of the last updates. It has at least ``WINDOW_UPDATES`` of them, and as many samples as hold
``WINDOW_SAMPLES`` of sources with masks by their shares. Healthy runs show none of the signs for as long.
"""

from __future__ import annotations

import logging
import shlex
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from utils.cli.checklist import Checklist
from utils.evaluation.blanks import Blanks

from .report import UpdateReport

logger = logging.getLogger(__name__)

WINDOW_UPDATES = 50
WINDOW_SAMPLES = 200
# While the decoder is new, a run may draw nothing for many updates; longer than this is a sign.
BLANK_UPDATES = 200
# Of masks that are empty or cover the whole photo: a mask here and there with some pixels changes nothing.
BLANK_SHARE = 0.99
# Fewer masks than this prove nothing.
FEWEST_MASKS = 20
# AdamW moves a weight by about the rate. The float32 numbers next to a usual weight, 0.02, are 2e-9 away.
SMALLEST_RATE = 1e-9


class Window:
    """The last updates: so many, or more until they have enough samples.

    Args:
        updates, samples: at least.
    """

    def __init__(self, *, updates: int, samples: float) -> None:
        self._updates, self._samples = updates, samples
        self._reports: deque[UpdateReport] = deque()
        self._num_samples = 0

    def add(self, report: UpdateReport) -> Sequence[UpdateReport]:
        """The window that ends with this update; nothing as long as it is too short."""
        self._reports.append(report)
        self._num_samples += report.num_samples
        while len(self._reports) > self._updates and self._num_samples - self._reports[0].num_samples >= self._samples:
            self._num_samples -= self._reports.popleft().num_samples
        return self._reports if len(self._reports) >= self._updates and self._num_samples >= self._samples else ()


class Guards:
    """Watches a run from plain numbers, and warns at most once of each sign.

    Args:
        mask_share: of the samples, from sources with masks; 0 for a run that has no masks on purpose.
        total_updates: at the end of the run.
        run_dir: of the run, for the commands that a warning names.
    """

    def __init__(self, *, mask_share: float, total_updates: int, run_dir: Path) -> None:
        self._mask_share = mask_share
        self._total_updates = total_updates
        self._run_dir = run_dir
        samples = WINDOW_SAMPLES / (mask_share or 1)
        self._window = Window(updates=WINDOW_UPDATES, samples=samples)
        self._blank_window = Window(updates=BLANK_UPDATES, samples=samples)
        self._told: set[str] = set()

    def see_update(self, report: UpdateReport) -> None:
        """Judge the window that ends with this update."""
        if window := self._window.add(report):
            self._tell("tokens", no_supervised_token(window, self._run_dir))
            self._tell("rate", no_rate(window, self._total_updates, self._run_dir))
            if self._mask_share:
                self._tell("masks", no_mask(window, self._run_dir))
        if window := self._blank_window.add(report):
            blanks = sum((past.blanks for past in window), Blanks())
            self._tell("blanks", blank_masks(blanks, f"in the last {len(window)} updates", self._run_dir))

    def see_validation(self, update: int, name: str, blanks: Blanks) -> None:
        """Judge the predictions for a validation set."""
        if update >= BLANK_UPDATES:
            self._tell("blanks", blank_masks(blanks, f"of {name} after update {update}", self._run_dir))

    def _tell(self, sign: str, warning: Checklist | None) -> None:
        if warning and sign not in self._told:
            self._told.add(sign)
            logger.warning("%s", warning)


def no_supervised_token(window: Sequence[UpdateReport], run_dir: Path) -> Checklist | None:
    """No word that the text loss sees."""
    if any(report.num_tokens for report in window):
        return None
    return Checklist(
        f"no supervised token in the last {_spoken(window)}: the language model learns nothing",
        "the answers of the data are empty, or are cut off before the network sees them",
        (
            "the answers under each photo, by the command below",
            "dropped_turns in log.jsonl: turns that exceed --model_max_length, the image's tokens included",
            "--ce_loss_weight: without the text loss, no answer will ask for a mask either",
        ),
        preview_command(run_dir),
    )


def no_mask(window: Sequence[UpdateReport], run_dir: Path) -> Checklist | None:
    """No target, in a run whose sources have some."""
    if any(report.num_masks for report in window):
        return None
    return Checklist(
        f"no mask in the last {_spoken(window)}, although the data have masks: nothing is learned about them",
        "the turns that have targets are left out, or the samples that have them cannot be used",
        (
            "dropped_turns in log.jsonl: every target takes --seg_token_num times --image_feature_scale_num tokens of "
            "--model_max_length, and the image its own",
            "skipped in log.jsonl: samples with masks that were replaced by others",
            '"targets" of your own records (docs/custom_data.md), --sample_rates, --explanatory',
        ),
        preview_command(run_dir),
    )


def no_rate(window: Sequence[UpdateReport], total_updates: int, run_dir: Path) -> Checklist | None:
    """A learning rate that changes no weight, but for the end of the schedule, which leads to zero."""
    highest = max(report.rate for report in window)
    if highest >= SMALLEST_RATE or window[-1].update > 0.9 * total_updates:
        return None
    return Checklist(
        f"the learning rate was at most {highest:.1e} in the last {_spoken(window)}: no weight changes",
        "--lr is smaller than float32 can add to a weight, or the schedule has already come to its end",
        (
            "--lr: 3e-4 trains LoRA and masks in the released recipe; --muon_lr has its own scale, 0.02",
            "lr in log.jsonl: it rises over --warmup_steps, and falls to zero at --epochs times --steps_per_epoch",
        ),
        f"tail -n 3 {shlex.quote(str(run_dir / 'log.jsonl'))}",
    )


def blank_masks(blanks: Blanks, where: str, run_dir: Path) -> Checklist | None:
    """Predictions that are empty or cover the whole photo, although their true masks do neither."""
    if blanks.num_true < FEWEST_MASKS or blanks.share < BLANK_SHARE:
        return None
    return Checklist(
        f"the masks drawn {where} show nothing: of {blanks.num_true}, {blanks.empty} are empty and {blanks.full} cover "
        "the whole photo",
        "the decoder has not begun to learn, or has collapsed: a rate that does not fit, too few updates, or masks "
        "that do not belong to their photos",
        (
            "bce and dice in log.jsonl: if they fall, give it more updates (the released recipe makes 5,000); "
            "--optimizer muon needs fewer",
            "--lr (too high collapses, too low stands still), --bce_loss_weight, --dice_loss_weight, "
            "--train_mask_decoder",
            "the masks on their photos, and photos and annotations of the same edition: python -m utils.data.verify",
            "the vision tower and the LLaVA base that the start of the run names (docs/weights.md)",
        ),
        _overfit(run_dir),
    )


def _spoken(window: Sequence[UpdateReport]) -> str:
    return f"{len(window)} updates ({sum(report.num_samples for report in window)} samples)"


def preview_command(run_dir: Path) -> str:
    """What draws the first samples of a run as the network sees them."""
    return f"python scripts/preview_data.py --config {_flags(run_dir)} --num 12 --out preview.png"


def _overfit(run_dir: Path) -> str:
    return f"python train_ds.py --config {_flags(run_dir)} --overfit_one_batch --epochs 4 --steps_per_epoch 50"


def _flags(run_dir: Path) -> str:
    return shlex.quote(str(run_dir / "run_config.json"))
