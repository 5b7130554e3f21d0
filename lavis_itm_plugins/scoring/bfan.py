"""BFAN: bidirectional focal attention (Liu et al., ACM MM 2019; github.com/CrossmodalGroup/BFAN, AOQ/BFAN)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lavis_itm_plugins.errors import unknown_name
from lavis_itm_plugins.scoring.attention import (
    Queries,
    Sources,
    affinities,
    attention_weights,
    context_cosines,
    masked_mean,
)
from lavis_itm_plugins.scoring.sets import Sets, score_in_tiles

FOCALS = ("equal", "prob")


@dataclass(frozen=True)
class _Regions:
    """A block of images in both roles."""

    sources: Sources
    queries: Queries


def bfan_scores(
    images: Tensor,
    captions: Tensor,
    lengths: Tensor,
    *,
    focal: str = "equal",
    lambda_softmax: float = 20.0,
    regions: Tensor | None = None,
    checkpoint: bool = False,
) -> Tensor:
    """Scores (I, C) in [-2, 2]: the mean cosine of words with their regions, plus that of regions with their words.

    Arguments as `scan_scores`. Attention below a threshold is dropped and the rest normed again: `focal` "equal" keeps
    weights above their mean, "prob" those with sum_j (b_i - b_j) sqrt(b_j) > 0. Where no weight lies above it (one
    word, one region, or all alike) everything is kept; the official code divides by zero there.

    Raises ItmError for shapes, numbers or names that do not fit.
    """
    if focal not in FOCALS:
        raise unknown_name("focal", focal, FOCALS)

    def focused(affinity: Tensor, sources: Sources, queries: Queries) -> Tensor:
        weights = attention_weights(affinity, sources, queries, smooth=lambda_softmax)
        weights = _focal(weights, focal, sources.mask)
        return masked_mean(context_cosines(affinity, weights, sources, queries), queries.mask)

    def score(block: _Regions, _columns: Tensor, words: Tensor) -> Tensor:
        queries = Queries.of(words)
        affinity = affinities(block.sources, queries)
        # (I, R, n, C) -> (C, n, R, I): one matrix product serves both directions
        turned = affinity.permute(3, 2, 1, 0).contiguous()
        by_words = focused(affinity, block.sources, queries)
        return by_words + focused(turned, Sources.of(words), block.queries).t()

    def both(rows: slice) -> _Regions:
        return _Regions(Sources.of(*sets.block(rows)), Queries.of(*sets.block(rows)))

    with torch.autocast(images.device.type, enabled=False):
        sets = Sets.checked(images, captions, lengths, regions)
        return score_in_tiles(sets, both, score, checkpoint=checkpoint)


def _focal(weights: Tensor, focal: str, mask: Tensor | None) -> Tensor:
    """Weights (S, n, m, Q) of the kept sources, normed to 1 over them; no gradient flows through the choice."""
    with torch.no_grad():
        kept = weights > _threshold(weights, focal, mask)
        kept |= ~kept.any(dim=1, keepdim=True)
    weights = weights * kept
    return weights / weights.sum(dim=1, keepdim=True)


def _threshold(weights: Tensor, focal: str, mask: Tensor | None) -> Tensor:
    """What a weight must exceed; masked sources have weight 0 and count for neither form."""
    if focal == "prob":
        roots = weights.sqrt()
        return (weights * roots).sum(dim=1, keepdim=True) / roots.sum(dim=1, keepdim=True)
    total = weights.sum(dim=1, keepdim=True)
    if mask is None:
        return total / weights.shape[1]
    return total / mask.sum(dim=1).to(weights.dtype)[:, None, None, None]
