"""Damage to files and texts that follows from a seed alone: JSON, pictures, pickles, weights, tokenizers, words."""

from __future__ import annotations

import json
import pickle
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_DEEP = "deep nest"  # stands in a JSON value for brackets that json.dumps itself could not write
_DEPTH = 100_000

NUMBERS = (
    0, -1, 1, 2, 3, 255, 65536, 1e10, 1e308, -1e308, 1e-320, 0.5, -0.0, 2**31, 2**31 - 1, 2**32, 2**63, -(2**63), 10**9,
    10**30, 10**400, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TEXTS = (
    "", " ", "x", "3", "null", "<image>", "<im_start>", "[SEG0]", "[SEG0] [SEG1]", "{seg}", "{seg} {seg}", "{cup}", "{",
    "</s>", "<s>", "<unk>", "\ud800", "a\udfffb", "two\nlines", "\r\n", "a\0b", "\x1b[31m", "\u2028", "\u202e",
    "\ufeff", "n" * 300, "word " * 3000, "../../x", "/", ".", "..", "/dev/null", "~", "a/b/c.jpg", "café", "左邊的杯子",
    "😀" * 40, "%s", "%", "\\", "'\"", "||", "0x10", "1e9", "-1", "True", "nan", "inf",
)  # fmt: skip
LISTS: tuple[Any, ...] = ([], {}, [[]], [None], [[0]], {"": 0}, [1] * 100_000, [[1, 2]] * 20_000, ["x"] * 5000, _DEEP)
ODD: tuple[Any, ...] = (None, True, False, *NUMBERS, *TEXTS, *LISTS)
_BYTES = (b"", b"\0", b"\xff", b"\xff" * 8, b"\0" * 64, b"[", b'{"a":', b"\x80\x04", b"PK\x03\x04", b"\xef\xbb\xbf")


class Mutator:
    """Damages values; every choice comes from ``rng``.

    Attributes:
        notes: what was done, for the report.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.notes: list[str] = []

    def file(self, name: str, data: bytes) -> bytes:
        """Damage the content of a file in a way that fits its kind, one to three times."""
        kind = next((kind for suffix, kind in _KINDS.items() if name.endswith(suffix)), Mutator.raw)
        self.notes.append(name)
        for _ in range(int(self.rng.choice([1, 1, 1, 2, 3]))):
            try:
                data = Mutator.raw(self, data) if self.rng.random() < 0.15 else kind(self, data)
            except (
                ValueError,
                OverflowError,
                RecursionError,
                EOFError,
                IndexError,
                pickle.UnpicklingError,
                struct.error,
            ):  # it is not of its kind
                data = self.raw(data)
            if self.notes[-1].startswith("bytes"):
                kind = Mutator.raw
        return data

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def note(self, text: str) -> None:
        self.notes.append(text if len(text) <= 120 else f"{text[:120]}...")

    def json(self, data: bytes) -> bytes:
        """Change the values of a JSON file."""
        return self._write(self.value(json.loads(data.decode("utf-8"))))

    def json_lines(self, data: bytes) -> bytes:
        """Change the values of one line."""
        lines = data.splitlines()
        place = int(self.rng.integers(len(lines)))
        lines[place] = self.json(lines[place])
        return b"\n".join(lines) + b"\n"

    def pickled(self, data: bytes) -> bytes:
        """Change the values of a pickle."""
        value = self.value(pickle.loads(data))
        return pickle.dumps([] if value is _DEEP else value, protocol=int(self.rng.choice([0, 2, 4])))

    def _write(self, value: Any) -> bytes:
        text = json.dumps(value)
        opened, closed = self.pick([("[", "]"), ('{"a":', "}"), ("[", "")])
        return text.replace(json.dumps(_DEEP), opened * _DEPTH + "0" + closed * _DEPTH).encode()

    def value(self, value: Any) -> Any:
        """Change one entry of a JSON value, at any depth; those above are as likely as those below."""
        holder: dict[str, Any] = {"": value}
        parent: Any = holder
        key: Any = ""
        place = "$"
        while isinstance(parent[key], (dict, list)) and parent[key] and self.rng.random() < 0.88:
            parent = parent[key]
            key = self.pick(list(parent)) if isinstance(parent, dict) else int(self.rng.integers(len(parent)))
            place += f".{key}"
        self._change(parent, key, place)
        return holder[""]

    def _change(self, parent: Any, key: Any, place: str) -> None:
        old = parent[key]
        changes: list[Callable[[Any], Any]] = [self._odd, self._odd, self._wrapped]
        if isinstance(old, (int, float)) and not isinstance(old, bool):
            changes += [self._number] * 3
        elif isinstance(old, str):
            changes += [self.text] * 3
        elif isinstance(old, (list, dict)) and old:
            changes += [self._list if isinstance(old, list) else self._keys] * 3
        change = self.pick([*changes, None])
        if change is None and place != "$":
            self.note(f"{place} deleted")
            del parent[key]
            return
        parent[key] = (change or self._odd)(old)
        self.note(f"{place} became {parent[key]!r:.80}")

    def _odd(self, old: Any) -> Any:
        return self.pick(ODD)

    def _wrapped(self, old: Any) -> Any:
        inner = next(iter(old.values() if isinstance(old, dict) else old), None) if isinstance(old, (dict, list)) else 7
        return self.pick([[old], [[old]], {"x": old}, str(old), inner, [old, old]])

    def _number(self, old: float) -> Any:
        factor = self.pick([-1, 2, 10, 1e3, 1e10, 0.1])
        return self.pick([old * factor, old + 1, old - 1, old + 0.5, float(old), str(old), bool(old), int(old)])

    def _list(self, old: list[Any]) -> Any:
        place = int(self.rng.integers(len(old)))
        rest = [*old[:place], *old[place + 1 :]]
        shuffled = [old[index] for index in self.rng.permutation(len(old))]
        longer = [*old[:place], self.pick(ODD), *old[place:]]
        return self.pick(
            [
                rest,
                old * 2,
                old * (600 // len(old) + 1),  # long, but not so long that sound photos take their time
                shuffled,
                old[::-1],
                longer,
                old[:place],
                [*old, old[place]],
            ]
        )

    def _keys(self, old: dict[Any, Any]) -> Any:
        key, other = self.pick(list(old)), self.pick(list(old))
        rest = {name: value for name, value in old.items() if name != key}
        swapped = {**old, key: old[other], other: old[key]}
        named = {**rest, self.pick([f"{key}s", str(key).upper(), "", "x", self.pick(TEXTS)]): old[key]}
        return self.pick([rest, swapped, named, {**old, self.pick(TEXTS): self.pick(ODD)}, list(old.items())])

    def text(self, old: str) -> str:
        """Change words, or put something odd before, into or behind them."""
        odd, place = self.pick(TEXTS), int(self.rng.integers(len(old) + 1))
        return self.pick(
            [odd, old + odd, odd + old, old[:place] + odd + old[place:], old[:place], old.upper(), old * 50]
        )

    def raw(self, data: bytes) -> bytes:
        """Flip, cut, insert, repeat or overwrite bytes."""
        place, other = sorted(int(number) for number in self.rng.integers(len(data) + 1, size=2))
        kind = self.pick(["flip", "flip", "cut", "insert", "repeat", "drop", "head", "zeros", "empty", "noise"])
        self.note(f"bytes: {kind} at {place} of {len(data)}")
        if kind == "flip":
            changed = bytearray(data)
            for _ in range(int(self.rng.choice([1, 1, 4, 30])) if data else 0):
                changed[int(self.rng.integers(len(data)))] ^= 1 << int(self.rng.integers(8))
            return bytes(changed)
        return {
            "cut": data[:place],
            "insert": data[:place] + self.pick(_BYTES) + data[place:],
            "repeat": data[:other] + data[place:],
            "drop": data[:place] + data[other:],
            "head": self._overwritten(data, int(self.rng.integers(min(len(data), 64) + 1))),
            "zeros": data[:place] + b"\0" * (other - place) + data[other:],
            "empty": b"",
            "noise": self.rng.bytes(len(data) % 4096),
        }[kind]

    def _overwritten(self, data: bytes, place: int) -> bytes:
        width = int(self.rng.choice([1, 2, 4, 8]))
        return data[:place] + self.pick([b"\0", b"\xff", b"\x7f"]) * width + data[place + width :]

    def picture(self, data: bytes) -> bytes:
        """Claim another size in a PNG's or a JPEG's header, or damage the bytes."""
        if self.rng.random() < 0.5:
            return self.raw(data)
        sides = [self.pick([0, 1, 7, 60, 61, 5000, 30_000, 65_535, 2**31 - 1, 2**32 - 1]) for _ in range(2)]
        self.note(f"header claims {sides}")
        if data.startswith(b"\x89PNG"):
            header = data[12:16] + struct.pack(">II", *sides) + data[24:29]
            if self.rng.random() < 0.3:  # bit depth, color type
                header = header[:12] + bytes([self.pick([1, 2, 8, 16, 7]), self.pick([0, 2, 3, 4, 6, 9])]) + header[14:]
            return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        if data.startswith(b"\xff\xd8") and frame > 0:
            return data[: frame + 5] + struct.pack(">HH", *(side & 0xFFFF for side in sides)) + data[frame + 9 :]
        return self.raw(data)

    def safetensors(self, data: bytes) -> bytes:
        """Change the length or the values of the header, which says where each tensor lies."""
        (length,) = struct.unpack("<Q", data[:8])
        if self.rng.random() < 0.25:
            claimed = self.pick([0, 1, length - 1, length + 1, len(data), 2**31, 2**63, 2**64 - 1])
            self.note(f"header of {claimed} bytes")
            return struct.pack("<Q", claimed) + data[8:]
        header = self.json(data[8 : 8 + length])
        return struct.pack("<Q", len(header)) + header + data[8 + length :]


_KINDS: dict[str, Callable[[Mutator, bytes], bytes]] = {
    ".json": Mutator.json,
    ".jsonl": Mutator.json_lines,
    ".p": Mutator.pickled,
    ".png": Mutator.picture,
    ".jpg": Mutator.picture,
    ".safetensors": Mutator.safetensors,
}


def damage_path(mutator: Mutator, path: Path) -> None:
    """Damage a file: mostly its content; now and then it is gone, or a folder, or a link that leads nowhere."""
    content = path.read_bytes()
    fate = mutator.rng.random()
    if fate < 0.97:
        path.write_bytes(mutator.file(path.name, content))
        return
    path.unlink()
    mutator.note(f"{path.name} is no file")
    if fate < 0.98:
        path.mkdir()
    elif fate < 0.99:
        path.symlink_to(path.name)
