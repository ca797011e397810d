"""DeepSpeed: the only module that imports it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from model.errors import InputError

from . import dist
from .build import TrainingModel
from .cli.config import RunConfig
from .deepspeed_config import deepspeed_settings

# Between the language model and the masks: no LLaVA base has them.
MASK_MODULES = ("text_hidden_fcs", "out_mm_projector", "mask_decoder")


def init_distributed() -> torch.device:
    """Join the launcher's process group, or make a group of one; returns this process's device."""
    dist.set_single_process_environment()
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        device = torch.device("cpu")
        # Processes that each use every core slow one another down many times over.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // dist.local_world_size()))
    import deepspeed

    if device.type == "cpu":
        # DeepSpeed would compile this extension at its first use, although only inference needs it: under a lock that
        # a killed process leaves behind, on which every later run waits, and with buffers that stay in shared memory.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
    return device


def build_engine(run: RunConfig, training: TrainingModel) -> Any:
    """Wrap the network, the optimizer and the learning-rate schedule in a DeepSpeed engine."""
    import deepspeed

    trained = [parameter for parameter in training.wrapped.parameters() if parameter.requires_grad]
    optimizer = make_muon(run, training.wrapped) if run.optimizer == "muon" else make_adamw(run, trained)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(run))
    engine, _, _, _ = deepspeed.initialize(
        model=training.wrapped,
        model_parameters=trained,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        config=deepspeed_settings(run),
    )
    # DeepSpeed casts buffers to the training precision; rotary tables need float32.
    llama = training.network.model
    llama.rotary_emb = LlamaRotaryEmbedding(llama.config).to(engine.device)
    return engine


def make_adamw(run: RunConfig, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The released optimizer."""
    return torch.optim.AdamW(trained, lr=run.lr, betas=(run.beta1, run.beta2), weight_decay=0.0)


def make_muon(run: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Muon for the linear layers between language model and masks, which start from nothing; AdamW for the rest.

    Muon makes every update of a matrix orthogonal, so that rare directions learn as fast as common ones. What goes on
    from pretrained weights, LoRA included, needs small steps instead; tables of vectors (tokens, embeddings) have no
    directions to make equal; filters of convolutions are left out because DeepSpeed 0.19.8 fails on them.
    """
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    if not torch.cuda.is_available():
        # Compiling Muon for every shape of a matrix takes longer on a CPU than it can save.
        torch.compiler.set_stance("force_eager")
    matrices = {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part in name for part in MASK_MODULES)
    }
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.use_muon = parameter in matrices  # what ZeRO goes by
            groups[parameter.use_muon].append(parameter)
    # The first group's learning rate is the one that is logged.
    return MuonWithAuxAdam(
        [
            {"params": groups[False], "use_muon": False, "lr": run.lr, "betas": (run.beta1, run.beta2), "eps": 1e-8},
            {"params": groups[True], "use_muon": True, "lr": run.muon_lr, "momentum": 0.95},
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


def save_checkpoint(engine: Any, folder: Path, *, update: int, state: dict[str, Any]) -> None:
    """Write ``folder/global_step<update>``, then point ``latest`` at it and drop older ones."""
    tag = f"global_step{update}"
    engine.save_checkpoint(str(folder), tag=tag, client_state=state)
    dist.barrier()
    if dist.is_main():
        for old in folder.glob("global_step*"):
            if old.name != tag:
                shutil.rmtree(old)
    dist.barrier()


def load_checkpoint(engine: Any, folder: Path) -> dict[str, Any]:
    """Restore weights, optimizer and schedule from the folder that holds ``latest``; returns the saved state.

    The schedule's position is restored; its rates are those of this run, whose --lr or --epochs may be new.
    """
    if not (folder / "latest").is_file():
        raise InputError(f"--resume {folder}: no file named latest; give the ckpt_model folder of a run")
    base_rates = list(engine.lr_scheduler.base_lrs)
    try:
        path, state = engine.load_checkpoint(str(folder))
    except (RuntimeError, KeyError, AssertionError, ValueError, FileNotFoundError) as err:
        raise InputError(
            f"checkpoint {folder} does not fit this run ({str(err).splitlines()[0]}); resume with the flags it was "
            "started with, or choose another --exp_name"
        ) from err
    if path is None:
        raise InputError(f"checkpoint {folder} is incomplete; remove it or choose another --exp_name")
    _set_rates(engine, base_rates)
    return state


def _set_rates(engine: Any, base_rates: list[float]) -> None:
    """A checkpoint brings the rate of its own schedule, which is zero after the last update of a shorter run."""
    schedule = engine.lr_scheduler
    schedule.base_lrs = base_rates
    rates = [rate * factor(schedule.last_epoch) for rate, factor in zip(base_rates, schedule.lr_lambdas, strict=True)]
    schedule._last_lr = rates
    for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def consolidate_zero(folder: Path) -> dict[str, Tensor]:
    """A ZeRO checkpoint folder -> float32 weights, as ``zero_to_fp32.py`` gives them.

    DeepSpeed unpickles these files; give only folders that your own runs wrote.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return get_fp32_state_dict_from_zero_checkpoint(str(folder))
