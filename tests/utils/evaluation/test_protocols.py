"""The protocols with a real network: masks for answers that are given are those of a training pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.errors import InputError
from model.predictor import PixelLMPredictor
from tests.support.tiny_network import make_network
from utils.data.collate import Collator
from utils.data.encode import Encoder
from utils.data.records import RawSample, Turn
from utils.data.registry import build_val_source
from utils.data.sources import Source
from utils.evaluation.asking import ask
from utils.evaluation.benchmarks import expand
from utils.evaluation.records import QuestionRecord
from utils.evaluation.scores import ScoringOptions, score_records
from utils.evaluation.teacher_forced import validate_teacher_forced

SETS = ("MultiReasonSeg|val", "refcoco|unc|val", "multirefcoco|unc|val", "ReasonSeg|val")


@pytest.fixture(scope="module")
def predictor(tiny_tokenizer_dir) -> PixelLMPredictor:
    return PixelLMPredictor(*make_network(tiny_tokenizer_dir))


def asked(predictor, source: Source, protocol, batch_size: int = 4) -> list[QuestionRecord]:
    return ask(predictor, source, range(len(source)), protocol=protocol, batch_size=batch_size, max_new_tokens=4)


@pytest.mark.parametrize("name", SETS)
def test_teacher_forced_scores_are_those_of_a_training_pass(predictor, whole_tree, name):
    """Also where pixels do not count, and where a question has no target."""
    source, config = build_val_source(whole_tree, name), predictor.model.config
    tokenizer = predictor.processor.tokenizer
    expected = validate_teacher_forced(
        predictor.model, source, Encoder(tokenizer, predictor.model.codebook, config),
        Collator(config, tokenizer.pad_token_id), batch_size=2, device=torch.device("cpu"), dtype=torch.float32,
    ).meter  # fmt: skip
    predictor.model.eval()
    records = asked(predictor, source, "teacher_forced")
    assert any(record.ignored for record in records) == (name == "ReasonSeg|val")
    (benchmark,) = expand([name])
    scores = score_records(records, benchmark.rule, options=ScoringOptions())[0]["all"]
    assert sum(record.num_true for record in records) == expected.num_pairs > 0
    assert scores["giou"] == pytest.approx(expected.giou, abs=1e-4)
    assert scores["ciou"] == pytest.approx(expected.ciou, abs=1e-4)


@pytest.mark.parametrize("protocol", ["teacher_forced", "named"])
def test_an_answer_that_is_given_has_a_mask_for_each_target(predictor, whole_tree, protocol):
    for name in SETS:
        for record in asked(predictor, build_val_source(whole_tree, name), protocol):
            assert record.num_predicted == record.num_true == len(record.phrases) == len(record.names), name


def test_named_asks_for_the_names_and_nothing_else(predictor, whole_tree):
    source = build_val_source(whole_tree, "MultiReasonSeg|val")
    for record in asked(predictor, source, "named"):
        sample = source.get(record.index, np.random.default_rng(0))
        photo = sample.image_path
        alone = predictor.segment(photo, record.names) if record.names else None
        assert record.phrases == record.names
        assert record.answer == (alone.text if alone else "")
        for mask, target in zip(record.masks()[0], alone.targets if alone else [], strict=True):
            assert (mask != target.mask.numpy()).mean() < 1e-3


class Changed:
    """A set whose questions are changed."""

    name = "changed"

    def __init__(self, source: Source, change: Callable[[Turn], Turn]) -> None:
        self._source, self._change = source, change

    def __len__(self) -> int:
        return len(self._source)

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        sample = self._source.get(index, rng)
        return replace(sample, conversations=tuple((self._change(turn),) for (turn,) in sample.conversations))


def test_targets_without_names_cannot_be_named(predictor, whole_tree):
    source = Changed(build_val_source(whole_tree, "MultiReasonSeg|val"), lambda turn: replace(turn, names=()))
    with pytest.raises(InputError, match="has a target without a name, which --protocol named gives"):
        asked(predictor, source, "named")


@pytest.mark.parametrize("protocol", ["teacher_forced", "named"])
def test_a_question_without_targets_has_no_mask(predictor, whole_tree, protocol):
    nothing = Turn("Where is the dragon?", "There is no such thing in the image.", (), has_target=False)
    records = asked(predictor, Changed(build_val_source(whole_tree, "refcoco|unc|val"), lambda _: nothing), protocol)
    assert records
    for record in records:
        assert (record.num_predicted, record.num_true, record.has_target) == (0, 0, False)
        assert record.reason


@pytest.mark.parametrize("protocol", ["generate", "teacher_forced", "named"])
def test_batches_change_no_mask(predictor, whole_tree, protocol):
    source = build_val_source(whole_tree, "MultiReasonSeg|val")
    one, eight = (asked(predictor, source, protocol, size) for size in (1, 8))
    assert [(record.key, record.answer) for record in one] == [(record.key, record.answer) for record in eight]
    for mine, theirs in zip(one, eight, strict=True):
        assert (mine.masks()[0] != theirs.masks()[0]).mean() < 1e-3 if mine.num_predicted else True
