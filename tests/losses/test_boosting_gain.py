"""What counts is the target's gain over its anchor: which gain costs what, and the anchor is left alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from losses.boosting_cases import FORMS, NEGATIVES, batches, random_pair, value_and_gradient
from losses.positives import same_image

from lavis_itm_plugins.losses import boosting_loss, contrastive_boosting_loss, infonce_loss, triplet_loss


@settings(deadline=None, max_examples=50)
@given(batch=batches(), temperature=st.sampled_from([0.05, 0.1, 1.0]))
def test_contrastive_is_twice_infonce_of_the_gain(batch, temperature) -> None:
    target, anchor, positives = batch
    options = {"temperature": temperature, "positives": positives}
    loss = contrastive_boosting_loss(target, anchor, **options)
    assert loss.item() == pytest.approx(2 * infonce_loss(target - anchor, **options).item(), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_mines_the_negative_that_rose_most(form: str) -> None:
    anchor = torch.tensor([[0.9, 0.8, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.9]])
    target = anchor.clone()
    target[0, 2] = 0.1  # rose by 0.1, while caption 1 stays the most similar wrong one
    _, gradient = value_and_gradient(target, anchor, form=form)
    assert gradient[0, 2] == 2 and gradient[0, 1] < 2


@settings(deadline=None, max_examples=50)
@given(batch=batches(), gamma=st.floats(0, 1), negatives=st.sampled_from(NEGATIVES))
def test_relative_is_at_most_absolute(batch, gamma, negatives) -> None:
    target, anchor, _ = batch
    # over all negatives the positive term is counted once per query, the gap once per negative
    assume(negatives == "hardest" or len(target) <= 2)
    relative = boosting_loss(target, anchor, negatives=negatives)
    assert relative <= boosting_loss(target, anchor, form="absolute", gamma=gamma, negatives=negatives) + 1e-12


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_no_gain_costs_two_margins_per_pair(form: str, gamma: float) -> None:
    scores, _ = random_pair(7)
    loss = boosting_loss(scores, scores.clone(), form=form, margin=0.2, beta=1.5, gamma=gamma)
    assert loss.item() == pytest.approx(2 * 7 * 0.3, rel=1e-12)
    mean = boosting_loss(scores, scores.clone(), form=form, margin=0.2, beta=1.5, gamma=gamma, reduction="mean")
    assert mean.item() == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_constant_offset_and_scale(form: str) -> None:
    target, anchor = random_pair(6)
    loss = boosting_loss(target, anchor, form=form)
    moved = boosting_loss(target + 0.07, anchor, form=form)
    assert (abs(loss - moved) < 1e-12) == (form == "relative")
    scaled = boosting_loss(3 * target, 3 * anchor, form=form, margin=0.6)
    assert scaled.item() == pytest.approx(3 * loss.item(), rel=1e-12)


def test_relative_is_the_triplet_loss_of_the_gain() -> None:
    target, anchor = random_pair(6)
    for negatives, reduction in itertools.product(NEGATIVES, ("sum", "mean")):
        options = {"negatives": negatives, "reduction": reduction, "positives": same_image([0, 1, 0, 2, 3, 4])}
        expected = triplet_loss(target - anchor, margin=0.1, **options)
        assert torch.equal(boosting_loss(target, anchor, margin=0.2, beta=0.5, **options), expected)
    assert boosting_loss(target, torch.full_like(target, 0.3)).item() == pytest.approx(triplet_loss(target).item())


@pytest.mark.parametrize("loss_function", [boosting_loss, contrastive_boosting_loss])
def test_anchor_gets_no_gradient(loss_function) -> None:
    target, anchor = random_pair(5)
    anchor.requires_grad_()
    _, gradient = value_and_gradient(target, anchor, loss_function)
    assert anchor.grad is None and gradient.any()
    assert not loss_function(target, anchor).requires_grad


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("ids", [[], [0], [7, 7, 7]])
def test_without_negatives_only_the_positive_term_is_left(negatives: str, reduction: str, ids: list[int]) -> None:
    target, anchor = random_pair(len(ids))
    options = {"negatives": negatives, "reduction": reduction, "positives": same_image(ids)}
    with torch.autograd.set_detect_anomaly(True):
        relative, gradient = value_and_gradient(target, anchor, **options)
        absolute, absolute_gradient = value_and_gradient(target, anchor, form="absolute", **options)
        contrastive, _ = value_and_gradient(target, anchor, contrastive_boosting_loss, positives=same_image(ids))
    rise = (0.1 - (target - anchor).diagonal()).clamp(min=0)
    assert relative.shape == () and relative == 0 and not gradient.any()
    assert contrastive.item() == pytest.approx(0, abs=1e-12)
    expected = 2 * rise.sum().item() if reduction == "sum" else rise.sum().item() / max(len(ids), 1)
    assert absolute.item() == pytest.approx(expected, rel=1e-12)
    weight = 2.0 if reduction == "sum" else 1 / max(len(ids), 1)
    torch.testing.assert_close(absolute_gradient, -weight * torch.diag(rise > 0).to(target), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_margin_schedule_asks_for_no_more_than_can_be_had(form: str) -> None:
    perfect = 2 * torch.eye(3, dtype=torch.float64) - 1
    assert boosting_loss(perfect, perfect, form=form).item() == pytest.approx(2 * 3 * 0.2)
    for schedule in ("linear", "tanh"):
        assert boosting_loss(perfect, perfect, form=form, margin_schedule=schedule) == 0
