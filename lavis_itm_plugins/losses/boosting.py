"""Deep Boosting Learning (DBL): a target branch must separate pairs better than an anchor branch does, by a margin.

Both losses see the two score matrices only through their difference D = target - anchor.
"""

from __future__ import annotations

from torch import Tensor

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses.hinges import REDUCTIONS, hardest_hinges, reduce_queries, summed_hinges
from lavis_itm_plugins.losses.infonce import infonce_loss
from lavis_itm_plugins.losses.scores import (
    check_choice,
    check_finite,
    check_number,
    check_scores,
    float32_island,
    surface_non_finite,
    valid_negatives,
)

FORMS = ("relative", "absolute")
NEGATIVES = ("hardest", "all")


@float32_island
def boosting_loss(
    target: Tensor,
    anchor: Tensor,
    *,
    form: str = "relative",
    margin: float = 0.2,
    beta: float = 1.0,
    gamma: float = 0.5,
    negatives: str = "hardest",
    positives: Tensor | None = None,
    reduction: str = "sum",
) -> Tensor:
    """The target must widen the anchor's gaps ("relative") or raise positives and lower negatives ("absolute").

    With D = target - anchor, M = beta * margin, D_p the query's own pair and n over its valid negatives, one query
    costs (Diao et al., Deep Boosting Learning, IEEE TIP 33, 2024, arXiv 2404.18114; the released code):
      relative: max_n [M + D_n - D_p]+
      absolute: [gamma M - D_p]+ + max_n [(1 - gamma) M + D_n]+
    The hardest negative is the one that rose most against the anchor, not the most similar one. Pairs without a
    negative keep their positive term in the absolute form, which counts it in both directions.

    Args:
        target: (B, B), image i (row) against caption j (column), in cosine units; half precision becomes float32.
        anchor: (B, B), the anchor's scores of the same pairs; detached here.
        form: "relative" | "absolute".
        margin: at least 0, in the units of the scores.
        beta: at least 0, scales the margin.
        gamma: 0 to 1, the positive pair's share of the margin in the absolute form.
        negatives: "hardest" | "all" (the sum over the negatives in place of the maximum; not in the released code).
        positives: bool (B, B), True where image ids match: such cells are never negatives; the diagonal never is.
        reduction: "sum" over the 2B queries | "mean": each direction's mean over queries with a valid negative (the
            absolute form's positive term: over B), then the two averaged.

    Returns:
        A 0-d tensor, 0 for B = 0; a target score that is not finite, anywhere, gives a loss that is not finite.

    Raises:
        ItmError: an anchor score that is not finite, wrong or different shapes, unknown option, number out of range.

    >>> import torch
    >>> anchor = torch.tensor([[0.5, 0.4], [0.3, 0.6]])
    >>> boosting_loss(anchor, anchor), boosting_loss(anchor, anchor, form="absolute")       # 2 B M: nothing gained yet
    (tensor(0.8000), tensor(0.8000))
    >>> boosting_loss(anchor + 0.3 * torch.eye(2), anchor)                     # all gaps 0.3 wider
    tensor(0.)
    """
    _check_pair(target, anchor)
    check_choice("form", form, FORMS)
    check_number("margin", margin, at_least=0)
    check_number("beta", beta, at_least=0)
    check_number("gamma", gamma, at_least=0, at_most=1)
    check_choice("negatives", negatives, NEGATIVES)
    check_choice("reduction", reduction, REDUCTIONS)
    valid = valid_negatives(target, positives)
    if not len(target):
        return target.sum()
    gain = target - anchor.detach()
    hinges = hardest_hinges if negatives == "hardest" else summed_hinges
    if form == "relative":
        loss = reduce_queries(hinges(gain, beta * margin - gain.diagonal(), valid), valid, reduction)
    else:
        rise = (gamma * beta * margin - gain.diagonal()).clamp(min=0)
        loss = reduce_queries(hinges(gain, (1 - gamma) * beta * margin, valid), valid, reduction)
        loss = loss + (2 * rise.sum() if reduction == "sum" else rise.mean())
    return surface_non_finite(loss, target)


@float32_island
def contrastive_boosting_loss(
    target: Tensor, anchor: Tensor, *, temperature: float | Tensor = 0.1, positives: Tensor | None = None
) -> Tensor:
    """InfoNCE on what the target gained over the anchor: boosting for contrastive models ("boostpro" in DBL's code).

    With z = (target - anchor) / temperature: ``mean_i(log sum_j exp z_ij - z_ii) + mean_j(log sum_i exp z_ij - z_jj)``,
    twice ``infonce_loss`` of the difference (Diao et al., IEEE TIP 33, 2024, arXiv 2404.18114; in the released code
    only, where the scale is 10).

    Args:
        target: (B, B), image i (row) against caption j (column), in cosine units; half precision becomes float32.
        anchor: (B, B), the anchor's scores of the same pairs; detached here.
        temperature: above 0; a 0-d tensor gets a gradient.
        positives: bool (B, B), True where image ids match: such cells leave the denominator; the diagonal stays.

    Returns:
        A 0-d tensor. No valid negative gives 0, B = 0 too; a target score that is not finite, anywhere, gives a loss
        that is not finite.

    Raises:
        ItmError: an anchor score that is not finite, wrong or different shapes, temperature not above 0.

    >>> import torch
    >>> anchor = torch.tensor([[0.5, 0.4], [0.3, 0.6]])
    >>> contrastive_boosting_loss(anchor, anchor)             # 2 log B: nothing gained yet
    tensor(1.3863)
    """
    _check_pair(target, anchor)
    return 2 * infonce_loss(target - anchor.detach(), temperature=temperature, positives=positives)


def _check_pair(target: Tensor, anchor: Tensor) -> None:
    check_scores(target, "target")
    check_scores(anchor, "anchor")
    if target.shape != anchor.shape:
        raise ItmError(f"anchor has shape {tuple(anchor.shape)}, target {tuple(target.shape)}; score the same pairs")
    if target.device != anchor.device:
        raise ItmError(f"anchor is on {anchor.device}; target is on {target.device}")
    check_finite(anchor, "anchor")
