"""A cheap score chooses, a dear one orders: the first k of each query are scored again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation.arrays import Scores, check_finite, score_array
from lavis_itm_plugins.evaluation.tiles import ScoreFunction


def reranked(
    coarse: Scores, images: Any, captions: Any, score: ScoreFunction, *, k: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scores (n_images, n_captions) to rank captions for each image, and others to rank images for each caption.

    In each the `k` candidates with the highest `coarse` score have their score by `score`, and all others stay below
    them in the order of `coarse`. With `k` of all items both are `score` alone.

    Args:
        coarse: (n_images, n_captions).
        images, captions: what `score` takes; they must accept a tensor of rows as an index.
        score: (some images, some captions) -> (n, m) scores.
        k: candidates of each query, at least 1.

    Raises:
        ItmError: `k` below 1, or scores that are not finite.

    >>> coarse = torch.tensor([[0.9, 0.8, 0.1]])
    >>> by_image, _ = reranked(coarse, torch.ones(1, 1), torch.tensor([[1.0], [3.0], [9.0]]), lambda a, b: a @ b.T, k=2)
    >>> by_image.argsort()[0, ::-1].tolist()
    [1, 0, 2]
    """
    if k < 1:
        raise ItmError(f"k is {k}; give at least 1 candidate for each query")
    matrix = score_array(coarse)
    check_finite(matrix)
    by_image = _directed(matrix, lambda row, chosen: score(images[row], captions[chosen]), k, "images")
    by_caption = _directed(matrix.T, lambda row, chosen: score(images[chosen], captions[row]), k, "captions")
    return by_image, by_caption.T


def _directed(coarse: NDArray[Any], score: ScoreFunction, k: int, name: str) -> NDArray[Any]:
    """New scores of each row's candidates, in the type of `coarse` or the scores' own where that is wider."""
    result = coarse.astype(np.float64)
    k = min(k, coarse.shape[1])
    for row in tqdm(range(len(coarse)), desc=f"re-rank for {name}", leave=False, disable=None):
        chosen = np.sort(np.argpartition(-coarse[row], k - 1)[:k])
        with torch.no_grad():
            fine = score_array(score(torch.tensor([row]), torch.from_numpy(chosen))).reshape(-1)
        others = np.delete(np.arange(coarse.shape[1]), chosen)
        if len(others):
            result[row, others] += fine.min() - 1 - result[row, others].max()
        result[row, chosen] = fine
    return result
