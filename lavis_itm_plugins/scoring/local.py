"""What DBL and SGRAF compare by: a linear map of the squared differences between contexts and queries, at length 1.

    z = l2( W (c - q)^2 + b ),    c = sum_s b_s v_s

For a tile of 128 x 128 the differences alone are a gigabyte, and no algebra avoids the product with W (D x K for each
pair of image and word). So they are made, used and dropped in blocks of a few MB, and made again in the backward pass
from the weights b. (Diao et al., SGRAF, AAAI 2021, equations 3-4, github.com/Paranioar/SGRAF.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from lavis_itm_plugins.scoring.sets import at_once, threads

# differences of a block, for each thread of a CPU
_BLOCK_NUMBERS = 2**21
_EPSILON = 1e-8
# of torch's losses, as their kernels are told
_NO_REDUCTION = 0


def local_similarities(
    weights: Tensor, sources: Tensor, queries: Tensor, matrix: Tensor, bias: Tensor, half: torch.dtype | None = None
) -> Tensor:
    """Unit similarity vectors (S, m, K), differentiable once in every argument.

    Weights (S, n, m) of m queries over the sources (S, n, D), queries (1, m, D) for all sets or (S, m, D), matrix
    (K, D), bias (K,). No tensor of size S x m x D is ever held. With `half` contexts, differences and what the matrix
    makes of them are rounded to that type, lengths and unit vectors are not. The backward pass makes contexts and
    differences again unrounded; there the two products with the matrix are of that type.
    """
    result: Tensor = _LocalSimilarities.apply(  # type: ignore[no-untyped-call]
        weights, sources, queries, matrix, bias, half
    )
    return result


def similarity_blocks(
    weights: Tensor, sources: Tensor, queries: Tensor, matrix: Tensor, bias: Tensor, half: torch.dtype | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """`local_similarities` of a few sets at a time, (s, m, K), and which sets: used while they are in the cache.

    Where a gradient is wanted all sets come at once.
    """
    given = weights, sources, queries, matrix, bias
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        yield slice(0, len(weights)), local_similarities(*given, half)
        return
    blocks = _Blocks(*_rounded(weights, sources, queries, half), whole_sets=True)
    for sets, _, mapped, length in _mapped(blocks, matrix, bias, half):
        yield sets, mapped.mul_(length.add_(_EPSILON).reciprocal_())


class RoundedLinear:
    """``x @ matrix.t() + bias``; with `half` of numbers rounded to that type, as is the result."""

    def __init__(self, matrix: Tensor, bias: Tensor, half: torch.dtype | None) -> None:
        self.matrix, self.bias, self.half = matrix, bias, half

    def __call__(self, items: Tensor) -> Tensor:
        """Items (..., D) -> (..., K)."""
        if self.half is not None:
            # rounded for each call, whose gradients then add up in the parameters' own type
            return linear(items.to(self.half), self.matrix.to(self.half), self.bias.to(self.half))
        # a product that adds the bias copies it first to every row, which costs more than to add it afterwards
        return linear(items, self.matrix).add_(self.bias)


class _Blocks:
    """Blocks of sets and queries whose differences take a few MB; a block's memory is used again by the next."""

    def __init__(self, weights: Tensor, sources: Tensor, queries: Tensor, *, whole_sets: bool = False) -> None:
        self.weights, self.sources, self.queries = weights, sources, queries
        n_sets, _, n_queries = weights.shape
        rows = max(1, at_once(_BLOCK_NUMBERS * threads(), weights.device) // sources.shape[2])
        self.wide = max(1, n_queries if whole_sets else min(n_queries, rows))
        self.high = max(1, min(n_sets, rows // self.wide))

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        n_sets, _, n_queries = self.weights.shape
        for start in range(0, n_sets, self.high):
            for first in range(0, n_queries, self.wide):
                yield slice(start, min(start + self.high, n_sets)), slice(first, min(first + self.wide, n_queries))

    def memory(self) -> Tensor:
        """Room for the differences of a block."""
        return self.sources.new_empty(self.high * self.wide * self.sources.shape[2])

    def contexts(self, sets: slice, items: slice, room: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts (s, q, D) in `room`, and the queries that they belong to, which broadcast."""
        weights, sources = self.weights[sets, :, items].transpose(1, 2), self.sources[sets]
        shape = (*weights.shape[:2], sources.shape[2])
        made = room[: shape[0] * shape[1] * shape[2]].view(shape)
        # a product that adds to what is there copies it first, which costs more than to subtract afterwards
        torch.bmm(weights, sources, out=made)
        return made, self.queries[:, items] if len(self.queries) == 1 else self.queries[sets, items]


def _rounded(
    weights: Tensor, sources: Tensor, queries: Tensor, half: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What blocks are made of, in the type of `half`."""
    if half is None:
        return weights, sources, queries
    if half == torch.float16:
        # beyond its range are weights over a short context's length: of short sources, or of some that cancel
        size = sources.abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(sources.dtype).tiny)
        weights = (weights * size).clamp(max=torch.finfo(half).max / weights.shape[1])
        sources = sources / size
    return weights.to(half), sources.to(half), queries.to(half)


def _mapped(
    blocks: _Blocks, matrix: Tensor, bias: Tensor, half: torch.dtype | None
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Of each block: which sets and queries, W (c - q)^2 + b (s, q, K), and their lengths (s, q, 1)."""
    kind, room = half or matrix.dtype, blocks.memory()
    mapped_by = RoundedLinear(matrix.to(kind), bias.to(kind), half)
    for sets, items in blocks:
        contexts, queries = blocks.contexts(sets, items, room)
        # subtracted and squared in one pass, where it is
        squares = torch.ops.aten.mse_loss.out(contexts, queries, _NO_REDUCTION, out=contexts)
        mapped = mapped_by(squares).to(bias.dtype)
        yield sets, items, mapped, torch.linalg.vector_norm(mapped, dim=2, keepdim=True)


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
        blocks = _Blocks(*_rounded(weights, sources, queries, half))
        for sets, items, mapped, length in _mapped(blocks, matrix, bias, half):
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
            contexts, own = blocks.contexts(sets, items, room)
            differences = contexts.sub_(own)
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
