"""Queries without a negative cost nothing, extreme scores stay stable, and scores that are not finite show."""

from __future__ import annotations

import itertools

import pytest
import torch
from losses.positives import same_image
from losses.triplet_cases import NEGATIVES, value_and_gradient

from lavis_itm_plugins.losses import triplet_loss


def test_mean_leaves_out_queries_without_a_negative() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.9], [0.9, 0.5, 0.9], [0.1, 0.2, 0.5]])
    positives = torch.ones(3, 3, dtype=torch.bool)
    positives[2, 0] = positives[0, 2] = False
    # Image 1 has no valid negative. Rows: 0.2 + 0.9 - 0.5, and 0; columns alike for caption 0 (0) and 2 (0.6).
    assert triplet_loss(scores, positives=positives, reduction="mean").item() == pytest.approx(0.3)
    assert triplet_loss(scores, positives=positives).item() == pytest.approx(1.2)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_diagonal_is_a_positive_whatever_the_mask_says(negatives: str) -> None:
    scores, nothing = torch.randn(3, 3), torch.zeros(3, 3, dtype=torch.bool)
    assert torch.equal(
        triplet_loss(scores, negatives=negatives, positives=nothing), triplet_loss(scores, negatives=negatives)
    )
    assert not nothing.any()


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("ids", [[], [0], [7, 7, 7]])
def test_no_negative_gives_zero_with_a_graph(negatives: str, reduction: str, ids: list[int]) -> None:
    scores = torch.randn(len(ids), len(ids))
    with torch.autograd.set_detect_anomaly(True):
        loss, gradient = value_and_gradient(
            scores, negatives=negatives, reduction=reduction, positives=same_image(torch.tensor(ids, dtype=torch.long))
        )
    assert loss.shape == () and loss == 0
    assert torch.equal(gradient, torch.zeros_like(scores))


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("cell", list(itertools.product(range(3), range(3))))
def test_non_finite_score_is_never_hidden(negatives: str, value: float, cell: tuple[int, int]) -> None:
    scores = torch.eye(3) * 0.9
    scores[cell] = value
    for positives in (None, same_image([0, 1, 0]), same_image([0, 0, 0])):  # (0, 2) and (2, 0), then all, are masked
        for reduction in ("sum", "mean"):
            options = {"negatives": negatives, "positives": positives, "reduction": reduction}
            assert not triplet_loss(scores, **options).isfinite(), options


def test_soft_is_stable_at_the_ends_of_the_range() -> None:
    scores = (2 * torch.eye(4) - 1).half()
    for sign in (1, -1):
        loss, gradient = value_and_gradient(sign * scores, negatives="soft", temperature=1e-4)
        assert loss.isfinite() and gradient.isfinite().all()
        assert loss.item() == pytest.approx(max(0, 8 * (0.2 - sign * 2)), rel=1e-3)
