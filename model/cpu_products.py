"""Products of matrices on a CPU, by the faster of two libraries that torch has.

torch multiplies float32 by MKL, which is slow on few rows: on an AMD EPYC, 8 rows take twice as long as one. oneDNN,
which torch has for other types, takes 10 to 40 % less for large weights. It looks every call up, which small ones feel.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_LARGE = 2**18  # numbers in a weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, for answers: (..., D) times (V, D), plus (V,), to (..., V)."""
    is_float = x.dtype == torch.float32 and x.device.type == "cpu"
    if _ONEDNN and is_float and weight.numel() >= _LARGE and torch.is_inference_mode_enabled():
        return _ONEDNN(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def use_in(network: nn.Module) -> None:
    """Let the linear layers of a network take ``linear`` while it answers; training goes on as before."""
    for module in network.modules():
        if type(module) is nn.Linear and "forward" not in vars(module):  # else something is hooked in
            cast(Any, module).forward = partial(_forward, module)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)
