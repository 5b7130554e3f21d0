"""One mined caption and one mined image for each training pair, and the pairs they make (AOQ's quintuple)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.mining.negatives import HardNegatives

CROSS_PAIRS = ("mask", "keep", "resample")
# Of one attempt: rank of the caption, rank of the image, which caption of the image.
_DRAWS = 3
_ATTEMPTS = 8
DRAWS = _DRAWS * _ATTEMPTS

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Quintuples:
    """Rows of captions (n,): T3, a mined negative of the pair's image, and T4, a caption of I3, the mined image.

    I3 is T4's image and I4 is T3's, so (I3, T4) and (I4, T3) are pairs of the data set. `apart` (n,) is False where I3
    is I4: then (I3, T3) and (I4, T4) match.
    """

    offline_captions: Rows
    partner_captions: Rows
    apart: NDArray[np.bool_]


class QuintupleSampler:
    """Draws mined negatives of captions, each a function of the uniform numbers that belong to its row.

    Args:
        negatives: lists of every image and caption.
        caption_image: (M,), the image of each caption.
        captions: draw from so many of the hardest captions of an image; None: from the whole list.
        images: likewise of a caption's images.
        tie_ranks: one draw gives both ranks, as the official code does (rank n of 300 captions, n // 5 of 60 images).
        cross_pair: "resample" draws again, up to seven times, where I3 is I4.

    Raises:
        ItmError: more asked for than the lists hold, or an item without any candidate.
    """

    def __init__(
        self,
        negatives: HardNegatives,
        caption_image: NDArray[Any],
        *,
        captions: int | None = None,
        images: int | None = None,
        tie_ranks: bool = True,
        cross_pair: str = "mask",
    ) -> None:
        self._lists, self._caption_image = negatives, np.asarray(caption_image, dtype=np.int64)
        self._tie_ranks, self._resample = tie_ranks, cross_pair == "resample"
        n_images = len(negatives.captions)
        self._by_image = np.argsort(self._caption_image, kind="stable")
        self._starts = np.searchsorted(self._caption_image[self._by_image], np.arange(n_images + 1))
        self._n_captions = _lengths("captions", negatives.captions, captions, self._caption_image)
        self._n_images = _lengths("images", negatives.images, images, np.arange(len(self._caption_image)))
        self._check_owned(negatives.images)

    def draw(self, rows: NDArray[Any], uniforms: NDArray[np.float64]) -> Quintuples:
        """Mined negatives of these captions (n,), from numbers (n, DRAWS) in [0, 1)."""
        chosen = self._attempt(rows, uniforms[:, :_DRAWS])
        for attempt in range(1, _ATTEMPTS if self._resample else 1):
            again = np.flatnonzero(~chosen.apart)
            if not len(again):
                break
            start = attempt * _DRAWS
            other = self._attempt(rows[again], uniforms[again, start : start + _DRAWS])
            for name in ("offline_captions", "partner_captions", "apart"):
                getattr(chosen, name)[again] = getattr(other, name)
        return chosen

    def _attempt(self, rows: NDArray[Any], uniforms: NDArray[np.float64]) -> Quintuples:
        anchors = self._caption_image[rows]
        second = uniforms[:, 0 if self._tie_ranks else 1]
        caption_ranks = (uniforms[:, 0] * self._n_captions[anchors]).astype(np.int64)
        image_ranks = (second * self._n_images[rows]).astype(np.int64)
        offline = np.asarray(self._lists.captions[anchors, caption_ranks], dtype=np.int64)
        images = np.asarray(self._lists.images[rows, image_ranks], dtype=np.int64)
        counts = self._starts[images + 1] - self._starts[images]
        partners = self._by_image[self._starts[images] + (uniforms[:, 2] * counts).astype(np.int64)]
        return Quintuples(offline, partners, self._caption_image[offline] != images)

    def _check_owned(self, images: NDArray[np.int32]) -> None:
        without = np.flatnonzero(np.diff(self._starts) == 0)
        if len(without):
            raise ItmError(f"image {without[0]} has no caption, so it makes no pair; leave it out of the training data")


def _lengths(kind: str, lists: NDArray[np.int32], wanted: int | None, queries: NDArray[np.int64]) -> Rows:
    """How many candidates each query draws from; raises ItmError when a list that is drawn from is empty."""
    if wanted is not None and wanted > lists.shape[1]:
        raise ItmError(
            f"draws from {wanted} {kind} are asked for, but the lists hold {lists.shape[1]}; mine longer ones"
        )
    lengths: Rows = (np.asarray(lists[:, :wanted]) >= 0).sum(axis=1)
    empty = np.flatnonzero(lengths[queries] == 0)
    if len(empty):
        raise ItmError(
            f"{len(empty)} training captions have no mined {kind}, the first is caption {empty[0]}; loosen the "
            "filters, or use more data"
        )
    return lengths
