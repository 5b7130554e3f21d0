"""Captions to word ids: the vocabulary of the GRU text encoders."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavis_itm_plugins.encoders.treebank import treebank_words
from lavis_itm_plugins.errors import ItmError

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNKNOWN = range(4)
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


@lru_cache(maxsize=1 << 18)
def words_of(caption: str) -> tuple[str, ...]:
    """The lower-case words of a caption; punctuation is dropped.

    >>> words_of("A dog's ball, on the Grass.")
    ('a', "dog's", 'ball', 'on', 'the', 'grass')
    """
    return tuple(_WORD.findall(caption.lower()))


class Vocabulary:
    """Words and their ids; 0 to 3 are `<pad> <start> <end> <unk>`, as in the field's released vocabularies.

    >>> vocabulary = Vocabulary.from_captions(["a red ball", "a red box"], min_count=2)
    >>> vocabulary.words
    ['<pad>', '<start>', '<end>', '<unk>', 'a', 'red']
    >>> vocabulary.encode("a blue ball")
    [1, 4, 3, 3, 2]
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.ids = {word: i for i, word in enumerate(self.words)}
        if tuple(self.words[: len(SPECIAL)]) != SPECIAL:
            raise ItmError(f"a vocabulary starts with {' '.join(SPECIAL)}, this one with {self.words[:4]}")
        if len(self.ids) != len(self.words):
            raise ItmError("a word appears twice in the vocabulary; remove the second one")
        # released vocabularies count punctuation as words, ours never do
        self._split = treebank_words if "." in self.ids or "'s" in self.ids else words_of

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def from_captions(cls, captions: Iterable[str], *, min_count: int = 4) -> Vocabulary:
        """Words seen at least `min_count` times, most frequent first, then alphabetical."""
        counts = Counter(word for caption in captions for word in words_of(caption))
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        if not kept:
            raise ItmError(f"no word occurs {min_count} times in the training captions; lower min_count")
        return cls([*SPECIAL, *kept])

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a JSON vocabulary: a list of words, a word-to-id dictionary, or the form SCAN and its kin released."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ItmError(f"cannot read the vocabulary {path}: {error.strerror}") from None
        except ValueError as error:
            raise ItmError(f"{path} is not a JSON vocabulary: {error}") from None
        return cls(_words_in_order(content, path))

    def save(self, path: str | Path) -> None:
        """Write the form that SCAN, SGRAF and DBL release: word2idx, idx2word, idx."""
        content = {
            "word2idx": self.ids,
            "idx2word": {str(i): word for i, word in enumerate(self.words)},
            "idx": len(self.words),
        }
        try:
            Path(path).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise ItmError(f"cannot write the vocabulary {path}: {error.strerror}") from None

    def encode(self, caption: str) -> list[int]:
        """Word ids between `<start>` and `<end>`; unknown words become `<unk>`."""
        return [START, *(self.ids.get(word, UNKNOWN) for word in self._split(caption)), END]

    def batch(self, captions: Sequence[str], *, max_words: int | None = None) -> tuple[Tensor, Tensor]:
        """Padded ids (n, longest) and lengths (n,) of captions, both int64 on the CPU."""
        rows = [self.encode(caption) for caption in captions]
        if max_words is not None:
            rows = [row if len(row) <= max_words + 2 else [*row[: max_words + 1], END] for row in rows]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        longest = int(lengths.max()) if rows else 0
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], dtype=torch.int64), lengths


def _words_in_order(content: Any, path: str | Path) -> list[str]:
    """The words of any of the JSON forms, by id."""
    if isinstance(content, dict) and isinstance(content.get("word2idx"), dict):
        content = content["word2idx"]
    if isinstance(content, list) and all(isinstance(word, str) for word in content):
        return content
    if isinstance(content, dict) and set(map(str, content.values())) == set(map(str, range(len(content)))):
        return sorted(content, key=lambda word: int(content[word]))
    raise ItmError(f"{path} holds no vocabulary: give a list of words, or a dictionary of words to ids from 0 upwards")
