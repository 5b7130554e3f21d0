"""What DBL is compared with: losses that ask the target to be like the anchor, where boosting asks it to be better.

Soft cross-entropy and both Kullback-Leibler divergences of the batch's score distributions, and plain regression.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from lavis_itm_plugins.losses.hinges import REDUCTIONS, reduce_queries
from lavis_itm_plugins.losses.scores import (
    check_choice,
    check_pair,
    check_temperature,
    float32_island,
    surface_non_finite,
    valid_negatives,
)

# per query, from log-probabilities q of the target and p of the anchor
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda q, p: -(p.exp() * q),
    "kl": lambda q, p: p.exp() * (p - q),
    "reverse_kl": lambda q, p: q.exp() * (q - p),
}
FORMS = (*DIVERGENCES, "scores")


@float32_island
def distillation_loss(
    target: Tensor,
    anchor: Tensor,
    *,
    form: str = "cross_entropy",
    temperature: float | Tensor = 0.1,
    positives: Tensor | None = None,
    reduction: str = "sum",
) -> Tensor:
    """The target's scores of each query should be distributed over the batch as the anchor's are.

    With q and p the softmax of target and anchor over one query's candidates at the same temperature, a query costs
      cross_entropy: -sum p log q          ("dino" in DBL's code: soft cross-entropy, Hinton et al., 2015)
      kl:            sum p log(p / q)      ("dml": Zhang et al., Deep Mutual Learning, CVPR 2018; same gradient)
      reverse_kl:    sum q log(q / p)      ("dinopp", without its epsilon of 1e-8)
      scores:        the mean smooth L1 distance of the scores themselves, without temperature   ("rkd")
    Diao et al., IEEE TIP 33, 2024, arXiv 2404.18114; only in the released code, with means over B and other factors:
    dino, dml and dinopp are our sum / B, rkd is ten times our mean.

    Args:
        target: (B, B), image i (row) against caption j (column), in cosine units; half precision becomes float32.
        anchor: (B, B), the anchor's scores of the same pairs; detached here.
        form: "cross_entropy" | "kl" | "reverse_kl" | "scores".
        temperature: above 0, of both distributions; a 0-d tensor gets a gradient. Not used by "scores".
        positives: bool (B, B), True where image ids match: such cells leave both distributions; the diagonal stays.
            "scores" counts every cell, these too: two captions of an image have a score to keep.
        reduction: "sum" over the 2B queries | "mean": each direction's mean over queries with a valid negative, then
            the two averaged; as in `boosting_loss`, so that equal weights compare like with like.

    Returns:
        A 0-d tensor, 0 for B = 0; a target score that is not finite, anywhere, gives a loss that is not finite.

    Raises:
        ItmError: an anchor score that is not finite, wrong or different shapes, unknown option, wrong temperature.

    >>> anchor = torch.tensor([[0.5, 0.4], [0.3, 0.6]])
    >>> distillation_loss(anchor, anchor, form="kl")
    tensor(0.)
    """
    check_pair(target, anchor)
    check_choice("form", form, FORMS)
    check_temperature(temperature)
    check_choice("reduction", reduction, REDUCTIONS)
    valid = valid_negatives(target, positives)
    if not len(target):
        return target.sum()
    anchor, candidates = anchor.detach(), valid.clone().fill_diagonal_(True)
    if form == "scores":
        distances = smooth_l1_loss(target, anchor, reduction="none")
        queries, counted = torch.stack([distances.mean(dim=1), distances.mean(dim=0)]), candidates
    else:
        directions = (divergences(form, target, anchor, temperature, candidates, dim) for dim in (1, 0))
        queries, counted = torch.stack(list(directions)), valid
    return surface_non_finite(reduce_queries(queries, counted, reduction), target)


def divergences(
    form: str, target: Tensor, anchor: Tensor, temperature: float | Tensor, candidates: Tensor, dim: int
) -> Tensor:
    """One divergence for each query, over the `candidates` (bool, of the scores' shape) along `dim`."""
    # a finite fill: minus infinity times a probability of 0 would be NaN, in the loss or in its gradient
    fill = torch.finfo(target.dtype).min / 4
    anchor = anchor.to(target.dtype)
    q, p = ((scores / temperature).masked_fill(~candidates, fill).log_softmax(dim=dim) for scores in (target, anchor))
    return DIVERGENCES[form](q, p).masked_fill(~candidates, 0).sum(dim=dim)
