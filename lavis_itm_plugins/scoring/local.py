"""What DBL and SGRAF compare by: a linear map of the squared differences between contexts and queries, at length 1.

    z = l2( W (c - q)^2 + b ),    c = sum_s b_s v_s

For a tile of 128 x 128 the differences alone are a gigabyte, and no algebra avoids the product with W (D x K for each
pair of image and word). So they are made, used and dropped in blocks that stay in the cache, and made again in the
backward pass from the weights b. (Diao et al., SGRAF, AAAI 2021, equations 3-4, github.com/Paranioar/SGRAF.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK_NUMBERS = {"cpu": 2**19, "cuda": 2**26}
_EPSILON = 1e-8


def local_similarities(weights: Tensor, sources: Tensor, queries: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """Unit similarity vectors (S, m, K), differentiable once in every argument.

    Weights (S, m, n) of m queries over the sources (S, n, D), queries (m, D), matrix (K, D), bias (K,). No tensor of
    size S x m x D is ever held.
    """
    result: Tensor = _LocalSimilarities.apply(weights, sources, queries, matrix, bias)  # type: ignore[no-untyped-call]
    return result


def _blocks(weights: Tensor, dim: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of sets and queries, whose differences fit into the cache."""
    rows = max(1, _BLOCK_NUMBERS.get(weights.device.type, _BLOCK_NUMBERS["cuda"]) // dim)
    n_sets, n_queries = weights.shape[:2]
    wide = min(n_queries, rows)
    high = max(1, rows // max(1, wide))
    for start in range(0, n_sets, high):
        for first in range(0, n_queries, wide):
            yield slice(start, min(start + high, n_sets)), slice(first, min(first + wide, n_queries))


def _differences(weights: Tensor, sources: Tensor, queries: Tensor) -> Tensor:
    """Context minus query, (s, q, D)."""
    return torch.baddbmm(queries.expand(len(weights), -1, -1), weights, sources, beta=-1)


class _LocalSimilarities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, sources: Tensor, queries: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
        result = weights.new_empty(*weights.shape[:2], len(matrix))
        lengths = weights.new_empty(*weights.shape[:2], 1)
        for sets, items in _blocks(weights, sources.shape[2]):
            squares = _differences(weights[sets, items], sources[sets], queries[items]).square_()
            mapped = torch.addmm(bias, squares.flatten(0, 1), matrix.t()).view(*squares.shape[:2], -1)
            length = torch.linalg.vector_norm(mapped, dim=2, keepdim=True)
            lengths[sets, items] = length
            torch.div(mapped, length + _EPSILON, out=mapped)
            result[sets, items] = mapped
        ctx.save_for_backward(weights, sources, queries, matrix, result, lengths)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        weights, sources, queries, matrix, result, lengths = ctx.saved_tensors
        of_weights, of_sources = torch.empty_like(weights), torch.zeros_like(sources)
        of_queries, of_matrix = torch.zeros_like(queries), torch.zeros_like(matrix)
        of_bias = matrix.new_zeros(len(matrix))
        for sets, items in _blocks(weights, sources.shape[2]):
            mapped = _through_length(gradient[sets, items], result[sets, items], lengths[sets, items]).flatten(0, 1)
            differences = _differences(weights[sets, items], sources[sets], queries[items])
            of_bias += mapped.sum(dim=0)
            of_matrix.addmm_(mapped.t(), differences.square().flatten(0, 1))
            of_differences = differences.mul_((mapped @ matrix).view_as(differences)).mul_(2)
            of_queries[items] -= of_differences.sum(dim=0)
            of_weights[sets, items] = torch.bmm(of_differences, sources[sets].transpose(1, 2))
            of_sources[sets].baddbmm_(weights[sets, items].transpose(1, 2), of_differences)
        return of_weights, of_sources, of_queries, of_matrix, of_bias


def _through_length(gradient: Tensor, unit: Tensor, length: Tensor) -> Tensor:
    """The gradient before x / (|x| + epsilon), of that after it."""
    along = (unit * gradient).sum(dim=2, keepdim=True)
    return gradient / (length + _EPSILON) - unit * (along / length.clamp(min=torch.finfo(length.dtype).tiny))
