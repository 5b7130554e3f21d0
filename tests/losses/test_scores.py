"""What the losses share: the float32 island, the reduction, and the checks."""

from __future__ import annotations

import pytest
import torch

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses.hinges import reduce_queries
from lavis_itm_plugins.losses.scores import check_finite, check_number, float32_island, surface_non_finite


@float32_island
def product_loss(scores: torch.Tensor, *, other: torch.Tensor) -> torch.Tensor:
    """A product is what autocast would run in half precision."""
    return (scores @ other).sum()


def test_island_leaves_autocast_and_raises_half_precision_only() -> None:
    scores = torch.randn(4, 4)
    outside = product_loss(scores, other=scores)
    half = product_loss(scores.bfloat16(), other=scores.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (scores @ scores).dtype == torch.bfloat16
        assert torch.equal(product_loss(scores, other=scores), outside)
        assert torch.equal(product_loss(scores.bfloat16(), other=scores.bfloat16()), half)
        assert product_loss(scores.double(), other=scores.double()).dtype == torch.float64
    assert half.dtype == torch.float32


def test_island_keeps_name_and_documentation() -> None:
    assert product_loss.__name__ == "product_loss"
    assert "autocast" in (product_loss.__doc__ or "")


def test_mean_divides_each_direction_by_its_own_queries() -> None:
    valid = torch.tensor([[False, True, True], [False, False, False], [False, False, False]])
    losses = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 2.0]])
    assert reduce_queries(losses, valid, "mean") == (3 / 1 + 6 / 2) / 2
    assert reduce_queries(losses, valid, "sum") == 9


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_value_in_any_of_the_scores_shows(value: float) -> None:
    loss, good, bad = torch.tensor(1.0), torch.zeros(2, 2), torch.tensor([0.0, value])
    assert surface_non_finite(loss, good, good[0]) == 1
    assert surface_non_finite(loss, good, bad).isnan()
    assert surface_non_finite(loss, bad, good).isnan()


def test_non_finite_loss_stays_what_it_is() -> None:
    assert surface_non_finite(torch.tensor(torch.inf), torch.tensor([torch.inf, -torch.inf])) == torch.inf


def test_check_finite_counts_and_shows_the_first() -> None:
    check_finite(torch.zeros(2, 2), "labels")
    with pytest.raises(ItmError, match=r"2 of 4 values of labels are not finite, the first at \(0, 1\)"):
        check_finite(torch.tensor([[0, torch.inf], [torch.nan, 0]]), "labels")


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (0, {"above": 0}, "gamma is 0; give a number above 0"),
        (1.5, {"at_least": 0, "at_most": 1}, "gamma is 1.5; give a number of at least 0 and of at most 1"),
        (float("inf"), {}, "gamma is inf; give a finite number"),
        (None, {}, "gamma is None; give a finite number"),
    ],
)
def test_check_number_says_what_is_allowed(value, limits, message) -> None:
    with pytest.raises(ItmError, match=message):
        check_number("gamma", value, **limits)


def test_check_number_allows_its_limits() -> None:
    check_number("gamma", 0, at_least=0, at_most=1)
    check_number("gamma", 1, at_least=0, at_most=1)
