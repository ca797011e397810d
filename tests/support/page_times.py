"""How long a visitor of the page waits: ``python -m tests.support.page_times --version FOLDER --image PHOTO``.

From the click on Send to the first word, to the first mask in the picture, and to the end of the answer;
then two visitors at once against one after the other. Medians, in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .browser import open_site, start_browser
from .served_demo import serve_demo

# Notes when something first holds, at every change of the page.
_WATCH = """() => {
  const began = performance.now(), seen = {};
  const look = () => {
    const turn = document.querySelector(".px-turns").lastElementChild;
    if (turn?.querySelector(".px-answer").textContent.trim()) seen.word ??= performance.now() - began;
    if (document.querySelector(".px-badges button")) seen.mask ??= performance.now() - began;
    if (seen.mask && document.querySelector("[data-save=coco]:enabled")) seen.end ??= performance.now() - began;
  };
  new MutationObserver(look).observe(document.querySelector(".px"), { subtree: true, childList: true, attributes: true,
    characterData: true });
  window.seen = seen;
  document.querySelector("[type=submit]").click();
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=Path, required=True, help="merged model")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--repeats", type=int, default=10)
    flags = parser.parse_args()
    with ExitStack() as stack:
        uploads = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, _ = stack.enter_context(serve_demo(flags.version, uploads=uploads, batch_size=8))
        browser = stack.enter_context(start_browser())
        pages = [stack.enter_context(open_site(browser, url)) for _ in range(2)]
        for page in pages:
            page.wait_for_selector(".px-drop")
            page.set_input_files("[data-input=choose]", flags.image)
            page.wait_for_selector(".px-figure:visible")
            answer(page, flags.prompt)  # the first one of a server takes longer
        alone = [answer(pages[0], flags.prompt) for _ in range(flags.repeats)]
        for part in ("word", "mask", "end"):
            print(f"click to {part}: {statistics.median(times[part] for times in alone) / 1000:.2f}")
        in_turn = [timed(pages, flags.prompt, at_once=False) for _ in range(flags.repeats)]
        at_once = [timed(pages, flags.prompt, at_once=True) for _ in range(flags.repeats)]
        print(f"two visitors: in turn {statistics.median(in_turn):.2f}, at once {statistics.median(at_once):.2f}")


def start(page: Any, question: str) -> None:
    """Ask, in a dialogue that begins with this question."""
    if page.is_visible("[data-do=clear]"):
        page.click("[data-do=clear]")
        page.wait_for_selector(".px-turn", state="detached")
    page.fill(".px-field textarea", question)
    page.evaluate(_WATCH)


def wait(page: Any) -> dict[str, float]:
    """Milliseconds from the click to each of the three."""
    page.wait_for_function("window.seen.end")
    return page.evaluate("window.seen")


def answer(page: Any, question: str) -> dict[str, float]:
    start(page, question)
    return wait(page)


def timed(pages: list[Any], question: str, *, at_once: bool) -> float:
    """Seconds until both visitors have their answer."""
    began = time.perf_counter()
    if at_once:
        for page in pages:
            start(page, question)
        for page in pages:
            wait(page)
    else:
        for page in pages:
            answer(page, question)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
