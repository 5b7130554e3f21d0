"""Scores that keep nothing: the backward pass computes pairs with a gradient again, and only those."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring.tiles import DIM, make_tile, scorer_of, tiles
from torch.nn.functional import normalize

from lavis_itm_plugins.losses import boosting_loss, infonce_loss, triplet_loss
from lavis_itm_plugins.scoring import DBLScorer, SGRAFScorer, sets, sgraf

CLOSE = {"rtol": 1e-8, "atol": 1e-10}
KINDS = ("DBL", "SAF", "SGR")


def gradients(scorer, tile, of_scores):
    """Scores, and the gradients of images, captions and weights when `of_scores` is that of the scores."""
    scorer.zero_grad()
    images, captions = tile.images.clone().requires_grad_(), tile.captions.clone().requires_grad_()
    scores = scorer(images, captions, tile.lengths, tile.regions)
    scores.backward(of_scores)
    return {"scores": scores.detach(), "images": images.grad, "captions": captions.grad} | {
        name: value.grad for name, value in scorer.named_parameters()
    }


def square_tile(size=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    counts = torch.randint(1, 5, (2, size), generator=generator).tolist()

    def sets_of(sizes):
        return [normalize(torch.randn(n, DIM, generator=generator, dtype=torch.float64), dim=1) for n in sizes]

    return make_tile(sets_of(counts[0]), sets_of(counts[1]), float("nan"))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(tile=tiles(), share=st.sampled_from([0.0, 0.1, 0.25, 0.6, 1.0]), seed=st.integers(0, 99))
def test_gradients_are_those_of_everything_kept(kind, tile, share, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = len(tile.images), len(tile.captions)
    of_scores = torch.randn(shape, generator=generator, dtype=torch.float64)
    of_scores *= torch.rand(shape, generator=generator) < share
    found, kept = (gradients(scorer_of(kind, checkpoint=how), tile, of_scores) for how in (None, False))
    torch.testing.assert_close(found, kept, **CLOSE)


@pytest.mark.parametrize("kind", ["DBL", "SGR"])
def test_training_with_hardest_negatives_computes_three_pairs_for_each_at_most(kind, monkeypatch):
    tile, seen = square_tile(14), []
    monkeypatch.setattr(sets, "_REGION_NUMBERS", 3 * 4 * DIM)
    scorer = scorer_of(kind).train()
    score = scorer.tile_scores

    def counted(tile):
        scores = score(tile)
        seen.append(scores.numel())
        return scores

    monkeypatch.setattr(scorer, "tile_scores", counted)
    scores = scorer(tile.images, tile.captions, tile.lengths, tile.regions)
    anchor = torch.rand(14, 14, generator=torch.Generator().manual_seed(0)).double()
    assert sum(seen) == 14 * 14
    for loss in (triplet_loss(scores), boosting_loss(scores, anchor)):
        seen.clear()
        loss.backward(retain_graph=True)
        assert 0 < sum(seen) <= 3 * 14
    seen.clear()
    infonce_loss(scores).backward()
    assert sum(seen) == 14 * 14


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_anywhere_is_a_zero_for_every_weight(kind):
    tile = square_tile()
    found = gradients(scorer_of(kind), tile, torch.zeros(6, 6, dtype=torch.float64))
    assert all(value is not None and not value.any() for name, value in found.items() if name != "scores")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_seen_in_the_loss_and_the_gradient(kind):
    tile, scorer = square_tile(), scorer_of(kind)
    captions = tile.captions.clone()
    captions[2, 0] = float("nan")
    loss = triplet_loss(scorer(tile.images, captions, tile.lengths, tile.regions))
    assert loss.isnan()
    loss.backward()
    assert not all(value.grad.isfinite().all() for value in scorer.parameters())


def test_hooks_run_once_and_what_needs_no_gradient_gets_none():
    tile, scorer, calls = square_tile(), scorer_of("DBL"), []
    scorer.sim_eval_w.weight.register_hook(calls.append)
    scorer.sim_tran_w.requires_grad_(False)
    images = tile.images.clone().requires_grad_()
    triplet_loss(scorer(images, tile.captions, tile.lengths, tile.regions)).backward()
    assert len(calls) == 1
    torch.testing.assert_close(calls[0], scorer.sim_eval_w.weight.grad)
    assert images.grad.any() and scorer.sim_tran_w.weight.grad is None


def test_a_weight_that_changes_before_the_backward_pass_is_an_error():
    tile, scorer = square_tile(), scorer_of("SGR")
    loss = triplet_loss(scorer(tile.images, tile.captions, tile.lengths, tile.regions))
    with torch.no_grad():
        scorer.sim_eval_w.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def wide(kind, generator):
    """A network and a batch of common sizes, small; scores spread over much of their range."""
    torch.manual_seed(0)
    scorer = DBLScorer(256, 64) if kind == "DBL" else SGRAFScorer(256, 64, module=kind, regions=9, dropout=0.0)
    torch.nn.init.normal_(scorer.sim_eval_w.weight, std=4.0 if kind == "SGR" else 0.5)
    images = normalize(torch.randn(12, 9, 256, generator=generator), dim=2)
    captions = normalize(torch.randn(12, 7, 256, generator=generator) + images[:, :7], dim=2)
    return scorer, images, captions, torch.randint(1, 8, (12,), generator=generator)


@pytest.mark.parametrize("rounding", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_scores_are_float32_and_close(kind, training, rounding):
    scorer, images, captions, lengths = wide(kind, torch.Generator().manual_seed(0))
    scorer.train(training)
    of_scores = torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    found = []
    for half in (True, False):
        scorer.zero_grad()
        ours = images.clone().requires_grad_()
        with torch.autocast("cpu", dtype=rounding, enabled=half):
            scores = scorer(ours, captions, lengths)
        scores.backward(of_scores)
        found.append((scores.detach(), ours.grad, *(value.grad for value in scorer.parameters())))
    assert found[0][0].dtype == torch.float32
    assert not found[0][0].equal(found[1][0])
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=2e-2)
    assert all(value.dtype == torch.float32 for value in found[0])
    rounded, exact = (torch.cat([value.flatten() for value in values[1:]]) for values in found)
    # the reasoning's rectifiers switch where rounding moves a number over 0
    bound = {torch.bfloat16: 0.25, torch.float16: 0.15}[rounding] if kind == "SGR" else 0.02
    assert (rounded - exact).norm() <= bound * exact.norm()


@pytest.mark.parametrize("size", [0.0, 1e-5, 1e3])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_length_are_scored_in_float16(kind, size):
    scorer, images, captions, lengths = wide(kind, torch.Generator().manual_seed(0))
    scorer.eval()
    images[0] *= size
    with torch.no_grad():
        exact = scorer(images, captions, lengths)
        with torch.autocast("cpu", dtype=torch.float16):
            scores = scorer(images, captions, lengths)
    torch.testing.assert_close(scores, exact, rtol=0, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_that_cancel_have_finite_scores_in_float16(kind):
    scorer, images, captions, lengths = wide(kind, torch.Generator().manual_seed(0))
    images[0, 1], captions[0] = -images[0, 0], 0.0
    images[0, 2:] = 0.0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        assert scorer.eval()(images, captions, lengths).isfinite().all()


@pytest.mark.parametrize(("part", "same_length"), [("sim_graph_w", True), ("t_global_w.embedding", False)])
def test_gradients_of_rounded_weights_add_up_unrounded(part, same_length, monkeypatch):
    """Of the blocks of nodes of one tile, and of the captions of each length."""
    monkeypatch.setattr(sgraf, "_NODE_NUMBERS", 1)
    scorer, images, captions, lengths = wide("SGR", torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scorer(images, captions, lengths.clamp(min=7) if same_length else lengths).square().sum().backward()
    grads = {name: value.grad for name, value in scorer.named_parameters() if part in name and name.endswith("weight")}
    assert len(grads) == 3
    for name, grad in grads.items():
        assert not grad.equal(grad.bfloat16().float()), name


@pytest.mark.parametrize("kind", ["SAF", "SGR"])
def test_layers_of_whole_images_and_captions_follow_autocast(kind):
    scorer, images, captions, lengths = wide(kind, torch.Generator().manual_seed(0))
    seen = []
    for module in (scorer.v_global_w, scorer.t_global_w):
        for layer in module.modules():
            if isinstance(layer, torch.nn.Linear) and layer.out_features > 1:
                layer.register_forward_hook(lambda _layer, _given, result: seen.append(result.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scorer(images, captions, lengths)
    assert len(seen) >= 4 and set(seen) == {torch.bfloat16}
    seen.clear()
    scorer(images, captions, lengths)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_double_precision_alone(kind):
    tile, scorer = square_tile(), scorer_of(kind)
    plain = scorer(tile.images, tile.captions, tile.lengths, tile.regions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            scorer(tile.images, tile.captions, tile.lengths, tile.regions), plain, rtol=0, atol=0
        )
