"""kendall_loss equals slow loops over queries, windows and pairs, whatever its options."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.kendall_cases import GLOBALS, MININGS, SPLITS, SURROGATES, value_and_gradient

from lavis_itm_plugins.losses import kendall_loss


def naive_cost(difference: float, surrogate: str, margin: float, temperature: float) -> float:
    if surrogate == "hinge":
        return max(margin - difference, 0.0)
    if surrogate == "softplus":
        return temperature * float(np.logaddexp(0, (margin - difference) / temperature))
    return (1 - math.tanh((difference - margin) / temperature)) / 2


def naive_groups(order: list[int], window: int, stride: int, split: str) -> list[list[tuple[int, int]]]:
    """Pairs of candidates, first the one with the higher label or an equal one, of each window or anchor."""
    size = len(order)
    if split == "anchor":
        return [[(order[a], order[b]) for b in range(a + 1, size)] for a in range(size)]
    if split == "none" or size <= window:
        windows = [order]
    else:
        windows = [order[p : p + window] for p in range(0, size - window + 1, stride)]
        if (size - window) % stride:
            windows.append(order[-window:])
    half = min(window, size) // 2
    if split == "halves":
        return [[(a, b) for a in ranks[:half] for b in ranks[len(ranks) - half :]] for ranks in windows]
    if split == "ends":
        return [[(ranks[0], ranks[-1])] for ranks in windows]
    return [list(itertools.combinations(ranks, 2)) for ranks in windows]


def naive(scores, labels, *, window, stride, split, mining, gap, **options) -> float:
    """One query, one window, one pair at a time."""
    directions = []
    for matrix, targets in ((scores, labels), (scores.T, labels.T)):
        queries = []
        for s, y in zip(matrix.tolist(), targets.tolist(), strict=True):
            groups = []
            for pairs in naive_groups(sorted(range(len(y)), key=lambda j: -y[j]), window, stride, split):
                costs = [naive_cost(s[a] - s[b], **options) for a, b in pairs if y[a] - y[b] > gap]
                if costs:
                    groups.append(max(costs) if mining == "hardest" else sum(costs) / len(costs))
            if groups:
                queries.append(sum(groups) / len(groups))
        directions.append(sum(queries) / len(queries) if queries else 0.0)
    return sum(directions) / 2


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and labels with many exact ties, in float64."""
    size = draw(st.integers(0, 9))
    cells, levels = size * size, draw(st.sampled_from([1, 3, 64]))
    scores = draw(st.lists(st.integers(-8, 8), min_size=cells, max_size=cells))
    labels = draw(st.lists(st.integers(0, levels), min_size=cells, max_size=cells))
    return tuple(torch.tensor(v, dtype=torch.float64).reshape(size, size) / 8 for v in (scores, labels))


options_of_all_ways = st.fixed_dictionaries(
    {
        "window": st.integers(1, 10),
        "stride": st.integers(1, 5),
        "split": st.sampled_from(SPLITS),
        "mining": st.sampled_from(MININGS),
        "surrogate": st.sampled_from(SURROGATES),
        "margin": st.sampled_from([0.0, 0.05, 0.25]),
        "temperature": st.sampled_from([0.05, 1.0]),
        "gap": st.sampled_from([0.0, 0.125, 1.0]),
    }
)


@settings(deadline=None, max_examples=150)
@given(data=batches(), options=options_of_all_ways, budget=st.sampled_from([1, 40, 2**24]))
def test_equals_the_loops(data, options, budget) -> None:
    scores, labels = data
    before = scores.clone(), labels.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GLOBALS, "PAIR_BUDGET", budget)
        loss, gradient = value_and_gradient(scores, labels, **options)
    assert loss.item() == pytest.approx(naive(scores, labels, **options), rel=1e-10, abs=1e-12)
    assert torch.equal(scores, before[0]) and torch.equal(labels, before[1])
    assert gradient.sum().item() == pytest.approx(0, abs=1e-9)  # only differences of scores enter
    transposed = kendall_loss(scores.T, labels.T, **options)
    assert transposed.item() == pytest.approx(loss.item(), abs=1e-12)
