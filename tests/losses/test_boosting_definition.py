"""Boosting losses and what is logged of them equal slow loops over the definition, and so do their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.boosting_cases import FORMS, NEGATIVES, batches, random_pair
from losses.positives import same_image

from lavis_itm_plugins.losses import boosting_loss, contrastive_boosting_loss
from lavis_itm_plugins.losses.boosting import boosting_statistics


def scheduled(margin: float, room: float, schedule: str) -> float:
    if schedule == "none" or margin == 0:
        return margin
    return min(margin, room) if schedule == "linear" else margin * math.tanh(room / margin)


def naive(target, anchor, *, form, margin, beta, gamma, negatives, positives, reduction, margin_schedule="none"):
    """One query at a time, from the definition; an autograd-free double loop."""
    size, wide = len(target), beta * margin
    combine = {"hardest": max, "all": sum}[negatives]
    rises = []
    for q in range(size):
        room = scheduled(gamma * wide, 1 - anchor[q][q], margin_schedule)
        rises.append(max(room - (target - anchor)[q][q], 0.0))
    costs = []
    for t, a, match in ((target, anchor, positives), (target.T, anchor.T, positives.T)):
        for_each = []
        for q in range(size):
            hinges = []
            for n in range(size):
                if n == q or match[q][n]:
                    continue
                if form == "relative":
                    wanted = scheduled(wide, 2 - (a[q][q] - a[q][n]), margin_schedule)
                    hinges.append(max(wanted + (a[q][q] - a[q][n]) - (t[q][q] - t[q][n]), 0.0))
                else:
                    wanted = scheduled((1 - gamma) * wide, 1 + a[q][n], margin_schedule)
                    hinges.append(max(wanted + t[q][n] - a[q][n], 0.0))
            if hinges:
                for_each.append(combine(hinges))
        costs.append(for_each)
    if reduction == "sum":
        return sum(map(sum, costs)) + (2 * sum(rises) if form == "absolute" else 0.0)
    mean = sum(sum(cost) / len(cost) for cost in costs if cost) / 2
    return mean + (sum(rises) / size if form == "absolute" and size else 0.0)


@settings(deadline=None, max_examples=150)
@given(
    batch=batches(),
    form=st.sampled_from(FORMS),
    margin=st.sampled_from([0.0, 0.2, 0.25]),
    beta=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    gamma=st.sampled_from([0.0, 0.3, 1.0]),
    negatives=st.sampled_from(NEGATIVES),
    reduction=st.sampled_from(["sum", "mean"]),
    schedule=st.sampled_from(["none", "linear", "tanh"]),
)
def test_equals_the_double_loop(batch, form, margin, beta, gamma, negatives, reduction, schedule) -> None:
    target, anchor, positives = batch
    options = {"form": form, "margin": margin, "beta": beta, "gamma": gamma, "margin_schedule": schedule}
    options |= {"negatives": negatives, "reduction": reduction}
    before = target.clone(), anchor.clone(), positives.clone()
    loss = boosting_loss(target, anchor, positives=positives, **options)
    expected = naive(target.numpy(), anchor.numpy(), positives=positives.numpy(), **options)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert all(map(torch.equal, before, (target, anchor, positives)))
    order = torch.randperm(len(target))
    for move in (lambda m: m[order][:, order], lambda m: m.T):
        moved = boosting_loss(move(target), move(anchor), positives=move(positives), **options)
        assert moved.item() == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(batch=batches(), form=st.sampled_from(FORMS), gamma=st.sampled_from([0.0, 0.3, 1.0]))
def test_statistics_are_those_of_a_loop(batch, form, gamma) -> None:
    target, anchor, positives = batch
    size, gain = len(target), target - anchor
    if not size:
        return
    told = boosting_statistics(target, anchor, form=form, margin=0.25, gamma=gamma, positives=positives)
    mined, active = [], []
    for matrix in (gain, gain.T):
        for q in range(size):
            others = [matrix[q, n].item() for n in range(size) if n != q and not positives[q, n]]
            mined += [max(others)] if others else []
            offset = -gain[q, q].item() + 0.25 if form == "relative" else (1 - gamma) * 0.25
            active += [max(others) + offset > 0] if others else []
    if form == "absolute":
        active += [gamma * 0.25 - gain[q, q].item() > 0 for q in range(size)]
    expected = {
        "positive_gain": gain.diagonal().mean().item(),
        "negative_gain": sum(mined) / max(len(mined), 1),
        "active_hinges": sum(active) / max(len(active), 1),
        "masked_negatives": positives.sum().item() - size,
    }
    assert {name: value.item() for name, value in told.items()} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["none", "linear", "tanh"])
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str, negatives: str, schedule: str) -> None:
    target, anchor = random_pair(5)
    options = {"form": form, "negatives": negatives, "margin_schedule": schedule}
    options |= {"positives": same_image([0, 1, 0, 2, 3]), "reduction": "mean" if schedule == "none" else "sum"}
    assert torch.autograd.gradcheck(lambda t: boosting_loss(t, anchor, **options), (target.requires_grad_(),))


def test_contrastive_gradcheck() -> None:
    target, anchor = random_pair(5)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    positives = same_image([0, 1, 0, 2, 3])
    assert torch.autograd.gradcheck(
        lambda t, tau: contrastive_boosting_loss(t, anchor, temperature=tau, positives=positives),
        (target.requires_grad_(), temperature),
    )
