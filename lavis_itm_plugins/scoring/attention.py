"""Cross attention between every image and every caption of a tile, without a vector of size D for any pair.

For unit vectors the context of a query is c = sum_s b_s v_s over its sources, so that with the affinities A_s = v_s . q
and the Gram matrix G_st = v_s . v_t both parts of the cosine need numbers only:

    q . c = sum_s b_s A_s        |c|^2 = b^T G b

Lee et al., Stacked Cross Attention, ECCV 2018, equations 1-8 (github.com/kuanghuei/SCAN); the Gram form is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

FEATURE_NORMS = ("clipped_l2norm", "l2norm", "clipped", "no_norm", "softmax")
_SLOPE = 0.1


@dataclass(frozen=True)
class Sources:
    """What is attended to: `vectors` (S, n, D), `mask` (S, n) or None, `gram` (S, n, n)."""

    vectors: Tensor
    mask: Tensor | None
    gram: Tensor

    @classmethod
    def of(cls, vectors: Tensor, mask: Tensor | None = None) -> Sources:
        """With the Gram matrix of each set."""
        return cls(vectors, mask, vectors @ vectors.transpose(1, 2))


@dataclass(frozen=True)
class Queries:
    """What attends: `vectors` (s, m, Q, D), the first item of every set first; `mask` (s, m, Q) or None, `norms` alike.

    s is 1 where the same Q sets attend to all sources; with `apart` each source has a query set of its own, and Q is 1.
    """

    vectors: Tensor
    mask: Tensor | None
    norms: Tensor

    @classmethod
    def of(cls, vectors: Tensor, mask: Tensor | None = None, *, apart: bool = False) -> Queries:
        """Of sets (Q, m, D) and their mask (Q, m); `apart`: the sets of as many sources, one each."""
        if apart:
            first, mask = vectors.unsqueeze(2), None if mask is None else mask.unsqueeze(2)
        else:
            first, mask = vectors.transpose(0, 1).contiguous()[None], None if mask is None else mask.t()[None]
        return cls(first, mask, torch.linalg.vector_norm(first, dim=-1))


def affinities(sources: Sources, queries: Queries) -> Tensor:
    """Dot products (S, n, m, Q). The long axis Q is last: all sums of attention run over n or m."""
    (n_sets, n, dim), (_, m, n_queries, _) = sources.vectors.shape, queries.vectors.shape
    items = queries.vectors.flatten(1, 2)
    if len(items) == 1:
        product = sources.vectors.reshape(-1, dim) @ items[0].t()
    else:
        product = torch.bmm(sources.vectors, items.transpose(1, 2))
    return product.view(n_sets, n, m, n_queries)


def attention_weights(
    affinity: Tensor, sources: Sources, queries: Queries, *, feature_norm: str = "clipped_l2norm", smooth: float
) -> Tensor:
    """Weights (S, n, m, Q) of each query over its sources: affinities normed over the queries, then a softmax."""
    logits = _normed(affinity, feature_norm, smooth, queries.mask)
    if sources.mask is not None:
        logits = logits.masked_fill(~sources.mask[:, :, None, None], float("-inf"))
    return logits.softmax(dim=1)


def _normed(affinity: Tensor, feature_norm: str, smooth: float, query_mask: Tensor | None) -> Tensor:
    """`smooth` times the affinities after `raw_feature_norm`, which runs over the items of the query's set."""
    if feature_norm == "softmax":
        if query_mask is not None:
            affinity = affinity.masked_fill(~query_mask.unsqueeze(1), torch.finfo(affinity.dtype).min)
        return affinity.softmax(dim=2) * smooth
    clipped = leaky_relu(affinity, _SLOPE) if feature_norm.startswith("clipped") else affinity
    if not feature_norm.endswith("l2norm"):
        return clipped * smooth
    # vector_norm is 25 times slower over a middle axis; the square root needs a slope where all affinities are 0
    squared = clipped.square().sum(dim=2, keepdim=True)
    return clipped * (smooth / (squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt() + 1e-8))


def context_norms(weights: Tensor, sources: Sources) -> Tensor:
    """Lengths (S, m, Q) of the contexts, by the Gram matrix."""
    flat = weights.flatten(2)
    squared = (flat * torch.bmm(sources.gram, flat)).sum(dim=1)
    # rounding may leave a context of length 0 slightly below it
    return squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt().view(-1, *weights.shape[2:])


def context_cosines(affinity: Tensor, weights: Tensor, sources: Sources, queries: Queries) -> Tensor:
    """Cosines (S, m, Q) between each query and its context."""
    product = (weights * affinity).sum(dim=1)
    return product / (context_norms(weights, sources) * queries.norms).clamp(min=1e-8)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the queries: values (S, m, Q), mask (s, m, Q) -> (S, Q)."""
    if mask is None:
        return values.mean(dim=1)
    return values.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).to(values.dtype)
