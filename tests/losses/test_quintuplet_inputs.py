"""Any precision and layout is read as it is meant; what is not finite shows, what is wrong is named."""

from __future__ import annotations

import itertools

import pytest
import torch
from losses.positives import same_image
from losses.quintuplet_cases import OFFLINE, random_inputs, value_and_gradients

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import quintuplet_loss


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_score_is_never_hidden(value: float) -> None:
    places = [("scores", cell) for cell in itertools.product(range(3), range(3))]
    places += [(name, (row,)) for name in OFFLINE for row in range(3)]
    for name, cell in places:
        inputs = {"scores": torch.eye(3) * 0.9} | {name: torch.zeros(3) for name in OFFLINE}
        inputs[name][cell] = value
        for positives in (None, same_image([0, 1, 0]), same_image([0, 0, 0])):
            for pair_mask in (None, torch.zeros(3, dtype=torch.bool)):
                for reduction in ("sum", "mean"):
                    options = {"positives": positives, "pair_mask": pair_mask, "reduction": reduction}
                    assert not quintuplet_loss(**inputs, **options).isfinite(), (name, cell, options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    inputs = {name: value.to(dtype) for name, value in random_inputs(6, dtype=torch.float32).items()}
    whole = {name: value.float() for name, value in inputs.items()}
    expected, expected_gradients = value_and_gradients(whole)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, gradients = value_and_gradients(inputs)
            double, _ = value_and_gradients({name: value.double() for name, value in inputs.items()})
        assert loss.dtype == torch.float32 and torch.equal(loss, expected)
        assert all(torch.equal(gradients[name], expected_gradients[name].to(dtype)) for name in inputs)
        assert double.dtype == torch.float64


def test_layout_of_the_input_does_not_matter() -> None:
    inputs = random_inputs(5)
    strided = {name: value.repeat_interleave(2, dim=-1)[..., ::2] for name, value in inputs.items()}
    assert not strided["scores"].is_contiguous()
    assert torch.equal(quintuplet_loss(**strided), quintuplet_loss(**inputs))
    flat = {"scores": torch.tensor(0.5).expand(4, 4)} | {name: torch.tensor(0.5).expand(4) for name in OFFLINE}
    assert quintuplet_loss(**flat).item() == pytest.approx(2 * 4 * 1.5 * 0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": torch.zeros(2, 3)}, r"scores has shape \(2, 3\)"),
        ({"scores": torch.zeros(2, 2, dtype=torch.long)}, "scores is torch.int64"),
        ({"offline_captions": torch.zeros(3)}, r"offline_captions has shape \(3,\); the scores have \(2, 2\)"),
        ({"offline_images": torch.zeros(2, 1)}, r"offline_images has shape \(2, 1\)"),
        ({"offline_pairs": torch.zeros(2, device="meta")}, "offline_pairs is on meta; the scores are on cpu"),
        ({"partner_pairs": torch.zeros(2, dtype=torch.long)}, "partner_pairs is torch.int64"),
        ({"partner_pairs": [0.0, 0.0]}, "partner_pairs is list"),
        ({"online_margin": -0.1}, "online_margin is -0.1; give a number of at least 0"),
        ({"offline_margin": "0"}, "offline_margin is '0'"),
        ({"alpha": 0.0}, "alpha is 0.0; give a number above 0"),
        ({"beta": -1.0}, "beta is -1.0; give a number of at least 0"),
        ({"weight_min": float("nan")}, "weight_min is nan; give a finite number"),
        ({"reduction": "average"}, 'unknown reduction "average"'),
        ({"positives": torch.zeros(2, 2)}, "positives is torch.float32"),
        ({"pair_mask": torch.ones(2)}, "pair_mask is torch.float32"),
        ({"pair_mask": [True, False]}, "pair_mask is list"),
        ({"pair_mask": torch.ones(3, dtype=torch.bool)}, r"pair_mask has shape \(3,\); the scores have \(2, 2\)"),
    ],
)
def test_bad_input_is_named(changes: dict[str, object], message: str) -> None:
    inputs = {"scores": torch.zeros(2, 2)} | {name: torch.zeros(2) for name in OFFLINE}
    with pytest.raises(ItmError, match=message):
        quintuplet_loss(**(inputs | changes))
