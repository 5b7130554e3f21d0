"""triplet_loss equals a double loop over the definition, and its gradient the official one, on ties too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.positives import same_image
from losses.triplet_cases import NEGATIVES, value_and_gradient

from lavis_itm_plugins.losses import triplet_loss


def naive(scores, *, margin, negatives, temperature, positives, reduction):
    """One query at a time, from the definition; an autograd-free double loop."""
    size, queries = len(scores), {"rows": {}, "columns": {}}
    for direction, matrix, match in (("rows", scores, positives), ("columns", scores.T, positives.T)):
        for q in range(size):
            z = [matrix[q][n] - matrix[q][q] + margin for n in range(size) if n != q and not match[q][n]]
            if z and negatives == "soft":
                queries[direction][q] = temperature * np.logaddexp.reduce([0.0, *(value / temperature for value in z)])
            elif z:
                hinges = [max(value, 0.0) for value in z]
                queries[direction][q] = max(hinges) if negatives == "hardest" else sum(hinges)
    costs = [list(direction.values()) for direction in queries.values()]
    if reduction == "sum":
        return sum(map(sum, costs))
    return sum(sum(cost) / len(cost) for cost in costs if cost) / 2


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """A score matrix with many exact ties, in float64, and same-image cells."""
    size = draw(st.integers(0, 6))
    eighths = draw(st.lists(st.integers(-8, 8), min_size=size * size, max_size=size * size))
    ids = draw(st.lists(st.integers(0, max(size - 1, 0)), min_size=size, max_size=size))
    return torch.tensor(eighths, dtype=torch.float64).reshape(size, size) / 8, same_image(
        torch.tensor(ids, dtype=torch.long)
    )


@settings(deadline=None, max_examples=150)
@given(
    batch=batches(),
    margin=st.sampled_from([0.0, 0.125, 0.2, 0.25]),
    negatives=st.sampled_from(NEGATIVES),
    temperature=st.sampled_from([0.01, 0.1, 1.0]),
    reduction=st.sampled_from(["sum", "mean"]),
)
def test_equals_the_double_loop(batch, margin, negatives, temperature, reduction) -> None:
    scores, positives = batch
    options = {"margin": margin, "negatives": negatives, "temperature": temperature, "reduction": reduction}
    before = scores.clone()
    loss = triplet_loss(scores, positives=positives, **options)
    expected = naive(scores.numpy(), positives=positives.numpy(), **options)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert torch.equal(scores, before)
    permutation = torch.randperm(len(scores))
    moved = scores[permutation][:, permutation], positives[permutation][:, permutation]
    assert triplet_loss(moved[0], positives=moved[1], **options).item() == pytest.approx(expected, abs=1e-12)
    assert triplet_loss(scores.T, positives=positives.T, **options).item() == pytest.approx(expected, abs=1e-12)


def official(scores: torch.Tensor, margin: float, positives: torch.Tensor) -> torch.Tensor:
    """The form that the official repositories share: two matrices of hinges, masked cells set to 0, the maximum."""
    excluded = positives | torch.eye(len(scores), dtype=torch.bool)
    own = scores.diagonal()
    rows = (margin + scores - own[:, None]).clamp(min=0).masked_fill(excluded, 0)
    columns = (margin + scores - own).clamp(min=0).masked_fill(excluded, 0)
    return rows.max(dim=1).values.sum() + columns.max(dim=0).values.sum()


@settings(deadline=None, max_examples=200)
@given(batch=batches(), margin=st.sampled_from([0.0, 0.125, 0.2, 0.25]))
def test_hardest_has_the_official_gradient_on_ties(batch, margin) -> None:
    scores, positives = batch
    if not len(scores):
        return
    leaf = scores.clone().requires_grad_()
    official(leaf, margin, positives).backward()
    _, gradient = value_and_gradient(scores, margin=margin, positives=positives)
    assert torch.equal(gradient, leaf.grad)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_gradcheck(negatives: str, reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    options = {
        "negatives": negatives,
        "temperature": 0.3,
        "reduction": reduction,
        "positives": same_image([0, 1, 0, 2, 3]),
    }
    assert torch.autograd.gradcheck(lambda s: triplet_loss(s, **options), (scores,))


@settings(deadline=None, max_examples=50)
@given(batch=batches(), temperature=st.sampled_from([1e-4, 0.01, 0.2]))
def test_soft_bounds_hardest(batch, temperature) -> None:
    scores, positives = batch
    hardest = triplet_loss(scores, positives=positives).item()
    soft, gradient = value_and_gradient(scores, negatives="soft", temperature=temperature, positives=positives)
    slack = 2 * len(scores) * temperature * np.log(1 + max(len(scores) - 1, 0))
    assert hardest - 1e-12 <= soft <= hardest + slack + 1e-12
    assert gradient.sum().item() == pytest.approx(0, abs=1e-9)  # only differences of scores enter
