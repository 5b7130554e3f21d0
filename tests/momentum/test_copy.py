"""The momentum copy against one line of arithmetic, and what it must never do."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.momentum import MomentumCopy


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


@example(momenta=[0.0, 1.0])
@given(momenta=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_equals_the_moving_average_written_out(momenta):
    source = nn.Linear(3, 2).double()
    moving = MomentumCopy(source)
    expected = source.weight.detach().clone()
    for step, momentum in enumerate(momenta):
        with torch.no_grad():
            source.weight.add_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64))
        moving.update(momentum)
        expected = momentum * expected + (1 - momentum) * source.weight.detach()
    torch.testing.assert_close(moving.module.weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_golden_trajectory(shared):
    golden = np.load(shared / "golden" / "dbl.npz")
    values, momenta = golden["ema/q"], golden["sched/momentum/small"]
    source = nn.ParameterList([nn.Parameter(torch.as_tensor(values[0]).double())])
    moving = MomentumCopy(source)
    for step, expected in enumerate(golden["ema/k"][1:]):
        with torch.no_grad():
            source[0].copy_(torch.as_tensor(values[step + 1]))
        moving.update(float(momenta[step]))
        np.testing.assert_allclose(moving.module[0].detach().numpy(), expected, rtol=1e-12)


def test_buffers_are_copied_not_averaged():
    source = network()
    moving = MomentumCopy(source, momentum=0.9)
    source(torch.randn(8, 3))
    moving.update()
    assert torch.equal(moving.module[1].running_mean, source[1].running_mean)
    assert torch.equal(moving.module[1].num_batches_tracked, source[1].num_batches_tracked)


def test_stays_in_evaluation_mode_without_gradients():
    holder = nn.ModuleDict({"net": network()})
    holder["slow"] = MomentumCopy(holder["net"])
    holder.train()
    assert holder["net"].training and not any(part.training for part in holder["slow"].module.modules())
    assert not any(parameter.requires_grad for parameter in holder["slow"].parameters())
    assert not holder["slow"](torch.randn(4, 3)).requires_grad


def test_the_source_is_in_the_state_once():
    holder = nn.Module()
    holder.net = nn.Linear(2, 2)
    holder.slow = MomentumCopy(holder.net)
    assert sorted(holder.state_dict()) == ["net.bias", "net.weight", "slow.module.bias", "slow.module.weight"]
    again = copy.deepcopy(holder)
    with torch.no_grad():
        again.net.weight.fill_(1.0)
    again.slow.update(0.0)
    assert torch.equal(again.slow.module.weight, torch.ones(2, 2)), "a copy of the owner follows its own network"
    assert not torch.equal(holder.slow.module.weight, torch.ones(2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_are_not_lost_in_half_precision(dtype):
    source = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.ones_(source.weight)
    moving = MomentumCopy(source, momentum=0.9999)
    nn.init.constant_(source.weight, 2.0)
    for _ in range(200):
        moving.update()
    assert moving.module.weight.dtype == dtype
    assert float(moving.module.weight) == pytest.approx(2 - 0.9999**200, abs=0.01)
    resumed = MomentumCopy(source, momentum=0.9999)
    resumed.load_state_dict(moving.state_dict())
    moving.update()
    resumed.update()
    assert torch.equal(resumed.average_0, moving.average_0)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_outside_its_range(momentum):
    with pytest.raises(ItmError, match="momentum"):
        MomentumCopy(nn.Linear(1, 1), momentum)
    with pytest.raises(ItmError, match="momentum"):
        MomentumCopy(nn.Linear(1, 1)).update(momentum)
