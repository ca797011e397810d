"""The viewer in a real page of gradio: its elements, and what a user did to them, outlive every update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.support.browser import start_browser
from tests.support.gradio_server import serve_blocks
from tests.support.viewer_page import LEFT, shown_value, tinted, turn, wait_for_color
from utils.demo.viewer import make_viewer

gr = pytest.importorskip("gradio")
pytestmark = pytest.mark.slow


def test_what_was_typed_and_named_outlives_a_growing_answer(tmp_path, monkeypatch):
    """A real server, whose answer grows; what was typed and pinned meanwhile is still there."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    value, uploaded = shown_value(), list[Any]()
    first, last = value["turns"]

    def upload(event: gr.EventData):
        uploaded.append(event._data)
        return {**value, "turns": [first]}

    def submit(event: gr.EventData):
        for count in range(len(last["pieces"]) + 1):
            pieces = last["pieces"][:count]
            grown = turn(event._data["question"], pieces, last["targets"], status="writing")
            yield {**value, "turns": [first, grown]}
        yield {**value, "turns": [first, {**grown, "status": "done"}]}

    def download(event: gr.EventData):
        return gr.HTML(
            file={"name": "told.json", "url": f"data:text/plain,{json.dumps(event._data['names'])}", "id": 1}
        )

    with gr.Blocks(analytics_enabled=False) as blocks:
        viewer = make_viewer(examples=[], limits={})
        viewer.upload(upload, None, viewer, show_progress="hidden")
        viewer.submit(submit, None, viewer, show_progress="hidden")
        viewer.download(download, None, viewer, show_progress="hidden")
    with start_browser() as browser, serve_blocks(blocks) as url:
        page, errors = browser.new_page(viewport={"width": 390, "height": 700}), list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.wait_for_selector(".px-drop")
        page.evaluate("document.querySelector('.px').mark = 'kept'")
        photo = Path(tmp_path, "photo.png")
        cv2.imwrite(str(photo), np.zeros((8, 8, 3), dtype=np.uint8))
        page.set_input_files("[data-input=choose]", photo)
        page.wait_for_selector(".px-badges button")
        page.locator(".px-name").fill("my mug")
        page.fill(".px-field textarea", "What is there?")
        page.keyboard.press("Enter")
        page.wait_for_selector("[data-do=stop]", state="hidden")
        page.wait_for_selector(".px-badges button >> nth=2")
        wait_for_color(page, LEFT, tinted(0))
        question, photo_shown = (page.locator(part).bounding_box() for part in (".px-ask", ".px-figure"))
        assert page.evaluate("document.documentElement.scrollHeight") > 700
        assert question["y"] + question["height"] <= 700, "it stays in sight"
        assert photo_shown["y"] >= 0, "and so does the picture"
        page.locator(".px-question").first.click()
        assert page.locator(".px-turn >> nth=0").locator(".px-name").input_value() == "my mug"
        with page.expect_download() as saved:
            page.click("[data-save=masks]")
        assert json.loads(Path(saved.value.path()).read_text()) == {"0": "my mug"}
        assert page.evaluate("document.querySelector('.px').mark") == "kept"
        assert Path(uploaded[0]["path"]).read_bytes() == photo.read_bytes()
        page.close()
    assert errors == []
