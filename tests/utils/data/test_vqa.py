"""Dialogues: rounds, the mark of the photo, dialogues without photo, and bad records."""

import numpy as np
import pytest

from model.errors import InputError
from model.text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID
from tests.support.tiny_data import draw_photo, write_json
from tests.support.whole_tree import COCO, dialogue
from utils.data.collate import collate
from utils.data.paths import DatasetPaths
from utils.data.sources.vqa import Vqa


def open_source(root, *items) -> Vqa:
    draw_photo(root / COCO / "000000000001.jpg")
    write_json(root / "llava_dataset/llava_instruct_150k.json", list(items))
    return Vqa(DatasetPaths(root), "llava_instruct_150k")


def get(root, item):
    return open_source(root, item).get(0, np.random.default_rng(0))


@pytest.mark.parametrize(
    "said",
    [
        ("<image>\nWhat is it?", "A thing.", "Where?", "Above."),
        ("What is it?\n<image>", "A thing.", "Where?", "Above."),
        ("What is it?", "A thing.", "Where? <image>", "Above."),
        ("What is it?", "A thing.", "Where?", "Above.", "And then?"),
    ],
    ids=["in front", "behind", "in a later turn", "a question without answer"],
)
def test_the_photo_comes_first_wherever_its_mark_stands(tmp_path, encoder, said):
    sample = get(tmp_path, dialogue(*said))
    ((first, second),) = sample.conversations
    assert (first.question, first.answer, second.question, second.answer) == (
        "What is it?",
        "A thing.",
        "Where?",
        "Above.",
    )
    ids = encoder(sample).input_ids[0]
    places = (ids == IMAGE_TOKEN_ID).nonzero().flatten()
    question = encoder.tokenizer.decode(ids[places[-1] + 1 :])
    assert len(places) == 16
    assert question.replace("<im_end>", "").strip().startswith("What is it?")


def test_a_greeting_is_left_out(tmp_path):
    sample = get(tmp_path, dialogue("Hello!", "Hi <image>", "Hello again.", first="gpt"))
    (((turn),),) = sample.conversations
    assert (turn.question, turn.answer) == ("Hi", "Hello again.")


def test_a_dialogue_without_photo(tmp_path, encoder):
    sample = encoder(get(tmp_path, dialogue("A joke, please.", "No.", image=None)))
    assert (sample.input_ids[0] != IMAGE_TOKEN_ID).all()
    assert (sample.labels[0] != IGNORE_INDEX).any()
    assert tuple(sample.masks.shape) == (0, 0, 0)
    batch = collate([sample, sample], encoder.codebook, 0)
    assert tuple(batch.pixel_values.shape) == (2, 3, 56, 56)


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"conversations": []},
        [],
        dialogue("Q", "A", "B") | {"conversations": [{"from": "human", "value": "Q"}] * 2},
        dialogue("Q", ""),
        dialogue("Q", "A {seg}"),
        dialogue("Q", "A") | {"conversations": [{"from": "human"}]},
        {"image": "000000000001.jpg", "conversations": "Q"},
    ],
)
def test_bad_records_are_named(tmp_path, item):
    with pytest.raises(InputError, match=r"llava_instruct_150k/0: .*LLaVA's format") as caught:
        get(tmp_path, item)
    assert caught.value.reason == "bad record"


def test_a_missing_photo_is_named(tmp_path):
    with pytest.raises(InputError, match=r"image .*nowhere.jpg does not exist") as caught:
        get(tmp_path, dialogue("Q", "A", image="nowhere.jpg"))
    assert caught.value.reason == "image missing"


def test_an_end_mark_in_an_answer_is_text(tmp_path, encoder):
    sample = encoder(get(tmp_path, dialogue("Q", "A </s> B")))
    assert (sample.input_ids[0] == encoder.tokenizer.eos_token_id).sum() == 1


@pytest.mark.parametrize("content", [{}, [], "x"])
def test_other_files_are_refused(tmp_path, content):
    write_json(tmp_path / "llava_dataset/llava_instruct_150k.json", content)
    with pytest.raises(InputError, match="not in LLaVA's format"):
        Vqa(DatasetPaths(tmp_path), "llava_instruct_150k")


def test_dialogues_are_known_to_have_no_masks(tmp_path):
    assert open_source(tmp_path, dialogue("What is it?", "A thing.")).mask_share == 0
