"""The n-grams of captions as whole numbers, counted without a Python loop over them: 24 million of COCO in a minute."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lavis_itm_plugins.errors import ItmError

IntArray = npt.NDArray[np.int64]

ORDERS = 4  # n-grams of 1 to 4 words, as in CIDEr
TOKEN = re.compile(r"[a-z0-9']+")


def tokenize(caption: str) -> list[str]:
    """The words that CIDEr compares: lower case, a-z, 0-9 and the apostrophe.

    >>> tokenize("A dog's ball, on grass.")
    ['a', "dog's", 'ball', 'on', 'grass']
    """
    return TOKEN.findall(caption.lower())


@dataclass(frozen=True)
class NGrams:
    """Every n-gram of some captions. An n-gram's id is its row in ``keys`` of its order, a word's in ``words``.

    ``keys[k]`` (sorted) holds the n-grams of k + 2 words as (id of all words but the last) * len(words) + last word.
    """

    words: Mapping[str, int]
    keys: tuple[IntArray, ...]

    def sizes(self) -> list[int]:
        """How many n-grams of each order there are."""
        return [len(self.words), *map(len, self.keys)]

    def ids_in(self, other: NGrams) -> list[IntArray]:
        """For each order, the id that ``other`` gives to each of these n-grams; -1 where it has none.

        >>> one, other = (count_ngrams(map(tokenize, texts)).ngrams for texts in (["a red dog"], ["dog", "a red"]))
        >>> [ids.tolist() for ids in one.ids_in(other)]
        [[1, 2, 0], [0, -1], [-1], []]
        """
        last = np.array([other.words.get(word, -1) for word in self.words], dtype=np.int64)
        found = [last]
        for keys, wanted in zip(self.keys, other.keys, strict=True):
            first, word = found[-1][keys // max(len(self.words), 1)], last[keys % max(len(self.words), 1)]
            key = np.where((first < 0) | (word < 0), -1, first * len(other.words) + word)
            place = np.searchsorted(wanted, key)
            hit = place < len(wanted)
            hit[hit] = wanted[place[hit]] == key[hit]
            found.append(np.where(hit, place, -1))
        return found


@dataclass(frozen=True)
class CountedNGrams:
    """Which n-grams each caption holds, and how often: for each order rows (captions), ids and counts, sorted."""

    ngrams: NGrams
    lengths: IntArray  # words of each caption
    rows: tuple[IntArray, ...]
    ids: tuple[IntArray, ...]
    counts: tuple[IntArray, ...]


def count_ngrams(token_lists: Iterable[Sequence[str]]) -> CountedNGrams:
    """Count the n-grams of captions.

    >>> counted = count_ngrams([["red", "red", "dog"]])
    >>> counted.ids[0].tolist(), counted.counts[0].tolist(), counted.ngrams.sizes()
    ([0, 1], [2, 1], [2, 2, 1, 0])
    """
    words: dict[str, int] = {}
    numbered = [[words.setdefault(token, len(words)) for token in tokens] for tokens in token_lists]
    lengths = np.array([len(tokens) for tokens in numbered], dtype=np.int64)
    flat = np.fromiter((word for tokens in numbered for word in tokens), dtype=np.int64, count=int(lengths.sum()))
    row = np.repeat(np.arange(len(lengths)), lengths)
    left = np.repeat(lengths.cumsum(), lengths) - np.arange(len(flat))  # words from here to the caption's end
    starts, ids, keys = np.arange(len(flat)), flat, []
    found = [_occurrences(row, ids, len(words))]
    for order in range(2, ORDERS + 1):
        goes_on = left[starts] >= order
        starts, ids = starts[goes_on], ids[goes_on]
        key, ids = np.unique(ids * len(words) + flat[starts + order - 1], return_inverse=True)
        keys.append(key)
        found.append(_occurrences(row[starts], ids, len(key)))
    rows, gram_ids, counts = zip(*found, strict=True)
    return CountedNGrams(NGrams(words, tuple(keys)), lengths, rows, gram_ids, counts)


def _occurrences(row: IntArray, ids: IntArray, size: int) -> tuple[IntArray, IntArray, IntArray]:
    pairs, counts = np.unique(row * size + ids, return_counts=True)
    return pairs // max(size, 1), pairs % max(size, 1), counts


@dataclass(frozen=True)
class DocumentFrequency:
    """In the captions of how many images each n-gram occurs; to be taken from training captions only."""

    ngrams: NGrams
    counts: tuple[IntArray, ...]
    n_images: int

    @classmethod
    def of(cls, captions: Sequence[str], caption_image: npt.ArrayLike) -> DocumentFrequency:
        """Count over captions and each one's image.

        >>> found = DocumentFrequency.of(["a dog", "a red dog", "a cat"], [0, 0, 1])
        >>> found.counts[0].tolist()         # a, dog, red, cat
        [2, 1, 1, 1]
        """
        return cls.of_counted(count_ngrams(map(tokenize, captions)), caption_image)

    @classmethod
    def of_counted(cls, counted: CountedNGrams, caption_image: npt.ArrayLike) -> DocumentFrequency:
        """The same from n-grams that were counted before."""
        image = np.asarray(caption_image, dtype=np.int64)
        if image.shape != counted.lengths.shape:
            raise ItmError(f"caption_image has shape {image.shape} for {len(counted.lengths)} captions; give one each")
        counts = []
        for rows, ids, size in zip(counted.rows, counted.ids, counted.ngrams.sizes(), strict=True):
            pairs = np.unique(image[rows] * size + ids)
            counts.append(np.bincount(pairs % max(size, 1), minlength=size))
        return cls(counted.ngrams, tuple(counts), len(np.unique(image)))

    def idf(self, ngrams: NGrams) -> list[npt.NDArray[np.float64]]:
        """log(images / document frequency) of other n-grams, for each order; one that never occurred counts as 1."""
        weights = []
        for ids, counts in zip(ngrams.ids_in(self.ngrams), self.counts, strict=True):
            known = np.append(counts, 0)[ids].astype(np.float64)  # -1 reads the 0 at the end
            weights.append(np.log(float(self.n_images)) - np.log(np.maximum(known, 1.0)))
        return weights
