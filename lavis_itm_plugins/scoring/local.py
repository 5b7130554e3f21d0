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
from torch.nn.functional import linear

_BLOCK_NUMBERS = {"cpu": 2**20, "cuda": 2**26}
_EPSILON = 1e-8


def local_similarities(
    weights: Tensor, sources: Tensor, queries: Tensor, matrix: Tensor, bias: Tensor, half: torch.dtype | None = None
) -> Tensor:
    """Unit similarity vectors (S, m, K), differentiable once in every argument.

    Weights (S, n, m) of m queries over the sources (S, n, D), queries (1, m, D) for all sets or (S, m, D), matrix
    (K, D), bias (K,). No tensor of size S x m x D is ever held. With `half` the products with the matrix, forward and
    backward, are of numbers rounded to that type; contexts, differences, lengths and the result are not.
    """
    result: Tensor = _LocalSimilarities.apply(  # type: ignore[no-untyped-call]
        weights, sources, queries, matrix, bias, half
    )
    return result


class RoundedLinear:
    """``x @ matrix.t() + bias``; with `half` the product is of both rounded to that type, the result in the bias's."""

    def __init__(self, matrix: Tensor, bias: Tensor, half: torch.dtype | None) -> None:
        self.matrix, self.bias, self.half = matrix if half is None else matrix.to(half), bias, half

    def __call__(self, items: Tensor) -> Tensor:
        """Items (..., D) -> (..., K)."""
        if self.half is None:
            return linear(items, self.matrix, self.bias)
        return linear(items.to(self.half), self.matrix).to(self.bias.dtype).add_(self.bias)


class _Blocks:
    """Blocks of sets and queries whose differences fit into the cache; a block's memory is used again by the next."""

    def __init__(self, weights: Tensor, sources: Tensor, queries: Tensor) -> None:
        self.weights, self.sources, self.queries = weights, sources, queries
        n_sets, _, n_queries = weights.shape
        rows = max(1, _BLOCK_NUMBERS.get(weights.device.type, _BLOCK_NUMBERS["cuda"]) // sources.shape[2])
        self.wide = max(1, min(n_queries, rows))
        self.high = max(1, min(n_sets, rows // self.wide))

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        n_sets, _, n_queries = self.weights.shape
        for start in range(0, n_sets, self.high):
            for first in range(0, n_queries, self.wide):
                yield slice(start, min(start + self.high, n_sets)), slice(first, min(first + self.wide, n_queries))

    def memory(self, kind: torch.dtype | None = None) -> Tensor:
        """Room for the differences of a block."""
        return self.sources.new_empty(self.high * self.wide * self.sources.shape[2], dtype=kind)

    def differences(self, sets: slice, items: slice, room: Tensor) -> Tensor:
        """Context minus query, (s, q, D), in `room`."""
        weights, sources = self.weights[sets, :, items].transpose(1, 2), self.sources[sets]
        shape = (*weights.shape[:2], sources.shape[2])
        made = room[: shape[0] * shape[1] * shape[2]].view(shape)
        # a product that adds to what is there copies it first, which costs more than to subtract afterwards
        torch.bmm(weights, sources, out=made)
        return made.sub_(self.queries[:, items] if len(self.queries) == 1 else self.queries[sets, items])


class _LocalSimilarities(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        sources: Tensor,
        queries: Tensor,
        matrix: Tensor,
        bias: Tensor,
        half: torch.dtype | None,
    ) -> Tensor:
        n_sets, _, n_queries = weights.shape
        result, lengths = weights.new_empty(n_sets, n_queries, len(matrix)), weights.new_empty(n_sets, n_queries, 1)
        blocks = _Blocks(weights, sources, queries)
        room, mapped_by = blocks.memory(), RoundedLinear(matrix, bias, half)
        rounded = room if half is None else blocks.memory(half)
        for sets, items in blocks:
            squares = blocks.differences(sets, items, room).square_()
            if half is not None:
                squares = rounded[: squares.numel()].view_as(squares).copy_(squares)
            mapped = mapped_by(squares)
            length = torch.linalg.vector_norm(mapped, dim=2, keepdim=True)
            lengths[sets, items] = length
            # a product with what is computed once for a vector: a division for every number costs four times as much
            torch.mul(mapped, (length + _EPSILON).reciprocal_(), out=result[sets, items])
        ctx.half = half
        ctx.save_for_backward(weights, sources, queries, matrix, result, lengths)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, sources, queries, matrix, result, lengths = ctx.saved_tensors
        of_weights, of_sources = torch.empty_like(weights), torch.zeros_like(sources)
        of_queries, of_matrix = torch.zeros_like(queries), torch.zeros_like(matrix)
        of_bias, kind = matrix.new_zeros(len(matrix)), ctx.half or matrix.dtype
        blocks, factor = _Blocks(weights, sources, queries), matrix.to(kind)
        room, more = blocks.memory(), blocks.memory()
        for sets, items in blocks:
            mapped = _through_length(gradient[sets, items], result[sets, items], lengths[sets, items]).flatten(0, 1)
            differences = blocks.differences(sets, items, room)
            squares = torch.mul(differences, differences, out=more[: differences.numel()].view_as(differences))
            of_bias += mapped.sum(dim=0)
            mapped = mapped.to(kind)
            of_matrix += mapped.t() @ squares.flatten(0, 1).to(kind)
            of_differences = differences.mul_((2 * mapped @ factor).view_as(differences))
            if len(queries) == 1:
                of_queries[0, items] -= of_differences.sum(dim=0)
            else:
                of_queries[sets, items] -= of_differences
            of_weights[sets, :, items] = torch.bmm(sources[sets], of_differences.transpose(1, 2))
            of_sources[sets].baddbmm_(weights[sets, :, items], of_differences)
        return of_weights, of_sources, of_queries, of_matrix, of_bias, None


def _through_length(gradient: Tensor, unit: Tensor, length: Tensor) -> Tensor:
    """The gradient before x / (|x| + epsilon), of that after it."""
    along = (unit * gradient).sum(dim=2, keepdim=True)
    return gradient / (length + _EPSILON) - unit * (along / length.clamp(min=torch.finfo(length.dtype).tiny))
