"""Devices that are not there: tensors stay on the CPU and say that they are elsewhere, so that mixing them is noticed.

A machine with several GPUs refuses an operation on tensors of two of them. Here such operations are noted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

CPU = torch.device("cpu")
_DEVICE = Tensor.device.__get__  # pyright: ignore[reportAttributeAccessIssue]
_OF_ANY_DEVICE = (Tensor.__getitem__, Tensor.__setitem__)  # an index may be on the CPU
_BETWEEN = (Tensor.copy_,)


class ImaginedDevices(TorchFunctionMode):
    """While it is entered, ``tensor.device``, ``tensor.to`` and ``device=`` are about the imagined devices.

    Attributes:
        mixed: operations on tensors of several devices, with their shapes and devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []
        self._places: dict[
            int, tuple[torch.device, Any]
        ] = {}  # by memory, which is kept so that no other takes its place

    def put(self, tensor: Tensor, device: torch.device) -> None:
        memory = tensor.untyped_storage()
        self._places[memory._cdata] = device, memory

    def place(self, tensor: Tensor) -> torch.device:
        return self._places.get(tensor.untyped_storage()._cdata, (CPU, None))[0]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == _DEVICE:
            return self.place(args[0])
        if func == Tensor.to:
            return self._to(*args, **kwargs)
        wanted = kwargs.get("device")
        if wanted is not None:
            kwargs["device"] = CPU
        given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor) and one.dim()]
        places = {self.place(one) for one in given}
        if len(places - {CPU} if func in _OF_ANY_DEVICE else places) > 1 and func not in _BETWEEN:
            self.mixed.append(f"{func}: {[(tuple(one.shape), str(self.place(one))) for one in given]}")
        found = func(*args, **kwargs)
        for one in tree_flatten(found)[0]:
            if isinstance(one, Tensor) and one.untyped_storage()._cdata not in self._places:
                self.put(one, torch.device(wanted) if wanted is not None else self.place(given[0]) if given else CPU)
        return found

    def _to(
        self, tensor: Tensor, *told: Any, device: Any = None, other: Tensor | None = None, **options: Any
    ) -> Tensor:
        wanted = device
        types = [one for one in told if isinstance(one, torch.dtype)]
        for one in (*told, other):
            if isinstance(one, Tensor):
                wanted, types = self.place(one), [one.dtype]
            elif isinstance(one, (str, torch.device)):
                wanted = one
        place = self.place(tensor) if wanted is None else torch.device(wanted)
        moved = tensor.to(*types, **options) if types or options else tensor
        if moved.untyped_storage()._cdata == tensor.untyped_storage()._cdata and place != self.place(tensor):
            moved = moved.clone()
        self.put(moved, place)
        return moved


def scatter(network: nn.Module, parts: list[str], devices: ImaginedDevices, *, number: int, seed: int) -> None:
    """Put each part on one of so many GPUs, and move there what it is called with, as accelerate's hooks do."""
    draw = np.random.default_rng(seed)
    for part in parts:
        device = torch.device("cuda", int(draw.integers(number)))
        for module in network.get_submodule(part).modules():
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                devices.put(tensor, device)
            module.register_forward_pre_hook(_mover(device), with_kwargs=True)


def _mover(device: torch.device) -> Any:
    return lambda module, args, options: (
        send_to_device(args, device), send_to_device(options, device, skip_keys=["past_key_values"])
    )  # fmt: skip
