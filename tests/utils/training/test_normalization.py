"""The loss of an update is that of its whole batch, however the batch is cut; the release's is a mean of means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from model.losses import LossWeights, pixellm_loss, supervised_tokens
from model.PixelLM import PixelLMForCausalLM
from model.rows import supervised_positions
from model.structures import Batch, LossTerms
from model.text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID
from tests.support.tiny_network import make_batch, make_network
from utils import dist
from utils.cli.config import LossNormalization
from utils.training.normalization import Counts, UpdateShares

PARTS = ("total", "ce", "bce", "dice", "refine")


def of_counts(tokens: int, masks: int) -> Batch:
    """A batch of which nothing but labels and masks is looked at."""
    labels = torch.full((1, 9), IGNORE_INDEX)
    labels[0, 9 - tokens :] = 5
    nothing = torch.zeros(1)
    return Batch(nothing, nothing, labels, labels, nothing, nothing, [torch.zeros(masks, 2, 2).bool()], [(2, 2)], ["x"])


def terms_of(ce: float, bce: float, dice: float, refine: float, *, masks: int) -> LossTerms:
    total = torch.tensor(ce + bce + dice + refine)
    return LossTerms(total, torch.tensor(ce), torch.tensor(bce), torch.tensor(dice), torch.tensor(refine), masks)


# Two processes with two passes each: counts, and means over the tokens and masks of the pass.
UPDATE = (
    (
        (of_counts(1, 0), terms_of(4.0, 0.0, 0.0, 0.0, masks=0)),
        (of_counts(3, 2), terms_of(2.0, 0.5, 0.25, 1.0, masks=2)),
    ),
    (
        (of_counts(0, 1), terms_of(0.0, 2.0, 1.0, 0.0, masks=1)),
        (of_counts(4, 1), terms_of(1.5, 1.0, 0.5, 0.5, masks=1)),
    ),
)


@contextmanager
def sums_of_both(sums: list[int]) -> Iterator[None]:
    """What the exchange of two processes ends with."""
    yield
    sums[:] = 8, 4


def read(passes: Sequence[Batch], normalization: LossNormalization) -> tuple[list[Batch], UpdateShares]:
    return UpdateShares.read(iter(passes), len(passes), normalization)[:2]


def mean_of_passes(monkeypatch: pytest.MonkeyPatch, normalization: LossNormalization) -> list[float]:
    """What DeepSpeed makes of the update: the terms of every pass of both processes, summed and divided by four."""
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "stop_together", sums_of_both)
    found = []
    for passes in UPDATE:
        _, shares = read([batch for batch, _ in passes], normalization)
        found += [shares.part_of(terms, batch) for batch, terms in passes]
    return [sum(float(getattr(terms, part)) for terms in found) / 4 for part in PARTS]


def test_global_losses_are_sums_over_what_the_update_has(monkeypatch):
    ce = (1 * 4.0 + 3 * 2.0 + 4 * 1.5) / 8
    bce, dice, refine = (2 * 0.5 + 2.0 + 1.0) / 4, (2 * 0.25 + 1.0 + 0.5) / 4, (2 * 1.0 + 0.5) / 4
    assert (ce, bce, dice, refine) == (2.0, 1.0, 0.5, 0.625)
    assert mean_of_passes(monkeypatch, "global") == pytest.approx([4.125, 2.0, 1.0, 0.5, 0.625])


def test_local_losses_are_the_means_of_the_passes(monkeypatch):
    assert mean_of_passes(monkeypatch, "local") == pytest.approx([3.5625, 1.875, 0.875, 0.4375, 0.375])


def test_local_normalization_leaves_every_bit_as_it_is():
    batch, terms = UPDATE[0][1]
    _, shares = read([batch, batch], "local")
    assert shares.part_of(terms, batch) is terms


@pytest.mark.parametrize("normalization", ["global", "local"])
def test_an_update_of_one_pass_is_the_mean_over_its_batch(normalization):
    batch, terms = UPDATE[0][1]
    found = read([batch], normalization)[1].part_of(terms, batch)
    assert [getattr(found, part).item() for part in PARTS] == [getattr(terms, part).item() for part in PARTS]


@pytest.mark.parametrize(("tokens", "masks"), [(0, 0), (0, 2), (3, 0)])
def test_an_update_without_tokens_or_masks_costs_nothing_there(tokens, masks):
    """Zero and not NaN, and in the graph still: a process that left parameters out would keep the others waiting."""
    batch = of_counts(tokens, masks)
    leaf = torch.ones((), requires_grad=True)
    ce, mask = (leaf * float(bool(count)) for count in (tokens, masks))
    _, shares = read([batch, of_counts(0, 0)], "global")
    found = shares.part_of(LossTerms(ce + 3 * mask, ce, mask, mask, mask, masks), batch)
    found.total.backward()
    assert found.ce.item() == (2 if tokens else 0)
    assert found.bce.item() == found.dice.item() == found.refine.item() == (2 if masks else 0)
    assert leaf.grad is not None
    assert leaf.grad.isfinite()


def test_tokens_are_counted_as_the_text_loss_counts_them(tiny_tokenizer_dir):
    """One that predicts what nobody supervises, an image or the first token of a conversation does not count."""
    labels = torch.tensor([[7, 8, IGNORE_INDEX, 9], [IGNORE_INDEX, IMAGE_TOKEN_ID, 5, IGNORE_INDEX]])
    assert supervised_tokens(labels).tolist() == [[True, False, True], [False, True, False]]
    network, _ = make_network(tiny_tokenizer_dir)
    hidden = torch.randn(2, 4, network.config.text_config.hidden_size)
    logits = network.lm_head(hidden[:, :-1]).float().log_softmax(-1)
    written_out = -(logits[0, 0, 8] + logits[0, 2, 9] + logits[1, 1, 5])
    count = Counts.of(replace(of_counts(0, 0), labels=labels)).tokens
    assert count * network.lm_loss(hidden, *supervised_positions(labels)).item() == pytest.approx(
        written_out.item(), rel=1e-6
    )


def part(batch: Batch, image: int) -> Batch:
    """One image of a batch, with its conversations."""
    rows = batch.image_index == image
    return replace(
        batch,
        pixel_values=batch.pixel_values[image : image + 1], valid_hw=batch.valid_hw[image : image + 1],
        input_ids=batch.input_ids[rows], labels=batch.labels[rows], attention_mask=batch.attention_mask[rows],
        image_index=batch.image_index[rows] - image, masks=[batch.masks[image]], orig_hw=[batch.orig_hw[image]],
        sample_ids=[batch.sample_ids[image]],
    )  # fmt: skip


def gradient(
    network: PixelLMForCausalLM, passes: Sequence[Batch], normalization: LossNormalization
) -> dict[str, torch.Tensor]:
    """Of one update, as DeepSpeed makes it: summed over the passes and divided by their number."""
    network.zero_grad()
    _, shares = read(passes, normalization)
    for batch in passes:
        output = network(**batch.inputs())
        terms = pixellm_loss(output.loss, output.photo_logits, batch.masks, output.query_index, LossWeights())
        (shares.part_of(terms, batch).total / len(passes)).backward()
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


def test_gradients_of_a_cut_batch_are_those_of_the_whole(tiny_tokenizer_dir):
    """Images with 3 masks, with none, and with 1; answers of unlike length."""
    network, tokenizer = make_network(tiny_tokenizer_dir)
    talks = [
        (0, "What is there?", "A {seg} with a {seg} and a thing with a {seg}."),
        (1, "And there?", "Nothing."),
        (1, "Sure?", "Yes, there is nothing that I could name."),
        (2, "And here?", "A {seg}."),
    ]
    whole = make_batch(network, tokenizer, talks, photo_hw=((40, 60), (60, 30), (30, 30)))
    passes = [part(whole, image) for image in range(3)]
    expected = gradient(network, [whole], "global")
    found = gradient(network, passes, "global")
    assert found.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5 * largest), name
    means = gradient(network, passes, "local")
    assert any(not torch.allclose(means[name], value, rtol=0.1) for name, value in expected.items())
