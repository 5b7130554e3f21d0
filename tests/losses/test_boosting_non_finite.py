"""A target that is not finite shows in the loss; an anchor that is not finite is refused with its place."""

from __future__ import annotations

import itertools

import pytest
import torch
from losses.boosting_cases import FORMS, NEGATIVES, OFFICIAL, Golden, pair, read_golden, value_and_gradient
from losses.positives import same_image

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import boosting_loss, contrastive_boosting_loss

golden = pytest.fixture(params=["fixture", "shared"])(read_golden)
CELLS = {"off": (1, 2), "diag": (3, 3)}
VALUES = {"nan": torch.nan, "inf": torch.inf, "pinf": torch.inf, "ninf": -torch.inf}


@pytest.mark.parametrize("case", ["nan_target_off", "nan_target_diag", "inf_target_off"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_golden_non_finite_target(golden: Golden, name: str, case: str) -> None:
    target, anchor = pair(golden, "real", 8, torch.float32)
    value, _, place = case.split("_")
    target[CELLS[place]] = VALUES[value]
    loss, _ = value_and_gradient(target, anchor, form=OFFICIAL[name])
    torch.testing.assert_close(loss, torch.from_numpy(golden[f"edge/{case}/{name}/loss"]), equal_nan=True)
    assert not contrastive_boosting_loss(target, anchor).isfinite()


@pytest.mark.parametrize("case", ["nan_anchor_off", "nan_anchor_diag", "ninf_anchor_off", "pinf_anchor_off"])
def test_non_finite_anchor_raises(golden: Golden, case: str) -> None:
    target, anchor = pair(golden, "real", 8, torch.float32)
    value, _, place = case.split("_")
    anchor[CELLS[place]] = VALUES[value]
    message = rf"1 of 64 values of anchor are not finite, the first at \({CELLS[place][0]}, {CELLS[place][1]}\)"
    losses = (contrastive_boosting_loss, *(lambda t, a, form=form: boosting_loss(t, a, form=form) for form in FORMS))
    for loss in losses:
        with pytest.raises(ItmError, match=message):
            loss(target, anchor)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("cell", list(itertools.product(range(3), range(3))))
def test_non_finite_target_is_never_hidden(value: float, cell: tuple[int, int]) -> None:
    target, anchor = torch.eye(3) * 0.9, torch.zeros(3, 3)
    target[cell] = value
    for positives in (None, same_image([0, 1, 0]), same_image([0, 0, 0])):
        for form, negatives, reduction in itertools.product(FORMS, NEGATIVES, ("sum", "mean")):
            options = {"form": form, "negatives": negatives, "positives": positives, "reduction": reduction}
            assert not boosting_loss(target, anchor, **options).isfinite(), options
        assert not contrastive_boosting_loss(target, anchor, positives=positives).isfinite()
