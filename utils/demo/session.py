"""What one visitor has: a photo, what was asked and answered about it, and all of it as JSON for the viewer.

Shapes: H, W size of the photo in pixels, h, w size in which it is shown.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np

from model.errors import InputError
from model.replies import Target
from model.serving import AnswerStream, Conversation
from utils.inference.words import pieces

from .uploads import Upload

Kind = Literal["ask", "names"]
Status = Literal["waiting", "writing", "done", "stopped", "failed"]
SHOWN_SIDE = 1280  # pixels of the longer side of a photo as it is shown
_EXAMPLE_SIDE = 320


@dataclass(frozen=True)
class Photo:
    """The photo of a session; its pixels are kept packed, as a server has many sessions.

    Attributes:
        name: as it is shown.
        size: (H, W).
        packed: all pixels, as PNG.
        url: the shown size, as a data URI.
    """

    name: str
    size: tuple[int, int]
    packed: bytes
    url: str

    @classmethod
    def of(cls, upload: Upload) -> Photo:
        height, width = upload.pixels.shape[:2]
        return cls(upload.name, (height, width), encode_png(upload.pixels), jpeg_uri(upload.pixels, side=SHOWN_SIDE))

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return _decode(self.packed, cv2.IMREAD_COLOR_RGB)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "width": self.size[1], "height": self.size[0], "url": self.url}


@dataclass(frozen=True)
class ShownTarget:
    """A target of an answer.

    Attributes:
        phrase, score: as of ``Target``.
        area: its share of the photo.
        packed: probability of every pixel of the photo, ``round(255 * p)``, as gray PNG.
        url: the same in the shown size, as a data URI.
    """

    phrase: str
    score: float
    area: float
    packed: bytes
    url: str

    @classmethod
    def of(cls, target: Target, *, threshold: float) -> ShownTarget:
        """Args:
        threshold: of ``target.mask``.
        """
        probabilities = _probabilities(target, threshold)
        packed = encode_png(probabilities)
        small = shrink(probabilities, side=SHOWN_SIDE)
        shown = packed if small is probabilities else encode_png(small)
        area = float(target.mask.float().mean())
        return cls(target.phrase, target.score, area, packed, _uri("png", shown))

    def mask(self, threshold: float) -> np.ndarray:
        """(H, W) bool: the pixels whose probability is above the threshold."""
        return _decode(self.packed, cv2.IMREAD_GRAYSCALE) > 255 * threshold

    def to_json(self) -> dict[str, Any]:
        return {"phrase": self.phrase, "score": self.score, "area": self.area, "map": self.url}


@dataclass
class Turn:
    """A question, and as much of its answer as there is.

    Attributes:
        text: the answer, with ``[0]`` in place of the first target.
        position: in the waiting line, 1 is next; None unless the status is ``waiting``.
        note: what the user should know of the answer.
    """

    question: str
    kind: Kind
    text: str = ""
    targets: list[ShownTarget] = field(default_factory=list)
    status: Status = "waiting"
    position: int | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        text = self.text
        if self.status == "writing":  # its number shows up together with its mask
            text = text.removesuffix(f"[{len(self.targets)}]")
        return {
            "question": self.question,
            "kind": self.kind,
            "pieces": [list(piece) for piece in pieces(text, [target.phrase for target in self.targets])],
            "targets": [target.to_json() for target in self.targets],
            "status": self.status,
            "position": self.position,
            "note": self.note,
        }


@dataclass(eq=False)
class Running:
    """An answer that is being written.

    Attributes:
        stream: where it comes from, once it has been asked for; masks of names come in one piece.
        is_stopped: nobody wants it any more.
    """

    stream: AnswerStream | None = None
    is_stopped: bool = False

    def stop(self) -> None:
        """Have it end at once, whatever it waits for; any thread may."""
        self.is_stopped = True
        if self.stream is not None:
            self.stream.close()


@dataclass
class Session:
    """One visitor's; gradio copies an empty one for each.

    Attributes:
        photo_id: another one for each photo that was chosen, though it be the same.
        conversation: what the model has read of photo and dialogue.
        notice: (``error`` or ``info``, text) of the last thing that the user did, if there is something to say.
        running: the answer that is being written, if there is one.
    """

    photo: Photo | None = None
    photo_id: int = 0
    conversation: Conversation | None = None
    turns: list[Turn] = field(default_factory=list)
    notice: tuple[Literal["error", "info"], str] | None = None
    running: Running | None = None

    def look_at(self, photo: Photo, conversation: Conversation, note: str | None) -> None:
        """Everything from now on is about this photo; an answer about the one before is stopped."""
        self.stop()
        self.photo, self.conversation, self.turns = photo, conversation, []
        self.photo_id += 1
        self.notice = ("info", note) if note else None

    def stop(self) -> None:
        """Have the running answer end, if there is one; the next question need not wait for that."""
        running, self.running = self.running, None
        if running is not None:
            running.stop()

    def forget(self) -> None:
        """Forget what was said; the photo stays."""
        self.stop()
        if self.conversation is not None:
            self.conversation.reset()
        self.turns, self.notice = [], None

    def turn(self, number: int) -> tuple[Photo, Turn]:
        """The photo, and the turn of that number, from 0.

        Raises:
            InputError: if there is none.
        """
        if self.photo is None or not 0 <= number < len(self.turns):
            raise InputError("this answer is not here any more; ask again")
        return self.photo, self.turns[number]

    def to_json(self) -> dict[str, Any]:
        """The whole state, as the viewer reads it."""
        return {
            "photo": self.photo.to_json() | {"id": self.photo_id} if self.photo else None,
            "turns": [turn.to_json() for turn in self.turns],
            "notice": {"kind": self.notice[0], "text": self.notice[1]} if self.notice else None,
        }


def example_uri(pixels: np.ndarray) -> str:
    """A photo as it is shown in a row of examples."""
    return jpeg_uri(pixels, side=_EXAMPLE_SIDE)


def jpeg_uri(pixels: np.ndarray, *, side: int) -> str:
    """(H, W, 3) uint8 RGB as a data URI of at most ``side`` pixels on its longer side."""
    small = cv2.cvtColor(shrink(pixels, side=side), cv2.COLOR_RGB2BGR)
    return _uri("jpeg", cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())


def encode_png(image: np.ndarray) -> bytes:
    """(H, W) gray, (H, W, 3) RGB or (H, W, 4) RGBA of uint8, packed quickly rather than small."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def shrink(image: np.ndarray, *, side: int) -> np.ndarray:
    """An image of (H, W) or (H, W, 3) uint8 that fits into a square of ``side`` pixels; a small one as it is."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _probabilities(target: Target, threshold: float) -> np.ndarray:
    """(H, W) uint8, ``round(255 * p)``, which is above ``255 * threshold`` exactly where the mask is."""
    mask = target.mask.cpu().numpy()
    if target.logits is None:
        return mask.astype(np.uint8) * 255
    logits = target.logits.float().cpu()
    rounded = (logits.sigmoid() * 255).round().numpy().astype(np.uint8)
    below = int(255 * threshold)  # the largest value that is not above
    return np.where(mask, rounded.clip(below + 1, 255), rounded.clip(0, below))


def _uri(kind: Literal["png", "jpeg"], data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _decode(data: bytes, flags: int) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert image is not None
    return image
