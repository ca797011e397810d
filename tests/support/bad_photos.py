"""Files that strangers drop on a page which wants a photo, as playwright takes them: name, mimeType, buffer."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

from PIL import Image

Drop = dict[str, object]
MOST_BYTES = 2**20  # that the page of the tests takes
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>document.title = 1</script></svg>'
_NAMES = (
    "../../etc/passwd{}", "..\\..\\boot{}.ini", "<img src=x onerror=alert(1)>{}", "{}.jpg\0.exe", "{}" + 200 * "x",
    "\u202e{}gpj.exe",
)  # fmt: skip


def _drop(name: str, kind: str, data: bytes) -> Drop:
    return {"name": name, "mimeType": kind, "buffer": data}


def _image(rng: random.Random, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (40, 30), rng.randbytes(3600)).save(buffer, kind)
    return buffer.getvalue()


def corrupt(rng: random.Random, name: str) -> Drop:
    """Cut short, with other bytes here and there; some of them can still be read."""
    kind = rng.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP"))
    data = bytearray(_image(rng, kind)[: rng.randrange(1, 3000)])
    for _ in range(rng.randrange(1, 20)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return _drop(f"{name}.{kind.lower()}", f"image/{kind.lower()}", bytes(data))


def huge(rng: random.Random, name: str) -> Drop:
    """A header of more pixels than any photo has, or a file of too many bytes."""
    if rng.random() < 0.5:
        return _drop(f"{name}.png", "image/png", _image(rng, "PNG") + bytes(MOST_BYTES))
    size = struct.pack(">IIBBBBB", rng.randrange(2000, 2**31), rng.randrange(2000, 2**31), 8, 2, 0, 0, 0)
    header = b"IHDR" + size
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return _drop(f"{name}.png", "image/png", data + _image(rng, "PNG")[33:])


def animated(rng: random.Random, name: str) -> Drop:
    """This one is shown, with a word about it."""
    frames = [Image.frombytes("RGB", (40, 30), rng.randbytes(3600)) for _ in range(3)]
    buffer, kind = io.BytesIO(), rng.choice(("GIF", "WEBP", "PNG"))
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=50)
    return _drop(f"{name}.{kind.lower()}", f"image/{kind.lower()}", buffer.getvalue())


def drawing(rng: random.Random, name: str) -> Drop:
    return _drop(f"{name}.svg", rng.choice(("image/svg+xml", "image/png")), _SVG)


def wrong_type(rng: random.Random, name: str) -> Drop:
    data = rng.choice((b"%PDF-1.7 x", b"PK\x03\x04", b"<html>", b"hello", b"", b"\0" * 100, b"\0\0\0\x18ftypheic"))
    return _drop(f"{name}.jpg", rng.choice(("image/jpeg", "text/plain", "")), data)


def bad_name(rng: random.Random, name: str) -> Drop:
    return _drop(rng.choice(_NAMES).format(name), "image/png", b"no photo")


KINDS: tuple[Callable[[random.Random, str], Drop], ...] = (corrupt, huge, animated, drawing, wrong_type, bad_name)


def random_files(seed: int, count: int) -> list[Drop]:
    """As many of each kind as of any other; the number of each is in its name, such as n07."""
    rng = random.Random(seed)
    return [KINDS[number % len(KINDS)](rng, f"n{number:02d}") for number in range(count)]
