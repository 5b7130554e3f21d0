"""One way to score everything: tiles of images x captions, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation.arrays import Scores

Tile: TypeAlias = tuple[slice, slice]
ScoreFunction: TypeAlias = Callable[[Any, Any], Scores]

# 4 MiB of scores stay in the cache between the product that makes them and the passes that read them.
_CACHED_SCORES = 2**20
# Rows of scores that begin at whole cache lines (64 bytes) make the product up to a third faster.
_ALIGNED = 16


class Items(Protocol):
    """Embeddings of images or captions: a tensor, an array, or anything with a length and slices."""

    def __len__(self) -> int: ...

    def __getitem__(self, items: slice, /) -> Any: ...


def tile_grid(
    n_images: int, n_captions: int, *, memory_budget_mb: float = 1024, bytes_per_pair: int = 16
) -> list[Tile]:
    """Slices (rows, columns) that cover each cell once, row by row, as near to square blocks of the whole as they get.

    ``bytes_per_pair``: memory that scoring and ranking one pair takes; 16 is right for a product of embeddings (the
    score and its comparisons); a cross-attention scorer needs its regions x words. A single pair is always a tile.

    >>> tile_grid(2, 3, memory_budget_mb=48 / 2**20)       # three pairs of 16 bytes
    [(slice(0, 1, None), slice(0, 3, None)), (slice(1, 2, None), slice(0, 3, None))]
    """
    if not 0 < memory_budget_mb < math.inf:
        raise ItmError(f"memory_budget_mb is {memory_budget_mb}; give a number above 0")
    if bytes_per_pair < 1:
        raise ItmError(f"bytes_per_pair is {bytes_per_pair}; give a number of at least 1")
    if not n_images or not n_captions:
        return []
    cells = min(_CACHED_SCORES, max(1, int(memory_budget_mb * 2**20 / bytes_per_pair)))
    rows = min(n_images, cells, max(1, math.isqrt(cells * n_images // n_captions)))
    columns = min(n_captions, max(1, cells // rows))
    return list(product(_blocks(n_images, rows), _blocks(n_captions, columns)))


def _blocks(length: int, largest: int) -> list[slice]:
    unit = _ALIGNED if largest >= _ALIGNED else 1
    number = math.ceil(length / (largest - largest % unit))
    width = math.ceil(length / number / unit) * unit
    return [slice(start, min(start + width, length)) for start in range(0, length, width)]


def score_tile(images: Items, captions: Items, score: ScoreFunction, rows: slice, columns: slice) -> Scores:
    """Scores of one tile, without gradient; ItmError if ``score`` does not return (rows, columns) of them."""
    with torch.no_grad():
        scores = score(images[rows], captions[columns])
    expected = (rows.stop - rows.start, columns.stop - columns.start)
    if not isinstance(scores, torch.Tensor | np.ndarray):
        raise ItmError(f"score returned a {type(scores).__name__}; it must return a tensor or an array {expected}")
    if tuple(scores.shape) != expected:
        found = tuple(scores.shape)
        raise ItmError(f"score returned shape {found} for {expected[0]} images and {expected[1]} captions")
    return scores


def score_tiles(
    images: Items, captions: Items, score: ScoreFunction, *, memory_budget_mb: float = 1024, bytes_per_pair: int = 16
) -> Iterator[tuple[slice, slice, Scores]]:
    """Iterate (rows, columns, scores) over tiles that cover every image-caption pair once, without gradient.

    Args:
        images, captions: embeddings; tensors, arrays, or objects with ``len()`` and slices.
        score: (tile of images, tile of captions) -> (n, m) scores, a tensor or an array.
        memory_budget_mb: bound, in MiB, on the memory of a tile; the embeddings themselves do not count.
        bytes_per_pair: see ``tile_grid``.

    Raises:
        ItmError: an argument of the wrong kind, or scores of the wrong shape.

    >>> images, captions = torch.eye(2), torch.ones(3, 2)
    >>> for rows, columns, scores in score_tiles(images, captions, lambda a, b: a @ b.T):
    ...     print(rows, columns, scores.tolist())
    slice(0, 2, None) slice(0, 3, None) [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    grid = tile_grid(*item_counts(images, captions), memory_budget_mb=memory_budget_mb, bytes_per_pair=bytes_per_pair)
    return ((rows, columns, score_tile(images, captions, score, rows, columns)) for rows, columns in grid)


def item_counts(images: Items, captions: Items) -> tuple[int, int]:
    """Numbers of images and captions; ItmError for something without a length or slices."""
    for name, items in (("images", images), ("captions", captions)):
        if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")) or getattr(items, "shape", None) == ():
            raise ItmError(
                f"{name} is a {type(items).__name__}; give a tensor, an array or an object with len() and slices"
            )
    return len(images), len(captions)
