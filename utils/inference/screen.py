"""What chat shows on a terminal: the answer while it is written, names in the colors of their masks, a small picture.

Shapes: N masks, H, W size of a photo.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text
from rich_pixels import Pixels

from model.drawing import PALETTE, ink_on
from model.replies import Reply, Target

from .words import pieces

_PREVIEW = (48, 28)  # columns, and half rows
_BETWEEN_DRAWINGS_S = 0.05  # a GPU writes faster than a terminal draws
_TINT = 0.85  # share of the color in a mask: so small a picture shows nothing else of it


def label_style(number: int) -> Style:
    """The color of a mask behind its name: dark and light ones can be read on any terminal."""
    color = PALETTE[number % len(PALETTE)]
    return Style(color=Color.from_rgb(*ink_on(color)), bgcolor=Color.from_rgb(*color), bold=True)


def colored(words: str, targets: Sequence[Target]) -> Text:
    """An answer in which the names and numbers of its targets have the colors of their masks.

    Args:
        words: with the targets as numbers, as of ``Reply.numbered``.
    """
    text = Text()
    for piece in pieces(_printable(words), [_printable(target.phrase) for target in targets]):
        style = None if piece.target is None else label_style(piece.target)
        text.append(f"[{piece.text}]" if piece.is_number else piece.text, style)
    return text


def _printable(text: str) -> str:
    """A model may write any byte, and a file name hold it; none of them may move the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class Screen:
    """A terminal.

    Args:
        console: of rich, which wraps lines on words, and leaves out colors where there are none.
        preview: show small pictures.
    """

    def __init__(self, console: Console, *, preview: bool = True) -> None:
        self.console = console
        has_colors = console.color_system in ("256", "truecolor") and not console.no_color
        self.shows_pictures = preview and has_colors and console.encoding.startswith("utf")

    def say(self, message: str) -> None:
        """Lines that are wrapped on words, unless that would break a path, which could not be copied then."""
        longest = max(map(len, message.split()), default=0)
        text = Text("\n".join(map(_printable, message.split("\n"))))
        self.console.print(text, soft_wrap=longest > self.console.width)

    def stream(self, pieces: Iterable[str | Target | Reply]) -> None:
        """Show an answer while it is written, and leave on the screen what there is of it when it ends."""
        answer, drawn = _Growing(self.console), 0.0
        try:
            with Live(answer, console=self.console, auto_refresh=False, transient=True) as live:
                for piece in pieces:
                    answer.add(piece)
                    if time.monotonic() - drawn > _BETWEEN_DRAWINGS_S:
                        live.refresh()
                        drawn = time.monotonic()
        finally:
            if answer.words:
                self.console.print(answer.text())

    def targets(self, reply: Reply) -> None:
        """A line for each target, and what a user should know."""
        table = Table.grid(padding=(0, 2))
        for number, target in enumerate(reply.targets):
            area = float(target.mask.float().mean())
            found = f"{area:.1%} of the image" if target.mask.any() else "no pixel is above the threshold"
            name = _printable(target.phrase) or "(no words)"
            table.add_row(Text(f"[{number}] {name}", label_style(number)), found, f"score {target.score:.2f}")
        if reply.targets:
            self.console.print(table)
        if reply.reason:
            self.say(f"note: {reply.reason}")

    def picture(self, image: np.ndarray, masks: np.ndarray | None = None) -> None:
        """The photo in a few rows of half blocks, its masks tinted; nothing on a terminal that could not show it.

        Args:
            image: (H, W, 3) uint8 RGB.
            masks: (N, H, W) bool.
        """
        if self.shows_pictures:
            small = thumbnail(image, masks, box=(min(_PREVIEW[0], self.console.width), _PREVIEW[1]))
            self.console.print(Pixels.from_image(Image.fromarray(small)))


class _Growing:
    """An answer that is not whole: as many of its last lines as the terminal has room for."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.words = ""
        self._targets: list[Target] = []

    def add(self, piece: str | Target | Reply) -> None:
        if isinstance(piece, Reply):
            self.words, self._targets = piece.numbered(), piece.targets
        elif isinstance(piece, Target):
            self._targets.append(piece)
        else:
            self.words += piece

    def text(self) -> Text:
        return colored(self.words, self._targets)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self.text(), options, pad=False)[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()


def thumbnail(image: np.ndarray, masks: np.ndarray | None, *, box: tuple[int, int]) -> np.ndarray:
    """A small picture of a photo, its masks tinted; small ones lie above larger ones.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool.
        box: (width, height) that it has to fit into.
    Returns:
        (h, w, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    scale = min(box[0] / width, box[1] / height, 1)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    masks = np.zeros((0, height, width), dtype=bool) if masks is None else masks
    for number in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        share = cv2.resize(masks[number].astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None] * _TINT
        small = (small * (1 - share) + np.array(PALETTE[number % len(PALETTE)]) * share).round().astype(np.uint8)
    return small
