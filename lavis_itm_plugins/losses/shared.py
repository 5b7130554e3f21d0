"""Losses over a batch that shares what was mined for it: every mined item is a candidate of every pair (ours).

Of a batch of B pairs and N mined captions and images: scores (B, B) of the batch, ``mined_captions`` (B, N), image i
against mined caption n, ``mined_images`` (N, B), mined image n against caption j, and the masks ``caption_negatives``
and ``image_negatives`` of their shapes, True where the mined item is not of the pair's own image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses.distillation import divergences
from lavis_itm_plugins.losses.scores import (
    check_finite,
    check_pair,
    check_scores,
    check_temperature,
    float32_island,
    surface_non_finite,
    valid_negatives,
)


@float32_island
def shared_infonce_loss(
    scores: Tensor,
    *,
    mined_captions: Tensor,
    mined_images: Tensor,
    caption_negatives: Tensor,
    image_negatives: Tensor,
    temperature: float | Tensor = 0.05,
    positives: Tensor | None = None,
) -> Tensor:
    """``infonce_loss`` whose sums over negatives also hold all mined items of the batch, whoever they were mined for.

    No paper's loss: the larger batch that AOQ's candidates allow, with negatives that are hard for somebody in it.

    Args:
        scores: (B, B), image i (row) against caption j (column); half precision becomes float32.
        mined_captions: (B, N), image i against mined caption n.
        mined_images: (N, B), mined image n against caption j.
        caption_negatives: bool (B, N), True where the mined caption is not one of image i.
        image_negatives: bool (N, B), True where the mined image is not that of caption j.
        temperature, positives: as in ``infonce_loss``.

    Returns:
        A 0-d tensor; 0 for B = 0, and ``infonce_loss`` where nothing mined is a negative. A score that is not finite,
        anywhere, gives a loss that is not finite.

    Raises:
        ItmError: wrong shape, type or device, temperature not above 0.

    >>> scores, mined, yes = torch.eye(2), torch.full((2, 1), -99.0), torch.ones(2, 1, dtype=torch.bool)
    >>> more = {"mined_captions": mined, "mined_images": mined.T, "caption_negatives": yes, "image_negatives": yes.T}
    >>> shared_infonce_loss(scores, **more, temperature=1.0)            # as infonce_loss: the mined ones are no match
    tensor(0.3133)
    """
    check_scores(scores)
    check_temperature(temperature)
    _check_both("mined", (mined_captions, mined_images), (caption_negatives, image_negatives), scores)
    valid = valid_negatives(scores, positives).fill_diagonal_(True)
    if not len(scores):
        return scores.sum() + mined_captions.sum() + mined_images.sum()
    online = scores.masked_fill(~valid, -torch.inf) / temperature
    captions, images = (
        mined.masked_fill(~negatives, -torch.inf) / temperature
        for mined, negatives in ((mined_captions, caption_negatives), (mined_images, image_negatives))
    )
    by_image = torch.cat([online, captions], dim=1).logsumexp(dim=1)
    by_caption = torch.cat([online, images], dim=0).logsumexp(dim=0)
    loss = (by_image + by_caption - 2 * online.diagonal()).mean() / 2
    return surface_non_finite(loss, scores, *(mined for mined in (mined_captions, mined_images) if mined.numel()))


@float32_island
def shared_distillation_loss(
    scores: Tensor,
    anchor: Tensor,
    *,
    mined_captions: Tensor,
    mined_images: Tensor,
    anchor_captions: Tensor,
    anchor_images: Tensor,
    caption_negatives: Tensor,
    image_negatives: Tensor,
    temperature: float | Tensor = 0.05,
    positives: Tensor | None = None,
) -> Tensor:
    """Each query's scores of the batch and the mined items should be distributed as the anchor's are.

    The soft cross-entropy of ``distillation_loss``, mean over the 2B queries, over each query's own item and all its
    negatives: what the model that mined them thinks half right stays half right. No paper's loss; its kin, by the
    abstract: a teacher's scores as fine-grained labels, Hofstätter et al., arXiv 2010.02666.

    Args:
        scores, mined_captions, mined_images, caption_negatives, image_negatives: as in ``shared_infonce_loss``.
        anchor, anchor_captions, anchor_images: the anchor's scores of the same pairs; detached here.
        temperature: above 0, of both distributions.
        positives: as in ``infonce_loss``.

    Returns:
        A 0-d tensor; 0 for B = 0. A target score that is not finite, anywhere, gives a loss that is not finite.

    Raises:
        ItmError: as ``shared_infonce_loss``; an anchor's score that is not finite.

    >>> scores, mined, yes = torch.eye(2), torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool)
    >>> masks = {"caption_negatives": yes, "image_negatives": yes.T}
    >>> more = {"mined_captions": mined, "mined_images": mined.T, "anchor_captions": mined, "anchor_images": mined.T}
    >>> shared_distillation_loss(scores, scores, **more, **masks, temperature=1.0)      # the entropy of e, 1, 1
    tensor(0.9753)
    """
    check_pair(scores, anchor)
    check_temperature(temperature)
    for name, both in (("mined", (mined_captions, mined_images)), ("anchor", (anchor_captions, anchor_images))):
        _check_both(name, both, (caption_negatives, image_negatives), scores)
    check_finite(anchor_captions, "anchor_captions")
    check_finite(anchor_images, "anchor_images")
    valid = valid_negatives(scores, positives).fill_diagonal_(True)
    if not len(scores):
        return scores.sum() + mined_captions.sum() + mined_images.sum()

    def costs(mined: Tensor, own: Tensor, negatives: Tensor, dim: int) -> Tensor:
        target, teacher = torch.cat([scores, mined], dim=dim), torch.cat([anchor, own], dim=dim).detach()
        candidates = torch.cat([valid, negatives], dim=dim)
        return divergences("cross_entropy", target, teacher, temperature, candidates, dim)

    by_image = costs(mined_captions, anchor_captions, caption_negatives, dim=1)
    by_caption = costs(mined_images, anchor_images, image_negatives, dim=0)
    loss = (by_image + by_caption).mean() / 2
    return surface_non_finite(loss, scores, *(mined for mined in (mined_captions, mined_images) if mined.numel()))


def _check_both(name: str, both: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor], scores: Tensor) -> None:
    """Raise ItmError unless `NAME_captions` (B, N), `NAME_images` (N, B) and their masks fit the scores (B, B)."""
    for axis, kind in enumerate(("captions", "images")):
        _check_mined(f"{name}_{kind}", both[axis], masks[axis], scores, axis=axis)


def _check_mined(name: str, mined: Tensor, negatives: Tensor, scores: Tensor, *, axis: int) -> None:
    """`axis`: where the pairs of the batch are."""
    for told, value in ((name, mined), (f"the mask of {name}", negatives)):
        if not isinstance(value, Tensor):
            raise ItmError(f"{told} is a {type(value).__name__}; give a torch tensor")
        if value.device != scores.device:
            raise ItmError(f"{told} is on {value.device}; the scores are on {scores.device}")
    if mined.ndim != 2 or mined.shape[axis] != len(scores) or not mined.is_floating_point():
        wanted = "(B, N)" if axis == 0 else "(N, B)"
        raise ItmError(
            f"{name} is {mined.dtype} of shape {tuple(mined.shape)} beside {len(scores)} pairs; give floating-point "
            f"scores {wanted} of every pair with each mined item"
        )
    if negatives.dtype != torch.bool or negatives.shape != mined.shape:
        raise ItmError(
            f"the mask of {name} is {negatives.dtype} of shape {tuple(negatives.shape)}; give torch.bool of the shape "
            f"of its scores, {tuple(mined.shape)}"
        )
