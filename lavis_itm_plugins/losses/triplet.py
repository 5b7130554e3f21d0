"""Bidirectional triplet loss: hardest negative (VSE++), all negatives, soft negatives (BCLS Triplet-SN)."""

from __future__ import annotations

import torch
from torch import Tensor

from lavis_itm_plugins.losses.hinges import REDUCTIONS, hardest_hinges, reduce_queries, summed_hinges
from lavis_itm_plugins.losses.scores import (
    check_choice,
    check_number,
    check_scores,
    float32_island,
    surface_non_finite,
    valid_negatives,
)

NEGATIVES = ("hardest", "all", "soft")


@float32_island
def triplet_loss(
    scores: Tensor,
    *,
    margin: float = 0.2,
    negatives: str = "hardest",
    temperature: float = 0.01,
    positives: Tensor | None = None,
    reduction: str = "sum",
) -> Tensor:
    """Each image must score its caption above every other caption by a margin, and each caption its image.

    With s_p the score of the query's own pair and n over its valid negatives, one query costs
      hardest: max_n [margin + s_n - s_p]+             (Faghri et al., VSE++, BMVC 2018, eq. 6)
      all:     sum_n [margin + s_n - s_p]+             (the same, eq. 5)
      soft:    t log(1 + sum_n exp((s_n - s_p + margin) / t)), t = temperature     (BCLS Triplet-SN, arXiv 2210.11319)

    Args:
        scores: (B, B), image i (row) against caption j (column), in cosine units; half precision becomes float32.
        margin: at least 0, in the units of the scores.
        negatives: "hardest" | "all" | "soft".
        temperature: above 0, used by "soft" only; towards 0 "soft" becomes "hardest".
        positives: bool (B, B), True where image ids match: such cells are never negatives; the diagonal never is.
        reduction: "sum" over the 2B queries | "mean": each direction's mean over queries with a valid negative, then
            the two averaged.

    Returns:
        A 0-d tensor. No valid negative gives 0, B = 0 too; a score that is not finite, anywhere, gives a loss that is
        not finite.

    Raises:
        ItmError: wrong shape or type, unknown option, number out of range.

    >>> scores = torch.tensor([[0.9, 0.8], [0.1, 0.7]])
    >>> triplet_loss(scores, margin=0.2)                # caption 1 is too close to image 0, and image 0 to caption 1
    tensor(0.4000)
    >>> triplet_loss(scores, margin=0.2, positives=torch.ones(2, 2, dtype=torch.bool))
    tensor(0.)
    """
    check_scores(scores)
    check_number("margin", margin, at_least=0)
    check_choice("negatives", negatives, NEGATIVES)
    check_number("temperature", temperature, above=0)
    check_choice("reduction", reduction, REDUCTIONS)
    valid = valid_negatives(scores, positives)
    if not len(scores):
        return scores.sum()
    offset = margin - scores.diagonal()
    if negatives == "hardest":
        queries = hardest_hinges(scores, offset, valid)
    elif negatives == "all":
        queries = summed_hinges(scores, offset, valid)
    else:
        queries = _soft_hinges(scores, offset, valid, temperature)
    return surface_non_finite(reduce_queries(queries, valid, reduction), scores)


def _soft_hinges(scores: Tensor, offset: Tensor, valid: Tensor, temperature: float) -> Tensor:
    # Finite fill: a query whose cells are all -inf would have NaN inside its log-sum-exp's gradient.
    logits = (scores / temperature).masked_fill(~valid, torch.finfo(scores.dtype).min)
    over_negatives = torch.stack([logits.logsumexp(dim=1), logits.logsumexp(dim=0)])
    return temperature * torch.logaddexp(over_negatives + offset / temperature, logits.new_zeros(()))
