"""Intervals of ratios, held to a case computed by hand, to a bootstrap, and to how often they hold the truth."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from utils.evaluation.intervals import Terms, difference_interval, interval


def terms(*pairs: tuple[float, float]) -> Terms:
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return Terms(table[:, 0], table[:, 1])


def draw(rng: np.random.Generator, num_images: int) -> tuple[Terms, list[str]]:
    """Questions about images, some of which are harder than others; a truth of 0.5 in the limit."""
    numerators, denominators, images = [], [], []
    for image in range(num_images):
        ease = rng.uniform(0.2, 0.8)
        for _ in range(rng.integers(1, 6)):
            pairs = rng.integers(1, 5)
            numerators.append(np.clip(rng.normal(ease, 0.1, pairs), 0, 1).sum())
            denominators.append(pairs)
            images.append(f"{image}.jpg")
    return Terms(np.array(numerators), np.array(denominators, dtype=float)), images


def test_two_images_by_hand():
    """Sums 3 of 4 and 1 of 4: R = 1/2, deviations 1/8 and -1/8, variance 2 * 2/64; t with 1 degree of freedom."""
    half = 12.7062047361747 * sqrt(1 / 16)
    found = terms((1, 2), (2, 2), (1, 4))
    assert interval(found, ["a", "a", "b"]) == [max(0, 0.5 - half), min(1, 0.5 + half)] == [0, 1]
    narrow = terms((50, 100), (52, 100), (51, 100))
    low, high = interval(narrow, ["a", "b", "c"])
    assert high - low == pytest.approx(2 * 4.30265272974946 * sqrt(3 / 2 * 2 / 300**2))


def test_fewer_than_two_images_have_no_interval():
    assert interval(terms(), []) is None
    assert interval(terms((1, 2), (2, 2)), ["a", "a"]) is None
    assert interval(terms((1, 2), (0, 0)), ["a", "b"]) is None, "b has nothing to score"
    assert interval(terms((0, 0), (0, 0)), ["a", "b"]) is None
    assert difference_interval(terms((1, 2), (0, 0)), terms((2, 2), (0, 0)), ["a", "b"]) is None


def test_the_order_of_questions_does_not_matter():
    found, images = draw(np.random.default_rng(0), 30)
    order = np.random.default_rng(1).permutation(len(images))
    mixed = Terms(found.numerators[order], found.denominators[order])
    assert interval(mixed, [images[index] for index in order]) == pytest.approx(interval(found, images), abs=1e-12)


def test_a_bootstrap_over_images_gives_the_same():
    rng = np.random.default_rng(0)
    found, images = draw(rng, 120)
    names, cluster = np.unique(images, return_inverse=True)
    sums = [np.bincount(cluster, weights=values) for values in (found.numerators, found.denominators)]
    picks = rng.integers(0, len(names), (4000, len(names)))
    ratios = sums[0][picks].sum(axis=1) / sums[1][picks].sum(axis=1)
    low, high = interval(found, images)
    assert (low, high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=0.005)
    alone = interval(found, [str(number) for number in range(len(images))])
    assert alone[1] - alone[0] < 0.7 * (high - low), "questions about one image are alike"


def test_19_of_20_intervals_hold_the_truth():
    rng = np.random.default_rng(0)
    held = [low <= 0.5 <= high for low, high in (interval(*draw(rng, 25)) for _ in range(400))]
    assert 0.93 <= np.mean(held) <= 0.97


def test_what_is_hard_for_both_cancels_out():
    found, images = draw(np.random.default_rng(0), 40)
    better = Terms(found.numerators + 0.05 * found.denominators, found.denominators)
    assert difference_interval(better, found, images) == pytest.approx([0.05, 0.05])
    low, high = difference_interval(found, found, images)
    assert low == high == 0


def test_an_image_that_only_one_of_two_scores_counts():
    """The second result drew something about b, where nothing was asked for: its pair there scores 0."""
    low, high = difference_interval(terms((1, 2), (0, 0)), terms((1, 2), (0, 2)), ["a", "b"])
    assert low <= 0.25 <= high
