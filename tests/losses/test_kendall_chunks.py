"""kendall_loss in chunks: memory stays within a budget, and neither the loss nor its gradient changes."""

from __future__ import annotations

import pytest
import torch
from losses.kendall_cases import GLOBALS, MININGS, WAYS, batch, value_and_gradient

from lavis_itm_plugins.losses import kendall_loss


@pytest.mark.parametrize(("split", "mining", "surrogate"), WAYS)
def test_the_chunk_does_not_matter(monkeypatch, split: str, mining: str, surrogate: str) -> None:
    scores, labels = batch(11)
    options = {"split": split, "mining": mining, "surrogate": surrogate, "window": 5, "stride": 2, "margin": 0.1}
    whole = value_and_gradient(scores, labels, **options)
    for budget in (1, 500):
        monkeypatch.setitem(GLOBALS, "PAIR_BUDGET", budget)
        for part, expected in zip(value_and_gradient(scores, labels, **options), whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("mining", MININGS)
def test_memory_follows_the_budget(monkeypatch, mining: str) -> None:
    """No tensor is larger than the budget, in forward and backward; without chunks one would hold 36 times as much."""
    scores, labels = batch(18)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(largest, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    kept = []
    monkeypatch.setitem(GLOBALS, "PAIR_BUDGET", 18 * 18)
    leaf = scores.requires_grad_()
    pack = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with Watch(), pack:
        loss = kendall_loss(leaf, labels, split="none", mining=mining)
        loss.backward()
    assert largest <= 2 * 18 * 18
    assert max(kept) <= 2 * 18 * 18


@pytest.mark.parametrize(("split", "mining", "surrogate"), WAYS)
def test_gradcheck(monkeypatch, split: str, mining: str, surrogate: str) -> None:
    scores, labels = batch(4)
    options = {"split": split, "mining": mining, "surrogate": surrogate, "window": 3, "stride": 1, "temperature": 0.4}
    for budget in (1, 2**24):
        monkeypatch.setitem(GLOBALS, "PAIR_BUDGET", budget)
        assert torch.autograd.gradcheck(lambda s: kendall_loss(s, labels, **options), (scores.requires_grad_(),))
