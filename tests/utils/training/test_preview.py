"""The preview shows what the network gets: the padded input, every mask in its place, the words read back from ids."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from model.drawing import FILL, PALETTE
from model.image import read_image
from scripts import preview_data
from tests.support.bad_input import refused
from tests.support.tiny_data import H, W
from utils.data.records import RawSample, Turn
from utils.training.preview import input_pixels, sample_panel

DATA = ("--dataset=multi_reason_seg||refer_seg", "--sample_rates=1,1", "--refer_seg_data=refcoco")


@pytest.fixture(scope="module")
def encoder(make_encoder):
    """Large enough for outlines and numbers to cover little."""
    return make_encoder(image_size=448)


@pytest.fixture
def sample(tmp_path, encoder):
    """Left half, right half, left half again; in two conversations."""
    Image.new("RGB", (W, H), (200, 100, 50)).save(tmp_path / "photo.png")
    masks = np.zeros((2, H, W), dtype=bool)
    masks[0, :, : W // 2], masks[1, :, W // 2 :] = True, True
    conversations = (
        (Turn("Where is {it}?", "left {seg} and right {seg}.", (0, 1)), Turn("And then?", "Nothing.", ())),
        (Turn("Again?", "{seg}", (0,)),),
    )
    return encoder(RawSample("the sample", tmp_path / "photo.png", conversations, masks))


def test_the_normalization_is_undone(sample, encoder):
    pixels = input_pixels(sample.pixel_values, encoder.config)
    rows, columns = sample.valid_hw
    assert (pixels[:rows, :columns] == (200, 100, 50)).all()
    padding = np.round(np.array(encoder.config.image_mean) * 255)
    assert (pixels[rows:] == padding).all(), "padding is the mean color"


def test_masks_lie_where_the_input_shows_their_object(sample, encoder):
    panel, _ = sample_panel(sample, encoder)
    rows, columns = sample.valid_hw
    assert rows < panel.shape[0] == encoder.config.image_size
    for color, part in zip(PALETTE, (panel[:rows, : columns // 2], panel[:rows, columns // 2 : columns]), strict=False):
        tint = np.array([200, 100, 50]) * (1 - FILL) + np.array(color) * FILL
        assert np.median(np.abs(part - tint).max(-1)) <= 1
    padding = np.round(np.array(encoder.config.image_mean) * 255)
    assert (panel[rows + 3 :] == padding).all(), "no mask in the padding, outlines aside"


def test_words_are_read_back_from_the_ids_and_equal_masks_share_a_number(sample, encoder):
    _, caption = sample_panel(sample, encoder)
    assert caption.splitlines() == [
        "the sample",
        "Q: Where is {it}?",
        "A: left [0] and right [1] .",
        "Q: And then?",
        "A: Nothing.",
        "Q: Again?",
        "A: [0]",
    ]


def test_pixels_that_do_not_count_are_dark_and_empty_masks_are_named(tmp_path, encoder):
    Image.new("RGB", (W, H), (200, 100, 50)).save(tmp_path / "photo.png")
    masks, ignore = np.zeros((1, H, W), dtype=bool), np.zeros((H, W), dtype=bool)
    ignore[: H // 2] = True
    turns = (Turn("Where?", "{seg}", (0,)),)
    panel, caption = sample_panel(encoder(RawSample("x", tmp_path / "photo.png", (turns,), masks, ignore)), encoder)
    assert caption.endswith("A: [0, empty]")
    assert panel[10, 10].tolist() == [50, 25, 12]
    assert panel[encoder.config.image_size // 2, 10].tolist() == [200, 100, 50]


def test_a_dialogue_without_photo_says_so(encoder):
    raw = RawSample("x", None, ((Turn("Hello?", "Hello.", ()),),), np.zeros((0, 0, 0), dtype=bool))
    panel, caption = sample_panel(encoder(raw), encoder)
    assert panel.shape == (448, 448, 3)
    assert caption == "x (no photo)\nQ: Hello?\nA: Hello."


@pytest.fixture(params=["base", "stand-in"])
def base_flags(request, tiny_world):
    both = [f"--version={tiny_world.llava}", f"--vision-tower={tiny_world.clip}"]
    return both if request.param == "base" else []


def test_a_sheet_of_the_mixture(tiny_world, base_flags, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    size = ["--resize_vision_tower", "--resize_vision_tower_size=56", "--pad_train_clip_images", "--seg_token_num=2"]
    flags = [f"--dataset_dir={tiny_world.dataset}", *DATA, *base_flags, *size, "--num=5", "--columns=2", f"--out={out}"]
    assert preview_data.main(flags) == 0
    printed, log = capsys.readouterr()
    assert printed == f"{out}: 5 samples of multi_reason_seg, refcoco\n"
    assert ("stands in" in log) == (not base_flags)
    height, width = read_image(out).shape[:2]
    assert width == 2 * 56 + 3 * 16
    assert height > 3 * 56


def test_a_run_that_starts_from_a_model_is_shown_as_that_model_sees_it(parrot, tiny_world, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    flags = [f"--dataset_dir={tiny_world.dataset}", *DATA, "--num=2", "--columns=2", f"--out={out}"]
    assert preview_data.main([*flags, f"--init_from={parrot}"]) == 0
    assert "stands in" not in capsys.readouterr().err
    assert read_image(out).shape[1] == 2 * 56 + 3 * 16, "photos of 56 pixels, as the model's"


def test_what_the_run_leaves_out_is_named(dataset_dir, tmp_path, capsys):
    (dataset_dir / "refer_seg/images/mscoco/images/train2017/11.jpg").unlink()
    flags = [f"--dataset_dir={dataset_dir}", "--dataset=multi_reason_seg", "--sample_rates=1", "--num=8"]
    assert preview_data.main([*flags, f"--out={tmp_path / 'sheet.png'}"]) == 0
    assert re.search(r"^left out, image missing: .*11\.jpg does not exist", capsys.readouterr().out, re.MULTILINE)


def test_another_part_of_the_stream(tiny_world, tmp_path):
    sheets = []
    for name, start in (("a", 0), ("b", 0), ("c", 4)):
        flags = [f"--dataset_dir={tiny_world.dataset}", *DATA, "--num=2", f"--start={start}"]
        assert preview_data.main([*flags, f"--out={tmp_path / name}.png"]) == 0
        sheets.append(torch.from_numpy(read_image(tmp_path / f"{name}.png")))
    assert torch.equal(sheets[0], sheets[1])
    assert not torch.equal(sheets[0], sheets[2])


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--num=0", "--num is 0; expected 1 or more"),
        ("--start=-1", "--start is -1"),
        ("--columns=0", "--columns is 0"),
        ("--out=sheet.xyz", "--out sheet.xyz cannot be written: '.xyz' is no known picture format"),
        ("--dataset_dir=nowhere", "nowhere is not a folder"),
    ],
)
def test_wrong_flags(tiny_world, capsys, flag, says):
    refused(preview_data.main, [f"--dataset_dir={tiny_world.dataset}", *DATA, "--num=1", flag], capsys, says)
