"""Few negatives, equal embeddings, sharp temperatures and half precision are sound; what is not finite shows."""

from __future__ import annotations

import pytest
import torch
from losses.diversity_cases import EXACT, WAYS, batch, value_and_gradient

from lavis_itm_plugins.losses import diversity_contrastive_loss, diversity_weights


@pytest.mark.parametrize(("form", "kind"), WAYS)
def test_no_and_one_negative(form: str, kind: str) -> None:
    query, key, negatives, valid = batch()
    nothing = torch.zeros_like(valid)
    for mask, dictionary in ((nothing, negatives), (nothing[:, :0], negatives[:0])):
        with torch.autograd.set_detect_anomaly(True):
            loss, gradient = value_and_gradient(query, key, dictionary, mask, form=form, kind=kind)
        expected = 0.0 if form == "nce" else -(query * key).sum(dim=1).relu().log1p().mean().item()
        assert loss.item() == pytest.approx(expected, abs=1e-15) and gradient.isfinite().all()
        assert form == "lse" or (loss == 0 and not gradient.any())
        assert not diversity_weights(query @ dictionary.T, mask, kind=kind).any()
    one = nothing.clone()
    one[:, 3] = True
    torch.testing.assert_close(diversity_weights(query @ negatives.T, one, kind=kind), one.double(), **EXACT)
    empty, gradient = value_and_gradient(query[:0], key[:0], negatives, valid[:0], form=form, kind=kind)
    assert empty == 0 and empty.shape == () and gradient.shape == (0, 5)


@pytest.mark.parametrize(("form", "kind"), WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equal_embeddings_and_sharp_temperatures(form: str, kind: str, dtype: torch.dtype) -> None:
    unit = torch.eye(4)[:1].expand(5, 4).to(dtype)
    valid = ~torch.eye(5, dtype=torch.bool)
    for sign in (1, -1):
        options = {"form": form, "kind": kind, "temperature": 1e-3, "slope": 1000.0}
        loss, gradient = value_and_gradient(unit, sign * unit, unit, valid, **options)
        assert loss.dtype == torch.float32 and loss.isfinite() and gradient.isfinite().all()
        weights = diversity_weights(sign * unit @ unit.T, valid, kind=kind, temperature=1e-3)
        torch.testing.assert_close(weights, valid.float())


@pytest.mark.parametrize(("form", "kind"), WAYS)
def test_half_precision_is_computed_in_float32(form: str, kind: str) -> None:
    *parts, valid = batch()
    halves = [part.bfloat16() for part in parts]
    expected, expected_gradient = value_and_gradient(*(part.float() for part in halves), valid, form=form, kind=kind)
    for enabled in (False, True):
        leaf = halves[0].clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = diversity_contrastive_loss(leaf, *halves[1:], valid, form=form, kind=kind)
            double = diversity_contrastive_loss(*parts, valid, form=form, kind=kind)
        loss.backward()
        assert loss.dtype == torch.float32 and torch.equal(loss, expected)
        assert torch.equal(leaf.grad, expected_gradient.bfloat16())
        assert double.dtype == torch.float64


@pytest.mark.parametrize(("form", "kind"), WAYS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_embedding_is_never_hidden(form: str, kind: str, value: float) -> None:
    for part, row in ((0, 1), (1, 3), (2, 0), (2, 6)):
        data = [tensor.clone() for tensor in batch()]
        data[3][:, 6] = False
        data[part][row, 2] = value
        assert not diversity_contrastive_loss(*data, form=form, kind=kind).isfinite()
