"""itm_aoq's losses over each pair's own mined items are those of the functions on items encoded apart."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from methods.aoq_batch import ROWS, batch_of, items, method

from lavis_itm_plugins.losses import infonce_loss, offline_hinge_loss, offline_infonce_loss, quintuplet_loss
from lavis_itm_plugins.methods.base import same_image


def mined_scores(model, batch):
    """The scores of items encoded one set at a time."""
    matcher, size = model.matcher, len(ROWS)
    encode = SimpleNamespace(
        images=[batch["image"], batch["offline_image"][:size], batch["offline_image"][size:]],
        captions=[batch["text_input"], batch["offline_text_input"][:size], batch["offline_text_input"][size:]],
    )
    first, third, fourth = (matcher.encode_images({"image": image}) for image in encode.images)
    own, other, partner = (matcher.encode_captions(texts) for texts in encode.captions)
    pairs = {
        "offline_captions": (first, other),
        "offline_images": (third, own),
        "offline_pairs": (third, other),
        "partner_pairs": (fourth, partner),
    }
    return matcher.score(first, own), {name: matcher.score(*pair).diagonal() for name, pair in pairs.items()}


@pytest.mark.parametrize(
    ("aoq", "official", "expected"),
    [
        ({}, False, {}),
        ({"cross_pair": "keep"}, True, {}),
        (
            {"alpha": 0.5, "beta": 2.0, "weight_min": 0.0, "detach_weights": True, "offline_margin": 0.1},
            False,
            {"alpha": 0.5, "beta": 2.0, "weight_min": 0.0, "detach_weights": True, "offline_margin": 0.1},
        ),
        ({"adaptive": False}, False, {"alpha": math.inf, "beta": 1.0}),
    ],
)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_the_quintuplet_loss(split, sampler, aoq, official, expected, reduction):
    model = method({"name": "triplet", "margin": 0.3, "reduction": reduction}, official, **aoq)
    batch = batch_of(split, sampler)
    parts = model.losses(batch)
    loss = sum(value for name, value in parts.items() if name.startswith("loss_"))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    scores, offline = mined_scores(model, batch)
    masks = {} if official else {"positives": same_image(batch["image_id"]), "pair_mask": batch["apart"]}
    reference = quintuplet_loss(scores, **offline, **masks, **expected, online_margin=0.3, reduction=reduction)
    torch.testing.assert_close(loss, reference, rtol=1e-10, atol=1e-12)
    for found, wanted in zip(gradients, torch.autograd.grad(reference, list(model.parameters())), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)
    assert parts["aoq_cross_pairs"].item() == pytest.approx(1 - batch["apart"].float().mean().item())


def test_the_offline_triplet_alone(split, sampler):
    model = method(adaptive=False, pairs=False)
    loss = model(batch_of(split, sampler, pairs=False))["loss"]
    scores, offline = mined_scores(model, batch_of(split, sampler))
    low = {name: torch.full_like(offline[name], -9) for name in ("offline_pairs", "partner_pairs")}
    plain = {"positives": same_image(batch_of(split, sampler)["image_id"]), "alpha": math.inf, "beta": 1.0}
    torch.testing.assert_close(loss, quintuplet_loss(scores, **(offline | low), **plain), rtol=1e-10, atol=1e-12)


def test_other_base_losses_get_offline_terms_beside_them(split, sampler):
    batch = batch_of(split, sampler)
    positives = same_image(batch["image_id"])
    model = method({"name": "infonce", "temperature": 0.1}, offline_weight=0.5)
    scores, offline = mined_scores(model, batch)
    hinges = offline_hinge_loss(scores, **offline, pair_mask=batch["apart"], reduction="mean")
    expected = infonce_loss(scores, temperature=0.1, positives=positives) + 0.5 * hinges
    torch.testing.assert_close(model(batch)["loss"], expected)
    logits = method({"name": "infonce", "temperature": 0.1}, offline="logits")
    masks = {"positives": positives, "pair_mask": batch["apart"]}
    torch.testing.assert_close(logits(batch)["loss"], offline_infonce_loss(scores, **offline, **masks, temperature=0.1))
    # hinges over all negatives have no hardest one to compare with
    parts = method({"name": "triplet", "negatives": "hardest", "warmup_epochs": 1}).losses(batch)
    plain = method({"name": "triplet", "negatives": "all"}).losses(batch)
    torch.testing.assert_close(parts["loss_base"], plain["loss_base"])
    assert parts["loss_offline"] > 0


@pytest.mark.parametrize("rows", [[5], [5, 6, 7]])
def test_batches_of_one_pair_or_one_image(split, sampler, rows):
    model = method()
    batch = items(split, sampler).__getitems__(rows)
    batch = {key: value.double() if key.endswith("image") else value for key, value in batch.items()}
    output = model({**batch, "epoch": 0})
    output["loss"].backward()
    assert output["loss"].isfinite() and all(parameter.grad.isfinite().all() for parameter in model.parameters())
