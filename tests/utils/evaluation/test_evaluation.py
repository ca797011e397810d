"""The arithmetic of generative evaluation, with scripted answers in place of a network."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from model.drawing import FILL, PALETTE, write_image
from model.errors import InputError
from model.replies import Reply, Target
from utils.data.records import RawSample, Turn
from utils.evaluation.generative import evaluate_generative
from utils.evaluation.pictures import picture_panels
from utils.evaluation.results import EvaluationResult, Scores
from utils.masks.rle import decode_rles

H, W = 24, 36
A, B, C, NOTHING = "A", "B", "C", "nothing"
MASKS = {name: np.zeros((H, W), dtype=bool) for name in (A, B, C, NOTHING)}
MASKS[A][2:10, 2:12] = True
MASKS[B][12:22, 4:30] = True
MASKS[C][0:8, 20:34] = True


@dataclass
class TinySource:
    """Images, each a list of questions, each the names of its true masks; sizes as on disk."""

    folder: Path
    images: list[list[list[str]]]
    name: str = "Tiny|val"
    mask_hw: tuple[int, int] = (H, W)

    def __len__(self) -> int:
        return len(self.images)

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        path = self.folder / f"{index}.png"
        # The first pixel tells the scripted model which image it sees.
        photo = np.full((H, W, 3), 90, dtype=np.uint8)
        photo[0, 0] = index
        write_image(path, photo)
        conversations, masks = [], []
        for number, names in enumerate(self.images[index]):
            targets = tuple(range(len(masks), len(masks) + len(names)))
            masks += [MASKS[name] for name in names]
            question = f"Question {number}, wording {rng.integers(1000)}?"
            conversations.append((Turn(question, ", ".join(["{seg}"] * len(names)), targets),))
        stacked = np.stack(masks) if masks else np.zeros((0, *self.mask_hw), dtype=bool)
        return RawSample(f"photo-{index}", path, tuple(conversations), stacked.reshape(-1, *self.mask_hw))


@dataclass
class Script:
    """Answers image by image and question by question, as written."""

    replies: list[list[list[str]]]
    asked: list[tuple[int, str]] = field(default_factory=list)

    def ask_batch(self, requests, *, batch_size: int, max_new_tokens: int, temperature: float) -> list[Reply]:
        assert temperature == 0, "scores would change from run to run"
        return [self.answer(photo, question) for photo, question in requests]

    def answer(self, photo: np.ndarray, question: str) -> Reply:
        assert photo.shape == (H, W, 3)
        image = int(photo[0, 0, 0])
        self.asked.append((image, question))
        names = self.replies[image][int(question.split(",")[0].split()[1])]
        masks = [torch.from_numpy(MASKS[name]) for name in names]
        targets = [Target(name, (0, 1), mask, 0.5, mask.float()) for name, mask in zip(names, masks, strict=True)]
        text = ", ".join(f"{name} [SEG0] [SEG1]" for name in names)
        return Reply(
            text, [], targets, "[SEG0] [SEG1]", None if names else "the model answered without a segmentation token"
        )


def evaluate(tmp_path, true, replies, **options) -> EvaluationResult:
    return evaluate_generative(Script(replies), TinySource(tmp_path, true), progress=False, **options)


def overall(tmp_path, true, replies) -> Scores:
    return evaluate(tmp_path, [[true]], [[replies]]).scores["all"]


@pytest.mark.parametrize("replies", [[A, B, C], [C, A, B]])
def test_right_masks_in_any_order_are_perfect(tmp_path, replies):
    scores = overall(tmp_path, [A, B, C], replies)
    assert (scores.giou, scores.ciou, scores.released_muse_giou, scores.right_count) == (1, 1, 1, 1)


def test_a_missing_target_halves(tmp_path):
    scores = overall(tmp_path, [A, B], [B])
    assert scores.giou == 0.5
    assert scores.ciou == MASKS[B].sum() / (MASKS[A].sum() + MASKS[B].sum())
    assert (scores.mean_pred, scores.mean_true, scores.right_count) == (1, 2, 0)


def test_an_extra_target_counts(tmp_path):
    scores = overall(tmp_path, [A], [B, A])
    assert scores.giou == 0.5
    assert scores.ciou == MASKS[A].sum() / (MASKS[A].sum() + MASKS[B].sum())


def test_an_answer_without_masks_scores_zero(tmp_path):
    scores = overall(tmp_path, [A, B], [])
    assert (scores.giou, scores.ciou, scores.mean_pred) == (0, 0, 0)


@pytest.mark.parametrize("replies", [[NOTHING], []])
def test_nothing_is_the_right_answer_to_an_absent_object(tmp_path, replies):
    assert overall(tmp_path, [NOTHING], replies).giou == 1


def test_empty_extra_masks_do_not_help(tmp_path):
    """The release's rule would give 0.75 to this answer."""
    scores = overall(tmp_path, [A], [B, NOTHING, NOTHING, NOTHING])
    assert scores.giou == 0
    assert scores.released_muse_giou == 0.75


def test_partial_overlap_is_intersection_over_union(tmp_path, monkeypatch):
    both = MASKS[A] | MASKS[B]
    monkeypatch.setitem(MASKS, "A and B", both)
    scores = overall(tmp_path, [A], ["A and B"])
    assert scores.giou == scores.ciou == pytest.approx(MASKS[A].sum() / both.sum())


TRUE = [[[A], [B, C]], [[A, B, C]], [[B]]]
REPLIES = [[[A], [B]], [[C, B, A]], [[A]]]


def test_slices_by_number_of_targets(tmp_path):
    scores = evaluate(tmp_path, TRUE, REPLIES).scores
    assert [scores[name].num_questions for name in ("all", "single-target", "multi-target")] == [4, 2, 2]
    assert scores["single-target"].giou == 0.5  # A right, B wrong
    assert scores["multi-target"].giou == 0.8  # B of two, then three of three
    assert scores["all"].giou == pytest.approx(5 / 7)
    assert scores["all"].right_count == 0.75
    assert scores["all"].mean_true == 7 / 4


def test_each_image_is_set_once_and_each_question_asked_as_written(tmp_path):
    script, source = Script(REPLIES), TinySource(tmp_path, TRUE)
    result = evaluate_generative(script, source, progress=False)
    assert [image for image, _ in script.asked] == [0, 0, 1, 2]
    assert [question for _, question in script.asked] == [record.question for record in result.records]
    again = evaluate_generative(Script(REPLIES), source, progress=False)
    assert again.to_dict() == result.to_dict(), "a second run words every question alike"


def test_shards_give_what_one_process_gives(tmp_path):
    whole = evaluate(tmp_path, TRUE, REPLIES)
    parts = [evaluate(tmp_path, TRUE, REPLIES, shard=(rank, 2)) for rank in (1, 0)]
    assert EvaluationResult.join(parts).to_dict() == whole.to_dict()


def test_limit_takes_the_first_images(tmp_path):
    result = evaluate(tmp_path, TRUE, REPLIES, limit=2)
    assert [record.index for record in result.records] == [0, 0, 1]
    assert len(evaluate(tmp_path, TRUE, REPLIES, limit=99).records) == 4
    with pytest.raises(InputError, match="--limit is 0"):
        evaluate(tmp_path, TRUE, REPLIES, limit=0)


def test_result_is_json_and_scores_can_be_computed_again(tmp_path):
    result = evaluate(tmp_path, TRUE, REPLIES, max_new_tokens=77)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["protocol"] == "generative, one-to-one matched on IoU"
    assert data["max_new_tokens"] == 77
    assert data["scores"]["all"]["giou"] == pytest.approx(5 / 7)
    question = data["questions"][2]
    assert (question["sample_id"], question["num_pred"], question["num_true"]) == ("photo-1", 3, 3)
    assert question["ious"] == [1, 1, 1]
    decoded = decode_rles(question["predictions"], hw=(H, W))
    assert all(np.array_equal(mask, MASKS[name]) for mask, name in zip(decoded, [C, B, A], strict=True))
    ious = [iou for question in data["questions"] for iou in question["ious"]]
    assert np.mean(ious) == pytest.approx(result.scores["all"].giou)


def test_table_names_protocol_and_shows_missing_numbers_as_dashes(tmp_path):
    table = evaluate(tmp_path, [[[A]]], [[[A]]]).table()
    lines = table.splitlines()
    assert "Tiny|val" in lines[0]
    assert "generative, one-to-one matched on IoU" in lines[0]
    assert "100.0%" in lines[2]
    assert "nan" not in table
    assert len({len(line) for line in lines[1:]}) == 1, "columns line up"


def test_an_error_names_its_sample_and_stops(tmp_path):
    """Evaluation never skips: a score over fewer samples than the set has is another number."""

    class Fails(Script):
        def answer(self, photo, question):
            if photo[0, 0, 0] == 1:
                raise InputError("too large")
            return super().answer(photo, question)

    with pytest.raises(InputError, match=r"^photo-1: too large"):
        evaluate_generative(Fails(REPLIES), TinySource(tmp_path, TRUE), progress=False)


def test_questions_about_several_photos_are_answered_together(tmp_path):
    @dataclass
    class Counts(Script):
        sizes: list[int] = field(default_factory=list)

        def ask_batch(self, requests, *, batch_size, **options):
            self.sizes.append(len(requests))
            return super().ask_batch(requests, batch_size=batch_size, **options)

    alone, together = Counts(REPLIES), Counts(REPLIES)
    source = TinySource(tmp_path, TRUE)
    expected = evaluate_generative(alone, source, progress=False, batch_size=1)
    assert evaluate_generative(together, source, progress=False).to_dict() == expected.to_dict()
    assert len(alone.sizes) == len(TRUE)
    assert together.sizes == [len(expected.records)]


def test_masks_of_another_size_than_the_photo_are_refused(tmp_path):
    source = TinySource(tmp_path, TRUE, mask_hw=(W, H))
    with pytest.raises(InputError, match=r"photo-0: .*\(36, 24\).*\(24, 36\)"):
        evaluate_generative(Script(REPLIES), source, progress=False)


def test_pictures_show_questions_answers_and_matching_colors(tmp_path):
    source = TinySource(tmp_path, [[[A, B]]])
    result = evaluate_generative(Script([[[B, A, C]]]), source, progress=False)
    (true, question), (predicted, answer) = picture_panels(result, source, num_questions=8)
    assert question == result.records[0].question
    assert answer.startswith("B [0], A [1], C [2]")
    assert "3 given, 2 asked for" in answer
    assert max(true.shape) == 440
    scale = 440 / W
    inside_b = (int(13 * scale), int(5 * scale))
    assert np.array_equal(true[inside_b], predicted[inside_b]), "B has one color on both sides"
    inside_c = (int(1 * scale), int(21 * scale))
    tint = 90 * (1 - FILL) + np.array(PALETTE[2]) * FILL
    assert np.abs(predicted[inside_c] - tint).max() <= 1, "the extra mask has a color that no true mask has"
