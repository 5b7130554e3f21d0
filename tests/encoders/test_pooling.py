"""Pooling against slow references and the official GPO; padding and the rest of a batch change nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vse_golden import GPO_TOLERANCE, golden, mask_of, weights

from lavis_itm_plugins.encoders.pooling import GPO, POOLINGS, Pooling, position_code


def slow_gpo(gpo: GPO, items):
    """One row: sort each dimension on its own, weigh the places."""
    code = position_code(len(items), gpo.code_dim).to(items.dtype)
    forward, backward = gpo.gru(code[None])[0][0].chunk(2, dim=-1)
    weight = torch.softmax(gpo.linear((forward + backward) / 2)[:, 0] / 0.1, dim=0)
    columns = [items[:, d].sort(descending=True).values @ weight for d in range(items.shape[1])]
    return torch.stack(columns)


SLOW = {
    "mean": lambda pooling, items: sum(items) / len(items),
    "max": lambda pooling, items: items.max(dim=0).values,
    "mean_max": lambda pooling, items: items.mean(dim=0) + items.max(dim=0).values,
    "gpo": lambda pooling, items: slow_gpo(pooling.gpo, items),
}


def make(kind: str) -> Pooling:
    torch.manual_seed(0)
    return Pooling(kind).double()


@pytest.mark.parametrize("kind", POOLINGS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_equals_the_slow_form_whatever_lies_in_the_padding(kind, data):
    """Masks need not be prefixes: region drop leaves any item out."""
    pooling, (n, k, d) = make(kind), (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6)), 3)
    items = torch.randn(
        n, k, d, dtype=torch.float64, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    )
    rows = st.lists(st.booleans(), min_size=k, max_size=k).filter(any)
    mask = torch.tensor(data.draw(st.lists(rows, min_size=n, max_size=n)))
    expected = torch.stack([SLOW[kind](pooling, row[real]) for row, real in zip(items, mask, strict=True)])
    filled = items.masked_fill(~mask[..., None], data.draw(st.sampled_from([0.0, 7.0, -1e9, 1e30, float("nan")])))
    before = filled.clone()
    torch.testing.assert_close(pooling(filled, mask), expected)
    assert torch.equal(filled.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("kind", POOLINGS)
def test_no_mask_means_all_are_real(kind):
    pooling, items = make(kind), torch.randn(3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(pooling(items, None), pooling(items, torch.ones(3, 5, dtype=torch.bool)))


@pytest.mark.parametrize("kind", POOLINGS)
@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5), row=st.integers(0, 4), extra=st.integers(0, 3))
def test_a_row_alone_equals_the_row_in_a_batch(kind, lengths, row, extra):
    pooling, row = make(kind), row % len(lengths)
    items = torch.randn(len(lengths), max(lengths) + extra, 4, dtype=torch.float64)
    together = pooling(items, mask_of(torch.tensor(lengths), items.shape[1]))
    torch.testing.assert_close(pooling(items[row : row + 1, : lengths[row]], None)[0], together[row])


@pytest.mark.parametrize("kind", ["mean", "max", "gpo"])
def test_one_item_is_itself_and_order_does_not_matter(kind):
    pooling, items = make(kind), torch.randn(2, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(pooling(items[:, :1], None), items[:, 0])
    torch.testing.assert_close(pooling(items[:, torch.randperm(6)], None), pooling(items, None))


@pytest.mark.parametrize("kind", POOLINGS)
def test_gradients_are_finite_and_zero_in_the_padding(kind):
    items = torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[True, False, True, False], [True, True, True, True]])
    torch.manual_seed(0)
    Pooling(kind)(items, mask).square().sum().backward()
    assert items.grad.isfinite().all() and (items.grad[~mask] == 0).all() and (items.grad[mask] != 0).any()


def test_gpo_equals_the_official_code_with_its_gradient():
    case = golden("gpo")
    gpo = GPO().double()
    gpo.load_state_dict(weights(case, {"": ""}))
    features = case["in/features"].requires_grad_()
    mask = mask_of(case["in/lengths"], features.shape[1])
    pooled = gpo(features, mask)
    torch.testing.assert_close(pooled, case["out/pooled"], **GPO_TOLERANCE)
    (pooled * case["in/cotangent"]).sum().backward()
    torch.testing.assert_close(features.grad, case["grad/features"], **GPO_TOLERANCE)
    torch.testing.assert_close(position_code(6, 32).double(), case["in/pe"], rtol=0, atol=1e-6)


def test_gpo_has_the_official_size():
    assert sum(parameter.numel() for parameter in GPO().parameters()) == 12_704
