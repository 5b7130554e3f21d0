"""Steps of the loop: gradients add up, are clipped and scaled; groups move by their rates, a bad loss moves nothing."""

import math

import pytest
import torch
from runners.stubs import Stub, steps

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.runners.loop import Epoch, set_rate
from lavis_itm_plugins.runners.schedulers import CosineSchedule, StepSchedule
from lavis_itm_plugins.runners.watch import FiniteWatch


def test_accumulated_gradients_are_those_of_the_joined_batch():
    batches = [torch.tensor([float(n), n + 2.0]) for n in range(5)]
    one, several = Stub(), Stub()
    steps(one, [torch.cat(batches[:2]), torch.cat(batches[2:4]), batches[4]])
    steps(several, batches, accumulate=2)
    # the last group has one batch, and counts as much as a whole one
    torch.testing.assert_close(several.weight, one.weight)
    torch.testing.assert_close(several.other, one.other)
    assert several.hooks == one.hooks == 3


def test_groups_are_clipped_apart():
    model = Stub()
    steps(model, [torch.tensor([5.0])], clip=0.5)
    # a slope of 5 is cut to 0.5, the other group's slope of 0.1 stays
    assert model.weight.item() == pytest.approx(0.5) and model.other.item() == pytest.approx(0.9)


class FakeScaler:
    """A gradient scaler whose first step overflows, as the first of float16 often does."""

    def __init__(self):
        self.value, self.overflow = 8.0, True

    def scale(self, loss):
        return loss * self.value

    def unscale_(self, optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= self.value

    def step(self, optimizer):
        if not self.overflow:
            optimizer.step()

    def update(self):
        self.value /= 2 if self.overflow else 1
        self.overflow = False

    def get_scale(self):
        return self.value


def test_a_step_that_the_scaler_skips_calls_no_hook():
    model, seen = Stub(), []
    steps(model, [torch.ones(1)] * 3, scaler=FakeScaler(), after_step=lambda epoch, taken: seen.append(taken))
    assert seen == [False, True, True] and model.hooks == 2
    # unscaled before the step: two steps of slope 1
    assert model.weight.item() == pytest.approx(-1.0)


class FloatScaler(FakeScaler):
    """A gradient scaler that looks at the gradients, as torch's does."""

    def unscale_(self, optimizer):
        super().unscale_(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.overflow = not all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_a_bad_loss_moves_nothing_under_a_scaler_either():
    model = Stub()
    bad = torch.full((1,), torch.inf)
    with pytest.raises(ItmError, match="20 skipped steps in a row"):
        steps(model, [bad] * 30, scaler=FloatScaler(), watch=FiniteWatch("skip"))
    assert model.weight.item() == 1 and model.hooks == 0


def test_a_gradient_that_is_never_finite_stops_a_scaled_run():
    model = Stub()
    with pytest.raises(ItmError, match="the gradient is not finite at epoch 1, step 20, 20 times in a row"):
        steps(model, [-torch.ones(1)] * 30, scaler=FloatScaler())
    assert model.weight.item() == 1


@pytest.mark.parametrize("name", ["linear_warmup_cosine_lr", "linear_warmup_step_lr", "itm_cosine_lr", "itm_step_lr"])
def test_factors_of_groups_hold_under_every_schedule(name):
    from lavis.common.registry import registry

    from lavis_itm_plugins import register

    register()
    model = Stub()
    groups = [{"params": [model.weight]}, {"params": [model.other], "lr_scale": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = registry.get_lr_scheduler_class(name)(
        optimizer=optimizer, max_epoch=4, min_lr=0.01, init_lr=0.2, decay_rate=0.5, warmup_start_lr=0.0, warmup_steps=2
    )
    for epoch in range(4):
        for step in range(3):
            set_rate(optimizer, scheduler, Epoch(epoch, 3, step))
            rates = [group["lr"] for group in optimizer.param_groups]
            assert rates[1] == pytest.approx(0.1 * rates[0])


def rates(scheduler, epochs, steps_per_epoch):
    scheduler.steps_per_epoch = steps_per_epoch
    for epoch in range(epochs):
        for step in range(steps_per_epoch):
            scheduler.step(cur_epoch=epoch, cur_step=step)
            yield scheduler.optimizer.param_groups[0]["lr"]


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_step_schedule_drops_at_its_milestones(monkeypatch):
    monkeypatch.setattr("lavis_itm_plugins.runners.schedulers.run_setting", lambda name: {"milestones": [1, 3]})
    schedule = StepSchedule(optimizer(), max_epoch=4, min_lr=0.0, init_lr=1.0, decay_rate=0.5)
    assert list(rates(schedule, 4, 2)) == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    schedule = StepSchedule(optimizer(), max_epoch=4, min_lr=0.0, init_lr=1.0)
    assert list(rates(schedule, 4, 1)) == pytest.approx([1, 0.1, 0.1, 0.01])


def test_cosine_schedule_warms_up_and_moves_with_every_step():
    schedule = CosineSchedule(optimizer(), max_epoch=2, min_lr=0.1, init_lr=1.1, warmup_start_lr=0.5, warmup_steps=3)
    expected = [0.5, 0.7, 0.9, *(0.1 + 0.5 * (1 + math.cos(math.pi * done / 8)) for done in range(3, 8))]
    assert list(rates(schedule, 2, 4)) == pytest.approx(expected)
