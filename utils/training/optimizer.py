"""What updates the weights, and at which rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from utils.cli.config import RunConfig

# Between the language model and the masks: no LLaVA base has them.
MASK_MODULES = ("text_hidden_fcs", "out_mm_projector", "mask_decoder")
# By it DeepSpeed knows what Muon updates: an attribute of its parameters, and a key of its group in the optimizer.
MUON_MARK = "use_muon"


def make_adamw(run: RunConfig, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The released optimizer: AdamW without weight decay (train_ds.py of the release)."""
    return torch.optim.AdamW(trained, lr=run.lr, betas=(run.beta1, run.beta2), weight_decay=0.0)


def make_muon(run: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Muon for the linear layers between language model and masks, which start from nothing; AdamW for the rest.

    Muon makes every update of a matrix orthogonal, so that rare directions learn as fast as common ones. What goes on
    from pretrained weights, LoRA included, needs small steps instead; tables of vectors (tokens, embeddings) have no
    directions to make equal; filters of convolutions are left out because DeepSpeed 0.19.8 fails on them.
    """
    from deepspeed.runtime.zero.muon import original_muon
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    if run.precision == "fp32":
        # DeepSpeed makes matrices orthogonal in 16 bits (which of the two kinds depends on the processor), so that
        # the last digit of a gradient, which the order of sums decides, becomes the fourth digit of the update.
        original_muon.ns_compute_dtype = lambda *_, **__: torch.float32
    if not (torch.cuda.is_available() or run.compile):
        # Compiling Muon for every shape of a matrix takes longer on a CPU than it can save. This holds for all that the
        # process would compile.
        torch.compiler.set_stance("force_eager")
    matrices = {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part in name for part in MASK_MODULES)
    }
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_matrix = parameter in matrices
            setattr(parameter, MUON_MARK, is_matrix)
            groups[is_matrix].append(parameter)
    # The first group's learning rate is the one that is logged.
    return MuonWithAuxAdam(
        [
            {"params": groups[False], MUON_MARK: False, "lr": run.lr, "betas": (run.beta1, run.beta2), "eps": 1e-8},
            {"params": groups[True], MUON_MARK: True, "lr": run.muon_lr, "momentum": 0.95},
        ]
    )


def learning_rate_factor(run: RunConfig) -> Callable[[int], float]:
    """Linear warm-up, then linear decay to zero at the last update (released schedule).

    A run that is too short for ``--warmup_steps`` warms up over its first tenth.
    """
    total = run.total_updates
    warmup = max(1, min(run.warmup_steps, total // 10))

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        return max(0.0, (total - update) / max(1, total - warmup))

    return factor
