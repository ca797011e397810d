"""The viewer in a browser: what is drawn where, what hover, pin, hide and sliders do, keys, names, a phone, gradio."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest

from model.drawing import PALETTE
from tests.support import color_sight
from tests.support.browser import open_page, start_browser
from tests.support.viewer_page import (
    EDGE,
    GRAY,
    HEIGHT,
    LEFT,
    NOWHERE,
    OPACITY,
    PIXEL,
    RIGHT,
    WIDTH,
    data_uri,
    dimmed,
    rectangle,
    shown_value,
    target,
    tinted,
    turn,
    wait_for_color,
    write_viewer_page,
)

pytest.importorskip("gradio")
pytestmark = pytest.mark.slow
Opens = Callable[..., AbstractContextManager[Any]]

HOSTILE = '<img src=x onerror="document.title=1"> ${1} {{value}} `</script>'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def opens(browser, tmp_path_factory) -> Opens:
    """Opens the viewer with two turns; its masks are drawn when it is given away."""
    file = tmp_path_factory.mktemp("viewer") / "page.html"
    write_viewer_page(file, shown_value())

    @contextmanager
    def opened(**options: Any) -> Iterator[Any]:
        with open_page(browser, file, **options) as page:
            page.wait_for_selector(".px-badges button >> nth=2")
            yield page

    return opened


@pytest.fixture(scope="module")
def starts(browser, tmp_path_factory) -> Opens:
    """Opens the viewer before there is a photo."""
    file = tmp_path_factory.mktemp("start") / "page.html"
    thumbnail = data_uri(np.zeros((9, 12, 3), dtype=np.uint8))
    examples = [{"url": thumbnail, "question": HOSTILE}, {"url": thumbnail, "question": "Where is the star?"}]
    write_viewer_page(file, {"photo": None, "turns": [], "notice": None}, examples=examples)
    return partial(open_page, browser, file)


def show(page: Any, value: Any) -> None:
    page.evaluate("(value) => set('value', value)", value)


def told(page: Any) -> list[Any]:
    """What the viewer has triggered since the last call."""
    return page.evaluate("told.splice(0)")


def center(page: Any, place: tuple[int, int]) -> tuple[float, float]:
    """A place of the photo on the screen."""
    box = page.locator("canvas").bounding_box()
    return box["x"] + box["width"] * place[0] / WIDTH, box["y"] + box["height"] * place[1] / HEIGHT


def phrase(page: Any, text: str) -> Any:
    return page.locator(".px-turn[data-chosen] .px-phrase", has_text=text)


def row(page: Any, number: int) -> Any:
    return page.locator(".px-target").nth(number)


def test_each_mask_is_drawn_on_its_pixels_in_its_color(opens):
    with opens() as page:
        wait_for_color(page, LEFT, tinted(0))
        wait_for_color(page, RIGHT, tinted(1))
        wait_for_color(page, NOWHERE, [GRAY] * 3)
        wait_for_color(page, (10, 10), [GRAY] * 3)  # below the threshold
        wait_for_color(page, EDGE, PALETTE[0])  # the outline
        assert page.locator(".px-badges button").all_inner_texts() == ["0", "1", "2"]
        x, y = (page.locator(".px-badges button").nth(2).bounding_box()[side] for side in ("x", "y"))
        speck = center(page, (202, 202))
        assert not (x <= speck[0] <= x + 24 and y <= speck[1] <= y + 24), "a number stands beside what it would hide"


def test_a_phrase_lights_up_its_mask_and_a_mask_its_phrase(opens):
    with opens() as page:
        phrase(page, "cup").hover()
        wait_for_color(page, LEFT, 0.955 * dimmed() + 0.045 * np.array(PALETTE[0]))
        wait_for_color(page, RIGHT, tinted(1))
        page.mouse.move(*center(page, LEFT))
        wait_for_color(page, LEFT, tinted(0))
        assert page.locator(".px-turn[data-chosen] .px-phrase[data-lit]").inner_text() == "red star"
        assert row(page, 0).get_attribute("data-lit") is not None
        page.mouse.move(*center(page, NOWHERE))
        wait_for_color(page, RIGHT, tinted(1))
        wait_for_color(page, NOWHERE, [GRAY] * 3)
        assert told(page) == []


def test_a_click_pins_until_it_is_taken_back(opens):
    with opens() as page:
        page.mouse.click(*center(page, RIGHT))
        page.mouse.move(2, 2)
        assert phrase(page, "cup").get_attribute("aria-pressed") == "true"
        wait_for_color(page, NOWHERE, dimmed())
        phrase(page, "red star").click()
        page.mouse.move(2, 2)
        assert phrase(page, "cup").get_attribute("aria-pressed") == "false"
        wait_for_color(page, LEFT, tinted(0))
        page.keyboard.press("Escape")
        page.locator(".px-field textarea").focus()
        wait_for_color(page, NOWHERE, [GRAY] * 3)


def test_what_is_hidden_or_renamed_is_so_in_files_and_outlives_updates(opens):
    with opens() as page:
        row(page, 0).locator(".px-eye").click()
        wait_for_color(page, LEFT, [GRAY] * 3)
        assert phrase(page, "red star").get_attribute("aria-label").endswith(", hidden")
        name = row(page, 1).locator(".px-name")
        name.fill("my mug")
        value = shown_value()
        value["turns"][1]["pieces"].append([" And on.", None, False])
        show(page, value)
        assert page.evaluate("document.activeElement.value") == "my mug"
        assert phrase(page, "cup").get_attribute("aria-label").startswith("my mug, mask 1, ")
        page.click("[data-save=coco]")
        looks = {"opacity": OPACITY, "threshold": 0.5, "outline": True}
        assert told(page) == [
            ["download", {"what": "coco", "turn": 1, "hidden": [0], "names": {"1": "my mug"}, **looks}]
        ]
        row(page, 0).locator(".px-eye").click()
        name.press("Escape")
        wait_for_color(page, LEFT, tinted(0))
        assert name.input_value() == "cup"


def test_sliders_need_no_server(opens):
    with opens() as page:
        page.fill("[data-look=opacity]", "0.8")
        wait_for_color(page, LEFT, tinted(0, 0.8))
        page.fill("[data-look=threshold]", "0.8")
        wait_for_color(page, RIGHT, [GRAY] * 3)
        assert "empty at this threshold" in row(page, 1).inner_text()
        assert "empty at this threshold" in phrase(page, "cup").get_attribute("aria-label")
        page.fill("[data-look=threshold]", "0.2")
        wait_for_color(page, RIGHT, tinted(1, 0.8))
        wait_for_color(page, (5, 5), tinted(3, 0.8))
        page.fill("[data-look=threshold]", "0.5")
        wait_for_color(page, EDGE, PALETTE[0])
        page.uncheck("[data-look=outline]")
        page.wait_for_function(f"([at, color]) => ({PIXEL})(at)[0] < color - 9", arg=[EDGE, PALETTE[0][0]])
        assert told(page) == []


def test_an_answer_grows_without_losing_elements_or_focus(opens):
    with opens() as page:
        value = shown_value()
        last = value["turns"].pop()
        page.evaluate("document.querySelector('.px').mark = 'kept'")
        for count in range(1, len(last["pieces"]) + 1):
            known = [piece for piece in last["pieces"][:count] if piece[2]]
            pieces = copy.deepcopy(last["pieces"][:count])
            grown = turn("And now?", pieces, last["targets"][: max(len(known), 1)], status="writing")
            show(page, {**value, "turns": [*value["turns"], last, grown]})
            if count == 2:
                phrase(page, "red star").focus()
        assert page.evaluate("document.activeElement.textContent") == "red star"
        assert page.evaluate("document.querySelector('.px').mark") == "kept"
        wait_for_color(page, LEFT, tinted(0))
        spoken = page.locator(".px-live > div").all_inner_texts()
        assert not any("And now" in text or text.startswith("There") for text in spoken[2:]), "not word by word"
        show(page, {**value, "turns": [*value["turns"], last, {**grown, "status": "done"}]})
        spoken = page.locator(".px-live > div").last.text_content()
        assert spoken == "There is a red star , a cup , a fly  and"


def test_everything_can_be_done_with_keys(opens):
    with opens() as page:
        phrase(page, "red star").focus()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "cup"
        wait_for_color(page, NOWHERE, dimmed())
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("Enter")
        assert phrase(page, "cup").get_attribute("aria-pressed") == "true"
        page.locator(".px-badges button").first.focus()
        for key, expected in (("ArrowRight", "1"), ("ArrowRight", "2"), ("ArrowRight", "0"), ("ArrowLeft", "2")):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.textContent") == expected
        page.locator(".px-field textarea").focus()
        page.keyboard.type("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        page.check("[value=names]", force=True)
        page.locator(".px-field textarea").press("Enter")
        assert told(page) == [["submit", {"question": "one\ntwo", "kind": "names"}]]
        assert page.input_value(".px-field textarea") == ""


def test_screen_readers_are_told_what_a_phrase_stands_for(opens):
    with opens() as page:
        buttons = page.locator(".px-turn[data-chosen] .px-answer button")
        assert [button.get_attribute("aria-label") for button in buttons.all()] == [
            "red star, mask 0, 21 % of the picture, score 0.84",
            "cup, mask 1, 13 % of the picture, score 0.84",
            "fly, mask 2, < 0.1 % of the picture, score 0.84",
            "no name, mask 3, empty at this threshold, score 0.00",
        ]
        assert page.locator("canvas").get_attribute("aria-label") == "desk.jpg, marked in it: red star, cup, fly"
        has_name = "(e) => e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim()"
        controls = "button, input:not([hidden]), textarea:not([readonly])"
        assert page.eval_on_selector_all(controls, f"(all) => all.every({has_name})")


def test_earlier_answers_show_their_own_masks(opens):
    with opens() as page:
        page.locator(".px-question").first.click()
        wait_for_color(page, RIGHT, tinted(0))
        wait_for_color(page, LEFT, [GRAY] * 3)
        assert page.locator(".px-targets:visible .px-target").count() == 1
        page.locator(".px-turn").nth(1).locator(".px-phrase").first.click()
        page.mouse.move(2, 2)
        wait_for_color(page, LEFT, tinted(0))
        assert row(page, 0).is_hidden()
        page.click("[data-do=clear]")
        assert told(page) == [["clear", {}]]
        show(page, {**shown_value(), "turns": []})
        wait_for_color(page, LEFT, [GRAY] * 3)
        assert page.locator(".px-turn").count() == 0


def test_waiting_writing_stopped_and_refused_are_said(opens):
    with opens() as page:
        value = shown_value()
        page.fill(".px-field textarea", "And what else?")
        page.keyboard.press("Enter")
        for position, text in ((2, "Number 2 in the queue"), (1, "You are next"), (None, "Looking at the photo")):
            waiting = turn("And what else?", [], [], status="waiting", position=position)
            show(page, {**value, "turns": [*value["turns"], waiting]})
            assert page.locator(".px-state:visible").inner_text() == text
        page.click("[data-do=stop]")
        assert [name for name, _ in told(page)] == ["submit", "stop"]
        stopped = turn("And what else?", [["It", None, False]], [], status="stopped", note="No target")
        show(page, {**value, "turns": [*value["turns"], stopped]})
        assert page.locator(".px-state:visible").inner_text() == "Stopped. No target"
        page.fill(".px-field textarea", "More?")
        page.keyboard.press("Enter")
        show(page, {**value, "notice": {"kind": "error", "text": HOSTILE}})
        assert page.locator(".px-notice").inner_text() == HOSTILE
        assert page.input_value(".px-field textarea") == "More?", "a refused question is not lost"


def test_text_that_looks_like_html_stays_text(opens):
    with opens() as page:
        value = shown_value()
        hostile = {**value["turns"][0]["targets"][0], "phrase": HOSTILE}
        pieces = [[HOSTILE, None, False], [HOSTILE, 0, False], ["0", 0, True]]
        value["turns"] = [turn(HOSTILE, pieces, [hostile], note=HOSTILE)]
        value["photo"]["name"] = HOSTILE
        show(page, value)
        assert page.locator(".px-question").inner_text() == HOSTILE
        assert page.locator(".px-phrase").inner_text() == HOSTILE
        assert row(page, 0).locator(".px-name").input_value() == HOSTILE
        assert page.locator(".px-file").inner_text().startswith(HOSTILE)
        assert page.title() == "viewer"
        assert page.locator(".px img[src=x]").count() == 0


def test_a_photo_is_chosen_dropped_pasted_or_an_example(starts, tmp_path):
    photo = tmp_path / "a photo.png"
    cv2.imwrite(str(photo), np.zeros((8, 8, 3), dtype=np.uint8))
    bring = """([bytes, type]) => { const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(bytes)], "b.png", { type: "image/png" }));
      const how = { bubbles: true, cancelable: true, clipboardData: data, dataTransfer: data };
      const event = type === "paste" ? new ClipboardEvent(type, how) : new DragEvent(type, how);
      document.querySelector(".px-drop").dispatchEvent(event); }"""
    with starts() as page:
        assert "Drop a photo here" in page.inner_text(".px-drop")
        assert "Up to 1 MB, and 4000 pixels" in page.inner_text(".px-drop")
        with page.expect_file_chooser() as chooser:
            page.click("[data-do=choose]")
        chooser.value.set_files(photo)
        page.wait_for_function("told.length === 1")
        for count, how in enumerate(("drop", "paste"), start=2):
            page.evaluate(bring, [list(photo.read_bytes()), how])
            page.wait_for_function(f"told.length === {count}")
        assert page.inner_text(".px-reading") == "Reading the photo"
        assert page.locator(".px-example span").first.inner_text() == HOSTILE
        page.locator(".px-example").nth(1).click()
        chosen, *others, example = told(page)
        assert chosen == ["upload", {"path": "/uploads/a photo.png", "name": "a photo.png"}]
        assert others == [["upload", {"path": "/uploads/b.png", "name": "b.png"}]] * 2
        assert example == ["select", {"example": 1}]


def test_limits_are_told_before_anything_is_sent(starts, opens, tmp_path):
    large, wide, text = tmp_path / "large.png", tmp_path / "wide.png", tmp_path / "text.txt"
    large.write_bytes(bytes(3 * 2**20))
    cv2.imwrite(str(wide), np.zeros((2, 4001), dtype=np.uint8))
    text.write_text("no picture")
    with starts() as page:
        for file, words in ((large, "3.0 MB; 1 MB"), (wide, "4001 x 2 pixels; 4000"), (text, "text.txt is no picture")):
            page.set_input_files("[data-input=choose]", file)
            page.wait_for_function(
                "(words) => document.querySelector('.px-notice').innerText.includes(words)", arg=words
            )
        page.click("[data-do=photograph]")
        page.wait_for_function("document.querySelector('.px-notice').innerText.includes('Choose a photo instead')")
        assert told(page) == []
    with opens() as page:
        page.fill(".px-field textarea", "x" * 81)
        page.keyboard.press("Enter")
        assert page.inner_text("#px-hint") == "81 of 80 characters: please shorten it."
        assert page.is_disabled("[type=submit]")
        assert told(page) == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_nothing_scrolls_sideways_and_everything_can_be_read(opens, starts, width, scheme):
    for opened, texts in ((starts, ".px-lead, .px-quiet, .px-heading"), (opens, ".px-answer, .px-numbers, #px-hint")):
        with opened(width=width, height=844, scheme=scheme) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            ground = page.evaluate("getComputedStyle(document.querySelector('.px-ask')).backgroundColor")
            assert (color(ground).mean() < 60) == (scheme == "dark")
            for seen in page.locator(texts).all():
                text = color(seen.evaluate("element => getComputedStyle(element).color"))
                assert color_sight.contrast(text, color(ground)) > 4.5


def color(css: str) -> np.ndarray:
    return np.array([float(part) for part in css.partition("(")[2].strip(")").split(",")[:3]])


def test_the_order_on_a_phone_is_picture_words_tools(opens):
    with opens(width=390, height=844) as page:
        tops = [page.locator(part).bounding_box()["y"] for part in (".px-stage", ".px-talk", ".px-tools")]
        assert tops == sorted(tops)


def test_copied_python_asks_the_same(opens):
    with opens() as page:
        page.evaluate("() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }")
        page.click("[data-do=copy]")
        page.wait_for_function("window.copied")
        text = page.evaluate("copied")
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        asked = [call for call in calls if ast.unparse(call.func) == "predictor.ask"]
        assert [ast.literal_eval(call.args[0]) for call in asked] == ["What is on the right?", "What is there?"]
        assert "follows=True" in ast.unparse(asked[1])
        value = shown_value()
        value["turns"] = [turn('the "cat"\n a red cup,', [], [target("x", rectangle(0, 0, 9, 9))], kind="names")]
        show(page, value)
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('closed')); }")
        page.click("[data-do=copy]")
        closed = page.locator("dialog.px-copy textarea")
        closed.wait_for()
        assert "predictor.segment(photo, ['the \"cat\"', 'a red cup'])" in ast.unparse(ast.parse(closed.input_value()))


def test_a_file_that_python_hands_over_is_saved(opens):
    with opens() as page, page.expect_download() as saved:
        file = {"name": "masks.zip", "url": "data:application/zip;base64,AAAA", "id": 1}
        page.evaluate("(file) => set('file', file)", file)
    assert saved.value.suggested_filename == "masks.zip"
