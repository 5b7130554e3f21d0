"""Relevance labels of any (image, caption) block of a split, in [0, 1]; an image's own captions have 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lavis_itm_plugins.errors import ItmError, unknown_name

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

REDUCTIONS = ("max", "mean")
QUANTILE_SAMPLE = 512  # images and captions whose labels stand for a split's


class RelevanceLabels(Protocol):
    """What every source of labels is: of the images and captions of one split, by row."""

    n_images: int
    caption_image: IntArray  # each caption's image row

    def labels(self, image_rows: npt.ArrayLike, caption_rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Labels (n, m) of images (n,) and captions (m,), any rows in any order; same image = 1."""


class CaptionSimilarity(Protocol):
    """How alike two captions of a split are."""

    def __len__(self) -> int: ...

    def similarity(self, references: IntArray, captions: IntArray) -> npt.NDArray[np.floating]:
        """Similarities (n, m) in [0, 1] of captions (m,) to references (n,), by row."""


class CaptionLabels:
    """Labels from the similarity of a caption to the captions of an image: their maximum or mean.

    Raises ItmError when the numbers of captions differ, or an image has no caption.
    """

    def __init__(self, captions: CaptionSimilarity, caption_image: npt.ArrayLike, *, reduce: str = "max") -> None:
        if reduce not in REDUCTIONS:
            raise unknown_name("reduce", str(reduce), REDUCTIONS)
        self.captions, self.reduce = captions, reduce
        self.caption_image = np.asarray(caption_image, dtype=np.int64)
        if self.caption_image.shape != (len(captions),):
            raise ItmError(f"caption_image has shape {self.caption_image.shape} for {len(captions)} captions")
        counts = np.bincount(self.caption_image)
        if not counts.all():
            raise ItmError(f"image {int(np.argmin(counts))} has no caption; labels need one for every image")
        self.n_images = len(counts)
        self._by_image = np.argsort(self.caption_image, kind="stable")
        self._starts = np.concatenate([[0], counts.cumsum()])

    def labels(self, image_rows: npt.ArrayLike, caption_rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Labels (n, m) of images (n,) and captions (m,), any rows in any order; same image = 1."""
        captions = rows_within(caption_rows, len(self.caption_image), "caption")
        images, place = np.unique(rows_within(image_rows, self.n_images, "image"), return_inverse=True)
        references = [self._by_image[self._starts[image] : self._starts[image + 1]] for image in images]
        values = np.concatenate(references) if references else images
        similarity = self.captions.similarity(values, captions)
        labels = over_captions(similarity, list(map(len, references)), self.reduce).astype(np.float32)
        labels[images[:, None] == self.caption_image[captions]] = 1
        return labels[place]

    def nearest(self, image: int, caption: int) -> int:
        """Row of the image's caption that is most like this one."""
        own = self._by_image[self._starts[image] : self._starts[image + 1]]
        return int(own[self.captions.similarity(own, np.array([caption]))[:, 0].argmax()])


def over_captions(similarity: npt.NDArray[np.floating], counts: Sequence[int], reduce: str) -> FloatArray:
    """One row for each image, from rows for each of its captions: ``counts`` says how many, at least 1 each.

    >>> over_captions(np.array([[0.0, 0.2], [0.4, 0.0], [0.1, 0.1]]), [2, 1], "max").tolist()
    [[0.4, 0.2], [0.1, 0.1]]
    """
    if reduce not in REDUCTIONS:
        raise unknown_name("reduce", str(reduce), REDUCTIONS)
    if not len(counts):
        return np.empty((0, similarity.shape[1]))
    lengths = np.asarray(counts)
    if (lengths == lengths[0]).all():
        # the usual five captions each: reduceat takes three times as long
        by_image = similarity.reshape(len(lengths), lengths[0], similarity.shape[1])
        return by_image.max(axis=1) if reduce == "max" else by_image.mean(axis=1)
    starts = lengths.cumsum() - lengths
    if reduce == "max":
        return np.maximum.reduceat(similarity, starts, axis=0)
    return np.add.reduceat(similarity, starts, axis=0) / lengths[:, None].astype(similarity.dtype)


def rows_within(rows: npt.ArrayLike, count: int, kind: str) -> IntArray:
    """The rows as int64; ItmError for one that the split does not have."""
    array = np.asarray(rows, dtype=np.int64)
    outside = array[(array < 0) | (array >= count)]
    if outside.size:
        raise ItmError(f"{kind} row {outside[0]} is not among the {count} that have labels; give rows of that split")
    return array


def sampled_block(
    source: RelevanceLabels, size: int = QUANTILE_SAMPLE
) -> tuple[IntArray, IntArray, npt.NDArray[np.float32]]:
    """At most ``size`` image rows and caption rows, always the same, and their labels; NaN for pairs of one image."""
    rng = np.random.default_rng(0)
    images = rng.choice(source.n_images, min(size, source.n_images), replace=False)
    captions = rng.choice(len(source.caption_image), min(size, len(source.caption_image)), replace=False)
    labels = source.labels(images, captions)
    labels[images[:, None] == source.caption_image[captions]] = np.nan
    return images, captions, labels


def gap_quantile(source: RelevanceLabels, share: float) -> float:
    """The label difference that this share of an image's pairs of captions does not exceed, from a sample.

    A gap in label units means something else for each source, a share of the pairs means the same for all.
    """
    labels = sampled_block(source)[2]
    differences = np.abs(labels - np.roll(labels, 1, axis=1))
    known = differences[np.isfinite(differences)]
    if not known.size:
        raise ItmError("there are too few images and captions for a quantile of label gaps; give the gap itself")
    return float(np.quantile(known, share))
