"""Scores that keep nothing but their inputs, and compute again what the backward pass needs.

A loss over hardest negatives has a gradient for at most 3 B of B x B scores: the pairs of the batch, and the hardest
negative of each image and caption. Only these are computed again, pair by pair; a pair whose score has no gradient adds
nothing to any other, so the result is exact. Where many scores have one, everything is computed again tile by tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from lavis_itm_plugins.scoring.attention import Sources
from lavis_itm_plugins.scoring.sets import Sets
from lavis_itm_plugins.scoring.tiles import Inputs, Tile, scores_of_tiles

# the share of scores with a gradient up to which pairs are cheaper than tiles, whose pairs share products
_SPARSE = 0.25


def recomputed_scores(inputs: Inputs, scorer: nn.Module, names: Sequence[str]) -> Tensor:
    """Scores (I, C), differentiable once, of a module whose `tile_scores` uses the parameters of these names.

    A score must depend on its own image and caption only.
    """
    values = [scorer.get_parameter(name) for name in names]
    result: Tensor = _Recomputed.apply(scorer, inputs, names, *inputs.tensors, *values)  # type: ignore[no-untyped-call]
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scorer: Any, inputs: Inputs, names: Sequence[str], *tensors: Tensor) -> Tensor:
        ctx.scorer, ctx.inputs, ctx.names = scorer, inputs, names
        scores = scores_of_tiles(inputs, scorer.tile_scores)
        ctx.save_for_backward(scores, *tensors)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # read from here, where it is checked that nobody changed them
        all_scores, *tensors = ctx.saved_tensors
        needed, count = ctx.needs_input_grad[3:], len(ctx.inputs.tensors)
        sums = [
            torch.zeros_like(tensor) if need else None for tensor, need in zip(tensors[:count], needed, strict=False)
        ]
        # leaves of their own: no hook of a parameter runs twice, and its gradient is left alone
        weights = [_leaf(weight, need) for weight, need in zip(tensors[count:], needed[count:], strict=True)]
        named = {f"scorer.{name}": weight for name, weight in zip(ctx.names, weights, strict=True)}
        scorer = _OnTiles(ctx.scorer)
        with torch.enable_grad(), torch.autocast(gradient.device.type, enabled=False):
            # a score that is not finite spoils every gradient, as it does where all is kept
            for piece in _pieces(ctx.inputs.sets, gradient.ne(0) | ~all_scores.isfinite()):
                shares = piece.shares(tensors[:count], needed)
                scores = functional_call(scorer, named, (piece.tile(shares, ctx.inputs),))
                wanted = [leaf for leaf in (*shares, *weights) if leaf.requires_grad]
                torch.autograd.backward(scores, gradient[piece.cells].view_as(scores), inputs=wanted)
                piece.add_gradients(shares, sums)
        return None, None, None, *sums, *(_gradient(weight) for weight in weights)


def _leaf(tensor: Tensor, needed: bool) -> Tensor:
    """The tensor without its history."""
    return tensor.detach().requires_grad_(needed)


def _gradient(leaf: Tensor) -> Tensor | None:
    """What was added up; zeros when nothing was, for DDP waits for every parameter."""
    return torch.zeros_like(leaf) if leaf.requires_grad and leaf.grad is None else leaf.grad


class _OnTiles(nn.Module):
    """A scorer whose call scores a tile, as `functional_call` wants it."""

    def __init__(self, scorer: Any) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, tile: Tile) -> Tensor:
        scores: Tensor = self.scorer.tile_scores(tile)
        return scores


@dataclass(frozen=True)
class _Piece:
    """Scores that are computed together: of all images `rows` and captions `columns`, or `apart`, of each row its own.

    The captions have `length` words.
    """

    rows: Tensor
    columns: Tensor
    length: int
    apart: bool

    @property
    def cells(self) -> tuple[Tensor, Tensor]:
        """Where they are among all scores."""
        return (self.rows if self.apart else self.rows[:, None]), self.columns

    @property
    def places(self) -> tuple[tuple[Tensor, int | None], ...]:
        """What is read of each of `Inputs.tensors`: rows, and how much of each."""
        return (self.rows, None), (self.columns, self.length), (self.rows, None), (self.columns, None)

    def shares(self, tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
        """What the tile is made of, as leaves."""
        parts = zip(tensors, needed, self.places, strict=False)
        return [_leaf(tensor[rows, :end], need) for tensor, need, (rows, end) in parts]

    def tile(self, shares: Sequence[Tensor], inputs: Inputs) -> Tile:
        """The tile of these shares."""
        images, words, *wholes = shares
        mask = inputs.sets.image_mask
        sources = Sources.of(images, None if mask is None else mask[self.rows])
        return Tile.of(sources, words, tuple(wholes), self.columns, inputs.half, apart=self.apart)

    def add_gradients(self, shares: Sequence[Tensor], sums: Sequence[Tensor | None]) -> None:
        """Add the gradients of the shares to those of the whole tensors."""
        for share, total, (rows, end) in zip(shares, sums, self.places, strict=False):
            if total is not None and share.grad is not None:
                total[:, :end].index_add_(0, rows, share.grad)


def _pieces(sets: Sets, wanted: Tensor) -> Iterator[_Piece]:
    """What has to be computed again for the scores that are `wanted` (I, C)."""
    rows, columns = wanted.nonzero(as_tuple=True)
    if len(rows) > _SPARSE * wanted.numel():
        for block in sets.image_blocks():
            images = torch.arange(block.start, block.stop, device=wanted.device)
            for chosen, words in sets.caption_groups(len(images)):
                yield _Piece(images, chosen, words.shape[1], apart=False)
        return
    lengths = torch.tensor(sets.lengths, device=wanted.device)[columns]
    for length in sorted(set(lengths.tolist())):
        for part in (lengths == length).nonzero().squeeze(1).split(sets.images_at_once()):
            yield _Piece(rows[part], columns[part], length, apart=True)
