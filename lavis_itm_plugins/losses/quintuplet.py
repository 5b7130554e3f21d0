"""Adaptive Offline Quintuplet loss (AOQ): online hard negatives, weighted by how much harder the mined ones are."""

from __future__ import annotations

import torch
from torch import Tensor

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses.hinges import REDUCTIONS
from lavis_itm_plugins.losses.scores import (
    check_choice,
    check_number,
    check_scores,
    float32_island,
    surface_non_finite,
    valid_negatives,
)


@float32_island
def quintuplet_loss(
    scores: Tensor,
    *,
    offline_captions: Tensor,
    offline_images: Tensor,
    offline_pairs: Tensor,
    partner_pairs: Tensor,
    online_margin: float = 0.2,
    offline_margin: float = 0.0,
    alpha: float = 0.3,
    beta: float = 1.5,
    positives: Tensor | None = None,
    pair_mask: Tensor | None = None,
    weight_min: float | None = None,
    detach_weights: bool = False,
    reduction: str = "sum",
) -> Tensor:
    """A pair must score above its hardest negatives of the batch and above four pairs made of mined negatives.

    With I1, T1 the pair i, p = s(I1, T1), T3 a mined negative caption of I1, I3 a mined negative image of T1, I4 the
    image of T3, T4 a caption of I3, n the hardest online score and o the offline score of one direction, the pair costs
      sum over both directions of (beta - (o - n) / alpha) [online_margin + n - p]+ + [offline_margin + o - p]+
      + [offline_margin + s(I3, T3) - p]+ + [offline_margin + s(I4, T4) - p]+
    (Chen, Deng, Luo, Adaptive Offline Quintuplet Loss, ECCV 2020, arXiv 2003.03669; the released code). Officially the
    weights have gradients and no lower limit: with o - n > alpha beta a weight is negative.

    Args:
        scores: (B, B), image i (row) against caption j (column), in cosine units; half precision becomes float32.
        offline_captions: (B,), s(I1, T3).
        offline_images: (B,), s(I3, T1).
        offline_pairs: (B,), s(I3, T3).
        partner_pairs: (B,), s(I4, T4).
        online_margin: at least 0, in the units of the scores.
        offline_margin: at least 0, in the units of the scores.
        alpha: above 0; the smaller, the more the weights vary.
        beta: at least 0, the weight where online and offline negatives are equally hard.
        positives: bool (B, B), True where image ids match: such cells are never online negatives; the diagonal never
            is. A query without a valid one has no online term.
        pair_mask: bool (B,), False drops the last two terms of that pair (I3 and T3 match).
        weight_min: lower limit of the weights, or None.
        detach_weights: True keeps gradients out of the weights.
        reduction: "sum" over pairs and terms | "mean": the sum / B.

    Returns:
        A 0-d tensor, 0 for B = 0; a score that is not finite, anywhere, gives a loss that is not finite.

    Raises:
        ItmError: wrong shape or type, unknown option, number out of range.

    >>> scores = torch.tensor([[0.9, 0.8], [0.1, 0.7]])
    >>> mined = torch.tensor([0.8, 0.6])
    >>> offline = {"offline_captions": mined, "offline_images": mined, "offline_pairs": mined, "partner_pairs": mined}
    >>> quintuplet_loss(scores, **offline)      # 1.5 times the online hinge 0.1, 1.5 + 0.2 / 0.3 times the online 0.3
    tensor(0.8000)
    >>> quintuplet_loss(scores, **offline, offline_margin=0.2)                        # all eight offline hinges at 0.1
    tensor(1.6000)
    """
    names = ("offline_captions", "offline_images", "offline_pairs", "partner_pairs")
    rows = (offline_captions, offline_images, offline_pairs, partner_pairs)
    check_scores(scores)
    for name, row in zip(names, rows, strict=True):
        _check_vector(name, row, scores)
    if pair_mask is not None:
        _check_vector("pair_mask", pair_mask, scores, mask=True)
    _check_options(online_margin, offline_margin, alpha, beta, weight_min, reduction)
    valid = valid_negatives(scores, positives)
    offline = torch.stack(rows)
    if not len(scores):
        return scores.sum() + offline.sum()
    own = scores.diagonal()
    online, known = _hardest_scores(scores, valid)
    weights = beta - (offline[:2] - online) / alpha
    if detach_weights:
        weights = weights.detach()
    if weight_min is not None:
        weights = weights.clamp(min=weight_min)
    online_terms = (weights * (online_margin + online - own).clamp(min=0)).masked_fill(~known, 0)
    offline_terms = (offline_margin + offline - own).clamp(min=0)
    if pair_mask is not None:
        offline_terms = torch.cat([offline_terms[:2], offline_terms[2:].masked_fill(~pair_mask, 0)])
    loss = online_terms.sum() + offline_terms.sum()
    return surface_non_finite(loss if reduction == "sum" else loss / len(scores), scores, offline)


def _hardest_scores(scores: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    # Both (2, B), captions of each image, then images of each caption: highest score (0 without any), any at all.
    masked, known = scores.masked_fill(~valid, -torch.inf), torch.stack([valid.any(dim=1), valid.any(dim=0)])
    highest = torch.stack([masked.max(dim=1).values, masked.max(dim=0).values])
    return highest.masked_fill(~known, 0), known


def _check_vector(name: str, vector: Tensor, scores: Tensor, *, mask: bool = False) -> None:
    fits = isinstance(vector, Tensor) and (vector.dtype == torch.bool if mask else vector.is_floating_point())
    if not fits:
        found = str(vector.dtype) if isinstance(vector, Tensor) else type(vector).__name__
        wanted = "torch.bool" if mask else "floating-point"
        raise ItmError(f"{name} is {found}; give a {wanted} tensor (B,), one value per pair")
    if vector.shape != scores.shape[:1]:
        raise ItmError(f"{name} has shape {tuple(vector.shape)}; the scores have {tuple(scores.shape)}")
    if vector.device != scores.device:
        raise ItmError(f"{name} is on {vector.device}; the scores are on {scores.device}")


def _check_options(
    online_margin: float, offline_margin: float, alpha: float, beta: float, weight_min: float | None, reduction: str
) -> None:
    check_number("online_margin", online_margin, at_least=0)
    check_number("offline_margin", offline_margin, at_least=0)
    check_number("alpha", alpha, above=0)
    check_number("beta", beta, at_least=0)
    if weight_min is not None:
        check_number("weight_min", weight_min)
    check_choice("reduction", reduction, REDUCTIONS)
