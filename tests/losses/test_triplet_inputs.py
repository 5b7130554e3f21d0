"""Any precision, layout and kind of number is read as it is meant; wrong input is named in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from losses.triplet_cases import NEGATIVES, value_and_gradient

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import triplet_loss


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(negatives: str, dtype: torch.dtype) -> None:
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected, expected_gradient = value_and_gradient(scores.float(), negatives=negatives)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, gradient = value_and_gradient(scores, negatives=negatives)
            double, _ = value_and_gradient(scores.double(), negatives=negatives)
        assert loss.dtype == torch.float32 and torch.equal(loss, expected)
        assert torch.equal(gradient, expected_gradient.to(dtype))
        assert double.dtype == torch.float64


def test_layout_of_the_input_does_not_matter() -> None:
    scores = torch.randn(4, 8)[:, ::2]
    assert torch.equal(triplet_loss(scores), triplet_loss(scores.contiguous()))
    flat = torch.tensor(0.5).expand(4, 4)
    assert triplet_loss(flat).item() == pytest.approx(2 * 4 * 0.2)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (torch.zeros(2, 3), {}, r"scores has shape \(2, 3\)"),
        (torch.zeros(4), {}, r"scores has shape \(4,\)"),
        (torch.zeros(2, 2, dtype=torch.long), {}, "scores is torch.int64"),
        (np.zeros((2, 2)), {}, "scores is a ndarray"),
        (torch.zeros(2, 2), {"negatives": "hardst"}, 'unknown negatives "hardst"; did you mean hardest'),
        (torch.zeros(2, 2), {"negatives": None}, "unknown negatives"),
        (torch.zeros(2, 2), {"reduction": "average"}, 'unknown reduction "average"'),
        (torch.zeros(2, 2), {"margin": -0.1}, "margin is -0.1; give a number of at least 0"),
        (torch.zeros(2, 2), {"margin": "0.2"}, "margin is '0.2'"),
        (torch.zeros(2, 2), {"margin": float("nan")}, "margin is nan"),
        (torch.zeros(2, 2), {"margin": True}, "margin is True"),
        (torch.zeros(2, 2), {"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        (torch.zeros(2, 2), {"positives": torch.zeros(2, 2)}, "positives is torch.float32"),
        (torch.zeros(2, 2), {"positives": np.eye(2, dtype=bool)}, "positives is ndarray"),
        (torch.zeros(2, 2), {"positives": torch.ones(2, dtype=torch.bool)}, r"positives has shape \(2,\)"),
        (torch.zeros(2, 2), {"positives": torch.ones(2, 2, dtype=torch.bool, device="meta")}, "positives is on meta"),
    ],
)
def test_bad_input_is_named(scores, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        triplet_loss(scores, **options)


def test_numpy_numbers_are_numbers() -> None:
    scores = torch.randn(3, 3)
    assert torch.equal(triplet_loss(scores, margin=np.float64(0.2)), triplet_loss(scores, margin=0.2))
    assert isinstance(triplet_loss(scores, margin=np.float32(0.25)), torch.Tensor)
