"""CIDEr between captions, exact and sparse: labels of a 128 x 128 block of five captions an image in milliseconds.

Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, in the clipped form with a penalty on
the length that everybody reports (pycocoevalcap's ``CiderScorer``). For a caption h and a reference r

    CIDEr = 10 exp(-(l_h - l_r)^2 / 72) mean over n = 1..4 of sum_g min(h_g, r_g) r_g / (|h| |r|)

over n-grams g, with h_g = count * idf, and l = number of bigrams. min(h_g, r_g) r_g is a sum over levels k of
[count_h >= k] [count_r >= k] count_r idf^2, so with a column for each (n-gram, level) it is one sparse product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from tqdm import tqdm

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.relevance.cache import cached, digest_of
from lavis_itm_plugins.relevance.labels import FloatArray, IntArray, over_captions
from lavis_itm_plugins.relevance.ngrams import ORDERS, CountedNGrams, DocumentFrequency, count_ngrams, tokenize

VERSION = 1
SIGMA = 6.0
AT_ONCE = 128  # captions of a product: what they need stays in the cache
ARRAYS = ("starts", "columns", "weights", "counts", "bigrams", "n_columns")


@dataclass(frozen=True)
class CiderVectors:
    """Captions as sparse rows: entries ``starts[i]`` to ``starts[i + 1]`` are caption i's.

    ``columns`` (n-gram and level), ``weights`` (idf / norm) and ``counts`` of the n-gram in its caption;
    ``bigrams`` is the length that CIDEr compares. Arrays may be memory-mapped.
    """

    starts: IntArray
    columns: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float64]
    counts: npt.NDArray[np.uint16]
    bigrams: IntArray
    n_columns: IntArray  # a number

    def __len__(self) -> int:
        return len(self.bigrams)

    @classmethod
    def of(cls, counted: CountedNGrams, frequency: DocumentFrequency) -> CiderVectors:
        """Weigh counted n-grams by their document frequency."""
        idf = frequency.idf(counted.ngrams)
        sizes = counted.ngrams.sizes()
        rows, columns, weights, counts = [], [], [], []
        for order in range(ORDERS):
            row, own, count = counted.rows[order], idf[order][counted.ids[order]], counted.counts[order]
            norms = np.sqrt(np.bincount(row, (count * own) ** 2, minlength=len(counted.lengths)))[row]
            rows.append(row)
            columns.append(counted.ids[order] + sum(sizes[:order]))
            weights.append(np.divide(own, norms, out=np.zeros_like(own), where=norms > 0))
            counts.append(count)
        parts = tuple(map(np.concatenate, (rows, columns, weights, counts)))
        return cls._in_rows(*_with_levels(*parts, sum(sizes)), counted.lengths)

    @classmethod
    def _in_rows(
        cls, rows: IntArray, columns: IntArray, weights: FloatArray, counts: IntArray, n_columns: int, words: IntArray
    ) -> CiderVectors:
        order = np.argsort(rows, kind="stable")
        starts = np.concatenate([[0], np.bincount(rows, minlength=len(words)).cumsum()])
        entries = columns[order].astype(np.int32), weights[order], counts[order].astype(np.uint16)
        return cls(starts, *entries, np.maximum(words - 1, 0), np.array(n_columns))

    def save(self, folder: Path) -> None:
        """Write each array as a file of its own."""
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> CiderVectors:
        """What `save` wrote, memory-mapped: processes share it."""
        # as plain arrays over the same memory: indexing numpy's own class for it costs more
        return cls(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ARRAYS))

    def entries(self, captions: IntArray) -> tuple[IntArray, IntArray]:
        """Positions of these captions' entries, and for each the place of its caption in ``captions``."""
        first, lengths = self.starts[captions], self.starts[captions + 1] - self.starts[captions]
        place = np.repeat(np.arange(len(captions)), lengths)
        return np.arange(len(place)) - np.repeat(lengths.cumsum() - lengths - first, lengths), place


def _with_levels(
    rows: IntArray, columns: IntArray, weights: FloatArray, counts: IntArray, n_columns: int
) -> tuple[IntArray, IntArray, FloatArray, IntArray, int]:
    """The entries, and for an n-gram that occurs c times in its caption c - 1 more, in columns of their own."""
    repeated = np.flatnonzero(counts > 1)
    again = np.repeat(repeated, counts[repeated] - 1)
    level = np.arange(len(again)) - np.repeat(
        (counts[repeated] - 1).cumsum() - counts[repeated] + 1, counts[repeated] - 1
    )
    keys, extra = np.unique(level * n_columns + columns[again], return_inverse=True)
    return (
        np.concatenate([rows, rows[again]]),
        np.concatenate([columns, extra + n_columns]),
        np.concatenate([weights, weights[again]]),
        np.concatenate([counts, counts[again]]),
        n_columns + len(keys),
    )


class CiderSimilarity:
    """CIDEr / 10 of captions against single references; ``CaptionLabels`` makes an image's labels of it."""

    def __init__(self, vectors: CiderVectors) -> None:
        self.vectors = vectors
        # where a column of the captions at hand stands in their dense block; -1 = nowhere
        self._place = np.full(int(vectors.n_columns), -1, dtype=np.int32)
        self._penalty = np.exp(-(np.arange(int(max(vectors.bigrams, default=0)) + 1) ** 2) / (2 * SIGMA**2)) / ORDERS

    def __len__(self) -> int:
        return len(self.vectors)

    def similarity(self, references: IntArray, captions: IntArray) -> FloatArray:
        """CIDEr / 10 (n, m) of captions (m,) against references (n,), by row."""
        vectors = self.vectors
        entries, reference = vectors.entries(references)
        sparse = reference, vectors.columns[entries], vectors.weights[entries] * vectors.counts[entries]
        scores = np.empty((len(references), len(captions)))
        for start in range(0, len(captions), AT_ONCE):
            block = captions[start : start + AT_ONCE]
            scores[:, start : start + AT_ONCE] = self._products(*sparse, len(references), block)
        lengths, others = vectors.bigrams[references], vectors.bigrams[captions]
        scores *= self._penalty[np.abs(np.arange(lengths.max(initial=-1) + 1)[:, None] - others)][lengths]
        return scores

    def _products(
        self, reference: IntArray, columns: IntArray, values: FloatArray, n_references: int, captions: IntArray
    ) -> FloatArray:
        """Sums over shared columns, (n_references, captions), from the references' entries."""
        entries, caption = self.vectors.entries(captions)
        theirs = self.vectors.columns[entries]
        # a column that occurs again keeps one number: that of the entry which was written last
        self._place[theirs] = np.arange(len(theirs))
        kept = self._place[theirs] == np.arange(len(theirs))
        self._place[theirs[kept]] = np.arange(kept.sum())
        dense = np.zeros((kept.sum(), len(captions)))
        dense[self._place[theirs], caption] = self.vectors.weights[entries]
        place = self._place[columns]
        self._place[theirs] = -1
        shared = place >= 0
        starts = np.concatenate([[0], np.bincount(reference[shared], minlength=n_references).cumsum()])
        sparse = csr_matrix((values[shared], place[shared], starts), shape=(n_references, len(dense)))
        return np.asarray(sparse @ dense)


def cached_cider(captions: Sequence[str], caption_image: npt.ArrayLike, root: Path) -> CiderSimilarity:
    """CIDEr between training captions, with their own document frequencies, from the cache below ``root``."""
    image = np.asarray(caption_image, dtype=np.int64)
    made_from = {"version": VERSION, "captions": digest_of(captions), "images": digest_of(map(str, image.tolist()))}

    def build(folder: Path) -> None:
        counted = count_captions(captions)
        CiderVectors.of(counted, DocumentFrequency.of_counted(counted, image)).save(folder)

    return CiderSimilarity(CiderVectors.load(cached(root, "cider", made_from, build)))


def cider_similarity(captions: Sequence[str], frequency: DocumentFrequency) -> CiderSimilarity:
    """CIDEr between captions of an evaluation split, with the document frequencies of the training captions."""
    return CiderSimilarity(CiderVectors.of(count_captions(captions), frequency))


def count_captions(captions: Sequence[str]) -> CountedNGrams:
    """The captions' n-grams. Raises ItmError when most captions have none: CIDEr would call all of them irrelevant."""
    bar = tqdm(captions, desc="count n-grams", unit="caption", leave=False, disable=None)
    counted = count_ngrams(map(tokenize, bar))
    empty = int((counted.lengths == 0).sum())
    if empty > len(captions) / 2:
        raise ItmError(
            f"{empty} of {len(captions)} captions have no word of a-z and 0-9, which CIDEr compares; "
            "take labels from sentence embeddings"
        )
    return counted


def cider_relevance(
    image_captions: Sequence[Sequence[str]],
    captions: Sequence[str],
    *,
    document_frequency: DocumentFrequency | None = None,
    reduce: str = "max",
) -> FloatArray:
    """How relevant each caption is for each image: its CIDEr / 10 against the image's captions, in [0, 1].

    Args:
        image_captions: captions of each image, at least one, any number.
        captions: the captions to be judged.
        document_frequency: of the training captions; None takes that of ``image_captions``.
        reduce: "max" over an image's captions | "mean", which is CIDEr itself.

    Returns:
        (n_images, n_captions), float64. An image's own caption gets what CIDEr gives it; ``CaptionLabels`` makes it 1.

    Raises:
        ItmError: an image without captions, an unknown ``reduce``.

    >>> images = [["a red dog runs on grass", "a dog on a lawn"], ["two boats at sea in the rain"]]
    >>> cider_relevance(images, ["a red dog runs on grass", "boats at sea"]).round(3)
    array([[1.   , 0.   ],
           [0.   , 0.336]])
    """
    counts = [len(own) for own in image_captions]
    if 0 in counts:
        raise ItmError(f"image {counts.index(0)} has no caption; give at least one for every image")
    references = [caption for own in image_captions for caption in own]
    counted = count_ngrams(map(tokenize, [*references, *captions]))
    if document_frequency is None:
        document_frequency = DocumentFrequency.of(references, np.repeat(np.arange(len(counts)), counts))
    similarity = CiderSimilarity(CiderVectors.of(counted, document_frequency))
    rows = np.arange(len(counted.lengths))
    return over_captions(similarity.similarity(rows[: len(references)], rows[len(references) :]), counts, reduce)
