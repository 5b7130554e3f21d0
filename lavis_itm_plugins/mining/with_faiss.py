"""The same lists through faiss: two searches, each over-fetched by what is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.mining.running import EMPTY, Keys, best_first, candidate_keys
from lavis_itm_plugins.optional import require

if TYPE_CHECKING:
    from lavis_itm_plugins.mining.mine import MiningJob

_QUERIES_AT_ONCE = 1024


def faiss_lists(job: MiningJob, image_embeds: Any, caption_embeds: Any, *, normalize: bool) -> tuple[Keys, Keys]:
    """Keys of the lists of all images and all captions, equal to those of the tiles up to rounding.

    faiss promises no order among equal scores: where candidates tie at the end of what was fetched, more is fetched.
    Raises ItmError when faiss is not installed, for filters, which it cannot apply, and for values that are not finite.
    """
    faiss = require("faiss", "faiss", "backend: faiss")
    if job.limits.images is not None:
        raise ItmError("backend: faiss knows no filters on scores; use backend: torch")
    images, captions = (_as_float32(embeds, normalize) for embeds in (image_embeds, caption_embeds))
    for name, embeds in (("image_embeds", images), ("caption_embeds", captions)):
        _check_finite(name, embeds)
    most = job.exclusions.most()
    excluded = np.stack(job.exclusions.pairs(slice(0, len(images))))
    by_image = _search(faiss, images, captions, excluded, job.tiles.captions_per_image, most[0])
    by_caption = _search(faiss, captions, images, excluded[::-1], job.tiles.images_per_caption, most[1])
    return by_image, by_caption


def _search(
    faiss: Any, queries: NDArray[np.float32], items: NDArray[np.float32], excluded: Any, k: int, left_out: int
) -> Keys:
    order = np.argsort(excluded[0], kind="stable")
    excluded = excluded[:, order]
    lists = np.full((len(queries), k), EMPTY, dtype=np.int64)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        rows = np.arange(start, min(start + _QUERIES_AT_ONCE, len(queries)))
        part = slice(*np.searchsorted(excluded[0], [rows[0], rows[-1] + 1]))
        banned = excluded[0, part] * len(items) + excluded[1, part]
        fetch = min(k + left_out + 1, len(items))
        while len(rows):
            done, keys = _fetched(faiss, queries[rows], rows, items, banned, k, fetch)
            lists[rows[done]] = keys[done]
            rows, fetch = rows[~done], min(2 * fetch, len(items))
    return lists


def _fetched(
    faiss: Any, queries: Any, rows: NDArray[Any], items: Any, banned: NDArray[Any], k: int, fetch: int
) -> tuple[NDArray[np.bool_], Keys]:
    """Lists of some queries, and which are certain: the last score fetched is below the last one kept."""
    if not fetch:
        return np.ones(len(rows), dtype=bool), np.full((len(rows), k), EMPTY, dtype=np.int64)
    scores, ids = faiss.knn(queries, items, fetch, metric=faiss.METRIC_INNER_PRODUCT)
    keys = candidate_keys(scores, ids)
    keys[np.isin(rows[:, None] * len(items) + ids, banned)] = EMPTY
    keys = best_first(keys, k)
    certain = (keys[:, -1] > candidate_keys(scores[:, -1], np.zeros(len(rows), dtype=np.int64))) | (fetch == len(items))
    return certain, keys


def _check_finite(name: str, embeds: NDArray[np.float32]) -> None:
    bad = np.flatnonzero(~np.isfinite(embeds).all(axis=1))
    if len(bad):
        raise ItmError(f"row {bad[0]} of {name} is not finite; check the model or the features that made it")


def _as_float32(embeds: Any, normalize: bool) -> NDArray[np.float32]:
    array = embeds.detach().cpu().numpy() if hasattr(embeds, "detach") else embeds
    found = np.ascontiguousarray(array, dtype=np.float32)
    if normalize:
        found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-12))
    return found
