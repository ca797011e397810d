"""What all processes of a machine would read of the same files: one reads it, the others map the memory of that one.

The annotations of large datasets take minutes and gigabytes, and each process of a training needs all of them. So the
first process of a machine lays what it has read into a file without a name, which lives in memory as long as a process
has it open: nothing is left behind, however the processes end. It hands it over through a socket, which has no file
either.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import pickle
import socket
import struct
import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar, cast

from utils import dist

Read = TypeVar("Read")

# Processes start within moments, but a busy machine takes its time to import what they need. Who waits in vain reads
# by itself.
_START_SECONDS = 30.0
_LOOK_SECONDS = 0.05
_ALIGNMENT = 64
_CREDENTIALS = struct.Struct("3i")  # process, user, group; unix(7)
_calls = count()  # of this process; what is shared first and second may not be confused


def read_once(read: Callable[[], Read]) -> Read:
    """Call ``read`` in the first process of this machine, and share what it returns.

    Arrays of numpy are shared, and read-only; everything else is copied. Where a process gets nothing, because the
    first one has failed or the system lacks what it takes, it reads by itself. Every process of the machine has to call
    this as often as the others.

    Args:
        read: gives the same on each process; what it returns can be pickled. It is pickled by a process of the same
            run and user, and no file is unpickled.
    Raises:
        whatever ``read`` raises.
    """
    number = dist.local_rank()
    if dist.local_world_size() == 1 or number is None or not hasattr(os, "memfd_create"):
        return read()
    address = _address()
    if number == 0:
        return _read_and_serve(read, address, num_others=dist.local_world_size() - 1)
    shared = _receive(address)
    return read() if shared is None else cast(Read, _unpack(shared))


def _address() -> str:
    """Of this call, in the kernel's own space of names, which knows no files."""
    group = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return f"\0pixellm/{os.getuid()}/{group}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_calls)}"


def _read_and_serve(read: Callable[[], Read], address: str, *, num_others: int) -> Read:
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(address)
            server.listen(num_others)
        except OSError:
            return read()
        found = read()  # those that wait notice if it fails, because the socket is closed
        try:
            shared = _pack(found)
        except OSError:  # no memory for a second copy
            return found
        server.settimeout(_START_SECONDS)
        for _ in range(num_others):
            try:
                other, _ = server.accept()
                with other:
                    if _is_same_user(other):
                        socket.send_fds(other, [b"\0"], [shared])
            except OSError:  # a process that has ended, which its launcher tells
                break
    del found
    return cast(Read, _unpack(shared))


def _receive(address: str) -> int | None:
    """The file of the first process; None if it gives none."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(address)
                if not _is_same_user(client):
                    return None
                _, files, _, _ = socket.recv_fds(client, 1, 1)
                return files[0] if files else None
            except ConnectionRefusedError:  # the first process has not come so far
                if time.monotonic() > deadline:
                    return None
            except OSError:
                return None
        time.sleep(_LOOK_SECONDS)


def _is_same_user(peer: socket.socket) -> bool:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(credentials)[1] == os.getuid()


def _pack(content: object) -> int:
    """A sealed file in memory: where each part ends, a pickle, and the arrays that it leaves out."""
    buffers: list[pickle.PickleBuffer] = []
    parts: list[bytes | memoryview] = [pickle.dumps(content, protocol=5, buffer_callback=buffers.append)]
    parts += [buffer.raw() for buffer in buffers]
    sizes = json.dumps([len(part) for part in parts]).encode()
    file = os.memfd_create("pixellm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(file), "wb") as output:
        for part in (struct.pack("q", len(sizes)), sizes, *parts):
            output.write(part)
            output.write(b"\0" * (-len(part) % _ALIGNMENT))
    fcntl.fcntl(
        file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    )
    return file


def _unpack(file: int) -> object:
    """Map what ``_pack`` has made; closes the file, which lives on as long as it is mapped."""
    whole = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))
    os.close(file)
    place = 0

    def take(size: int) -> memoryview:
        nonlocal place
        start, place = place, place + size + -size % _ALIGNMENT
        return whole[start : start + size]

    (size_of_table,) = struct.unpack("q", take(8))
    pickled, *buffers = (take(size) for size in json.loads(bytes(take(size_of_table))))
    return pickle.loads(pickled, buffers=buffers)
