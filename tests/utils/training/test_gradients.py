"""Which gradient is named when an update is not finite, and what is left of that update; without DeepSpeed."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

from model.errors import InputError
from model.structures import LossTerms
from tests.support.gradient_stages import batch_of
from utils.training import gradients
from utils.training.gradients import Finding, GradientGuard

SHARES = (1.0, 5.0, 1e-3)


class Plain:
    """As much of an engine as the guard uses, in float32 without ZeRO."""

    def __init__(self, module: nn.Module) -> None:
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (step + 1))

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()


class Scalars(nn.Module):
    """Three numbers, whose gradients are those given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Parameter(torch.ones(())) for _ in range(3))
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

    def loss(self, slopes: tuple[float, ...]) -> torch.Tensor:
        """Finite, whatever the slopes are."""
        parts = zip((self.first, self.second, self.third), slopes, strict=True)
        return torch.stack([self._part(parameter, slope) for parameter, slope in parts]).sum() + self.frozen

    def _part(self, parameter: torch.Tensor, slope: float) -> torch.Tensor:
        if math.isfinite(slope):
            return parameter * slope
        steep = (parameter - parameter.detach()).sqrt()  # 0, with an infinite slope
        return steep if math.isinf(slope) else steep * 0


class Run:
    def __init__(self, *, max_skips: int = 0, scales_loss: bool = False) -> None:
        self.model = Scalars()
        self.guard = GradientGuard(self.model, scales_loss=scales_loss, max_skips=max_skips)
        self.engine = Plain(self.model)

    def backward(self, sample: str, slopes: tuple[float, ...] = SHARES, *, add: float = 0.0) -> None:
        loss = self.model.loss(slopes) + add
        terms = LossTerms(total=loss, ce=loss, bce=loss * 0, dice=loss * 0, refine=loss * 0, num_masks=0)
        self.guard.watch(loss, terms, batch_of(sample)).backward()

    def step(self, update: int = 1, *, agree: int = 0) -> int:
        return self.guard.step(self.engine, update=update, agree=agree)  # pyright: ignore[reportArgumentType]

    def weights(self) -> list[float]:
        return [parameter.item() for parameter in self.model.parameters()]


def test_a_finite_update_is_made():
    run = Run()
    run.backward("a")
    assert run.step(agree=15) == 15
    assert run.weights() == pytest.approx([0.9, 0.5, 0.9999, 1.0])
    assert run.guard.num_skipped == 0


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_the_gradient_that_is_not_finite_is_named_with_its_samples(bad):
    run = Run()
    run.backward("healthy")
    run.backward("sick", (1.0, bad, 2.0))
    before = run.weights()
    with pytest.raises(InputError) as stopped:
        run.step(update=7)
    assert " in update 7, at samples sick of process 0 (" in str(stopped.value)
    assert "healthy" not in str(stopped.value)
    assert "nothing was updated. Lower --lr" in str(stopped.value)
    assert run.weights() == before


def test_of_a_loss_that_is_not_finite_every_gradient_is_and_one_is_named():
    run = Run()
    run.backward("sick", add=math.nan)
    with pytest.raises(InputError) as stopped:
        run.step(update=2)
    assert str(stopped.value).startswith("the loss is nan in update 2, at samples sick of process 0 (ce nan, ")
    assert "the gradient of " in str(stopped.value)


def test_the_largest_gradient_is_named_where_all_are_finite():
    """Such a loss is met with an infinity of its own: it is summed from parts."""
    run = Run()
    run.backward("sick")
    sizes = torch.cat(run.guard._sizes)
    losses = torch.tensor([[math.inf, 1.0, math.inf, 0.5]])
    found = run.guard._find(losses, sizes)
    assert found is not None
    assert (found.parameter, found.size) == ("second", 5.0)


def test_words_of_a_finding():
    losses = [math.inf, 1.0, math.inf, 0.5]
    assert Finding(3, ["a", "b"], losses, "lm_head.weight", 12.5).describe(9) == (
        "the loss is inf in update 9, at samples a, b of process 3 (ce 1, bce inf, dice 0.5; the gradient of "
        "lm_head.weight is 12.5)"
    )
    losses = [2.0, 1.0, 0.5, 0.5]
    assert Finding(0, ["a"], losses, "lm_head.weight", math.nan).describe(9) == (
        "the gradient of lm_head.weight is nan in update 9, at samples a of process 0 (loss 2: ce 1, bce 0.5, dice 0.5)"
    )


@pytest.mark.filterwarnings("ignore:Seems like:UserWarning")  # torch's, of an update that is passed over
def test_updates_are_passed_over_as_often_as_allowed_and_the_schedule_goes_on(caplog):
    run = Run(max_skips=1)
    before = run.weights()
    run.backward("sick", (1.0, math.inf, 2.0))
    with caplog.at_level(logging.WARNING):
        run.step(update=1)
    assert "update 1 is passed over (1 of --skip_nonfinite 1): the gradient of second is inf" in caplog.messages[0]
    assert run.weights() == before
    assert run.engine.lr_scheduler.last_epoch == 1
    run.backward("healthy")
    run.step(update=2)
    assert run.weights() == pytest.approx([0.95, 0.75, 0.99995, 1.0]), "nothing of the update before is left"
    run.backward("sick", (1.0, math.inf, 2.0))
    with pytest.raises(InputError, match=r"1 updates like it were passed over\. Lower --lr"):
        run.step(update=3)


def test_gradients_that_overflow_fp16_are_left_to_the_search_for_a_scale():
    run = Run(scales_loss=True)
    run.backward("large", (1.0, math.inf, 2.0))
    run.step()
    assert run.weights()[1] == -math.inf, "the engine has made its step: DeepSpeed's looks at gradients itself"


def test_gradients_are_measured_in_portions(monkeypatch):
    """They wait in memory until then."""
    monkeypatch.setattr(gradients, "_MEASURED_TOGETHER", 2)
    run = Run()
    run.backward("a")
    assert [len(sizes) for sizes in run.guard._sizes] == [2, 1]
    assert sorted(torch.cat(run.guard._sizes).tolist()) == pytest.approx(sorted(SHARES))
    assert run.guard._waiting == []
