"""Questions that are asked and scored, with scripted answers in place of a network."""

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
from utils.evaluation.asking import ask, ask_all
from utils.evaluation.pictures import picture_panels
from utils.evaluation.questions import look_through
from utils.evaluation.records import QuestionRecord
from utils.evaluation.scores import ScoredQuestion, Scores, ScoringOptions, score_records

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


def evaluate(tmp_path, true, replies, **options) -> list[QuestionRecord]:
    return ask_all(Script(replies), TinySource(tmp_path, true), **options)


def score(records) -> tuple[dict[str, Scores], tuple[ScoredQuestion, ...]]:
    return score_records(records, "matched", options=ScoringOptions())


def overall(tmp_path, true, replies) -> Scores:
    return score(evaluate(tmp_path, [[true]], [[replies]]))[0]["all"]


@pytest.mark.parametrize("replies", [[A, B, C], [C, A, B]])
def test_right_masks_in_any_order_are_perfect(tmp_path, replies):
    scores = overall(tmp_path, [A, B, C], replies)
    assert [scores[name] for name in ("giou", "ciou", "released_muse_giou", "right_count")] == [1, 1, 1, 1]


def test_a_missing_target_halves(tmp_path):
    scores = overall(tmp_path, [A, B], [B])
    assert scores["giou"] == 0.5
    assert scores["ciou"] == MASKS[B].sum() / (MASKS[A].sum() + MASKS[B].sum())
    assert (scores["mean_pred"], scores["mean_true"], scores["right_count"]) == (1, 2, 0)


def test_an_extra_target_counts(tmp_path):
    scores = overall(tmp_path, [A], [B, A])
    assert scores["giou"] == 0.5
    assert scores["ciou"] == MASKS[A].sum() / (MASKS[A].sum() + MASKS[B].sum())


def test_an_answer_without_masks_scores_zero(tmp_path):
    scores = overall(tmp_path, [A, B], [])
    assert (scores["giou"], scores["ciou"], scores["mean_pred"]) == (0, 0, 0)


@pytest.mark.parametrize("replies", [[NOTHING], []])
def test_nothing_is_the_right_answer_to_an_absent_object(tmp_path, replies):
    assert overall(tmp_path, [NOTHING], replies)["giou"] == 1


def test_empty_extra_masks_do_not_help(tmp_path):
    """The release's rule would give 0.75 to this answer."""
    scores = overall(tmp_path, [A], [B, NOTHING, NOTHING, NOTHING])
    assert scores["giou"] == 0
    assert scores["released_muse_giou"] == 0.75


def test_partial_overlap_is_intersection_over_union(tmp_path, monkeypatch):
    both = MASKS[A] | MASKS[B]
    monkeypatch.setitem(MASKS, "A and B", both)
    scores = overall(tmp_path, [A], ["A and B"])
    assert scores["giou"] == scores["ciou"] == pytest.approx(MASKS[A].sum() / both.sum())


TRUE = [[[A], [B, C]], [[A, B, C]], [[B]]]
REPLIES = [[[A], [B]], [[C, B, A]], [[A]]]


def test_groups_by_number_of_targets(tmp_path):
    groups, _ = score(evaluate(tmp_path, TRUE, REPLIES))
    assert [groups[name]["num_questions"] for name in ("all", "single-target", "multi-target")] == [4, 2, 2]
    assert groups["single-target"]["giou"] == 0.5  # A right, B wrong
    assert groups["multi-target"]["giou"] == 0.8  # B of two, then three of three
    assert groups["all"]["giou"] == pytest.approx(5 / 7)
    assert groups["all"]["right_count"] == 0.75
    assert groups["all"]["mean_true"] == 7 / 4


def test_each_question_is_asked_once_and_as_written(tmp_path):
    script, source = Script(REPLIES), TinySource(tmp_path, TRUE)
    records = ask_all(script, source)
    assert [image for image, _ in script.asked] == [0, 0, 1, 2]
    assert [question for _, question in script.asked] == [record.question for record in records]
    assert ask_all(Script(REPLIES), source) == records, "a second run words every question alike"


def test_what_is_answered_is_not_asked_again(tmp_path):
    script, source = Script(REPLIES), TinySource(tmp_path, TRUE)
    first = evaluate(tmp_path, TRUE, REPLIES)
    rest = ask(script, source, [0, 1, 2], done={first[1].key, first[2].key})
    assert rest == [first[0], first[3]]
    assert [image for image, _ in script.asked] == [0, 2]


def test_limit_takes_the_first_images(tmp_path):
    assert [record.index for record in evaluate(tmp_path, TRUE, REPLIES, limit=2)] == [0, 0, 1]
    assert len(evaluate(tmp_path, TRUE, REPLIES, limit=99)) == 4


@pytest.mark.parametrize(
    ("size", "batches"), [(1, [[0], [1], [2]]), (2, [[0], [1, 2]]), (3, [[0, 1], [2]]), (16, [[0, 1, 2]])]
)
def test_a_batch_has_at_most_so_many_questions_unless_one_photo_has_more(tmp_path, size, batches):
    source = TinySource(tmp_path, TRUE)
    asked = look_through(source, source.name)
    assert asked.counts == (2, 1, 1)
    assert list(asked.batches(size)) == batches


def test_the_fingerprint_knows_questions_answers_and_masks(tmp_path):
    def sha256(true, **changes) -> str:
        source = TinySource(tmp_path, true, **changes)
        return look_through(source, source.name, limit=2).sha256

    assert sha256(TRUE) == sha256(TRUE)
    assert sha256(TRUE) == sha256([*TRUE[:2], [[A]]]), "what is not asked does not count"
    others = [[[[A], [C, B]], *TRUE[1:]], [TRUE[1], TRUE[0], TRUE[2]], [[[A], [B]], *TRUE[1:]]]
    assert len({sha256(true) for true in (TRUE, *others)}) == 4


def test_a_record_has_all_that_scoring_needs(tmp_path):
    record = evaluate(tmp_path, TRUE, REPLIES)[2]
    again = QuestionRecord.of_line(json.loads(json.dumps(record.to_line())), where="here", remedy="mend it")
    assert again == record
    assert (record.sample_id, record.num_predicted, record.num_true) == ("photo-1", 3, 3)
    predicted, true = record.masks()
    assert all(np.array_equal(mask, MASKS[name]) for mask, name in zip(predicted, [C, B, A], strict=True))
    assert all(np.array_equal(mask, MASKS[name]) for mask, name in zip(true, [A, B, C], strict=True))
    assert record.phrases == (C, B, A)


def test_an_error_names_its_sample_and_stops(tmp_path):
    """Evaluation never skips: a score over fewer samples than the set has is another number."""

    class Fails(Script):
        def answer(self, photo, question):
            if photo[0, 0, 0] == 1:
                raise InputError("too large")
            return super().answer(photo, question)

    with pytest.raises(InputError, match=r"^photo-1: too large"):
        ask_all(Fails(REPLIES), TinySource(tmp_path, TRUE))


def test_a_bad_sample_is_found_before_anything_is_asked(tmp_path):
    class Lacks(TinySource):
        def get(self, index, rng):
            sample = super().get(index, rng)
            if index == 2:
                sample.image_path.unlink()
            return sample

    script = Script(REPLIES)
    with pytest.raises(InputError, match=r"^photo-2: .*2.png does not exist"):
        ask_all(script, Lacks(tmp_path, TRUE))
    assert not script.asked


def test_questions_about_several_photos_are_answered_together(tmp_path):
    @dataclass
    class Counts(Script):
        sizes: list[int] = field(default_factory=list)

        def ask_batch(self, requests, *, batch_size, **options):
            self.sizes.append(len(requests))
            return super().ask_batch(requests, batch_size=batch_size, **options)

    alone, together = Counts(REPLIES), Counts(REPLIES)
    source = TinySource(tmp_path, TRUE)
    expected = ask_all(alone, source, batch_size=1)
    assert ask_all(together, source) == expected
    assert len(alone.sizes) == len(TRUE)
    assert together.sizes == [len(expected)]


def test_masks_of_another_size_than_the_photo_are_refused(tmp_path):
    source = TinySource(tmp_path, TRUE, mask_hw=(W, H))
    with pytest.raises(InputError, match=r"photo-0: .*\(36, 24\).*\(24, 36\)"):
        ask_all(Script(REPLIES), source)


def test_pictures_show_questions_answers_and_matching_colors(tmp_path):
    source = TinySource(tmp_path, [[[A, B]]])
    _, questions = score(ask_all(Script([[[B, A, C]]]), source))
    (true, question), (predicted, answer) = picture_panels(questions, source, num_questions=8)
    assert question == questions[0].record.question
    assert answer.startswith("B [0], A [1], C [2]")
    assert "3 given, 2 asked for" in answer
    assert max(true.shape) == 440
    scale = 440 / W
    inside_b = (int(13 * scale), int(5 * scale))
    assert np.array_equal(true[inside_b], predicted[inside_b]), "B has one color on both sides"
    inside_c = (int(1 * scale), int(21 * scale))
    tint = 90 * (1 - FILL) + np.array(PALETTE[2]) * FILL
    assert np.abs(predicted[inside_c] - tint).max() <= 1, "the extra mask has a color that no true mask has"
