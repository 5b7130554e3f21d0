"""From embeddings to metrics: pairs are scored once, tile by tile, and the score matrix is never held."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from tqdm import tqdm

from lavis_itm_plugins.evaluation.arrays import ImageIds, image_ids, score_array
from lavis_itm_plugins.evaluation.folds import FoldCounter
from lavis_itm_plugins.evaluation.recall import RecallCounter, TileCounter
from lavis_itm_plugins.evaluation.tiles import Items, ScoreFunction, item_counts, score_tile, tile_grid

FOLDS_PREFIX = "folds_"

# Of the memory budget. Small tiles: the diagonal of positives then crosses few of all pairs, and these can be kept.
_TILE_SHARE, _KEPT_SHARE = 1 / 8, 3 / 4


def evaluate_tiles(
    images: Items,
    captions: Items,
    score: ScoreFunction,
    caption_image: ImageIds,
    *,
    memory_budget_mb: float = 1024,
    bytes_per_pair: int = 16,
    folds: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """``retrieval_metrics`` of all pairs, from tiles in bounded memory, and of the folds from the same tiles.

    The tiles that hold positive pairs are scored first and kept for counting as far as the budget allows; the others
    are scored again. With captions in the order of their images that is a few percent of all pairs at most, and none
    up to the size of Flickr30K's training set. Captions in random order cost up to twice the scoring where the whole
    matrix does not fit in the budget.

    Args:
        images, captions, score, memory_budget_mb, bytes_per_pair: as ``score_tiles``.
        caption_image: (n_captions,) integers, the row of each caption's image.
        folds: above 0, adds the metrics of ``coco_1k_folds`` under the same keys with the prefix ``folds_``.
        progress: show a bar on a terminal.

    Raises:
        ItmError: as ``score_tiles`` and ``retrieval_metrics``.

    >>> import torch
    >>> metrics = evaluate_tiles(torch.eye(4), torch.eye(4), lambda a, b: a @ b.T, [0, 1, 2, 3], folds=2)
    >>> metrics["rsum"], metrics["folds_rsum"]
    (600.0, 600.0)
    """
    shape = n_images, _ = item_counts(images, captions)
    ids = image_ids(caption_image, *shape)
    whole = RecallCounter(ids, n_images)
    counters: list[TileCounter] = [whole] + ([FoldCounter(ids, n_images, folds)] if folds else [])
    grid = tile_grid(*shape, memory_budget_mb=memory_budget_mb * _TILE_SHARE, bytes_per_pair=bytes_per_pair)
    kept: dict[int, NDArray[Any]] = {}
    room = memory_budget_mb * _KEPT_SHARE * 2**20
    bar = tqdm(total=len(grid), desc="score tiles", leave=False, disable=None if progress else True)
    for number, tile in enumerate(grid):
        if whole.holds_positives(*tile):
            scores = score_array(score_tile(images, captions, score, *tile))
            for counter in counters:
                counter.find_positives(*tile, scores)
            if scores.nbytes <= room:
                room -= scores.nbytes
                kept[number] = scores.copy()
                bar.update()
    for number, tile in enumerate(grid):
        if number in kept:
            scores = kept.pop(number)
        else:
            scores = score_array(score_tile(images, captions, score, *tile))
            bar.update()
        for counter in counters:
            counter.update(*tile, scores)
    bar.close()
    metrics = whole.metrics()
    return metrics | {FOLDS_PREFIX + key: value for counter in counters[1:] for key, value in counter.metrics().items()}
