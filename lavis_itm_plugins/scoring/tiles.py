"""What networks that compare every word with its context score at once, and how all scores are made of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lavis_itm_plugins.scoring.attention import Queries, Sources
from lavis_itm_plugins.scoring.sets import Sets, score_in_tiles


@dataclass(frozen=True)
class Inputs:
    """All that scores are made of: the sets, one vector of each whole image (I, D) and caption (C, D) where a network
    has them, and the type that autocast rounds to, if any.
    """

    sets: Sets
    wholes: tuple[Tensor, ...] = ()
    half: torch.dtype | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Images, captions, and the vectors of whole images and captions."""
        return self.sets.images, self.sets.captions, *self.wholes


@dataclass(frozen=True)
class Tile:
    """S images and Q captions `columns` of equal length; `apart`: each image with one of its own, Q is 1, columns (S,).

    `wholes`: vectors of images (S, D) and captions (1, Q, D), or (S, 1, D) apart.
    """

    sources: Sources
    queries: Queries
    wholes: tuple[Tensor, ...]
    columns: Tensor
    half: torch.dtype | None

    @classmethod
    def of(
        cls,
        sources: Sources,
        words: Tensor,
        wholes: tuple[Tensor, ...],
        columns: Tensor,
        half: torch.dtype | None,
        *,
        apart: bool = False,
    ) -> Tile:
        """Of words (Q, n, D) or (S, n, D), and vectors of whole images (S, D) and captions (Q, D) or (S, D)."""
        if wholes:
            images, captions = wholes
            wholes = images, captions.unsqueeze(1) if apart else captions.unsqueeze(0)
        return cls(sources, Queries.of(words, apart=apart), wholes, columns, half)


def scores_of_tiles(inputs: Inputs, score: Callable[[Tile], Tensor], **how: Any) -> Tensor:
    """Scores (I, C), of a tile's scores (S, Q); `how` as for `score_in_tiles`."""
    sets, images, captions = inputs.sets, inputs.wholes[:1], inputs.wholes[1:]

    def prepared(rows: slice) -> tuple[Sources, list[Tensor]]:
        return Sources.of(*sets.block(rows)), [whole[rows] for whole in images]

    def of_tile(block: tuple[Sources, list[Tensor]], columns: Tensor, words: Tensor) -> Tensor:
        sources, own = block
        wholes = (*own, *(whole[columns] for whole in captions))
        return score(Tile.of(sources, words, wholes, columns, inputs.half))

    return score_in_tiles(sets, prepared, of_tile, **how)
