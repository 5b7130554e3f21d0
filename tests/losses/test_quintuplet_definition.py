"""quintuplet_loss equals a double loop over the definition, at any height of the scores, and its gradient follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.positives import same_image
from losses.quintuplet_cases import OFFLINE, Inputs, random_inputs, value_and_gradients

from lavis_itm_plugins.losses import quintuplet_loss


def naive(inputs, *, online_margin, offline_margin, alpha, beta, positives, pair_mask, weight_min, reduction):
    """One pair at a time, from the definition; an autograd-free double loop."""
    scores, size, total = inputs["scores"], len(inputs["scores"]), 0.0
    directions = ((scores, positives, "offline_captions"), (scores.T, positives.T, "offline_images"))
    for i in range(size):
        for matrix, match, name in directions:
            negatives = [matrix[i][j] for j in range(size) if j != i and not match[i][j]]
            if negatives:
                weight = beta - (inputs[name][i] - max(negatives)) / alpha
                weight = weight if weight_min is None else max(weight, weight_min)
                total += weight * max(online_margin + max(negatives) - scores[i][i], 0.0)
            total += max(offline_margin + inputs[name][i] - scores[i][i], 0.0)
        for name in ("offline_pairs", "partner_pairs"):
            total += max(offline_margin + inputs[name][i] - scores[i][i], 0.0) if pair_mask[i] else 0.0
    return total / size if reduction == "mean" and size else total


@st.composite
def batches(draw: st.DrawFn) -> tuple[Inputs, torch.Tensor, torch.Tensor]:
    """Scores with many exact ties, in float64, same-image cells, and a pair mask."""
    size = draw(st.integers(0, 5))
    eighths = draw(st.lists(st.integers(-8, 8), min_size=size * (size + 4), max_size=size * (size + 4)))
    ids = draw(st.lists(st.integers(0, max(size - 1, 0)), min_size=size, max_size=size))
    keep = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    table = torch.tensor(eighths, dtype=torch.float64).reshape(size + 4, size) / 8
    inputs = {"scores": table[4:]} | dict(zip(OFFLINE, table[:4], strict=True))
    return inputs, same_image(ids), torch.tensor(keep, dtype=torch.bool)


@settings(deadline=None, max_examples=150)
@given(
    batch=batches(),
    margins=st.sampled_from([(0.2, 0.0), (0.0, 0.125), (0.25, 0.1)]),
    weights=st.sampled_from([(0.3, 1.5, None), (0.1, 0.5, None), (0.1, 0.5, 0.0), (0.5, 0.0, -1.0)]),
    detach=st.booleans(),
    reduction=st.sampled_from(["sum", "mean"]),
)
def test_equals_the_double_loop(batch, margins, weights, detach, reduction) -> None:
    inputs, positives, pair_mask = batch
    options = dict(zip(("online_margin", "offline_margin"), margins, strict=True))
    options |= dict(zip(("alpha", "beta", "weight_min"), weights, strict=True)) | {"reduction": reduction}
    before = {name: value.clone() for name, value in inputs.items()}
    masks = {"positives": positives, "pair_mask": pair_mask}
    loss, gradients = value_and_gradients(inputs, **masks, **options, detach_weights=detach)
    plain = {name: value.numpy() for name, value in inputs.items()}
    expected = naive(plain, positives=positives.numpy(), pair_mask=pair_mask.numpy(), **options)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert all(torch.equal(before[name], inputs[name]) for name in inputs)
    # Only differences of scores enter.
    assert sum(gradient.sum().item() for gradient in gradients.values()) == pytest.approx(0, abs=1e-9)
    moved = quintuplet_loss(**{name: value + 0.25 for name, value in inputs.items()}, **masks, **options)
    assert moved.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_scores_below_minus_ten_are_still_negatives() -> None:
    """The official code masks the diagonal by subtracting 10."""
    inputs = random_inputs(4)
    low = {name: value - 50 for name, value in inputs.items()}
    assert quintuplet_loss(**low).item() == pytest.approx(quintuplet_loss(**inputs).item(), rel=1e-10)
    large = {name: 40 * value for name, value in inputs.items()}
    plain = {name: value.numpy() for name, value in large.items()}
    options = {"online_margin": 0.2, "offline_margin": 0.0, "alpha": 0.3, "beta": 1.5, "weight_min": None}
    masks = {"positives": np.eye(4, dtype=bool), "pair_mask": np.ones(4, dtype=bool)}
    expected = naive(plain, **options, **masks, reduction="sum")
    assert quintuplet_loss(**large).item() == pytest.approx(expected, rel=1e-10)


def test_of_equal_hardest_negatives_one_gets_the_gradient() -> None:
    """As the official max: halves would move two items by half."""
    scores = torch.full((4, 4), 0.5, dtype=torch.float64)
    inputs = {"scores": scores} | {name: torch.full((4,), -1.0, dtype=torch.float64) for name in OFFLINE}
    _, gradients = value_and_gradients(inputs, alpha=1e12, beta=1.0)
    pulled = gradients["scores"].round()
    # no fraction anywhere: four queries in each of two directions
    torch.testing.assert_close(gradients["scores"], pulled, rtol=0, atol=1e-9)
    assert pulled.diagonal().tolist() == [-2] * 4 and pulled.clamp(min=0).sum() == 8


def test_permuting_the_batch_permutes_the_gradients() -> None:
    inputs, order = random_inputs(6), torch.randperm(6)
    loss, gradients = value_and_gradients(inputs)
    moved = {name: value[order][:, order] if value.ndim == 2 else value[order] for name, value in inputs.items()}
    moved_loss, moved_gradients = value_and_gradients(moved)
    assert moved_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(moved_gradients["scores"], gradients["scores"][order][:, order])
    torch.testing.assert_close(moved_gradients["offline_captions"], gradients["offline_captions"][order])


def test_transposed_with_the_offline_directions_swapped_is_the_same() -> None:
    inputs = random_inputs(6)
    captions, images = inputs["offline_captions"], inputs["offline_images"]
    other = inputs | {"scores": inputs["scores"].T, "offline_captions": images, "offline_images": captions}
    torch.testing.assert_close(quintuplet_loss(**other), quintuplet_loss(**inputs))
    assert quintuplet_loss(**(other | {"scores": inputs["scores"]})) != quintuplet_loss(**inputs)


@pytest.mark.parametrize("options", [{}, {"detach_weights": True}, {"weight_min": 0.0, "alpha": 0.1}])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradcheck(reduction: str, options: dict[str, object]) -> None:
    inputs = random_inputs(5)
    masks = {"positives": same_image([0, 1, 0, 2, 3]), "pair_mask": torch.tensor([True, False, True, True, True])}

    def loss(*values: torch.Tensor) -> torch.Tensor:
        return quintuplet_loss(**dict(zip(inputs, values, strict=True)), **masks, **options, reduction=reduction)

    values = tuple(value.clone().requires_grad_() for value in inputs.values())
    if options.get("detach_weights"):  # its gradient is by intention not that of its value
        assert not torch.autograd.gradcheck(loss, values, raise_exception=False)
    else:
        assert torch.autograd.gradcheck(loss, values)
