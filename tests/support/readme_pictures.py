"""Makes the README's pictures of the page: ``python -m tests.support.readme_pictures --version FOLDER --image PHOTO``.

The page answers as it does for visitors, in the browser that the tests use. Teaser: picture, question and answer alone.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from .browser import open_site, start_browser
from .served_demo import serve_demo

# Name of a picture -> width and height of the window, and the scheme.
PICTURES = {
    "teaser_light": (1200, 700, "light"), "teaser_dark": (1200, 700, "dark"),
    "demo_light": (1280, 800, "light"), "demo_dark": (1280, 800, "dark"),
    "demo_phone_light": (390, 844, "light"), "demo_phone_dark": (390, 844, "dark"),
}  # fmt: skip
_TEASER = """
.px-tools, .px-ask, .px-targets, .px-file, footer { display: none !important }
.px-columns { align-items: center !important; padding: 20px !important }
.px-question, .px-answer { font-size: 21px !important; line-height: 1.6 !important }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", type=Path, required=True, help="merged model")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--only", choices=[*PICTURES], nargs="+", default=[*PICTURES])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    flags = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as uploads,
        serve_demo(flags.version, uploads=Path(uploads)) as (url, _),
        start_browser() as browser,
    ):
        for name in flags.only:
            width, height, scheme = PICTURES[name]
            with open_site(browser, url, width=width, height=height, color_scheme=scheme) as page:
                ask(page, flags.image, flags.prompt)
                if name.startswith("teaser"):
                    page.add_style_tag(content=_TEASER)
                    page.wait_for_timeout(500)
                    write(flags.out / f"{name}.webp", page.locator(".px-columns").screenshot())
                else:
                    write(flags.out / f"{name}.webp", page.screenshot())


def ask(page: Any, image: Path, question: str) -> None:
    """Ask, and wait until the answer is drawn."""
    page.wait_for_selector(".px-drop")
    page.set_input_files("[data-input=choose]", image)
    page.fill(".px-field textarea", question)
    page.press(".px-field textarea", "Enter")
    page.wait_for_selector(".px-target")
    page.wait_for_selector("[data-save=coco]:enabled")
    page.wait_for_timeout(500)  # until nothing fades


def write(file: Path, png: bytes) -> None:
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").save(file, quality=90, method=6)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
