"""itm_dbl's loss is the base loss and the weighted boost, in the same reduction, in any batch and precision."""

from __future__ import annotations

import pytest
import torch
from methods.dbl_batch import IDS, LOSSES, SCENARIOS, batch, built, scores_of

from lavis_itm_plugins.losses import triplet_loss
from lavis_itm_plugins.methods.base import same_image

pytestmark = pytest.mark.usefixtures("configuration")


def target_and_anchors(model, scenario, anchor, samples):
    branches = [scores_of(branch, samples) for branch in model.branches]
    return branches[-1], branches[:-1] if scenario == "peer" else [scores_of(anchor[0], samples)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_loss_is_the_base_loss_and_the_weighted_boost(scenario, loss, anchor):
    settings = {"loss": loss, "form": "absolute", "beta": 0.5, "gamma": 0.3, "temperature": 0.2, "weight": 0.7}
    model = built(scenario, anchor, **settings, **({"branches": 3} if scenario == "peer" else {}))
    parts = model(batch())
    target, anchors = target_and_anchors(model, scenario, anchor, batch())
    positives = same_image(torch.tensor(IDS))
    expected = sum(LOSSES[loss](target, a, positives, "sum") for a in anchors) / len(anchors)
    torch.testing.assert_close(parts["loss_boost"], 0.7 * expected)
    torch.testing.assert_close(parts["loss_base"], triplet_loss(target, positives=positives))
    torch.testing.assert_close(parts["loss"], sum(v for k, v in parts.items() if k.startswith("loss_")))
    if scenario == "peer":
        middle, first = scores_of(model.branches[1], batch()), scores_of(model.branches[0], batch())
        torch.testing.assert_close(parts["loss_boost_1"], 0.7 * LOSSES[loss](middle, first, positives, "sum"))
        assert {"loss_base_0", "loss_base_1", "loss_base"} < parts.keys() and "loss_boost_0" not in parts


@pytest.mark.parametrize(
    ("base_loss", "asked", "reduction"),
    [
        ({"name": "triplet"}, None, "sum"),
        ({"name": "triplet", "reduction": "mean"}, None, "mean"),
        ({"name": "infonce"}, None, "mean"),
        ({"name": "infonce"}, "sum", "sum"),
        ({"name": "triplet", "negatives": "soft"}, None, "sum"),
    ],
)
@pytest.mark.parametrize("loss", ["boost", "contrastive"])
def test_the_boost_is_reduced_as_the_base_loss(loss, base_loss, asked, reduction, anchor):
    settings = {"form": "absolute", "beta": 0.5, "gamma": 0.3, "temperature": 0.2, "reduction": asked}
    model = built("frozen", anchor, base_loss=base_loss, loss=loss, **settings)
    target, anchors = target_and_anchors(model, "frozen", anchor, batch())
    expected = LOSSES[loss](target, anchors[0], same_image(torch.tensor(IDS)), reduction)
    torch.testing.assert_close(model(batch())["loss_boost"], expected)


@pytest.mark.parametrize("scenario", ["frozen", "peer"])
def test_official_counts_an_image_s_other_captions_as_negatives(scenario, anchor):
    keys = {"base_loss": {"name": "triplet", "negatives": "all"}, "negatives": "all"}
    ours, official = (built(scenario, anchor, official=official, **keys)(batch()) for official in (False, True))
    assert ours["masked_negatives"] == 2 and official["masked_negatives"] == 0
    assert ours["loss_base"] < official["loss_base"] and ours["loss_boost"] < official["loss_boost"]


@pytest.mark.parametrize("ids", [[0], [4, 4, 4]])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_batch_without_negatives_is_finite(scenario, ids, anchor):
    model = built(scenario, anchor, form="absolute")
    parts = model(batch(ids))
    parts["loss"].backward()
    assert all(value.isfinite() for value in parts.values())
    assert all(p.grad.isfinite().all() for p in model.matcher.parameters() if p.grad is not None)
    assert parts["loss_base"] == 0


def test_half_precision_moves_the_losses_little(anchor):
    model = built("frozen", anchor)
    whole = model(batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(batch())
    assert half["loss_boost"].dtype == torch.float32
    assert half["loss"].item() == pytest.approx(whole["loss"].item(), rel=0.05)
