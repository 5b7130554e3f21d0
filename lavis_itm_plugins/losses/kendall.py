"""Kendall ranking loss on continuous labels (BCLS): a query's scores must rank its candidates as its labels do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Integral

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses.scores import (
    check_choice,
    check_finite,
    check_number,
    check_scores,
    float32_island,
    surface_non_finite,
)

SPLITS = ("halves", "all", "ends", "anchor", "none")
MININGS = ("hardest", "mean")
SURROGATES = ("hinge", "softplus", "tanh")
PAIR_BUDGET = 2**24  # pairs held at a time, whatever B is: 64 MiB per float32 table

_Cost = Callable[[Tensor], Tensor]
_Losses = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_Pick = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]  # of the hardest pairs, from scores and labels


@float32_island
def kendall_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    window: int = 16,
    stride: int = 8,
    split: str = "halves",
    mining: str = "hardest",
    surrogate: str = "hinge",
    margin: float = 0.0,
    temperature: float = 0.05,
    gap: float = 0.0,
) -> Tensor:
    """A candidate with a higher label than another must score higher, for every image and for every caption.

    Reconstructed from the abstract of BCLS (Li et al., arXiv 2210.11319), whose equations were not at hand, and from
    the released code of the same authors; no line of the paper fixes the choices below. The candidates of a query are
    ranked by label and cut into windows of ranks. In a window, pairs (a, b) with y_a - y_b > gap cost phi(s_a - s_b):
      hinge:    [margin - d]+
      softplus: t log(1 + exp((margin - d) / t)), t = temperature
      tanh:     (1 - tanh((d - margin) / t)) / 2, towards t = 0 the share of pairs in the wrong order
    A query costs the mean over its windows, a direction the mean over its queries, each over those with such a pair;
    the result is the mean of the two directions. Hinges with margin 0 vanish on constant scores: add a triplet loss.

    Args:
        scores: (B, B), image i (row) against caption j (column), in cosine units; half precision becomes float32.
        labels: (B, B), the relevance of caption j for image i; a caption is ranked by its column. No gradient.
        window: ranks per window, at least 1. At most B are used; the last window ends at the last rank.
        stride: ranks from one window to the next, at least 1.
        split: which pairs of a window count. "halves": upper against lower half (the middle of an odd window rests) |
            "all" | "ends": first against last rank | "none": all, the one window being all ranks |
            "anchor": for each candidate, it against all ranks.
        mining: "hardest": the pair of a window that costs most | "mean": the mean over its pairs.
        surrogate: "hinge" | "softplus" | "tanh".
        margin: at least 0, in the units of the scores.
        temperature: above 0, used by "softplus" and "tanh".
        gap: at least 0, in the units of the labels; equal labels never make a pair.

    Returns:
        A 0-d tensor. No pair gives 0, B = 0 too; a score that is not finite, anywhere, gives a loss that is not finite.

    Raises:
        ItmError: wrong shape or type, a label that is not finite, unknown option, number out of range.

    >>> scores = torch.tensor([[0.9, 0.1, 0.4], [0.0, 0.8, 0.2], [0.3, 0.2, 0.7]])
    >>> kendall_loss(scores, scores.exp(), split="all")                                    # the same order everywhere
    tensor(0.)
    >>> kendall_loss(scores, -scores, split="none", mining="mean", surrogate="tanh", temperature=1e-3)
    tensor(1.)
    """
    check_scores(scores)
    _check_labels(scores, labels)
    _check_options(window, stride, split, mining, surrogate, margin, temperature, gap)
    if not len(scores):
        return scores.sum()
    above, below = (ranks.to(scores.device) for ranks in _pairs_of_ranks(len(scores), window, stride, split))
    if not above.numel():
        return surface_non_finite((0 * scores).sum(), scores)
    cost = partial(_cost, surrogate=surrogate, margin=margin, temperature=temperature)
    per_query, pairs = _per_query(above, below, gap, cost, split, mining)
    queries, targets = torch.cat([scores, scores.T]), torch.cat([labels, labels.T]).detach()
    losses, valid = _in_chunks(per_query, queries, targets, pairs)
    losses, valid = losses.view(2, -1), valid.view(2, -1)
    return surface_non_finite((losses.sum(dim=1) / valid.sum(dim=1).clamp(min=1)).mean(), scores)


def _check_labels(scores: Tensor, labels: Tensor) -> None:
    check_scores(labels, "labels")
    if labels.shape != scores.shape:
        raise ItmError(f"labels has shape {tuple(labels.shape)}; the scores have {tuple(scores.shape)}")
    if labels.device != scores.device:
        raise ItmError(f"labels is on {labels.device}; the scores are on {scores.device}")
    check_finite(labels, "labels")


def _check_options(
    window: int, stride: int, split: str, mining: str, surrogate: str, margin: float, temperature: float, gap: float
) -> None:
    for name, count in (("window", window), ("stride", stride)):
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
            raise ItmError(f"{name} is {count!r}; give a whole number of at least 1")
    check_choice("split", split, SPLITS)
    check_choice("mining", mining, MININGS)
    check_choice("surrogate", surrogate, SURROGATES)
    check_number("margin", margin, at_least=0)
    check_number("temperature", temperature, above=0)
    check_number("gap", gap, at_least=0)


def _pairs_of_ranks(size: int, window: int, stride: int, split: str) -> tuple[Tensor, Tensor]:
    """Ranks (G, p) and (G, r): group g holds the pairs of a rank of ``above[g]`` with a rank of ``below[g]``.

    A group is a window; with "anchor", a candidate.
    """
    ranks = torch.arange(size)
    if split == "anchor":
        return ranks[:, None], ranks.expand(size, size)
    width = size if split == "none" else min(window, size)
    starts = torch.arange(0, size - width + 1, stride)
    if starts[-1] + width < size:
        starts = torch.cat([starts, starts.new_tensor([size - width])])
    windows = starts[:, None] + ranks[:width]
    if split == "ends":
        return windows[:, :1], windows[:, -1:]
    half = width // 2
    return (windows[:, :half], windows[:, width - half :]) if split == "halves" else (windows, windows)


def _per_query(above: Tensor, below: Tensor, gap: float, cost: _Cost, split: str, mining: str) -> tuple[_Losses, int]:
    """The function for ``_in_chunks``, and how many pairs it holds per query."""
    pairs = above.shape[1] * below.numel()
    if mining == "mean":
        return partial(_mean_losses, above=above, below=below, gap=gap, cost=cost), pairs
    if split == "anchor":
        return partial(_hardest_losses, pick=partial(_hardest_below, gap=gap), cost=cost), len(above)
    pick = partial(_hardest_pairs, above=above, below=below, gap=gap)
    return partial(_hardest_losses, pick=pick, cost=cost), pairs


def _in_chunks(per_query: _Losses, scores: Tensor, labels: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """``per_query`` on as many queries (rows) at a time as PAIR_BUDGET allows; backward builds each chunk anew.

    It gives the loss of each query (Q,) and whether it has a pair (Q,), from (Q, B) scores and labels.
    """
    chunk = max(1, PAIR_BUDGET // pairs)
    if chunk >= len(scores):
        return per_query(scores, labels)
    parts = [
        checkpoint(per_query, *rows, use_reentrant=False, preserve_rng_state=False)
        for rows in zip(torch.split(scores, chunk), torch.split(labels, chunk), strict=True)
    ]
    losses, valid = zip(*parts, strict=True)
    return torch.cat(losses), torch.cat(valid)


def _by_label(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    order = labels.argsort(dim=1, descending=True, stable=True)
    return scores.gather(1, order), labels.gather(1, order)


def _mean_losses(
    scores: Tensor, labels: Tensor, *, above: Tensor, below: Tensor, gap: float, cost: _Cost
) -> tuple[Tensor, Tensor]:
    scores, labels = _by_label(scores, labels)
    pairs = _differences(labels, above, below) > gap
    costs = cost(_differences(scores, above, below)).masked_fill(~pairs, 0)
    counts = pairs.sum(dim=(2, 3))
    return _over_groups(costs.sum(dim=(2, 3)) / counts.clamp(min=1), counts > 0)


def _hardest_losses(scores: Tensor, labels: Tensor, *, pick: _Pick, cost: _Cost) -> tuple[Tensor, Tensor]:
    scores, labels = _by_label(scores, labels)
    with torch.no_grad():
        higher, lower, valid = pick(scores, labels)
    return _over_groups(cost(scores.gather(1, higher) - scores.gather(1, lower)), valid)


def _over_groups(losses: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    return losses.masked_fill(~valid, 0).sum(dim=1) / valid.sum(dim=1).clamp(min=1), valid.any(dim=1)


def _differences(values: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """(Q, G, p, r): the value of each rank above minus that of each rank below; ``values`` (Q, B) in rank order."""
    return values[:, above].unsqueeze(3) - values[:, below].unsqueeze(2)


def _hardest_pairs(
    scores: Tensor, labels: Tensor, *, above: Tensor, below: Tensor, gap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The two ranks of each group's pair with the smallest difference, (Q, G) each, and whether it has one, (Q, G)."""
    groups = torch.arange(len(above), device=above.device)
    higher = above[groups, scores[:, above].argmin(dim=2)]
    lower = below[groups, scores[:, below].argmax(dim=2)]
    # Where even the closest labels are far enough apart, every pair counts and lowest against highest score is it.
    valid = labels[:, above[:, -1]] - labels[:, below[:, 0]] > gap
    rows = (~valid).any(dim=1).nonzero()[:, 0]
    if len(rows):
        pairs = _differences(labels[rows], above, below) > gap
        differences = _differences(scores[rows], above, below).masked_fill_(~pairs, torch.inf)
        picked = differences.flatten(2).argmin(dim=2)
        higher[rows] = above[groups, picked.div(below.shape[1], rounding_mode="floor")]
        lower[rows] = below[groups, picked % below.shape[1]]
        valid[rows] = pairs.flatten(2).any(dim=2)
    return higher, lower, valid


def _hardest_below(scores: Tensor, labels: Tensor, *, gap: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same where each rank is a group with all ranks: its partner scores highest of those far enough below it."""
    size = scores.shape[1]
    first, end = torch.zeros_like(labels, dtype=torch.long), torch.full_like(labels, size, dtype=torch.long)
    for _ in range(size.bit_length()):  # bisection for the first rank far enough below, ``size`` where there is none
        middle, searching = (first + end) // 2, first < end
        apart = labels - labels.gather(1, middle.clamp(max=size - 1)) > gap
        first, end = torch.where(searching & ~apart, middle + 1, first), torch.where(searching & apart, middle, end)
    highest_from = size - 1 - scores.flip(1).cummax(dim=1).indices.flip(1)
    ranks = torch.arange(size, device=scores.device).expand_as(first)
    return ranks, highest_from.gather(1, first.clamp(max=size - 1)), first < size


def _cost(difference: Tensor, *, surrogate: str, margin: float, temperature: float) -> Tensor:
    shortfall = margin - difference
    if surrogate == "hinge":
        return shortfall.clamp(min=0)
    if surrogate == "softplus":
        return temperature * torch.logaddexp(shortfall / temperature, shortfall.new_zeros(()))
    return (1 + torch.tanh(shortfall / temperature)) / 2
