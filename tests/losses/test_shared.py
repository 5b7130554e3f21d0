"""The losses that share what was mined against plain ones over the batch and the mined items together."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import distillation_loss, infonce_loss, shared_distillation_loss, shared_infonce_loss

IDS = torch.tensor([0, 1, 0, 2, 3])
POSITIVES = IDS[:, None] == IDS
VALID = ~POSITIVES | torch.eye(5, dtype=torch.bool)


def random_scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 4


def shared_inputs(mined: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Mined items of which some are no negative of some pair."""
    generator = torch.Generator().manual_seed(seed)
    scores = [random_scores(*shape, seed=seed + 5 * i) for i, shape in enumerate(((5, mined), (mined, 5)))]
    masks = [torch.rand(part.shape, generator=generator) > 0.3 for part in scores]
    names = ("mined_captions", "mined_images", "caption_negatives", "image_negatives")
    return dict(zip(names, [*scores, *masks], strict=True))


def anchors(mined: int, seed: int = 7) -> dict[str, torch.Tensor]:
    shapes = {"anchor": (5, 5), "anchor_captions": (5, mined), "anchor_images": (mined, 5)}
    return {name: random_scores(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


def logits(online, mined, negatives, allowed=VALID) -> torch.Tensor:
    """Of each row's candidates, at temperature 0.2; -inf where there is none."""
    return torch.cat([online.where(allowed, -torch.inf), mined.where(negatives, -torch.inf)], dim=1) / 0.2


@pytest.mark.parametrize("mined", [0, 1, 7])
def test_infonce_equals_that_of_a_larger_batch(mined):
    """As cross-entropies over the batch and the mined items together."""
    scores, more = random_scores(5, 5), shared_inputs(mined)
    by_image = logits(scores, more["mined_captions"], more["caption_negatives"])
    by_caption = logits(scores.T, more["mined_images"].T, more["image_negatives"].T, VALID.T)
    expected = sum(cross_entropy(rows, torch.arange(5)) for rows in (by_image, by_caption)) / 2
    found = shared_infonce_loss(scores, **more, temperature=0.2, positives=POSITIVES)
    torch.testing.assert_close(found, expected)
    if not mined:
        torch.testing.assert_close(found, infonce_loss(scores, temperature=0.2, positives=POSITIVES))


@settings(deadline=None, max_examples=25)
@given(mined=st.integers(0, 6), seed=st.integers(0, 1000))
def test_distillation_equals_a_loop_over_queries(mined, seed):
    """As cross-entropies with the anchor's shares of the candidates as labels."""
    scores, more, anchor = random_scores(5, 5, seed=seed), shared_inputs(mined, seed), anchors(mined, seed + 50)
    target = [(scores, more["mined_captions"]), (scores.T, more["mined_images"].T)]
    labels = [(anchor["anchor"], anchor["anchor_captions"]), (anchor["anchor"].T, anchor["anchor_images"].T)]
    masks, total = [more["caption_negatives"], more["image_negatives"].T], 0.0
    for own, opinion, negatives in zip(target, labels, masks, strict=True):
        for i in range(5):
            mine, theirs = (
                logits(*(part[i : i + 1] for part in pair), negatives[i : i + 1], VALID[i : i + 1])[0]
                for pair in (own, opinion)
            )
            there = mine.isfinite()
            total += cross_entropy(mine[there], theirs[there].softmax(dim=0))
    found = shared_distillation_loss(scores, **anchor, **more, temperature=0.2, positives=POSITIVES)
    torch.testing.assert_close(found, total / 10)
    if not mined:
        plain = distillation_loss(scores, anchor["anchor"], temperature=0.2, positives=POSITIVES, reduction="mean")
        torch.testing.assert_close(found, plain)


def test_distillation_pulls_towards_the_anchor_which_gets_no_gradient():
    more, anchor = shared_inputs(4), anchors(4)
    leaves = {name: more[name].clone().requires_grad_() for name in ("mined_captions", "mined_images")}
    scores = random_scores(5, 5).requires_grad_()
    loss = partial(shared_distillation_loss, temperature=0.3, positives=POSITIVES)
    assert torch.autograd.gradcheck(
        lambda first, *rest: loss(first, **{**more, **dict(zip(leaves, rest, strict=True))}, **anchor),
        [scores, *leaves.values()],
    )
    followed = {name: value.clone().requires_grad_() for name, value in anchor.items()}
    loss(scores, **{**more, **leaves}, **followed).backward()
    assert scores.grad.abs().sum() > 0 and all(value.grad is None for value in followed.values())
    # nothing is left to learn from an anchor that is the target
    same = [value.detach().clone().requires_grad_() for value in anchor.values()]
    own = {"mined_captions": same[1], "mined_images": same[2]}
    for gradient in torch.autograd.grad(loss(same[0], **{**more, **own}, **anchor), same):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("loss", [shared_infonce_loss, partial(shared_distillation_loss, **anchors(7))])
def test_items_that_do_not_fit_are_refused_and_bad_scores_are_seen(loss):
    scores, more = random_scores(5, 5), shared_inputs(7)
    for name in ("mined_captions", "mined_images"):
        bad = more[name].clone()
        bad[0, 0] = torch.nan
        hidden = {key: torch.zeros_like(value) if value.dtype == torch.bool else value for key, value in more.items()}
        assert not loss(scores, **{**hidden, name: bad}).isfinite()
    with pytest.raises(ItmError, match=r"mined_captions is torch.float64 of shape \(4, 7\) beside 5 pairs"):
        loss(scores, **{**more, "mined_captions": more["mined_captions"][:4]})
    wrong = [
        ({"mined_captions": more["mined_captions"].tolist()}, "mined_captions is a list; give a torch tensor"),
        ({"mined_images": more["mined_images"][None]}, r"mined_images is torch.float64 of shape \(1, 7, 5\) beside"),
        ({"mined_images": more["mined_images"].T}, r"mined_images .* of shape \(5, 7\) beside 5 pairs; .* \(N, B\)"),
        ({"image_negatives": more["mined_images"]}, r"the mask of mined_images is torch.float64 of shape \(7, 5\)"),
        ({"caption_negatives": None}, "the mask of mined_captions is a NoneType"),
        (
            {"image_negatives": more["image_negatives"].to("meta")},
            "the mask of mined_images is on meta; the scores are",
        ),
    ]
    for given_, said in wrong:
        with pytest.raises(ItmError, match=said):
            loss(scores, **{**more, **given_})


def test_an_anchor_that_does_not_fit_is_refused():
    scores, more, anchor = random_scores(5, 5), shared_inputs(7), anchors(7)
    wrong = [
        ({"anchor_captions": anchor["anchor_captions"][:, :3]}, r"the mask of anchor_captions .* of shape \(5, 7\)"),
        ({"anchor": anchor["anchor"][:4, :4]}, r"anchor has shape \(4, 4\), target \(5, 5\)"),
        *(({name: anchor[name] * torch.inf}, f"{name} .* not finite") for name in anchor),
    ]
    for given_, said in wrong:
        with pytest.raises(ItmError, match=said):
            shared_distillation_loss(scores, **{**anchor, **given_}, **more)


def test_empty_batches_and_half_precision():
    nothing = {name: torch.zeros(0, 0) for name in ("mined_captions", "mined_images")}
    masks = {name: torch.zeros(0, 0, dtype=torch.bool) for name in ("caption_negatives", "image_negatives")}
    empty = {name: torch.zeros(0, 0) for name in anchors(0)}
    assert shared_distillation_loss(torch.zeros(0, 0), **empty, **nothing, **masks) == 0
    assert shared_infonce_loss(torch.zeros(0, 0), **nothing, **masks) == 0
    given_ = {**shared_inputs(3), **anchors(3)}
    single = {name: value.float() if name in anchors(3) else value for name, value in given_.items()}
    whole = shared_distillation_loss(random_scores(5, 5), **given_)
    torch.testing.assert_close(shared_distillation_loss(random_scores(5, 5), **single), whole, rtol=1e-6, atol=0)
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in given_.items()}
    found = shared_distillation_loss(random_scores(5, 5).bfloat16(), **half)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), shared_distillation_loss(random_scores(5, 5), **given_), rtol=0.05, atol=0
    )
