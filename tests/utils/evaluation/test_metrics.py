"""The arithmetic of gIoU and cIoU, and that several meters give what one gives."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.search import seeded
from utils.evaluation.metrics import IoUMeter, ReleasedMuseMeter, pair_iou, pairwise_overlap

areas = st.integers(0, 10_000)
pairs = st.lists(st.tuples(areas, areas).map(lambda ab: (min(ab), max(ab))), max_size=12)


def add_pairs(meter: IoUMeter, some: list[tuple[int, int]]) -> IoUMeter:
    table = np.array(some, dtype=np.int64).reshape(-1, 2)
    meter.add_pairs(table[:, 0], table[:, 1])
    return meter


def test_overlap_counts_pixels():
    rng = np.random.default_rng(0)
    predicted, true = rng.random((3, 9, 7)) > 0.4, rng.random((2, 9, 7)) > 0.6
    intersection, union = pairwise_overlap(predicted, true)
    for row in range(3):
        for column in range(2):
            assert intersection[row, column] == (predicted[row] & true[column]).sum()
            assert union[row, column] == (predicted[row] | true[column]).sum()


def test_overlap_is_exact_beyond_float32_integers():
    """Sums in float32 stop at 2**24; a 17-megapixel photo that is all object must not lose pixels."""
    full = np.ones((1, 4097, 4099), dtype=bool)
    intersection, union = pairwise_overlap(full, full)
    assert intersection.item() == union.item() == 4097 * 4099


@pytest.mark.parametrize(("num_predicted", "num_true"), [(0, 2), (2, 0), (0, 0)])
def test_overlap_without_masks(num_predicted, num_true):
    intersection, union = pairwise_overlap(
        np.zeros((num_predicted, 4, 5), dtype=bool), np.ones((num_true, 4, 5), dtype=bool)
    )
    assert intersection.shape == union.shape == (num_predicted, num_true)


def test_overlap_refuses_other_sizes_and_logits():
    mask = np.ones((1, 4, 5), dtype=bool)
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(5, 4\)"):
        pairwise_overlap(mask, mask.transpose(0, 2, 1))
    with pytest.raises(ValueError, match="float64"):
        pairwise_overlap(mask.astype(float), mask)


def test_two_empty_masks_agree():
    assert pair_iou(np.array([0, 0, 3]), np.array([0, 4, 4])).tolist() == [1.0, 0.0, 0.75]


def test_extra_empty_predictions_earn_nothing():
    """With the release's rule an answer could raise its gIoU by empty masks that nobody asked for."""
    meter = IoUMeter()
    meter.add_pairs(np.array([2, 0]), np.array([4, 0]), is_extra=np.array([False, True]))
    assert meter.giou == 0.25
    assert meter.ciou == 0.5


def test_giou_weighs_pairs_and_ciou_weighs_pixels():
    meter = add_pairs(IoUMeter(), [(10, 10), (0, 90)])
    assert meter.giou == 0.5
    assert meter.ciou == 0.1


def test_nothing_seen_is_no_score():
    assert np.isnan(IoUMeter().giou)
    assert np.isnan(IoUMeter().ciou)
    assert np.isnan(ReleasedMuseMeter().giou)


@seeded
@given(st.lists(pairs, max_size=5))
def test_joined_meters_equal_one_meter(shards):
    """Evaluation on several processes must not change a number."""
    joined = sum((add_pairs(IoUMeter(), shard) for shard in shards), IoUMeter())
    single = add_pairs(IoUMeter(), [pair for shard in shards for pair in shard])
    assert astuple(joined)[1:] == astuple(single)[1:]
    assert joined.giou == pytest.approx(single.giou, nan_ok=True, abs=1e-12)
    assert joined.ciou == pytest.approx(single.ciou, nan_ok=True)


def test_one_pair_of_masks():
    true = np.zeros((4, 5), dtype=bool)
    true[:2] = True
    meter = IoUMeter()
    meter.add(np.ones((4, 5), dtype=bool), true)
    assert astuple(meter) == (0.5, 1, 10, 20)


@seeded
@given(pairs.filter(bool))
def test_scores_are_shares(some):
    meter = add_pairs(IoUMeter(), some)
    assert 0 <= meter.giou <= 1
    assert np.isnan(meter.ciou) or 0 <= meter.ciou <= 1


def test_released_muse_divides_by_the_masks_of_the_image():
    """Two questions of one image, one with a mask too many and one with a mask too few.

    Four pairs, two of them perfect: the mean over pairs is 2/4, the release says 2 / max(3, 3).
    """
    intersection, union = np.array([5, 0, 5, 0]), np.array([5, 7, 5, 9])
    released, meter = ReleasedMuseMeter(), IoUMeter()
    released.add_image(intersection, union, num_predicted=3, num_true=3)
    meter.add_pairs(intersection, union)
    assert meter.giou == 0.5
    assert released.giou == pytest.approx(2 / 3)
    # Images weigh by their masks: one of a single perfect mask makes it (2 + 1) / (3 + 1).
    other = ReleasedMuseMeter()
    other.add_image(np.array([4]), np.array([4]), num_predicted=1, num_true=1)
    assert (released + other).giou == pytest.approx(3 / 4)
