"""The process group: who am I, and small collectives that also work in a single process.

Every command asks here who it is before it parses its flags, so only what needs a group imports torch.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar, cast

from model.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

_KEEPER_WAITS_SECONDS = 2.0  # before it ends with its store
Item = TypeVar("Item")


class StoppedByPeer(InputError):
    """Another process met bad input, and says so itself."""


class StoppedHere(InputError):
    """This process alone met bad input, so it has to say so; what all processes meet is told by the first one."""


def rank() -> int:
    """This process's number among all, known before any process group exists."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Processes on this machine, as torchrun or the DeepSpeed launcher counts them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size())


def local_rank() -> int | None:
    """This process's number among those on this machine; None where the launcher does not say."""
    number = os.environ.get("LOCAL_RANK")
    return None if number is None else int(number)


def is_main() -> bool:
    return rank() == 0


def set_single_process_environment() -> None:
    """Let one plain ``python`` process stand for a launcher's group of one."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())


def tell_deepspeed_the_device() -> None:
    """To be called before anything imports DeepSpeed, as peft does: where no GPU is, it says so on stdout."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_initialized() -> bool:
    """Whether this process has joined a group; without torch it cannot have."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized()


def _has_peers() -> bool:
    return is_initialized() and world_size() > 1


def join(backend: str, *, timeout: timedelta) -> None:
    """Join the launcher's process group; who forgets to leave it does so at the end of the program.

    Args:
        backend: gloo or nccl.
        timeout: how long a process waits for the others in a collective.
    """
    import torch.distributed

    torch.distributed.init_process_group(backend, timeout=timeout)
    atexit.register(leave)


def leave() -> None:
    """Leave the process group, and the one for small agreements; without one, nothing happens.

    A group that outlives Python aborts the process, because its threads are still at work then.
    """
    if is_initialized():
        import torch.distributed

        _cpu_group.cache_clear()  # what is kept here would live on
        torch.distributed.destroy_process_group()


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, in place."""
    if _has_peers():
        import torch.distributed

        torch.distributed.all_reduce(values)
    return values


def all_reduce_max(values: torch.Tensor) -> torch.Tensor:
    """The largest of each value over all processes, in place."""
    if _has_peers():
        import torch.distributed

        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    return values


def gather_objects(item: Item) -> list[Item]:
    """The plain objects of all processes, on every process."""
    if not _has_peers():
        return [item]
    import torch.distributed

    items: list[Item] = [item] * world_size()
    torch.distributed.all_gather_object(items, item, group=_cpu_group())
    return items


def is_first_to(name: str) -> bool:
    """Whether no other process of the run has asked this before; of all that meet the same, one has to speak.

    It asks the launcher's store, which needs no other process to take part. Process 0, which may keep the store, waits
    for a moment, so that others that are about to ask get an answer. Without one it is True.
    """
    if not _has_peers():
        return True
    try:
        store = launcher_store(timedelta(seconds=5))
        asked = f"pixellm/{name}"
        is_first = store.add(asked, 1) == 1
        deadline = time.monotonic() + _KEEPER_WAITS_SECONDS
        while rank() == 0 and store.add(asked, 0) < world_size() and time.monotonic() < deadline:
            time.sleep(0.05)
        return is_first
    except (RuntimeError, OSError):  # process 0, which keeps it, has ended
        return True


def note(name: str) -> None:
    """Leave word for the other processes of the run, who may look for it when this one has ended."""
    if _has_peers():
        with suppress(RuntimeError, OSError):  # process 0, which keeps the store, has ended
            launcher_store(timedelta(seconds=5)).add(f"pixellm/{name}", 1)


def is_noted(name: str) -> bool:
    """Whether any process has left this word; False where that cannot be known."""
    try:
        return _has_peers() and launcher_store(timedelta(seconds=5)).add(f"pixellm/{name}", 0) > 0
    except (RuntimeError, OSError):
        return False


def launcher_store(timeout: timedelta) -> TCPStore:
    """A connection of one's own to the run's store, since one that waits for a key lets nobody else ask."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)


def barrier() -> None:
    if _has_peers():
        import torch.distributed

        torch.distributed.barrier()


@contextmanager
def stop_together(sums: list[int] | None = None) -> Iterator[None]:
    """Raise on every process if the block raises InputError on any of them.

    Otherwise the others would wait in the next collective, or die there of a broken connection. The process of the
    lowest rank that has an error raises it as ``StoppedHere``; the others raise ``StoppedByPeer``. What a block within
    the block has raised so is on every process already, and passes.

    Args:
        sums: numbers of this process, as many on each, which the block may still set; behind the block they are sums
            over all processes. They travel with the errors, and no GPU is waited for.
    """
    error = None
    try:
        yield
    except (StoppedByPeer, StoppedHere):
        raise
    except InputError as err:
        error = err
    if _has_peers():
        import torch.distributed

        own = sums or []
        failed = [int(error is not None and number == rank()) for number in range(world_size())]
        exchanged = torch.tensor([*own, *failed], dtype=torch.long)
        torch.distributed.all_reduce(exchanged, group=_cpu_group())
        own[:], failed = exchanged[: len(own)].tolist(), exchanged[len(own) :].tolist()
        lowest = failed.index(1) if any(failed) else None
        if lowest is not None and lowest != rank():
            raise StoppedByPeer(f"process {lowest} met bad input") from error
        if error:
            raise StoppedHere(str(error), reason=error.reason) from error
    if error:
        raise error


@cache
def _cpu_group() -> torch.distributed.ProcessGroup:
    """For small agreements, which must not wait for a GPU."""
    import torch.distributed

    # Every process is a member, so none gets the number that stands for "not in this group".
    return cast(torch.distributed.ProcessGroup, torch.distributed.new_group(backend="gloo"))
