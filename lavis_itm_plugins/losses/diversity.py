"""Contrastive loss against a dictionary, its negatives weighted by how diverse they are (CODER, reconstructed)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lavis_itm_plugins.losses.diversity_checks import (
    check_embeddings,
    check_form,
    check_valid,
    check_weighting,
)
from lavis_itm_plugins.losses.scores import float32_island, surface_non_finite

LEAST_SPREAD = 1e-3  # spreads below are taken for this, so that equal similarities get equal weights
LARGEST_EXPONENT = 5.0  # of a weight before it is normalised


@float32_island
def diversity_weights(
    similarities: Tensor, valid: Tensor, *, kind: str = "std", beta: float = 0.5, temperature: float | Tensor = 0.05
) -> Tensor:
    """Weights of the negatives, uneven for a query whose negatives differ, even for one whose negatives look alike.

    Reconstructed from the abstract of CODER (Wang et al., ECCV 2022, arXiv 2208.09843): the formula of the paper was
    not at hand. With m and d mean and standard deviation of the query's valid similarities s, and D the mean of d over
    queries with at least two, w is proportional to exp(u), u clipped to [-5, 5] (not for "adnce"):
      std:     u = beta (s - m) / D
      none:    u = 0
      iso:     u = beta (clip(d / D, 0.5, 2) - 1) (s - m) / temperature
      entropy: u = beta (1 - H / log N) (s - m) / d, H the entropy of the softmax of s / temperature over N negatives
      adnce:   u = -(s - 0.7)^2 / 2                              (after Wu et al., ADNCE, NeurIPS 2023)

    Args:
        similarities: (B, M), query i against negative j; half precision becomes float32.
        valid: bool (B, M), True where j is a negative of query i.
        kind: "std" | "none" | "iso" | "entropy" | "adnce".
        beta: strength; 0 gives equal weights, except with "adnce", which has none.
        temperature: above 0, used by "iso" and "entropy".

    Returns:
        (B, M) without gradient: mean 1 over the valid negatives of each query, 0 elsewhere. Similarities of a query
        that are not finite give it weights that are not finite.

    Raises:
        ItmError: wrong shape or type, unknown kind, number out of range.

    >>> valid = torch.tensor([[True, True, True], [True, True, False]])
    >>> diversity_weights(torch.tensor([[0.9, 0.1, 0.5], [0.3, 0.3, 0.9]]), valid)
    tensor([[2.1736, 0.1877, 0.6387],
            [1.0000, 1.0000, 0.0000]])
    """
    check_valid(similarities, valid)
    check_weighting(kind, beta, temperature)
    keep, similarities = valid.to(similarities.dtype), similarities.masked_fill(~valid, 0)
    return _log_weights(_exponents(similarities, keep, kind, beta, temperature), keep).exp()


@float32_island
def diversity_contrastive_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    valid: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    form: str = "nce",
    kind: str = "std",
    beta: float = 0.5,
    slope: float = 90.0,
    offset: float = 0.5,
    spread: float | Tensor | None = None,
) -> Tensor:
    """Each query must be closer to its key than to the negatives of a dictionary, weighted by ``diversity_weights``.

    Reconstructed, as the weights are (CODER, arXiv 2208.09843). One direction; with p = <query, key>, s over the valid
    negatives, w their weights, a query costs
      nce: log(exp(p / t) + sum w exp(s / t)) - p / t, t = temperature
      lse: log(1 + sum w exp(slope (s - offset))) / slope - log(1 + max(0, p))                 (after HAL, AAAI 2020)
    and the loss is the mean over the queries. In the weights, "lse" takes 1 / slope for the temperature.

    Args:
        query: (B, D), normalised; the only tensor that gets a gradient (and a 0-d temperature); half precision becomes
            float32.
        key: (B, D), the positive of each query, in the other modality.
        negatives: (M, D), of the key's modality: keys of this batch, then the dictionary.
        valid: bool (B, M), True where j is a negative of query i: slot filled and another image.
        temperature: above 0, used by "nce" only.
        form: "nce" | "lse".
        kind, beta: see ``diversity_weights``.
        slope: above 0, used by "lse" only.
        offset: finite, used by "lse" only.
        spread: mean over the queries of all ranks of the standard deviation of their negatives' similarities
            (``negative_spreads``); None takes it from these queries.

    Returns:
        A 0-d tensor; 0 for B = 0. With "nce" a query without a negative costs 0. A value that is not finite, in a slot
        that is not valid too, gives a loss that is not finite.

    Raises:
        ItmError: wrong shape or type, unknown option, number out of range.

    >>> query, key, negatives = torch.eye(3)[:2], torch.eye(3)[:2], torch.eye(3)[1:]
    >>> valid = torch.tensor([[True, True], [False, True]])
    >>> diversity_contrastive_loss(query, key, negatives, valid, temperature=1.0, kind="none")
    tensor(0.4324)
    """
    check_embeddings(query, key, negatives)
    similarities, own = query @ negatives.detach().T, (query * key.detach()).sum(dim=1)
    options: dict[str, Any] = {"temperature": temperature, "form": form, "kind": kind, "beta": beta}
    return weighted_contrast(own, similarities, valid, slope=slope, offset=offset, spread=spread, **options)


@float32_island
def weighted_contrast(
    own: Tensor,
    similarities: Tensor,
    valid: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    form: str = "nce",
    kind: str = "std",
    beta: float = 0.5,
    slope: float = 90.0,
    offset: float = 0.5,
    spread: float | Tensor | None = None,
) -> Tensor:
    """``diversity_contrastive_loss`` from similarities: to the own key (B,), and to the negatives (B, M).

    A gradient reaches whatever the similarities were made of, so keys of the online encoders learn too.

    >>> own, similarities = torch.tensor([0.9]), torch.tensor([[0.5, 0.1]])
    >>> weighted_contrast(own, similarities, torch.tensor([[True, True]]), temperature=0.1, kind="none")
    tensor(0.0185)
    """
    check_weighting(kind, beta, temperature)
    check_form(form, slope, offset, spread)
    check_valid(similarities, valid)
    if not len(own):
        return own.sum()
    sharpness = 1 / temperature if form == "nce" else slope
    logits = sharpness * (similarities if form == "nce" else similarities - offset)
    keep = valid.to(logits.dtype)
    exponents = None if kind == "none" else _exponents(similarities, keep, kind, beta, 1 / sharpness, spread)
    rest = (logits + (_penalties(keep) if exponents is None else _log_weights(exponents, keep))).logsumexp(dim=1)
    if form == "nce":
        losses = torch.logaddexp(sharpness * own, rest) - sharpness * own
    else:
        losses = torch.logaddexp(rest, rest.new_zeros(())) / slope - own.clamp(min=0).log1p()
    return surface_non_finite(losses.mean(), own, *([similarities] if similarities.shape[1] else []))


@torch.no_grad()
def negative_spreads(similarities: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean and standard deviation (dividing by the number) of each query's valid similarities, (B, 1) each.

    For ``spread`` over several ranks, divide the ranks' summed deviations by their summed number of queries, both over
    queries with at least two negatives.

    >>> negative_spreads(torch.tensor([[0.25, 0.75, 9.0]]), torch.tensor([[True, True, False]]))
    (tensor([[2]]), tensor([[0.5000]]), tensor([[0.2500]]))
    """
    keep = valid.to(similarities.dtype)
    counts, means, spreads = _spreads(similarities, keep)
    return counts.long(), means, spreads


# Masks are products and sums of float32 tensors here: over a dictionary of thousands, filling by a bool mask takes
# several times as long. What is not finite in a slot that is not valid then gives NaN, which the loss shall be anyway.


def _spreads(similarities: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts = keep.sum(dim=1, keepdim=True)
    means = (similarities * keep).sum(dim=1, keepdim=True) / counts.clamp(min=1)
    squares = (similarities - means).mul_(keep).square_().sum(dim=1, keepdim=True)
    return counts, means, (squares / counts.clamp(min=1)).sqrt()


def _penalties(keep: Tensor) -> Tensor:
    """0 for a valid negative, else -1e30, whose exponential is 0 beside any logit. Finite: a query without a valid one
    would become NaN, or have NaN inside its log-sum-exp's gradient."""
    return (keep - 1) * 1e30


@torch.no_grad()
def _log_weights(exponents: Tensor, keep: Tensor) -> Tensor:
    """Logarithms of the weights proportional to exp(exponents), (B, M); -1e30 where not valid."""
    counts, penalties = keep.sum(dim=1, keepdim=True).clamp(min=1), _penalties(keep)
    return (exponents + penalties).log_softmax(dim=1).add_(counts.log()).add_(penalties)


@torch.no_grad()
def _exponents(
    similarities: Tensor,
    keep: Tensor,
    kind: str,
    beta: float,
    temperature: float | Tensor,
    spread: float | Tensor | None = None,
) -> Tensor:
    if kind == "none":
        return torch.zeros_like(similarities)
    if kind == "adnce":
        return -(similarities - 0.7).square() / 2
    counts, means, spreads = _spreads(similarities, keep)
    centred = beta * (similarities - means)
    if kind == "entropy":
        unevenness = 1 - _evenness(similarities / temperature, keep, counts)
        exponents = unevenness * centred / spreads.clamp(min=LEAST_SPREAD)
    else:
        if spread is None:
            several = counts >= 2
            spread = spreads.masked_fill(~several, 0).sum() / several.sum().clamp(min=1)
        typical = torch.as_tensor(spread, dtype=spreads.dtype, device=spreads.device).clamp(min=LEAST_SPREAD)
        sharper = 1 / typical if kind == "std" else ((spreads / typical).clamp(0.5, 2) - 1) / temperature
        exponents = sharper * centred
    return exponents.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)


def _evenness(logits: Tensor, keep: Tensor, counts: Tensor) -> Tensor:
    """Entropy of the softmax over each query's valid logits, divided by its largest value; 1 for one negative."""
    logs = (logits + _penalties(keep)).log_softmax(dim=1)
    entropy = -(logs.exp() * logs * keep).sum(dim=1, keepdim=True)
    return torch.where(counts > 1, entropy / counts.clamp(min=2).log(), 1)
