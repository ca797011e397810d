"""One's own data: every kind of target gives the same mask, and every bad line is named with its number."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from model.errors import InputError
from model.image import read_image
from model.rle import encode_rle
from tests.support.tiny_data import H, W, draw_photo
from utils.data.mixture import Mixture
from utils.data.photos import photo_hw, read_label_map
from utils.data.registry import DataOptions, build_train_sources, build_val_source
from utils.data.sources.custom import CustomSource

SQUARE = {"polygon": [5, 4, 25, 4, 25, 14, 5, 14]}
TRUE = np.zeros((H, W), dtype=bool)
TRUE[4:14, 5:25] = True
RUNS = [5 * H + 4, *[10, H - 10] * 19, 10, (W - 25) * H + H - 14]  # column by column, background first


def turn(*targets, question="Where is the thing?", answer=None):
    return {
        "question": question,
        "answer": answer or f"Here: {', '.join(['{seg}'] * len(targets))}.",
        "targets": targets,
    }


@pytest.fixture
def folder(tmp_path):
    """A photo, and its mask as label values and as white on black."""
    draw_photo(tmp_path / "photos/one.png")
    cv2.imwrite(str(tmp_path / "labels.png"), TRUE.astype(np.uint8) * 7 + ~TRUE)
    cv2.imwrite(str(tmp_path / "white.png"), TRUE.astype(np.uint8) * 255)
    return tmp_path


def write(folder, *records, name="data.jsonl"):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def record(*turns, image="photos/one.png"):
    return {"image": image, "turns": turns or [turn(SQUARE)]}


def open_source(file, **options) -> CustomSource:
    return CustomSource(file, asked_by=f"--custom_data {file}", **options)


def samples(file):
    source = open_source(file)
    return [source.get(index, np.random.default_rng(0)) for index in range(len(source))]


@pytest.mark.parametrize(
    "target",
    [
        SQUARE,
        {"rle": encode_rle(TRUE)},
        {"rle": {"size": [H, W], "counts": RUNS}},
        {"png": "labels.png", "value": 7},
        {"png": "white.png"},
        [{"polygon": [5, 4, 15, 4, 15, 14, 5, 14]}, {"polygon": [15, 4, 25, 4, 25, 14, 15, 14]}],
        [SQUARE, {"png": "white.png"}],
    ],
    ids=["polygon", "rle", "uncompressed rle", "label value", "white", "two shapes", "two kinds"],
)
def test_every_kind_of_target_gives_the_mask(folder, target):
    (sample,) = samples(write(folder, record(turn(target))))
    assert (sample.masks == TRUE[None]).all()
    assert sample.image_path == folder / "photos/one.png"


def test_a_line_is_one_dialogue_whose_targets_stand_in_order(folder):
    low = {"polygon": [0, 30, 20, 30, 20, 39, 0, 39]}
    last = {"question": "Anything else?", "answer": "No."}
    (sample,) = samples(write(folder, record(turn(SQUARE), turn(low, SQUARE, question="And {below}?"), last)))
    (turns,) = sample.conversations
    assert [one.targets for one in turns] == [(0,), (1, 2), ()]
    assert [one.question for one in turns] == ["Where is the thing?", "And {below}?", "Anything else?"]
    assert (sample.masks[0] == sample.masks[2]).all()
    assert sample.masks[1, 35, 10]


def test_blank_lines_and_a_byte_order_mark_are_no_records(folder):
    file = write(folder, "", record(), "  ", record(turn(SQUARE, question="Wo ist das Stück?")))  # codespell:ignore ist
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().lstrip())
    found = samples(file)
    assert [sample.sample_id for sample in found] == [f"{file}, line 1", f"{file}, line 3"]
    assert found[1].conversations[0][0].question == "Wo ist das Stück?"  # codespell:ignore ist


def test_a_photo_turned_by_exif_has_the_size_that_is_shown(folder, encoder):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("turned.jpg", "turned.png"):
        Image.new("RGB", (30, 20)).save(folder / name, exif=exif)
        assert photo_hw(folder / name, upright=True) == read_image(folder / name).shape[:2] == (30, 20)
    (sample,) = samples(write(folder, record(turn({"polygon": [0, 0, 20, 0, 20, 30, 0, 30]}), image="turned.jpg")))
    assert sample.masks.shape == (1, 30, 20)
    assert sample.masks.all()
    assert encoder(sample).orig_hw == (30, 20), "photo and masks agree"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: it is not valid JSON"),
        ("[]", "line 2: it is a list; expected one JSON object per line"),
        ({"turns": [turn()]}, 'line 2: "image" is None; expected the path'),
        (record(image="photos/two.png"), r"line 2: .*photos/two.png does not exist; paths start at the folder"),
        (record(turn({"png": "none.png"})), r"line 2: .*none.png does not exist"),
        ({"image": "photos/one.png"}, 'line 2: "turns" is None'),
        (record("What?"), "line 2: turn 0: it is a str"),
        (record(turn(SQUARE), {"question": "", "answer": "No."}), "line 2: turn 1: \"question\" is ''; expected text"),
        (record({"question": "What?"}), 'turn 0: "answer" is None; expected text'),
        (record(turn(SQUARE, answer="{seg} {seg}")), r"turn 0: the answer has 2 \{seg\} for 1 targets"),
        (record(turn(answer="No.", question="Is {seg} it?")), r'turn 0: "question" contains \{seg\}'),
        (record(turn(SQUARE, question="<image>\nWhere?")), 'turn 0: "question" contains <image>; leave it out'),
        (record(turn(SQUARE) | {"names": ["a", "b"]}), r"turn 0: \"names\" is \['a', 'b'\]; expected a list of 1, one"),
        (record(turn(SQUARE) | {"names": "a"}), "turn 0: \"names\" is 'a'; expected a list of 1"),
        (record(turn(SQUARE) | {"names": ["the {seg}"]}), r'turn 0: "names" is .*seg.*; expected a list of 1'),
        (record(turn(SQUARE) | {"names": [" "]}), r'turn 0: "names" is .*; expected a list of 1'),
        (record({"question": "Q", "answer": "{seg}", "targets": SQUARE}), r'turn 0: "targets" is \{.*expected a list'),
        (record(turn([1, 2, 3])), r"turn 0: target 0 is \[1, 2, 3\]; expected .*polygon"),
        (record(turn([])), r"turn 0: target 0 is \[\]; expected"),
        (record(turn({"png": "photo.jpg"})), r"turn 0: target 0 is .*photo.jpg.*; expected .*FILE\.png"),
        (record(turn({"png": "white.png", "label": 3})), "turn 0: target 0 is .*label.*; expected"),
        (record(turn({"png": "white.png", "value": "7"})), "turn 0: target 0 is .*value.*; expected"),
        (record(turn({"rle": {"size": 3, "counts": []}})), "turn 0: target 0 is .*size.*; expected"),
    ],
)
def test_a_bad_line_is_named_when_the_file_is_opened(folder, line, message):
    with pytest.raises(InputError, match=message):
        open_source(write(folder, record(), line))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"polygon": [1, 2, 3, 4]}, "line 1: target 0: a polygon has 4 numbers"),
        ({"polygon": [100, 100, 120, 100, 120, 120]}, "target 0 covers no pixel of the photo, which is 40 x 60"),
        ({"png": "labels.png", "value": 3}, "target 0 covers no pixel"),
        (
            {"rle": {"size": [W, H], "counts": [W * H]}},
            r"target 0: the mask's size is \[60, 40\], the photo's \[40, 60\]",
        ),
        ({"png": "small.png"}, r"target 0: .*small.png is \(4, 4\), the photo \(40, 60\)"),
        ({"png": "color.png"}, "color.png has colors .mode RGB.; expected one number per pixel"),
        ({"png": "clear.png"}, "clear.png has transparency"),
    ],
)
def test_a_bad_target_is_named_when_it_is_drawn(folder, target, message):
    Image.new("L", (4, 4), 1).save(folder / "small.png")
    Image.new("RGB", (W, H), (1, 2, 3)).save(folder / "color.png")
    Image.new("RGBA", (W, H), (1, 1, 1, 0)).save(folder / "clear.png")
    with pytest.raises(InputError, match=message):
        samples(write(folder, record(turn(target))))


def test_label_values_survive_every_kind_of_png(folder):
    """A palette is read by its indices: its colors say nothing."""
    palette = Image.fromarray(TRUE.astype(np.uint8) * 2, mode="P")
    palette.putpalette([200, 0, 0] * 256)
    palette.save(folder / "palette.png")
    Image.fromarray(TRUE.astype(np.uint16) * 300).save(folder / "deep.png")
    Image.fromarray(TRUE).save(folder / "bits.png")
    Image.fromarray(TRUE.astype(np.uint8) * 5).convert("RGB").save(folder / "gray.png")
    for name, value in (("palette.png", 2), ("deep.png", 300), ("bits.png", 1), ("gray.png", 5)):
        assert (read_label_map(folder / name) == TRUE * value).all(), name


def test_several_files_and_other_datasets_mix(folder, shared_dataset, encoder):
    files = [write(folder, record(), name="a.jsonl"), write(folder, record(), record(), name="b.jsonl")]
    joined = "||".join(map(str, files))
    options = DataOptions(shared_dataset, "custom||multi_reason_seg", "3,1", custom_data=joined)
    sources, rates = build_train_sources(options)
    assert [(source.name, len(source)) for source in sources[:2]] == [
        (f"custom|{files[0]}", 1),
        (f"custom|{files[1]}", 2),
    ]
    assert rates == [1.5, 1.5, 1]
    mixture = Mixture(sources, rates, encoder, seed=0)
    assert {mixture[index].sample_id.split(",")[0] for index in range(20)} >= set(map(str, files))


def test_targets_may_have_names(folder):
    words = {"question": "Is it alive?", "answer": "No.", "names": []}
    named = turn(SQUARE, SQUARE) | {"names": ["the cup", " the {odd} one "]}
    first, second, third = samples(write(folder, record(named), record(turn(SQUARE)), record(words)))
    names = [sample.conversations[0][0].names for sample in (first, second, third)]
    assert names == [("the cup", "the {odd} one"), (), ()]
    assert [sample.conversations[0][0].has_target for sample in (first, second, third)] == [True, True, False]


def test_validation_reads_single_questions(folder):
    file = write(folder, record(), record(turn(SQUARE, question="Which?")))
    source = build_val_source("unused", f"custom|{file}")
    assert (source.name, len(source)) == (f"custom|{file}", 2)
    dialogue = write(folder, record(), record(turn(SQUARE), turn(SQUARE)), name="dialogue.jsonl")
    with pytest.raises(InputError, match="line 2: it has 2 turns; for validation, give every question a line"):
        build_val_source("unused", f"custom|{dialogue}")


def test_missing_and_empty_files(folder):
    with pytest.raises(InputError, match=r"--dataset custom needs --custom_data .*docs/custom_data.md"):
        build_train_sources(DataOptions(folder, "custom", "1"))
    with pytest.raises(InputError, match=r"none.jsonl does not exist, but --custom_data .*none.jsonl needs it"):
        build_train_sources(DataOptions(folder, "custom", "1", custom_data=str(folder / "none.jsonl")))
    with pytest.raises(InputError, match="is empty"):
        open_source(write(folder, ""))


def test_the_first_of_many_bad_lines_is_told_with_their_count(folder):
    with pytest.raises(
        InputError, match=r"line 1: .*; 2 more lines are bad. .*utils.data.verify .* lists every bad line"
    ):
        open_source(write(folder, "{", "[", record(), "{"))


def test_the_share_of_records_with_targets(folder):
    words = {"question": "What is it?", "answer": "A thing."}
    both = write(folder, record(turn(SQUARE)), "", record(words), record(words, turn(SQUARE)), record(words))
    assert open_source(both).mask_share == 0.5
    assert open_source(write(folder, record(words), name="words.jsonl")).mask_share == 0
