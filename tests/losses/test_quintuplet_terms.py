"""What each part of quintuplet_loss adds: weighted online terms, offline terms, and pairs that a mask drops."""

from __future__ import annotations

import pytest
import torch
from losses.positives import same_image
from losses.quintuplet_cases import OFFLINE, random_inputs, value_and_gradients

from lavis_itm_plugins.losses import quintuplet_loss, triplet_loss


def test_without_weights_and_offline_terms_it_is_the_triplet_loss() -> None:
    inputs = random_inputs(8)
    inputs |= {name: torch.full((8,), -9.0, dtype=torch.float64) for name in OFFLINE}
    loss = quintuplet_loss(**inputs, alpha=1e12, beta=1.0)
    assert loss.item() == pytest.approx(triplet_loss(inputs["scores"]).item(), rel=1e-9)
    only = quintuplet_loss(**inputs, weight_min=3.0, alpha=1e12, beta=1.0)
    assert only.item() == pytest.approx(3 * loss.item(), rel=1e-9)


@pytest.mark.parametrize(("weight_min", "expected"), [(None, -0.35), (0.0, 0.0), (0.5, 0.35)])
def test_weight_can_be_negative_unless_limited(weight_min: float | None, expected: float) -> None:
    # Each of the four queries: n = 0.45, o = 1.05, p = 0.3, so weight 1.5 - 0.6 / 0.3 = -0.5 and hinge 0.35.
    scores = torch.tensor([[0.3, 0.45], [0.45, 0.3]], dtype=torch.float64)
    high, low = torch.full((2,), 1.05, dtype=torch.float64), torch.full((2,), -1.0, dtype=torch.float64)
    inputs = {"scores": scores, "offline_captions": high, "offline_images": high}
    inputs |= {"offline_pairs": low, "partner_pairs": low}
    loss, gradients = value_and_gradients(inputs, weight_min=weight_min)
    offline = 4 * (1.05 - 0.3)
    assert loss.item() - offline == pytest.approx(2 * expected, abs=1e-12)
    # dL/do = 1 - h / alpha where the weight is not at its limit.
    slope = 1 - (0.35 / 0.3 if weight_min is None else 0)
    torch.testing.assert_close(gradients["offline_captions"], torch.full((2,), slope, dtype=torch.float64))


def test_pair_mask_drops_the_two_pairs_without_an_anchor() -> None:
    inputs = random_inputs(5)
    inputs |= {name: inputs[name] + 1 for name in ("offline_pairs", "partner_pairs")}
    mask = torch.tensor([True, False, True, True, False])
    loss, gradients = value_and_gradients(inputs, pair_mask=mask)
    for name in ("offline_pairs", "partner_pairs"):
        assert torch.equal(gradients[name], mask.double())
    own = inputs["scores"].diagonal()
    dropped = sum(((inputs[name] - own)[~mask]).clamp(min=0).sum() for name in ("offline_pairs", "partner_pairs"))
    assert dropped > 0
    torch.testing.assert_close(quintuplet_loss(**inputs) - loss, dropped)
    everything = torch.ones(5, dtype=torch.bool)
    assert torch.equal(quintuplet_loss(**inputs, pair_mask=everything), quintuplet_loss(**inputs))


def test_nothing_violated_gives_zero_and_zero_gradients() -> None:
    inputs = {"scores": torch.eye(4)} | {name: torch.zeros(4) for name in OFFLINE}
    loss, gradients = value_and_gradients(inputs)
    assert loss == 0
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("ids", [[], [0], [7, 7, 7]])
def test_without_online_negatives_the_offline_terms_are_left(ids: list[int], reduction: str) -> None:
    inputs = random_inputs(len(ids), dtype=torch.float32)
    with torch.autograd.set_detect_anomaly(True):
        loss, gradients = value_and_gradients(inputs, positives=same_image(ids), reduction=reduction)
    offline = sum((inputs[name] - inputs["scores"].diagonal()).clamp(min=0).sum().item() for name in OFFLINE)
    divisor = max(len(ids), 1) if reduction == "mean" else 1
    assert loss.shape == () and loss.item() == pytest.approx(offline / divisor, rel=1e-5)
    off_diagonal = ~torch.eye(len(ids), dtype=torch.bool)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert not gradients["scores"][off_diagonal].any()
