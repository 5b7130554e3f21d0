"""SCAN and BFAN against their definitions, pair by pair: no padding, neighbour or tiling changes a score."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring.tiles import Tile, make_tile, pair_attention, pair_cosines, tiles

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.scoring import bfan_scores, scan_scores, sets
from lavis_itm_plugins.scoring.attention import FEATURE_NORMS

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def pair_scan(regions, words, direction, aggregate, feature_norm):
    queries, sources = (words, regions) if direction == "t2i" else (regions, words)
    cosines = pair_cosines(queries, pair_attention(queries, sources, feature_norm, 9.0)[1])
    if aggregate == "lse":
        return (cosines * 6.0).exp().sum().log() / 6.0
    return {"mean": cosines.mean(), "max": cosines.max(), "sum": cosines.sum()}[aggregate]


def pair_bfan(regions, words, focal):
    total = 0.0
    for queries, sources in ((words, regions), (regions, words)):
        weights, _ = pair_attention(queries, sources, "clipped_l2norm", 20.0)
        if focal == "equal":
            excess = weights * weights.shape[1] - weights.sum(dim=1, keepdim=True)
        else:
            excess = ((weights[:, :, None] - weights[:, None, :]) * weights[:, None, :].sqrt()).sum(dim=2)
        # weights that are equal but for rounding count as equal
        kept = excess > 1e-12
        kept[~kept.any(dim=1)] = True
        weights = weights * kept / (weights * kept).sum(dim=1, keepdim=True)
        total = total + pair_cosines(queries, weights @ sources).mean()
    return total


def pair_by_pair(tile: Tile, score) -> torch.Tensor:
    rows = range(len(tile.images))
    return torch.stack([torch.stack([score(*tile.pair(i, c)) for c in range(len(tile.captions))]) for i in rows])


@settings(max_examples=40)
@given(
    tiles(),
    st.sampled_from(["t2i", "i2t"]),
    st.sampled_from(["mean", "max", "sum", "lse"]),
    st.sampled_from(FEATURE_NORMS),
)
def test_scan_is_its_definition_for_each_pair_alone(tile, direction, aggregate, feature_norm):
    images, captions = tile.images.clone().requires_grad_(), tile.captions.clone().requires_grad_()
    kinds = {"direction": direction, "aggregate": aggregate, "feature_norm": feature_norm}
    scores = scan_scores(images, captions, tile.lengths, regions=tile.regions, **kinds)
    expected = pair_by_pair(tile, lambda *pair: pair_scan(*pair, direction, aggregate, feature_norm))
    torch.testing.assert_close(scores, expected, **CLOSE)
    scores.sum().backward()
    assert images.grad.isfinite().all() and captions.grad.isfinite().all()
    behind = torch.arange(captions.shape[1])[None] >= tile.lengths[:, None]
    assert not captions.grad[behind].any()


@settings(max_examples=25)
@given(tiles(), st.sampled_from(["equal", "prob"]))
def test_bfan_is_its_definition_for_each_pair_alone(tile, focal):
    images, captions = tile.images.clone().requires_grad_(), tile.captions.clone().requires_grad_()
    scores = bfan_scores(images, captions, tile.lengths, focal=focal, regions=tile.regions)
    torch.testing.assert_close(scores, pair_by_pair(tile, lambda *pair: pair_bfan(*pair, focal)), rtol=1e-6, atol=1e-6)
    scores.sum().backward()
    assert images.grad.isfinite().all() and captions.grad.isfinite().all()


@pytest.fixture
def tile():
    generator = torch.Generator().manual_seed(3)

    def random(*sizes):
        return [torch.randn(size, 6, generator=generator, dtype=torch.float64) for size in sizes]

    return make_tile(random(3, 5, 2, 4, 5), random(4, 2, 4, 1, 6, 2, 4), 7.0)


SCORERS = {
    "t2i": scan_scores,
    "i2t": lambda *given, **more: scan_scores(*given, direction="i2t", aggregate="lse", **more),
    "bfan": bfan_scores,
}


@pytest.mark.parametrize("score", SCORERS.values(), ids=SCORERS)
def test_small_tiles_and_recomputation_change_nothing(tile, score, monkeypatch):
    def run(**how):
        images, captions = tile.images.clone().requires_grad_(), tile.captions.clone().requires_grad_()
        scores = score(images, captions, tile.lengths, regions=tile.regions, **how)
        (scores * torch.arange(scores.numel()).view_as(scores)).sum().backward()
        return scores.detach(), images.grad, captions.grad

    whole = run()
    monkeypatch.setattr(sets, "_REGION_NUMBERS", 70)
    monkeypatch.setattr(sets, "_ATTENTION_CELLS", 50)
    for how in ({}, {"checkpoint": True}):
        for found, expected in zip(run(**how), whole, strict=True):
            torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("score", SCORERS.values(), ids=SCORERS)
def test_a_region_mask_leaves_out_what_is_not_at_the_end(tile, score):
    mask = torch.tensor([[True, False, True, False, False]] + [[True] * 5] * 4)
    masked = score(tile.images, tile.captions, tile.lengths, regions=mask)
    alone = score(tile.images[:1, [0, 2]], tile.captions, tile.lengths)
    torch.testing.assert_close(masked[:1], alone, **CLOSE)
    plain = score(tile.images[1:], tile.captions, tile.lengths)
    torch.testing.assert_close(masked[1:], plain, **CLOSE)


@pytest.mark.parametrize("score", SCORERS.values(), ids=SCORERS)
def test_half_precision_is_widened_and_autocast_is_switched_off(tile, score):
    images, captions = tile.images.to(torch.bfloat16), tile.captions.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = score(images, captions, tile.lengths, regions=tile.regions)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, score(images.float(), captions.float(), tile.lengths, regions=tile.regions))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"direction": "t2t"}, 'unknown direction "t2t"; did you mean t2i'),
        ({"aggregate": "meen"}, 'unknown aggregate "meen"; did you mean mean'),
        ({"feature_norm": "l1norm"}, 'unknown feature_norm "l1norm"; did you mean'),
        ({"lambda_lse": 0.0}, "lambda_lse is 0.0; give a number above 0"),
        ({"lengths": torch.tensor([7] * 7)}, "lengths holds 7, but there are 6 places"),
        ({"lengths": torch.tensor([4, 2, 4, 0, 6, 2, 4])}, "lengths: row 3 has nothing real in it"),
        ({"lengths": torch.ones(6)}, r"lengths is torch.float32 of shape \(6,\); give whole numbers \(7,\)$"),
        ({"regions": torch.ones(5, 4, dtype=torch.bool)}, r"give whole numbers \(5,\) or a bool mask \(5, 5\)"),
        ({"captions": torch.zeros(7, 6, 5)}, r"images have shape \(5, 5, 6\), captions \(7, 6, 5\)"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(tile, change, sentence):
    given = {"images": tile.images, "captions": tile.captions, "lengths": tile.lengths} | change
    with pytest.raises(ItmError, match=sentence):
        scan_scores(**given)


def test_an_unknown_focal_is_said_in_a_sentence(tile):
    with pytest.raises(ItmError, match='unknown focal "equl"; did you mean equal'):
        bfan_scores(tile.images, tile.captions, tile.lengths, focal="equl")


def test_no_images_or_captions_give_an_empty_matrix(tile):
    assert scan_scores(tile.images[:0], tile.captions, tile.lengths).shape == (0, 7)
    assert bfan_scores(tile.images, tile.captions[:0], tile.lengths[:0]).shape == (5, 0)
