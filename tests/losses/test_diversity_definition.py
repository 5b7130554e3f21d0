"""CODER's weights and losses equal slow loops; the weights are constants, and the keys get no gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.diversity_cases import EXACT, FORMS, KINDS, WAYS, batch, value_and_gradient

from lavis_itm_plugins.losses import diversity_contrastive_loss, diversity_weights


def naive_weights(similarities, valid, *, kind, beta, temperature, spread=None) -> list[list[float]]:
    """One query, one negative at a time."""
    rows = [[s for s, m in zip(*row, strict=True) if m] for row in zip(similarities, valid, strict=True)]
    spreads = [float(np.std(row)) if row else 0.0 for row in rows]
    several = [spread_ for spread_, row in zip(spreads, rows, strict=True) if len(row) >= 2]
    typical = max(sum(several) / len(several) if several else 0.0, 1e-3) if spread is None else spread
    weights = []
    for row, own in zip(rows, spreads, strict=True):
        mean, exponents = sum(row) / max(len(row), 1), []
        logits = [s / temperature for s in row]
        shares = [math.exp(z - max(logits)) for z in logits]
        shares = [share / sum(shares) for share in shares]
        entropy = -sum(p * math.log(p) for p in shares if p)
        evenness = entropy / math.log(len(row)) if len(row) > 1 else 1.0
        for s in row:
            u = {
                "none": 0.0,
                "std": beta * (s - mean) / typical,
                "iso": beta * (min(max(own / typical, 0.5), 2.0) - 1) * (s - mean) / temperature,
                "entropy": beta * (1 - evenness) * (s - mean) / max(own, 1e-3),
                "adnce": -((s - 0.7) ** 2) / 2,
            }[kind]
            exponents.append(u if kind == "adnce" else min(max(u, -5.0), 5.0))
        total = sum(map(math.exp, exponents))
        weights.append([len(row) * math.exp(u) / total for u in exponents])
    filled = [iter(row) for row in weights]
    return [[next(row) if m else 0.0 for m in mask] for row, mask in zip(filled, valid, strict=True)]


def naive_loss(own, similarities, valid, *, form, temperature, slope, offset, **options) -> float:
    scale = temperature if form == "nce" else 1 / slope
    weights, losses = naive_weights(similarities, valid, temperature=scale, **options), []
    for p, row, w in zip(own, similarities, weights, strict=True):
        if form == "nce":
            total = sum(b * math.exp(s / temperature) for b, s in zip(w, row, strict=True))
            losses.append(math.log(math.exp(p / temperature) + total) - p / temperature)
        else:
            total = sum(b * math.exp(slope * (s - offset)) for b, s in zip(w, row, strict=True))
            losses.append(math.log1p(total) / slope - math.log1p(max(p, 0.0)))
    return sum(losses) / len(losses)


@st.composite
def dictionaries(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    """Embeddings of one or two axes on a coarse grid (equal similarities, zero vectors), and any mask."""
    size, slots, dim = draw(st.integers(1, 4)), draw(st.integers(0, 6)), draw(st.integers(1, 2))
    rows = 2 * size + slots
    cells = draw(st.lists(st.integers(-4, 4), min_size=rows * dim, max_size=rows * dim))
    mask = draw(st.lists(st.booleans(), min_size=size * slots, max_size=size * slots))
    parts = torch.tensor(cells, dtype=torch.float64).reshape(rows, dim).div(4).split([size, size, slots])
    return *parts, torch.tensor(mask, dtype=torch.bool).reshape(size, slots)


@settings(deadline=None, max_examples=150)
@given(
    data=dictionaries(),
    form=st.sampled_from(FORMS),
    kind=st.sampled_from(KINDS),
    beta=st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
    temperature=st.sampled_from([0.05, 1.0]),
    slope=st.sampled_from([1.0, 90.0]),
    offset=st.sampled_from([0.0, 0.5]),
    spread=st.sampled_from([None, 0.25]),
)
def test_equals_the_loops(data, form, kind, beta, temperature, slope, offset, spread) -> None:
    query, key, negatives, valid = data
    before = [part.clone() for part in data]
    own, similarities = (query * key).sum(dim=1).tolist(), (query @ negatives.T)
    weighting = {"kind": kind, "beta": beta, "temperature": temperature}
    weights = diversity_weights(similarities, valid, **weighting)
    expected = naive_weights(similarities.tolist(), valid.tolist(), **weighting)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64).view_as(weights), **EXACT)
    torch.testing.assert_close(weights.sum(dim=1), valid.sum(dim=1).double(), **EXACT)  # mean 1 over valid
    options = weighting | {"form": form, "slope": slope, "offset": offset, "spread": spread}
    loss = diversity_contrastive_loss(*data, **options)
    expected = naive_loss(own, similarities.tolist(), valid.tolist(), **options)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert all(torch.equal(part, old) for part, old in zip(data, before, strict=True))


@pytest.mark.parametrize(("form", "kind"), WAYS)
def test_gradcheck(form: str, kind: str) -> None:
    """The weights are constants of the gradient: against finite differences, hold them at their value."""
    query, key, negatives, valid = batch()
    options = {"form": form, "slope": 4.0, "temperature": 0.5}
    scale = 0.5 if form == "nce" else 0.25
    weights = diversity_weights(query @ negatives.T, valid, kind=kind, temperature=scale)

    def with_weights(q: torch.Tensor) -> torch.Tensor:
        own, similarities = (q * key).sum(dim=1), q @ negatives.T
        if form == "nce":
            return ((own / 0.5).exp() + (weights * (similarities / 0.5).exp()).sum(dim=1)).log().sub(own / 0.5).mean()
        return ((1 + (weights * (4 * (similarities - 0.5)).exp()).sum(dim=1)).log() / 4 - (1 + own.relu()).log()).mean()

    leaf = query.clone().requires_grad_()
    assert torch.autograd.gradcheck(with_weights, (leaf,))
    (expected,) = torch.autograd.grad(with_weights(leaf), leaf)
    loss, gradient = value_and_gradient(query, key, negatives, valid, kind=kind, **options)
    torch.testing.assert_close(loss, with_weights(query), **EXACT)
    torch.testing.assert_close(gradient, expected, **EXACT)
    if kind == "none":
        function = lambda q: diversity_contrastive_loss(q, key, negatives, valid, kind=kind, **options)  # noqa: E731
        assert torch.autograd.gradcheck(function, (leaf,))


def test_only_the_query_and_the_temperature_get_a_gradient() -> None:
    query, key, negatives, valid = batch()
    temperature = torch.tensor(0.1, dtype=torch.float64)
    leaves = [part.requires_grad_() for part in (query, key, negatives, temperature)]
    diversity_contrastive_loss(query, key, negatives, valid, temperature=temperature, kind="none").backward()
    assert query.grad is not None and key.grad is None and negatives.grad is None
    function = lambda t: diversity_contrastive_loss(query, key, negatives, valid, temperature=t, kind="none")  # noqa: E731
    assert torch.autograd.gradcheck(function, (leaves[3],))
    for kind in KINDS:
        assert not diversity_weights(query @ negatives.T, valid, kind=kind, temperature=temperature).requires_grad


def test_without_weights_it_is_cross_entropy() -> None:
    query, key, negatives, _ = batch()
    valid = torch.ones(4, 7, dtype=torch.bool)
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ negatives.T], dim=1) / 0.05
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
    for options in ({"kind": "none"}, *({"kind": kind, "beta": 0.0} for kind in ("std", "iso", "entropy"))):
        torch.testing.assert_close(
            diversity_contrastive_loss(query, key, negatives, valid, **options), expected, **EXACT
        )
