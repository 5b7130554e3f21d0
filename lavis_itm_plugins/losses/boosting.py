"""Deep Boosting Learning (DBL): a target branch must separate pairs better than an anchor branch does, by a margin.

Both losses see the two score matrices only through their difference D = target - anchor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lavis_itm_plugins.losses.hinges import REDUCTIONS, hardest_hinges, reduce_queries, summed_hinges
from lavis_itm_plugins.losses.infonce import infonce_loss
from lavis_itm_plugins.losses.scores import (
    check_choice,
    check_number,
    check_pair,
    float32_island,
    surface_non_finite,
    valid_negatives,
)

FORMS = ("relative", "absolute")
SCHEDULES = ("none", "linear", "tanh")
HINGES: dict[str, Callable[[Tensor, Tensor | float, Tensor], Tensor]] = {
    "hardest": hardest_hinges,
    "all": summed_hinges,
}


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
    margin_schedule: str = "none",
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
            Always square, the pairs on the diagonal: a rectangular matrix (a queue, several captions of an image) is
            an error, since a caption without its own image in the batch has no gap to widen.
        anchor: (B, B), the anchor's scores of the same pairs; detached here.
        form: "relative" | "absolute".
        margin: at least 0, in the units of the scores.
        beta: at least 0, scales the margin.
        gamma: 0 to 1, the positive pair's share of the margin in the absolute form.
        negatives: "hardest" | "all" (the sum over the negatives in place of the maximum; not in the released code).
        positives: bool (B, B), True where image ids match: such cells are never negatives; the diagonal never is.
        reduction: "sum" over the 2B queries | "mean": each direction's mean over queries with a valid negative (the
            absolute form's positive term: over B), then the two averaged.
        margin_schedule: "none" | "linear" | "tanh": where the anchor leaves less room than the margin, ask for no more
            than the room (`attainable_margin`), for scores in [-1, 1].

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
    check_pair(target, anchor)
    check_choice("form", form, FORMS)
    check_number("margin", margin, at_least=0)
    check_number("beta", beta, at_least=0)
    check_number("gamma", gamma, at_least=0, at_most=1)
    check_choice("negatives", negatives, HINGES)
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("margin_schedule", margin_schedule, SCHEDULES)
    valid = valid_negatives(target, positives)
    if not len(target):
        return target.sum()
    anchor = anchor.detach()
    boost = _relative if form == "relative" else partial(_absolute, gamma=gamma)
    hinges, rise = boost(target - anchor, anchor, valid, beta * margin, margin_schedule, negatives)
    loss = reduce_queries(hinges, valid, reduction) + (2 * rise.sum() if reduction == "sum" else rise.mean())
    return surface_non_finite(loss, target)


def attainable_margin(margin: float, room: Tensor, schedule: str) -> Tensor | float:
    """What can be asked of a score that has only `room` left: ``min(margin, room)`` or ``margin tanh(room / margin)``.

    `room`, any shape: how far the anchor's score or gap can still move within [-1, 1]. From the closed forms that the
    released code (DBL, OSS/loss.py) computes in comments and never uses; whether the paper's "soft adaptation" is one
    of them is not known to us.

    >>> attainable_margin(0.2, torch.tensor([1.0, 0.1]), "linear")
    tensor([0.2000, 0.1000])
    """
    if schedule == "none" or not margin:
        return margin
    return room.clamp(max=margin) if schedule == "linear" else margin * (room / margin).tanh()


def _relative(
    gain: Tensor, anchor: Tensor, valid: Tensor, margin: float, schedule: str, negatives: str
) -> tuple[Tensor, Tensor]:
    """Hinges (2, B) over each query's gaps; nothing is asked of the positive pair alone."""
    own, nothing = gain.diagonal(), gain.new_zeros(1)
    if schedule == "none":
        return HINGES[negatives](gain, margin - own, valid), nothing
    # a gap of the anchor depends on whose query it is, and so does the room that is left to a gap of at most 2
    by_image, by_caption = (
        attainable_margin(margin, 2 - (own_scores - anchor), schedule)
        for own_scores in (anchor.diagonal()[:, None], anchor.diagonal())
    )
    rows, columns = (HINGES[negatives](gain + room, -own, valid) for room in (by_image, by_caption))
    return torch.stack([rows[0], columns[1]]), nothing


def _absolute(
    gain: Tensor, anchor: Tensor, valid: Tensor, margin: float, schedule: str, negatives: str, *, gamma: float
) -> tuple[Tensor, Tensor]:
    """Hinges (2, B) over each query's negatives, and each positive pair's hinge (B,), which counts once a direction."""
    upwards = attainable_margin(gamma * margin, 1 - anchor.diagonal(), schedule)
    downwards = attainable_margin((1 - gamma) * margin, 1 + anchor, schedule)
    rise = (upwards - gain.diagonal()).clamp(min=0)
    if schedule == "none":
        return HINGES[negatives](gain, downwards, valid), rise
    return HINGES[negatives](gain + downwards, 0.0, valid), rise


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
    check_pair(target, anchor)
    return 2 * infonce_loss(target - anchor.detach(), temperature=temperature, positives=positives)


@torch.no_grad()
@float32_island
def boosting_statistics(
    target: Tensor,
    anchor: Tensor,
    *,
    form: str = "relative",
    margin: float = 0.2,
    beta: float = 1.0,
    gamma: float = 0.5,
    positives: Tensor | None = None,
) -> dict[str, Tensor]:
    """Whether the boost is at work: what positives and the mined negatives gained, and the share of active hinges.

    Arguments as in `boosting_loss`, for its hardest negatives and constant margin. Gives 0-d tensors:
      positive_gain:    the mean of D_p
      negative_gain:    the mean of each query's largest D_n
      active_hinges:    the share of queries (absolute form: of both kinds of hinge) that ask for more
      masked_negatives: how many cells off the diagonal are no negatives

    >>> boosting_statistics(torch.eye(2), torch.zeros(2, 2))["active_hinges"]
    tensor(0.)
    """
    valid = valid_negatives(target, positives)
    gain = target.detach() - anchor.detach()
    own, asked = gain.diagonal(), torch.stack([valid.any(dim=1), valid.any(dim=0)])
    masked = gain.masked_fill(~valid, -torch.inf)
    mined = torch.stack([masked.amax(dim=1), masked.amax(dim=0)])
    if form == "relative":
        active = (mined + beta * margin > own)[asked]
    else:
        active = torch.cat([(mined[asked] + (1 - gamma) * beta * margin > 0), gamma * beta * margin > own])
    return {
        "positive_gain": own.mean(),
        "negative_gain": _mean_or_zero(mined[asked]),
        "active_hinges": _mean_or_zero(active.to(gain.dtype)),
        "masked_negatives": (~valid).sum().to(gain.dtype) - len(gain),
    }


def _mean_or_zero(values: Tensor) -> Tensor:
    return values.sum() / max(len(values), 1)
