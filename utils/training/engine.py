"""The process group of a run and its DeepSpeed engine: network, optimizer and learning-rate schedule in one."""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch
import torch.distributed
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from model.errors import InputError
from utils import dist
from utils.cli.config import RunConfig
from utils.evaluation.teacher_forced import Network

from .optimizer import learning_rate_factor, make_adamw, make_muon
from .start import TrainingModel


class Engine(Network, Protocol):
    """What training uses of ``deepspeed.DeepSpeedEngine``, which declares no types of its own."""

    module: nn.Module
    device: torch.device
    optimizer: Any  # one of DeepSpeed's around ours, or ours
    global_steps: int
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR

    def backward(self, loss: Tensor) -> Any: ...

    def step(self) -> None: ...

    def was_step_applied(self) -> bool: ...

    def get_lr(self) -> list[float]: ...

    def get_global_grad_norm(self) -> float | None: ...

    def zero_optimization_stage(self) -> int: ...

    def fp16_enabled(self) -> bool: ...


def init_distributed() -> torch.device:
    """Join the launcher's process group, or make a group of one; returns this process's device.

    Raises:
        InputError: if the launcher's port is in use.
    """
    dist.set_single_process_environment()
    dist.tell_deepspeed_the_device()
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        # Threads beyond the number of free cores slow one another down many times over.
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // dist.local_world_size()))
    import deepspeed

    if device.type == "cpu":
        # DeepSpeed would compile this extension at its first use, although only inference needs it: under a lock that
        # a killed process leaves behind, on which every later run waits, and with buffers that stay in shared memory.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
    except torch.distributed.DistNetworkError as err:
        if "EADDRINUSE" not in str(err):
            raise
        raise InputError(
            f"port {os.environ['MASTER_PORT']} of this machine is in use, by another training perhaps; give the "
            "launcher another one (--master_port)"
        ) from err
    return device


def can_compute(precision: str) -> bool:
    """Whether DeepSpeed trains in ``precision`` on this device; of CPUs, few have fp16."""
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    if precision == "fp32":
        return True
    return bool(accelerator.is_fp16_supported() if precision == "fp16" else accelerator.is_bf16_supported())


def check_precision(run: RunConfig, device: torch.device) -> None:
    """Refuse a training that DeepSpeed would refuse once all weights are read.

    Raises:
        InputError: if this device does not compute in ``--precision``.
    """
    if not can_compute(run.precision):
        kind = "CPU" if device.type == "cpu" else "GPU"
        raise InputError(
            f"--precision {run.precision}: DeepSpeed does not train in it on this {kind}; "
            "give --precision auto, or bf16 or fp32"
        )


def build_engine(run: RunConfig, training: TrainingModel, settings: dict[str, Any]) -> Engine:
    """Wrap the network, the optimizer and the learning-rate schedule in a DeepSpeed engine.

    Args:
        settings: as ``deepspeed_settings`` gives them.
    """
    import deepspeed

    # Its annotations forbid what its documentation asks for: an iterable of parameters, any schedule.
    initialize: Any = deepspeed.initialize
    trained = [parameter for parameter in training.wrapped.parameters() if parameter.requires_grad]
    optimizer = make_muon(run, training.wrapped) if run.optimizer == "muon" else make_adamw(run, trained)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(run))
    engine, _, _, _ = initialize(
        model=training.wrapped,
        model_parameters=trained,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        config=settings,
    )
    # DeepSpeed casts buffers to the training precision; rotary tables need float32.
    llama = training.network.model
    llama.rotary_emb = LlamaRotaryEmbedding(llama.config).to(engine.device)
    return engine
