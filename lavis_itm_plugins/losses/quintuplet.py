"""Adaptive Offline Quintuplet loss (AOQ): online hard negatives, weighted by how much harder the mined ones are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lavis_itm_plugins.losses.hinges import REDUCTIONS
from lavis_itm_plugins.losses.offline import offline_hinges, stacked_offline
from lavis_itm_plugins.losses.scores import (
    check_choice,
    check_number,
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
        alpha: above 0; the smaller, the more the weights vary; with infinity every weight is beta.
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
    offline = stacked_offline(scores, offline_captions, offline_images, offline_pairs, partner_pairs, pair_mask)
    _check_options(online_margin, offline_margin, alpha, beta, weight_min, reduction)
    valid = valid_negatives(scores, positives)
    if not len(scores):
        return scores.sum() + offline.sum()
    own = scores.diagonal()
    online, known = hardest_scores(scores, valid)
    weights = beta - (offline[:2] - online) / alpha
    if detach_weights:
        weights = weights.detach()
    if weight_min is not None:
        weights = weights.clamp(min=weight_min)
    online_terms = (weights * (online_margin + online - own).clamp(min=0)).masked_fill(~known, 0)
    loss = online_terms.sum() + offline_hinges(own, offline, offline_margin, pair_mask).sum()
    return surface_non_finite(loss if reduction == "sum" else loss / len(scores), scores, offline)


@torch.no_grad()
def quintuplet_statistics(
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
) -> dict[str, Tensor]:
    """What is worth watching in ``quintuplet_loss`` of the same arguments, as 0-d tensors without gradients.

    ``offline_over_online``: mean of o - n, how much harder mined negatives are; ``offline_above``: share of o that beat
    their positive pair; ``weight`` and ``weight_negative``: mean weight, share below 0; ``active_online``,
    ``active_offline``, ``active_pairs``: shares of hinges above 0.

    >>> mined = torch.tensor([0.8, 0.6])
    >>> offline = {"offline_captions": mined, "offline_images": mined, "offline_pairs": mined, "partner_pairs": mined}
    >>> quintuplet_statistics(torch.tensor([[0.9, 0.8], [0.1, 0.7]]), **offline)["active_online"]
    tensor(0.5000)
    """
    offline = stacked_offline(scores, offline_captions, offline_images, offline_pairs, partner_pairs, pair_mask)
    own = scores.diagonal()
    online, known = hardest_scores(scores, valid_negatives(scores, positives))
    weights = beta - (offline[:2] - online) / alpha
    hinges = offline_hinges(own, offline, offline_margin, pair_mask)
    values = {
        "offline_over_online": (offline[:2] - online)[known],
        "offline_above": offline[:2] > own,
        "weight": weights[known],
        "weight_negative": weights[known] < 0,
        "active_online": (online_margin + online > own) & known,
        "active_offline": hinges[:2] > 0,
        "active_pairs": hinges[2:] > 0,
    }
    return {name: value.float().mean() if value.numel() else value.float().sum() for name, value in values.items()}


def hardest_scores(scores: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Both (2, B), captions of each image, then images of each caption: highest score (0 without any), any at all."""
    masked, known = scores.masked_fill(~valid, -torch.inf), torch.stack([valid.any(dim=1), valid.any(dim=0)])
    highest = torch.stack([masked.max(dim=1).values, masked.max(dim=0).values])
    return highest.masked_fill(~known, 0), known


def _check_options(
    online_margin: float, offline_margin: float, alpha: float, beta: float, weight_min: float | None, reduction: str
) -> None:
    check_number("online_margin", online_margin, at_least=0)
    check_number("offline_margin", offline_margin, at_least=0)
    if alpha != math.inf:
        check_number("alpha", alpha, above=0)
    check_number("beta", beta, at_least=0)
    if weight_min is not None:
        check_number("weight_min", weight_min)
    check_choice("reduction", reduction, REDUCTIONS)
