"""What DeepSpeed's engine is without ZeRO in float32: the module, the optimizer and the schedule as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class PlainEngine:
    """As much of an engine as saving and loading use."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR
    global_steps: int = 0

    @classmethod
    def small(cls, *, seed: int = 0) -> PlainEngine:
        """Two layers, of which the first is frozen."""
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        module[0].requires_grad_(False)
        module.register_buffer("constant", torch.rand(2))
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1)
        return cls(module, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1)))

    def update(self) -> PlainEngine:
        """One update on random numbers."""
        self.module(torch.rand(5, 4)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        self.global_steps += 1
        return self

    def zero_optimization_stage(self) -> int:
        return 0

    def fp16_enabled(self) -> bool:
        return False

    def state(self) -> dict[str, Any]:
        """Everything that an update changes, in numbers that compare exactly."""
        return {
            "weights": {name: tensor.tolist() for name, tensor in self.module.state_dict().items()},
            "moments": [{key: value.tolist() for key, value in state.items()} for state in self._moments()],
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "steps": (self.global_steps, self.lr_scheduler.last_epoch),
        }

    def _moments(self) -> list[dict[str, torch.Tensor]]:
        return [dict(state) for state in self.optimizer.state.values()]
