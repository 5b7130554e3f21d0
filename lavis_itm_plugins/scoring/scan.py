"""SCAN: stacked cross attention (Lee et al., ECCV 2018; github.com/kuanghuei/SCAN)."""

from __future__ import annotations

import torch
from torch import Tensor

from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.scoring.attention import (
    FEATURE_NORMS,
    Queries,
    Sources,
    affinities,
    attention_weights,
    context_cosines,
    masked_mean,
)
from lavis_itm_plugins.scoring.sets import Sets, score_in_tiles

DIRECTIONS = ("t2i", "i2t")
AGGREGATES = ("mean", "max", "sum", "lse")
_OTHER_NAMES = {"avg": "mean", "logsumexp": "lse"}


def scan_scores(
    images: Tensor,
    captions: Tensor,
    lengths: Tensor,
    *,
    direction: str = "t2i",
    aggregate: str = "mean",
    lambda_softmax: float = 9.0,
    lambda_lse: float = 6.0,
    feature_norm: str = "clipped_l2norm",
    regions: Tensor | None = None,
    checkpoint: bool = False,
) -> Tensor:
    """Scores (I, C) of images (I, R, D) against captions (C, T, D), differentiable.

    Args:
        images, captions: unit vectors of regions and words; what lies behind their real items does not matter.
        lengths: (C,) real words of each caption.
        direction: "t2i": each word attends to the regions; "i2t": each region to the words.
        aggregate: over the cosines of words (t2i) or regions (i2t) with their contexts: "mean", "max", "sum", or
            "lse", log(sum(exp(lambda_lse * cosine))) / lambda_lse, which grows with their number.
        lambda_softmax: inverse temperature of the attention; the paper has 9 for t2i, 4 for i2t.
        feature_norm: how affinities are normed first, over the words of a caption (t2i) or the regions (i2t).
        regions: (I,) real regions of each image, or a bool mask (I, R); all of them when not given.
        checkpoint: compute the attention again in the backward pass instead of keeping it.

    Raises:
        ItmError: shapes, numbers or names that do not fit.

    >>> one = torch.eye(2)[None]
    >>> scan_scores(one, one, torch.tensor([2]), lambda_softmax=100.0)
    tensor([[1.]])
    """
    aggregate = _checked(direction, aggregate, feature_norm, lambda_lse)

    def cosines(sources: Sources, queries: Queries) -> Tensor:
        affinity = affinities(sources, queries)
        weights = attention_weights(affinity, sources, queries, feature_norm=feature_norm, smooth=lambda_softmax)
        return _aggregated(context_cosines(affinity, weights, sources, queries), queries.mask, aggregate, lambda_lse)

    def words_to_regions(block: Sources, _columns: Tensor, words: Tensor) -> Tensor:
        return cosines(block, Queries.of(words))

    def regions_to_words(block: Queries, _columns: Tensor, words: Tensor) -> Tensor:
        return cosines(Sources.of(words), block).t()

    with torch.autocast(images.device.type, enabled=False):
        sets = Sets.checked(images, captions, lengths, regions)
        if direction == "t2i":
            return score_in_tiles(
                sets, lambda rows: Sources.of(*sets.block(rows)), words_to_regions, checkpoint=checkpoint
            )
        return score_in_tiles(sets, lambda rows: Queries.of(*sets.block(rows)), regions_to_words, checkpoint=checkpoint)


def _checked(direction: str, aggregate: str, feature_norm: str, lambda_lse: float) -> str:
    """The aggregate by its first name; raises ItmError for a name or a number that does not fit."""
    aggregate = _OTHER_NAMES.get(aggregate.lower(), aggregate.lower())
    for kind, name, known in (
        ("direction", direction, DIRECTIONS),
        ("aggregate", aggregate, AGGREGATES),
        ("feature_norm", feature_norm, FEATURE_NORMS),
    ):
        if name not in known:
            raise unknown_name(kind, name, known)
    if lambda_lse <= 0:
        raise ItmError(f"lambda_lse is {lambda_lse}; give a number above 0")
    return aggregate


def _aggregated(cosines: Tensor, mask: Tensor | None, aggregate: str, lambda_lse: float) -> Tensor:
    """Cosines (S, m, Q) and mask (s, m, Q) -> (S, Q)."""
    if aggregate == "mean":
        return masked_mean(cosines, mask)
    if aggregate == "sum":
        return (cosines if mask is None else cosines.masked_fill(~mask, 0.0)).sum(dim=1)
    if mask is not None:
        cosines = cosines.masked_fill(~mask, float("-inf"))
    if aggregate == "max":
        return cosines.amax(dim=1)
    return (cosines * lambda_lse).logsumexp(dim=1) / lambda_lse
