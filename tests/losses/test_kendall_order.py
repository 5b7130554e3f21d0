"""kendall_loss is about the order of labels alone: which pairs count, ties, both directions, and the extremes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from losses.kendall_cases import MININGS, SPLITS, WAYS, batch, value_and_gradient
from scipy.stats import kendalltau

from lavis_itm_plugins.losses import kendall_loss


@pytest.mark.parametrize("gap", [0.0, 0.1])
def test_ties_across_the_halves_do_not_count(gap: float) -> None:
    """Labels 1, 0.5 | 0.5, 0: the pair (0.5, 0.5) has the smallest difference of scores and is no pair."""
    labels = torch.tensor([[1.0, 0.5, 0.5, 0.0]]).expand(4, 4).clone()
    scores = torch.tensor([[0.5, 0.0, 0.9, 0.1]]).expand(4, 4).clone()
    # Rows: lowest difference among (0, 2) = -0.4, (0, 3), (1, 3) = -0.1. Columns: labels constant, no pair.
    assert kendall_loss(scores, labels, window=4, gap=gap).item() == pytest.approx(0.2)


def test_captions_are_ranked_by_columns() -> None:
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    scores = torch.tensor([[0.2, 0.7], [0.0, 0.0]])
    # Image 0 inverts its captions by 0.5, image 1 has a tie; caption 0 has a tie, caption 1 inverts its images by 0.7.
    assert kendall_loss(scores, labels).item() == pytest.approx((0.5 + 0.7) / 2)


@pytest.mark.parametrize(("split", "mining", "surrogate"), WAYS)
@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_no_pair_gives_zero_with_a_graph(split: str, mining: str, surrogate: str, size: int) -> None:
    scores, labels = batch(size)
    options = {"split": split, "mining": mining, "surrogate": surrogate, "margin": 0.3, "window": 3, "stride": 1}
    for targets, gap in ((torch.full_like(labels, 0.7), 0.0), (labels, 1.0)):
        with torch.autograd.set_detect_anomaly(True):
            loss, gradient = value_and_gradient(scores, targets, gap=gap, **options)
        assert loss.shape == () and loss == 0
        assert torch.equal(gradient, torch.zeros_like(scores))


@pytest.mark.parametrize("split", ["halves", "all", "ends"])
def test_a_window_of_one_rank_holds_no_pair(split: str) -> None:
    scores, labels = batch(5)
    loss, gradient = value_and_gradient(scores, labels, split=split, window=1, stride=1, margin=0.5)
    assert loss == 0 and not gradient.any()


@pytest.mark.parametrize(("split", "mining"), itertools.product(SPLITS, MININGS))
def test_invariances(split: str, mining: str) -> None:
    scores, labels = batch(9)
    options = {"split": split, "mining": mining, "surrogate": "softplus", "window": 4, "stride": 3}
    loss = kendall_loss(scores, labels, **options)
    moved = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(kendall_loss(scores[moved][:, moved], labels[moved][:, moved], **options), loss)
    torch.testing.assert_close(kendall_loss(scores, labels.exp() - 7, **options), loss)
    torch.testing.assert_close(kendall_loss(scores + 3, labels, **options), loss)


def test_extremes_of_the_order() -> None:
    _, labels = batch(8)
    for split, mining in itertools.product(SPLITS, MININGS):
        options = {"split": split, "mining": mining, "window": 4, "stride": 2}
        assert kendall_loss(labels**3, labels, **options) == 0
        reversed_ = kendall_loss(-labels, labels, surrogate="tanh", temperature=1e-6, **options)
        assert reversed_.item() == pytest.approx(1)


def test_sharp_tanh_is_kendalls_coefficient() -> None:
    scores, labels = batch(12)
    pairs = [*zip(scores, labels, strict=True), *zip(scores.T, labels.T, strict=True)]
    expected = np.mean([(1 - kendalltau(s, y).statistic) / 2 for s, y in pairs])
    loss = kendall_loss(scores, labels, split="none", mining="mean", surrogate="tanh", temperature=1e-9)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
