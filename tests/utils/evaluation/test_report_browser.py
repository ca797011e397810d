"""report.html in a browser, offline: what is seen first, colors of words and masks, sorting, filters, keys, a phone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model.drawing import PALETTE
from tests.support.browser import open_page, start_browser
from tests.support.scored_rows import HOSTILE, SETTINGS, rows
from utils.evaluation.report import write_report

pytestmark = pytest.mark.slow
Opens = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A page of one run, and one of two."""
    folder = tmp_path_factory.mktemp("report")
    write_report(folder / "one.html", rows(folder), settings=SETTINGS)
    write_report(folder / "two.html", rows(folder), settings=SETTINGS, other=("Before", rows(folder, shift=-3)))
    return folder


@pytest.fixture(scope="module")
def one(browser, folder) -> Opens:
    return partial(open_page, browser, folder / "one.html")


@pytest.fixture(scope="module")
def two(browser, folder) -> Opens:
    return partial(open_page, browser, folder / "two.html")


def column(page: Any, name: str) -> list[str]:
    """The cells below a head of the table of all questions."""
    heads = [re.sub(" [▲▼]", "", head) for head in page.locator(".questions th").all_inner_texts()]
    return page.locator(f".questions tbody td:nth-child({heads.index(name) + 1})").all_inner_texts()


def sort_by(page: Any, name: str) -> None:
    page.click(f".questions th button:has-text('{name}')")


def places(page: Any, selector: str) -> list[int]:
    """Numbers of the questions that are shown."""
    return [int(place) for place in page.locator(selector).evaluate_all("all => all.map((one) => one.dataset.place)")]


def test_the_worst_answer_is_seen_first(one, folder):
    scores = [question.score for row in rows(folder) for question in row.questions]
    worst = sorted(range(len(scores)), key=lambda place: scores[place])
    with one() as page:
        assert places(page, "#first button") == worst[:3]
        assert places(page, "#cards article") == worst[:4]
        assert places(page, ".questions tbody tr") == worst
        assert page.locator("#first svg image").first.is_visible()
        assert page.locator("#first").bounding_box()["y"] < 500, "without scrolling"
        assert column(page, "Score")[0] == f"{100 * min(scores):.1f}"


def test_words_have_the_colors_of_their_masks(one):
    """Of a card: the words of the answer, its numbers, the outlines and the true names, by the pair they belong to."""
    colors = """card => [...card.querySelectorAll("mark, .number, .edge")].map((node) => {
      const style = getComputedStyle(node);
      const of = { MARK: style.borderBottomColor, SPAN: style.backgroundColor }[node.tagName] ?? style.stroke;
      return [Number((node.closest("[data-slot]")).dataset.slot), of];
    })"""
    with one() as page:
        cards = page.locator("#cards article").all()
        assert cards
        for card in cards:
            found = card.evaluate(colors)
            assert {slot for slot, _ in found} >= {0}
            assert {color for _, color in found} <= {f"rgb{color}" for color in PALETTE}
            assert all(color == f"rgb{PALETTE[slot]}" for slot, color in found)


def test_extra_and_missed_masks_are_marked(one):
    with one() as page:
        extra = page.locator("#cards article[data-place='2']")
        assert extra.locator("figure").nth(0).locator(".dashed").count() == 1
        assert extra.locator(".flag").all_inner_texts() == ["extra"]
        missed = page.locator("#cards article[data-place='3']")
        assert missed.locator("figure").nth(1).locator(".dashed").count() == 2
        assert missed.locator(".flag").all_inner_texts() == ["missed", "missed"]


def test_text_of_strangers_is_shown_and_does_nothing(one):
    with one() as page:
        assert HOSTILE in page.locator("#cards article[data-place='4'] .question").inner_text()
        assert HOSTILE in page.locator("#cards article[data-place='4'] mark").first.inner_text()
        assert HOSTILE in page.locator("dl").inner_text()
        assert page.evaluate("window.ran") is None


def test_a_click_on_a_head_sorts_by_it_and_another_turns_it_round(one):
    with one() as page:
        sort_by(page, "Given")
        given = [int(cell) for cell in column(page, "Given")]
        assert given == sorted(given, reverse=True)
        sort_by(page, "Given")
        assert [int(cell) for cell in column(page, "Given")] == sorted(given)
        sort_by(page, "Question")
        assert page.locator(".questions th[aria-sort=ascending]").inner_text() == "Question ▲"


def test_filters_by_text_group_picture_and_row(one):
    with one() as page:
        page.fill("#text", "NUMBER 1")
        assert len(column(page, "Score")) == 4
        page.fill("#text", "")
        page.select_option("#group", "multi-target")
        assert sorted(places(page, ".questions tbody tr")) == [0, 1, 2, 3]
        page.select_option("#group", "short")
        assert places(page, ".questions tbody tr") == [5]
        page.select_option("#group", "")
        page.select_option("#row", label="refcoco|unc|val, generate")
        assert sorted(places(page, ".questions tbody tr")) == [7, 8, 9]
        assert set(places(page, "#cards article")) <= {7, 8, 9}
        assert page.locator("#range").inner_text() == "1 to 3 of 3"


def test_kinds_of_answers_change_by_click_and_by_key(one):
    with one() as page:
        page.click("text=Most extra masks")
        assert places(page, "#cards article") == [2]
        page.keyboard.press("ArrowRight")
        assert page.locator("[role=tab][aria-selected=true]").inner_text() == "Most missed masks"
        assert places(page, "#cards article") == [3]
        page.keyboard.press("ArrowRight")
        assert page.locator("[role=tab][aria-selected=true]").inner_text() == "Worst"


def test_a_question_opens_from_the_table_and_by_key(one):
    with one() as page:
        page.locator(".questions tbody tr").nth(1).click()
        shown = page.locator("#sample[open] article")
        order = places(page, ".questions tbody tr")
        assert int(shown.get_attribute("data-place")) == order[1]
        page.keyboard.press("ArrowRight")
        assert int(shown.get_attribute("data-place")) == order[2]
        page.keyboard.press("Escape")
        assert not shown.is_visible()
        page.locator(".questions tbody button").first.focus()
        page.keyboard.press("Enter")
        assert int(shown.get_attribute("data-place")) == order[0]


def test_a_missing_photo_is_told_in_its_place(one):
    with one() as page:
        page.fill("#text", "number 6")
        page.locator(".questions tbody tr").first.click()
        assert "nowhere.jpg does not exist" in page.locator("#sample .error").inner_text()


def test_two_runs_stand_side_by_side(two):
    with two() as page:
        card = page.locator("#cards article").first
        assert card.locator("figcaption").all_inner_texts() == ["this run", "Before", "true"]
        assert card.locator(".answer").count() == 2
        sort_by(page, "Difference")
        change = [float(cell) for cell in column(page, "Difference")]
        assert change == sorted(change)
        assert change[0] < 0 < change[-1]
        gap = [
            float(one) - float(other) for one, other in zip(column(page, "Score"), column(page, "Before"), strict=True)
        ]
        assert change == pytest.approx(gap, abs=0.11), "each is rounded"
        page.click("text=Most lost")
        assert places(page, "#cards article")[0] == places(page, ".questions tbody tr")[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction(two, scheme):
    with two(width=360, height=740, scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator("#cards figure button").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        light, dark = (sum(map(int, re.findall(r"\d+", color))) for color in (ink, paper))
        assert (light > dark + 400) if scheme == "dark" else (dark > light + 400)


def test_ten_thousand_questions_stand_in_pages(browser, folder):
    first = rows(folder)[0]
    questions = first.questions * 1500
    write_report(folder / "many.html", [replace(first, questions=questions[:10_000])], settings=SETTINGS)
    with open_page(browser, folder / "many.html") as page:
        assert page.locator("#range").inner_text() == "1 to 50 of 10,000"
        assert page.locator(".questions tbody tr").count() == 50
        page.click("#next")
        assert page.locator("#range").inner_text() == "51 to 100 of 10,000"
        page.fill("#text", "number 2")
        assert page.locator("#range").inner_text() == "1 to 50 of 1,429"
