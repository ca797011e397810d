"""A program for two processes: updates that are not finite, under every ZeRO stage, precision and optimizer."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from model.configuration import PRECISIONS
from model.errors import InputError
from model.losses import LossTerms
from model.structures import Batch
from utils import dist
from utils.cli.config import RunConfig
from utils.training.engine import can_compute, init_distributed
from utils.training.gradients import GradientGuard
from utils.training.optimizer import make_muon

# On which process and in which of two passes; the loss is made so, or a gradient alone.
KINDS = {"loss nan": (1, 0), "loss inf": (0, 1), "gradient": (1, 1)}


class Tiny(nn.Module):
    """One layer that is trained before a frozen one, and one behind it."""

    def __init__(self) -> None:
        super().__init__()
        # Muon updates what is called so.
        self.mask_decoder, self.frozen, self.behind = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.frozen.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.behind(self.frozen(self.mask_decoder(inputs)).relu())


class Run:
    """A guarded engine over ``Tiny``, at a constant learning rate."""

    def __init__(self, stage: int, precision: str, *, offload: bool, muon: bool, max_skips: int) -> None:
        import deepspeed

        torch.manual_seed(0)
        self.stage, self.dtype, self.device = stage, PRECISIONS[precision], DEVICE
        network = Tiny().to(self.dtype)
        self.guard = GradientGuard(network, scales_loss=precision == "fp16", max_skips=max_skips)
        self.trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(self.trained, lr=1e-2)
        if muon:
            optimizer = make_muon(RunConfig(precision="fp32", lr=1e-2), network)
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2, "gradient_clipping": 1.0,
            "zero_optimization": {"stage": stage}, "zero_force_ds_cpu_optimizer": False,
        }  # fmt: skip
        if muon:  # as deepspeed_settings has it
            settings["gradient_clipping"] = 0.0
            settings["zero_optimization"]["reduce_scatter"] = False
        if offload:
            settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        if precision != "fp32":
            settings[precision] = {"enabled": True}
        if precision == "fp16":
            settings[precision]["initial_scale_power"] = 12
        initialize: Any = deepspeed.initialize
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        self.engine, *_ = initialize(
            model=network, model_parameters=self.trained, optimizer=optimizer, lr_scheduler=schedule, config=settings
        )

    def update(self, number: int, kind: str = "") -> int:
        """Two passes; what they see depends on the number of the update, the process and the pass."""
        for passed in range(2):
            generator = torch.Generator().manual_seed(100 * number + 10 * dist.rank() + passed)
            inputs = torch.randn(1, 8, generator=generator).to(self.device, self.dtype)
            output = self.engine(inputs).float().mean()
            loss = output**2
            if kind and KINDS[kind] == (dist.rank(), passed):
                if kind == "gradient":
                    loss = loss + (output * 0).sqrt()  # its slope is infinite at 0
                else:
                    loss = loss + float(kind.split()[1])
            terms = LossTerms(total=loss, ce=loss, bce=loss * 0, dice=loss * 0, refine=loss * 0, num_masks=0)
            self.engine.backward(self.guard.watch(loss, terms, batch_of(f"sample-{dist.rank()}-{passed}")))
            if passed == 0:
                self.engine.step()
        return self.guard.step(self.engine, update=number, agree=7 * dist.rank())

    def weights(self) -> list[Tensor]:
        import deepspeed

        with deepspeed.zero.GatheredParameters(self.trained, enabled=self.stage == 3):
            return [parameter.detach().float().clone() for parameter in self.trained]


def batch_of(name: str) -> Batch:
    """A batch of which nothing but the name of its sample is read."""
    batch = Batch.__new__(Batch)
    batch.sample_ids = [name]
    return batch


def same(weights: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(weight, other) for weight, other in zip(weights, others, strict=True))


def scale_of(run: Run) -> Any:
    """Where DeepSpeed keeps the loss scale; without ZeRO in another place."""
    optimizer = run.engine.optimizer
    return getattr(optimizer, "loss_scale_config", None) or optimizer.loss_scaler


def check(stage: int, precision: str, *, offload: bool = False, muon: bool = False) -> None:
    kept = Run(stage, precision, offload=offload, muon=muon, max_skips=0)
    assert kept.update(1) == 7, "the largest number of all processes"
    run = Run(stage, precision, offload=offload, muon=muon, max_skips=2)
    run.update(1)
    before = run.weights()
    for kind in ("loss inf", "loss nan" if precision == "fp16" else "gradient"):
        run.update(2, kind)
        assert same(run.weights(), before), kind
    assert run.guard.num_skipped == 2
    # What was passed over has left nothing behind, moments included.
    if precision == "fp16":  # but a lower loss scale, with which fp16 rounds otherwise
        scale_of(kept).cur_scale = scale_of(run).cur_scale
    run.update(3)
    kept.update(3)
    assert not same(run.weights(), before)
    assert same(run.weights(), kept.weights())
    before = kept.weights()
    message = ""
    try:
        kept.update(4, "loss nan")
    except InputError as err:
        message = str(err)
    assert message.startswith("the loss is nan in update 4, at samples sample-1-0 of process 1 (ce nan, "), message
    assert "the gradient of behind." in message, message
    assert same(kept.weights(), before)


def check_scale_search() -> None:
    """Under fp16, gradients that overflow are DeepSpeed's, and its last word is one line."""
    run = Run(2, "fp16", offload=False, muon=False, max_skips=0)
    run.update(1, "gradient")
    assert run.guard.num_skipped == 0
    message = ""
    for number in range(2, 20):
        try:
            run.update(number, "gradient")
        except InputError as err:
            message = str(err)
            break
    assert "overflow fp16" in message, message


if __name__ == "__main__":
    DEVICE = init_distributed()
    computed = [precision for precision in PRECISIONS if can_compute(precision)]
    if dist.is_main():
        print(f"precisions: {' '.join(computed)}", flush=True)
    for stage, precision, offload in product(range(4), computed, (False, True)):
        if stage or not offload:
            check(stage, precision, offload=offload)
            if dist.is_main():
                print(f"passed: ZeRO {stage} {precision} offload {offload}", flush=True)
    for stage in range(4):
        check(stage, "fp32", muon=True)
        if dist.is_main():
            print(f"passed: ZeRO {stage} fp32 Muon", flush=True)
    if "fp16" in computed:
        check_scale_search()
    with suppress(RuntimeError):
        dist.leave()
