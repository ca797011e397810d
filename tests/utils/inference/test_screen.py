"""What a terminal shows of an answer: names in the colors of their masks, whole words, and small pictures."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from rich.console import Console

from model.drawing import PALETTE
from model.replies import Reply, Target
from utils.inference.screen import Screen, colored, label_style, thumbnail

IMAGE = np.full((40, 60, 3), 90, dtype=np.uint8)


def target(phrase: str) -> Target:
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[:20, :30] = True
    return Target(phrase, (0, 2), mask, 0.9, mask.float())


def reply(words: str, *phrases: str) -> Reply:
    """``words`` have a star for each group."""
    return Reply(words.replace("*", "[SEG]"), [], [target(phrase) for phrase in phrases], "[SEG]")


def screen(**options: object) -> Screen:
    settings = {"file": io.StringIO(), "force_terminal": True, "color_system": "truecolor", "width": 80, "height": 24}
    return Screen(Console(**{**settings, **options}, highlight=False, markup=False))


def shown(of: Screen) -> str:
    assert isinstance(of.console.file, io.StringIO)
    return of.console.file.getvalue()


def test_each_name_has_the_color_of_its_mask():
    text = colored("The star [0] , the star [1] .", [target("star"), target("star")])
    found = [(text.plain[span.start : span.end], span.style) for span in text.spans]
    assert found == [(words, label_style(n)) for n in (0, 1) for words in ("star", f"[{n}]")]
    assert text.spans[0].start < text.spans[2].start
    assert label_style(1).bgcolor.triplet == PALETTE[1]
    assert label_style(len(PALETTE)) == label_style(0)


def test_an_answer_without_the_words_of_a_name_keeps_its_number_colored():
    text = colored("It is [0] .", [target("")])
    assert [text.plain[span.start : span.end] for span in text.spans] == ["[0]"]


def test_what_a_model_writes_does_not_move_the_cursor():
    assert colored("a\x1b[2Jb\x07 \u202e", []).plain == "a?[2Jb? ?"


def test_messages_are_wrapped_on_words_and_paths_stay_whole():
    on = screen(width=20, color_system=None, force_terminal=False)
    path = "/a/long/path/of/a/photo.jpg"
    on.say("one two three four five six\x1b[2J")
    on.say(f"saved 4 files: {path}")
    lines = [line.rstrip() for line in shown(on).splitlines()]
    assert lines == ["one two three four", "five six?[2J", f"saved 4 files: {path}"]


def test_long_answers_are_wrapped_on_words():
    on = screen(width=30, color_system=None)
    words = "the quick brown fox jumps over the lazy dog and so on and on"
    on.stream([words, reply(words)])
    lines = shown(on).rsplit("\r", 1)[-1].splitlines()
    assert " ".join(line.strip() for line in lines if "\x1b" not in line).endswith("and so on and on")
    assert all(word in words.split() for line in lines if "\x1b" not in line for word in line.split())


def test_an_answer_that_is_stopped_stays_on_the_screen():
    def stopped() -> Iterator[str]:
        yield "half an"
        yield " answer"
        raise KeyboardInterrupt

    on = screen()
    with pytest.raises(KeyboardInterrupt):
        on.stream(stopped())
    assert shown(on).endswith("half an answer\n")


def test_an_answer_longer_than_the_terminal_is_whole_at_its_end():
    on = screen(width=20, height=6)
    words = " ".join(f"word{n}" for n in range(100))
    on.stream([words, reply(words)])
    end = shown(on)[-1400:]
    assert all(f"word{n}" in end for n in range(100))


def test_targets_have_a_line_each():
    on = screen(color_system=None, force_terminal=False)
    empty = target("cat")
    empty.mask, empty.score = torch.zeros(40, 60, dtype=torch.bool), 0.0
    answer = reply("star * cat *", "red star")
    answer.targets.append(empty)
    answer.reason = "the answer was cut after 9 tokens"
    on.targets(answer)
    assert [re.split(" {2,}", line) for line in shown(on).splitlines()] == [
        ["[0] red star", "25.0% of the image", "score 0.90"],
        ["[1] cat", "no pixel is above the threshold", "score 0.00"],
        ["note: the answer was cut after 9 tokens"],
    ]


@pytest.mark.parametrize("options", [{"color_system": "standard"}, {"no_color": True}, {"color_system": None}])
def test_without_enough_colors_there_is_no_picture(options):
    on = screen(**options)
    on.picture(IMAGE)
    assert shown(on) == ""


def test_a_picture_fits_the_terminal():
    on = screen(width=20)
    on.picture(np.zeros((500, 2000, 3), dtype=np.uint8))
    assert 1 <= shown(on).count("\n") <= 14
    assert max(line.count("▄") for line in shown(on).splitlines()) == 20


def test_masks_are_tinted_and_small_ones_lie_above():
    masks = np.zeros((2, 40, 60), dtype=bool)
    masks[0, 10:20, 10:20] = True
    masks[1, :30, :40] = True
    small = thumbnail(IMAGE, masks, box=(60, 40))
    assert small.shape == IMAGE.shape
    for number, place in ((0, (15, 15)), (1, (5, 5))):
        assert np.abs(small[place].astype(int) - PALETTE[number]).max() < 80
    assert (small[35, 50] == 90).all()
    assert thumbnail(IMAGE, None, box=(3, 40)).shape == (2, 3, 3)
