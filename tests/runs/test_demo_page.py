"""The whole page in a browser, on a real server: what visitors do, several at once, and what they send by mistake."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from model.drawing import PALETTE
from model.predictor import PixelLMPredictor
from tests.support.bad_photos import KINDS, random_files
from tests.support.browser import open_site, start_browser
from tests.support.served_demo import QUESTION_LIMIT, Gate, make_photo, places, save_photo, serve_demo
from tests.support.viewer_page import HEIGHT, WIDTH, wait_for_color
from utils.masks.rle import decode_rles

pytest.importorskip("gradio")
QUESTION = "What is the thing?"
Opens = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def served(parrot, tmp_path_factory) -> Iterator[tuple[str, Gate]]:
    with serve_demo(parrot, uploads=tmp_path_factory.mktemp("uploads"), max_side=1000, max_upload=1) as served:
        yield served


@pytest.fixture(scope="module")
def gate(served) -> Gate:
    return served[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    return [save_photo(make_photo(seed), folder / f"photo{seed}.png") for seed in range(2)]


@pytest.fixture(scope="module")
def predictor(parrot) -> PixelLMPredictor:
    """The same model, asked without a page."""
    return PixelLMPredictor.from_pretrained(parrot)


@pytest.fixture
def visits(served, browser, photos) -> Opens:
    """Opens the page, and has a photo looked at."""

    @contextmanager
    def opened(number: int = 0, **options: Any) -> Iterator[Any]:
        with open_site(browser, served[0], **options) as page:
            page.wait_for_selector(".px-drop")
            upload(page, photos[number])
            page.wait_for_selector(f".px-file:has-text('{photos[number].name}')")
            yield page

    return opened


def upload(page: Any, *files: Any) -> None:
    page.set_input_files("[data-input=choose]", *files)


def ask(page: Any, question: str = QUESTION, *, names: bool = False) -> None:
    page.click(f".px-kinds label:has([value={'names' if names else 'ask'}])")
    page.fill(".px-field textarea", question)
    page.press(".px-field textarea", "Enter")


def answered(page: Any, count: int = 1) -> None:
    """Wait until the answer of that number has its masks and is done."""
    page.wait_for_selector(f".px-turn:nth-child({count})[data-chosen] .px-target")
    page.wait_for_selector("[type=submit]:visible")
    page.wait_for_selector("[data-save=coco]:enabled")


def look(page: Any, **looks: Any) -> None:
    page.set_checked("[data-look=outline]", looks.pop("outline", False), force=True)
    for name, value in looks.items():
        page.locator(f"[data-look={name}]").fill(str(value))


def assert_shows(page: Any, photo: np.ndarray, mask: np.ndarray, color: Any = PALETTE[0]) -> None:
    """The mask in full color where it is, the photo elsewhere, at sampled pixels."""
    look(page, opacity=1)
    for place in places(mask):
        wait_for_color(page, place, color)
    for x, y in places(~mask):
        wait_for_color(page, (x, y), photo[y, x])


def saved(page: Any, what: str) -> tuple[str, bytes]:
    with page.expect_download() as download:
        page.click(f"[data-save={what}]")
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def own_masks(predictor: PixelLMPredictor, number: int, *questions: str) -> list[np.ndarray]:
    predictor.set_image(make_photo(number))
    replies = [predictor.ask(question, follows=place > 0) for place, question in enumerate(questions)]
    return [reply.targets[0].mask.numpy() for reply in replies]


def test_masks_lie_where_the_model_puts_them_and_follow_what_the_visitor_does(visits, predictor):
    photo, (first, second) = make_photo(0), own_masks(predictor, 0, QUESTION, "And now?")
    inside, (x, y) = places(first)[0], places(~first)[0]
    dim = 0.45 * photo[y, x] + 0.55 * np.array((10, 11, 14))
    with visits() as page:
        ask(page)
        answered(page)
        assert "".join(page.locator(".px-answer > *").all_inner_texts()) == "the thing is 0"
        assert_shows(page, photo, first)
        page.hover(".px-answer .px-phrase")
        wait_for_color(page, (x, y), dim)
        page.hover(".px-question")
        wait_for_color(page, (x, y), photo[y, x])
        page.click(".px-answer .px-phrase")
        page.hover(".px-question")
        assert page.get_attribute(".px-answer .px-phrase", "aria-pressed") == "true"
        wait_for_color(page, (x, y), dim)
        page.click(".px-target [data-do=pin]")
        page.hover(".px-question")
        wait_for_color(page, (x, y), photo[y, x])
        look(page, opacity=0.5)
        wait_for_color(page, inside, (photo[inside[::-1]] + np.array(PALETTE[0])) / 2)
        page.click(".px-target .px-eye")
        wait_for_color(page, inside, photo[inside[::-1]])
        page.click(".px-target .px-eye")
        ask(page, "And now?")
        answered(page, 2)
        assert_shows(page, photo, second)
        page.click(".px-turn:first-child .px-question")
        assert_shows(page, photo, first)


def test_files_hold_the_masks_of_the_model(visits, predictor):
    """All four, at the photo's own size."""
    (mask,) = own_masks(predictor, 0, QUESTION)
    with visits() as page:
        ask(page)
        answered(page)
        page.fill(".px-name", "my thing")
        name, coco = saved(page, "coco")
        assert name == "photo0_coco.json"
        content = json.loads(coco)
        assert [category["name"] for category in content["categories"]] == ["my thing"]
        (annotation,) = content["annotations"]
        assert np.array_equal(decode_rles([annotation["segmentation"]], hw=mask.shape)[0], mask)
        with zipfile.ZipFile(io.BytesIO(saved(page, "masks")[1])) as archive:
            (only,) = [name for name in archive.namelist() if name.endswith(".png")]
            assert np.array_equal(decode(archive.read(only), cv2.IMREAD_GRAYSCALE) > 0, mask)
        cutout = decode(saved(page, "cutout")[1], cv2.IMREAD_UNCHANGED)
        assert np.array_equal(cutout[..., 3] > 0, mask)
        assert np.array_equal(cutout[mask][:, 2::-1], make_photo(0)[mask])
        look(page, opacity=1)
        picture = decode(saved(page, "overlay")[1], cv2.IMREAD_COLOR)[..., ::-1]
        assert picture.shape == (HEIGHT, WIDTH, 3)
        assert all(np.abs(picture[y, x].astype(int) - PALETTE[0]).max() <= 3 for x, y in places(mask))


def decode(data: bytes, flags: int) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert image is not None
    return image


def test_names_get_a_mask_each(visits):
    with visits() as page:
        ask(page, "the cat, a red cup", names=True)
        page.wait_for_selector(".px-target:nth-child(2)")
        names = page.locator(".px-name").evaluate_all("fields => fields.map(field => field.value || field.placeholder)")
        assert names == ["the cat", "a red cup"]


def test_two_visitors_who_ask_at_once_see_their_own_answers(visits, gate, predictor):
    with visits(0) as one, visits(1) as other:
        with gate.closed():
            ask(one)
            ask(other, "Which thing?")
            other.wait_for_selector(".px-state:has-text('You are next')")
        for number, (page, question) in enumerate([(one, QUESTION), (other, "Which thing?")]):
            answered(page)
            assert page.locator(".px-question").all_inner_texts() == [question]
            (mask,) = own_masks(predictor, number, question)
            assert_shows(page, make_photo(number), mask)


def test_who_waits_sees_the_queue_and_who_stops_frees_a_place(visits, gate):
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(visits()) for _ in range(3))
        with gate.closed():
            ask(first)
            first.wait_for_selector(".px-turn")
            ask(second)
            second.wait_for_selector(".px-state:has-text('You are next')")
            ask(third)
            third.wait_for_selector(".px-state:has-text('Number 2 in the queue')")
            for page in (second, first):
                page.click("[data-do=stop]")
                page.wait_for_selector(".px-state[data-status=stopped]")
        answered(third)
        ask(second)
        answered(second, 2)


def test_what_cannot_be_asked_is_said_before_it_is_sent(served, browser, visits):
    with open_site(browser, served[0]) as page:
        page.wait_for_selector(".px-drop")
        assert page.is_hidden(".px-ask"), "there is no photo to ask about"
    with visits() as page:
        page.fill(".px-field textarea", "x" * (QUESTION_LIMIT + 1))
        page.wait_for_selector(f"#px-hint:has-text('{QUESTION_LIMIT + 1} of {QUESTION_LIMIT} characters')")
        assert page.is_disabled("[type=submit]")
        ask(page, ",,", names=True)
        page.wait_for_selector(".px-state[data-status=failed]:has-text('there is no name')")


def test_a_phone_has_everything_in_one_column(visits):
    with visits(width=390, height=844, has_touch=True, is_mobile=True) as page:
        ask(page)
        answered(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        picture, talk = (page.locator(part).bounding_box() for part in (".px-figure", ".px-turns"))
        assert picture["width"] > 300
        assert talk["y"] >= picture["y"] + picture["height"]
        page.tap(".px-target .px-eye")
        page.wait_for_selector(".px-target[data-hidden]")


def told_of(page: Any, files: Any, photo: Path) -> None:
    """Each file gets a message or is shown; after all of them, the page still answers."""
    for number, file in enumerate(files):
        name = f"n{number:02d}"
        upload(page, file)
        page.wait_for_function(
            "name => [...document.querySelectorAll('.px-notice:not([hidden]), .px-file')]"
            ".some(part => part.textContent.includes(name))",
            arg=name,
        )
        assert page.title() == "PixelLM"
    upload(page, photo)
    page.wait_for_selector(f".px-file:has-text('{photo.name}')")
    ask(page)
    answered(page)


def test_bad_files_get_a_message_each_and_leave_the_page_alive(visits, photos):
    with visits() as page:
        told_of(page, random_files(0, len(KINDS)), photos[1])


@pytest.mark.long
def test_fifty_bad_files_leave_the_page_alive(visits, photos):
    with visits() as page:
        told_of(page, random_files(1, 50), photos[1])
