"""The browser of the system, without a window and without a network, for tests of pages from files and servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "google-chrome", "google-chrome-stable")


@contextmanager
def start_browser() -> Iterator[Any]:
    """A browser of playwright's; the tests that ask for one are skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pages are tested with playwright: pip install playwright"
    )
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"pages are tested in a browser, and none of {', '.join(NAMES)} is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@contextmanager
def open_page(
    browser: Any, file: Path, *, width: int = 1280, height: int = 900, scheme: str = "light"
) -> Iterator[Any]:
    """A page from a file; it fails if the page reports an error, or asks for anything that is in no file."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, service_workers="block"
    )
    page, errors, asked = context.new_page(), list[str](), list[str]()
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    yield page
    context.close()
    assert errors == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert [url for url in asked if url.startswith("file:")] == [file.as_uri()]


@contextmanager
def open_site(browser: Any, url: str, *, width: int = 1280, height: int = 900, **options: Any) -> Iterator[Any]:
    """A page of a server on this machine; it fails if the page reports an error, or asks another host for anything.

    Args:
        options: of playwright's ``new_context``.
    """
    context = browser.new_context(viewport={"width": width, "height": height}, service_workers="block", **options)
    page, errors, asked = context.new_page(), list[str](), list[str]()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    context.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    yield page
    context.close()
    assert errors == []
    own = urlsplit(url).netloc
    assert [one for one in asked if urlsplit(one).netloc != own and not one.startswith(("data:", "blob:"))] == []
