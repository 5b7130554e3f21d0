"""Any precision and layout of scores is read as it is meant; wrong scores and options are named in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from losses.boosting_cases import FORMS, OFFICIAL, Golden, pair, random_pair, read_golden, value_and_gradient

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import boosting_loss, contrastive_boosting_loss
from lavis_itm_plugins.losses.boosting import boosting_statistics

golden = pytest.fixture(params=["fixture", "shared"])(read_golden)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("name", OFFICIAL)
def test_golden_half_precision(golden: Golden, name: str, size: int, precision: str, dtype: torch.dtype) -> None:
    """The official code in that precision is as far off as that precision; ours is its float32 path, exactly."""
    target, anchor = pair(golden, "real", size, dtype)
    whole = value_and_gradient(target.float(), anchor.float(), form=OFFICIAL[name])
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, gradient = value_and_gradient(target, anchor, form=OFFICIAL[name])
            double, _ = value_and_gradient(target.double(), anchor.double(), form=OFFICIAL[name])
        assert loss.dtype == torch.float32 and torch.equal(loss, whole[0])
        assert torch.equal(gradient, whole[1].to(dtype))
        assert double.dtype == torch.float64
    expected = float(golden[f"amp/{precision}/{name}/{size}/loss"])
    assert loss.item() == pytest.approx(expected, rel=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_contrastive_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    target, anchor = random_pair(6, dtype=torch.float32)
    target, anchor = target.to(dtype), anchor.to(dtype)
    expected = value_and_gradient(target.float(), anchor.float(), contrastive_boosting_loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = value_and_gradient(target, anchor, contrastive_boosting_loss)
    assert torch.equal(loss, expected[0]) and torch.equal(gradient, expected[1].to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_are_computed_in_float32(dtype: torch.dtype) -> None:
    target, anchor = (part.to(dtype) for part in random_pair(6, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = boosting_statistics(target, anchor)
    expected = boosting_statistics(target.float(), anchor.float())
    assert all(found[name].dtype == torch.float32 and torch.equal(found[name], expected[name]) for name in expected)


def test_layout_of_the_input_does_not_matter() -> None:
    target, anchor = torch.randn(4, 8)[:, ::2], torch.randn(4, 4).T
    for form in FORMS:
        expected = boosting_loss(target.contiguous(), anchor.contiguous(), form=form)
        assert torch.equal(boosting_loss(target, anchor, form=form), expected)
        flat = torch.tensor(0.5).expand(4, 4)
        assert boosting_loss(flat, flat, form=form).item() == pytest.approx(2 * 4 * 0.2)


SQUARE = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("target", "anchor", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), r"target has shape \(2, 3\); give a square"),
        (SQUARE, torch.zeros(2, 3), r"anchor has shape \(2, 3\); give a square"),
        (SQUARE, torch.zeros(3, 3), r"anchor has shape \(3, 3\), target \(2, 2\)"),
        (SQUARE, torch.zeros(2, 2, device="meta"), "anchor is on meta; target is on cpu"),
        (torch.zeros(2, 2, dtype=torch.long), SQUARE, "target is torch.int64"),
        (SQUARE, np.zeros((2, 2)), "anchor is a ndarray"),
    ],
)
def test_bad_scores_are_named(target, anchor, message) -> None:
    for loss in (boosting_loss, contrastive_boosting_loss):
        with pytest.raises(ItmError, match=message):
            loss(target, anchor)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (boosting_loss, {"form": "relativ"}, 'unknown form "relativ"; did you mean relative'),
        (boosting_loss, {"negatives": "soft"}, 'unknown negatives "soft"'),
        (boosting_loss, {"margin_schedule": "smooth"}, 'unknown margin_schedule "smooth"'),
        (boosting_loss, {"reduction": "average"}, 'unknown reduction "average"'),
        (boosting_loss, {"margin": -0.1}, "margin is -0.1; give a number of at least 0"),
        (boosting_loss, {"beta": -1.0}, "beta is -1.0; give a number of at least 0"),
        (boosting_loss, {"gamma": -0.1}, "gamma is -0.1; give a number of at least 0 and of at most 1"),
        (boosting_loss, {"gamma": 1.1}, "gamma is 1.1"),
        (boosting_loss, {"positives": torch.zeros(2, 2)}, "positives is torch.float32"),
        (contrastive_boosting_loss, {"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        (contrastive_boosting_loss, {"positives": torch.ones(2, dtype=torch.bool)}, r"positives has shape \(2,\)"),
    ],
)
def test_bad_options_are_named(loss, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        loss(SQUARE, SQUARE, **options)
