"""Teacher-forced validation: what counts, and that nothing is skipped."""

from __future__ import annotations

import pytest
import torch

from model.errors import InputError
from model.structures import Batch, PixelLMOutput
from tests.support.whole_tree import write_whole_tree
from utils.data.collate import Collator
from utils.data.registry import build_val_source
from utils.evaluation.teacher_forced import validate_teacher_forced


class Painter(torch.nn.Module):
    """Predicts the true masks, and foreground wherever pixels do not count."""

    def forward(self, batch: Batch) -> PixelLMOutput:
        logits = [
            (masks if ignore is None else masks | ignore).float() - 0.5
            for masks, ignore in zip(batch.masks, batch.ignore, strict=True)
        ]
        return PixelLMOutput(mask_logits=logits)


def score(root, encoder, name):
    collator = Collator(encoder.codebook, pad_token_id=0)
    return validate_teacher_forced(
        Painter(), build_val_source(root, name), encoder, collator, batch_size=2, device=torch.device("cpu"),
        dtype=torch.float32,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["ReasonSeg|val", "MultiReasonSeg|val", "multirefcoco|unc|val"])
def test_ignored_pixels_have_no_say(tmp_path, encoder, name):
    meter = score(write_whole_tree(tmp_path), encoder, name)
    assert (meter.giou, meter.ciou) == (1.0, 1.0)
    assert meter.num_pairs > 0


def test_a_bad_sample_stops_it(tmp_path, encoder):
    root = write_whole_tree(tmp_path)
    (root / "reason_seg/ReasonSeg/val/2.json").write_text("{")
    with pytest.raises(InputError, match=r"ReasonSeg\|val, sample 1: ReasonSeg\|val/2.jpg: .*2.json is not in"):
        score(root, encoder, "ReasonSeg|val")
