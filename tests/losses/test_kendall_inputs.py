"""Any precision, layout and kind of number is read as it is meant; what is wrong shows or is named."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from losses.kendall_cases import MININGS, SPLITS, batch, value_and_gradient

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import kendall_loss


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_score_is_never_hidden(split: str, mining: str, value: float) -> None:
    for cell in itertools.product(range(3), range(3)):
        scores, labels = batch(3)
        scores[cell] = value
        for window, targets in ((16, labels), (1, labels), (16, torch.ones_like(labels))):
            assert not kendall_loss(scores, targets, split=split, mining=mining, window=window).isfinite()


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(mining: str, dtype: torch.dtype) -> None:
    scores, labels = (part.to(dtype) for part in batch(6))
    options = {"mining": mining, "surrogate": "softplus", "window": 4, "stride": 1}
    expected, expected_gradient = value_and_gradient(scores.float(), labels.float(), **options)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, gradient = value_and_gradient(scores, labels, **options)
            double, _ = value_and_gradient(scores.double(), labels, **options)
        assert loss.dtype == torch.float32 and torch.equal(loss, expected)
        assert torch.equal(gradient, expected_gradient.to(dtype))
        assert double.dtype == torch.float64


def test_labels_get_no_gradient_and_layout_does_not_matter() -> None:
    scores, labels = batch(8)
    scores, labels = scores[:4, ::2], labels[:4, ::2].requires_grad_()
    loss = kendall_loss(scores.requires_grad_(), labels, surrogate="softplus")
    loss.backward()
    assert labels.grad is None
    assert torch.equal(kendall_loss(scores.contiguous(), labels.contiguous(), surrogate="softplus"), loss)


ZERO = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        (torch.zeros(2, 3), ZERO, {}, r"scores has shape \(2, 3\)"),
        (ZERO.long(), ZERO, {}, "scores is torch.int64"),
        (ZERO, np.zeros((2, 2)), {}, "labels is a ndarray"),
        (ZERO, ZERO.bool(), {}, "labels is torch.bool"),
        (ZERO, torch.zeros(3, 3), {}, r"labels has shape \(3, 3\); the scores have \(2, 2\)"),
        (ZERO, ZERO.to("meta"), {}, "labels is on meta"),
        (ZERO, ZERO.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(torch.nan)), {}, r"labels.*\(0, 1\)"),
        (ZERO, ZERO - torch.inf, {}, "4 of 4 values of labels are not finite"),
        (ZERO, ZERO, {"split": "half"}, 'unknown split "half"; did you mean halves'),
        (ZERO, ZERO, {"mining": "hard"}, 'unknown mining "hard"'),
        (ZERO, ZERO, {"surrogate": None}, "unknown surrogate"),
        (ZERO, ZERO, {"window": 0}, "window is 0; give a whole number of at least 1"),
        (ZERO, ZERO, {"stride": 1.5}, "stride is 1.5"),
        (ZERO, ZERO, {"stride": True}, "stride is True"),
        (ZERO, ZERO, {"margin": -0.1}, "margin is -0.1"),
        (ZERO, ZERO, {"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        (ZERO, ZERO, {"gap": "0.3"}, "gap is '0.3'"),
        (ZERO, ZERO, {"gap": -0.3}, "gap is -0.3"),
    ],
)
def test_bad_input_is_named(scores, labels, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        kendall_loss(scores, labels, **options)


def test_numpy_numbers_are_numbers() -> None:
    scores, labels = batch(5)
    expected = kendall_loss(scores, labels, window=4, stride=2, gap=0.25)
    assert torch.equal(
        kendall_loss(scores, labels, window=np.int64(4), stride=np.int32(2), gap=np.float32(0.25)), expected
    )
