"""Pairs that are never negatives: an image's own captions, copies of them, and the captions of a copied image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis_itm_plugins.errors import ItmError

Ints = NDArray[np.int64]


def normalized(caption: str) -> str:
    """What two captions that say the same word for word have in common: case, spaces and punctuation do not count.

    >>> normalized("A man,  riding a wave.") == normalized("a man riding a wave")
    True
    """
    return " ".join(re.findall(r"\w+", caption.lower()))


def numbered(values: Sequence[Any]) -> Ints:
    """A number for each value, equal where the values are; numbers count from 0."""
    numbers: dict[Any, int] = {}
    return np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), np.int64, len(values))


class Exclusions:
    """Which captions are no negatives of which images.

    Image i and caption j are excluded if j, or a caption with the same text, belongs to i or to a copy of i. Memory is
    that of the captions: pairs are listed for a few images at a time.

    Args:
        caption_image: (M,), the image of each caption; an image may have any number of captions, also none.
        n_images: N.
        captions: (M,) texts, compared as `normalized`; None: no text counts as a copy.
        image_groups: (N,) integers, equal for copies of one picture; None: no image is a copy.

    >>> exclusions = Exclusions(np.array([0, 0, 1]), 2, captions=["a dog", "two dogs", "A dog."])
    >>> [pairs.tolist() for pairs in exclusions.pairs(slice(0, 2))]     # 0 and 1 have the same caption
    [[0, 1, 0, 0, 1], [0, 0, 1, 2, 2]]
    """

    def __init__(
        self,
        caption_image: Ints,
        n_images: int,
        *,
        captions: Sequence[str] | None = None,
        image_groups: Sequence[int] | Ints | None = None,
    ) -> None:
        n_captions = len(caption_image)
        check_length("captions", captions, n_captions)
        check_length("image_groups", image_groups, n_images)
        self._group = np.arange(n_images) if image_groups is None else numbered(np.asarray(image_groups).tolist())
        texts = np.arange(n_captions) if captions is None else numbered([normalized(text) for text in captions])
        owner = self._group[caption_image] if n_captions else np.zeros(0, np.int64)
        # each group's texts, and each text's captions, as compressed rows
        known = np.unique(np.stack([owner, texts], axis=1), axis=0)
        self._texts, self._text_starts = known[:, 1], _starts(known[:, 0], n_images)
        self._captions = np.argsort(texts, kind="stable")
        self._caption_starts = _starts(np.sort(texts), n_captions)

    def pairs(self, rows: slice) -> tuple[Ints, Ints]:
        """Excluded pairs of these images: row counted from `rows.start`, and caption, in ascending order of caption."""
        texts, image = _expand(self._texts, self._text_starts, self._group[rows])
        captions, position = _expand(self._captions, self._caption_starts, texts)
        order = np.argsort(captions, kind="stable")
        return image[position][order], captions[order]

    def most(self) -> tuple[int, int]:
        """The largest number of excluded captions of an image, and of excluded images of a caption."""
        by_image, by_caption = [0], np.zeros(len(self._captions), dtype=np.int64)
        for start in range(0, len(self._group), 1024):
            images, captions = self.pairs(slice(start, start + 1024))
            by_image.append(int(np.bincount(images, minlength=1).max()))
            by_caption += np.bincount(captions, minlength=len(by_caption))
        return max(by_image), int(by_caption.max(initial=0))


def check_length(name: str, values: Any, wanted: int) -> None:
    """Raise ItmError unless the optional `values` has one entry for each item."""
    if values is not None and len(values) != wanted:
        raise ItmError(f"{name} has {len(values)} entries; give {wanted}, one for each")


def _starts(sorted_rows: Ints, n_rows: int) -> Ints:
    return np.searchsorted(sorted_rows, np.arange(n_rows + 1))


def _expand(values: Ints, starts: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """The values of several compressed rows, and the position in `rows` that each comes from."""
    counts = starts[rows + 1] - starts[rows]
    position = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
    return values[starts[rows][position] + within], position
