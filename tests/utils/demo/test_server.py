"""The page as it is served: programs use its endpoints, two at once do not mix, and refusals are one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pycocotools import mask as coco_mask

from model.predictor import PixelLMPredictor
from utils.cli.args import Parsed
from utils.demo.flags import DemoConfig
from utils.demo.serve import Prepared, prepare, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio", "ignore:.*:Warning:gradio.queueing"),
]

BIG = (700, 1400)  # H, W: larger than what is shown


@pytest.fixture(scope="module")
def prepared(config: DemoConfig, monkeypatch_module) -> Prepared:
    return prepare(Parsed(config, frozenset({"version", "precision", "port"})))


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def url(prepared: Prepared, monkeypatch_module) -> Iterator[str]:
    for name in ("GRADIO_TEMP_DIR", "NO_PROXY", "no_proxy"):  # which the server sets
        monkeypatch_module.setenv(name, os.environ.get(name, ""))
    with running(prepared) as url:
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        assert uploads.stat().st_mode & 0o077 == 0, "other users of the machine must not see uploads"
        yield url
    assert not uploads.exists()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> list[Path]:
    """One that is larger than what is shown, and a small one."""
    folder = tmp_path_factory.mktemp("photos")
    big = np.random.default_rng(0).integers(0, 255, (*BIG, 3), dtype=np.uint8)
    files = [folder / "big.png", folder / "small.png"]
    for file, image in zip(files, (big, pixels), strict=True):
        file.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return files


def make_client(url: str) -> Client:
    return Client(url, verbose=False, analytics_enabled=False)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    client = make_client(url)
    yield client
    client.close()


def test_an_answer_over_the_network_is_that_of_the_predictor(client, photos, config):
    answer = client.predict(handle_file(photos[0]), "Where?", api_name="/segment")
    expected = PixelLMPredictor.from_pretrained(config.version).segment(photos[0], "Where?")
    assert (answer["text"], answer["reason"]) == (expected.numbered(), expected.reason)
    (target,) = answer["targets"]
    assert (target["phrase"], target["score"]) == (expected.targets[0].phrase, pytest.approx(expected.targets[0].score))
    mask = coco_mask.decode(target["segmentation"]).astype(bool)
    assert mask.shape == BIG
    assert (mask == expected.targets[0].mask.numpy()).all()
    assert target["area"] == mask.sum()


def test_names_are_segmented(client, photos):
    answer = client.predict(handle_file(photos[1]), ["the cat", "a cup"], api_name="/segment_names")
    assert [target["phrase"] for target in answer["targets"]] == ["the cat", "a cup"]


def test_two_clients_at_once_get_their_own_answers(url, photos, pixels):
    """About photos of two sizes, again and again."""

    def ask(photo: Path) -> set[tuple[int, ...]]:
        client = make_client(url)
        answers = [client.predict(handle_file(photo), "Where?", api_name="/segment") for _ in range(3)]
        client.close()
        return {tuple(target["segmentation"]["size"]) for answer in answers for target in answer["targets"]}

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, photos)) == [{BIG}, {pixels.shape[:2]}]


@pytest.mark.parametrize(
    ("image", "question", "words"),
    [
        ("photo", "", "there is no question; type one"),
        ("photo", "x" * 501, "the question has 501 characters, and this page takes 500 at most; shorten it"),
        ("text", "Where?", "words.jpg is not a photo, or it is damaged; use a JPEG, PNG or WebP file"),
        ("http://127.0.0.1:1/a.png", "Where?", "the image is a web address; download it, and give the file"),
        ("https://example.org/a.png", "Where?", "the image is a web address; download it, and give the file"),
        ("outside", "Where?", "x.jpg is not here any more; choose the photo again"),
    ],
)
def test_refusals_are_one_line(client, photos, tmp_path, image, question, words):
    text, outside = tmp_path / "words.jpg", tmp_path / "x.jpg"
    text.write_text("words")
    outside.write_bytes(photos[1].read_bytes())
    web = {"path": image, "url": image, "meta": {"_type": "gradio.FileData"}}
    files = {"photo": handle_file(photos[1]), "text": handle_file(text), "outside": {"path": str(outside)}}
    given = files.get(image, web)
    with pytest.raises(AppError) as refused:
        client.predict(given, question, api_name="/segment")
    assert str(refused.value) == words


def test_files_of_the_server_cannot_be_named(url, photos):
    """With gradio's own mark of an upload, sent past the client, which would upload the file."""
    image = {"path": str(photos[1]), "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(f"{url}gradio_api/call/segment", json={"data": [image, "Where?"]}).json()["event_id"]
    told = httpx.get(f"{url}gradio_api/call/segment/{event}").text
    assert told.startswith("event: error")
    assert httpx.get(f"{url}gradio_api/file={photos[1]}").status_code in (403, 404)
    assert httpx.get(f"{url}gradio_api/file=http://127.0.0.1:1/a.png").status_code >= 400


def test_a_file_over_the_limit_is_refused_while_it_is_sent(url, config):
    sent = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.jpg", bytes(config.max_bytes + 1))})
    assert sent.status_code == 413


def test_what_a_page_loads_names_no_other_host(url):
    page = httpx.get(url).text
    assert "fonts.g" not in page
    assert "cdn" not in page.lower()


def test_events_of_the_page_are_closed_to_programs(client):
    for name in ("/submit", "/upload", "/download", "/stop", "/clear", "/select"):
        with pytest.raises(ValueError, match="Cannot find a function"):
            client.predict(api_name=name)
