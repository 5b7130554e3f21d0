"""Word vectors of the concepts from a text file: ConceptNet Numberbatch, GloVe, word2vec or fastText."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import networkx as nx
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lavis_itm_plugins.concepts.conceptnet import uri_term
from lavis_itm_plugins.concepts.vocabulary import lemma
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path

log = logging.getLogger(__name__)

Vectors = dict[str, npt.NDArray[np.float32]]


def read_word_vectors(path: str | Path, words: Sequence[str], *, language: str = "en") -> Vectors:
    """The vectors of some words, read in one pass that keeps only these rows; lines that do not fit are left out.

    A word is found as it stands, with underscores for hyphens, or by its base form, in this order.

    Args:
        path: text, plain or gzipped. A first line of two numbers is Numberbatch's (or word2vec's); then each line is a
            word, or ConceptNet's `/c/en/word`, and its numbers.
        words: which to keep.
        language: of `/c/...` rows, those of other languages are left out.

    Returns:
        Words that were found, each with a float32 vector; all of one size.

    Raises:
        ItmError: the file cannot be read, or holds no vectors.
    """
    forms = {form: None for word in words for form in _forms(word)}
    found: Vectors = {}
    dim, bad, prefix = None, 0, f"/c/{language}/".encode()
    for line in _lines(user_path(path)):
        if dim is None:
            dim = _dimension(line, path)
            if len(line.split()) == 2:
                continue
        # from the right: some words of GloVe hold spaces
        name, *numbers = line.rstrip().rsplit(b" ", dim)
        word = name.removeprefix(prefix).decode(errors="replace")
        if word in forms and word not in found:
            vector = _vector(numbers, dim)
            bad += vector is None
            if vector is not None:
                found[word] = vector
    if dim is None:
        raise ItmError(f"{path} is empty; give word vectors as text (GloVe or Numberbatch)")
    if bad:
        log.warning("%s: %d lines of wanted words are broken and left out", path, bad)
    best = {word: next((form for form in _forms(word) if form in found), None) for word in words}
    return {word: found[form] for word, form in best.items() if form is not None}


def is_numberbatch(path: str | Path) -> bool:
    """Whether word vectors are ConceptNet Numberbatch: by the file's name, or by rows named `/c/en/word`.

    Raises ItmError when the file cannot be read.
    """
    first = list(islice(_lines(user_path(path)), 2))
    return "numberbatch" in Path(path).name.lower() or any(line.startswith(b"/c/") for line in first)


def concept_vectors(graph: nx.DiGraph[str], known: Vectors) -> npt.NDArray[np.float32]:
    """One unit vector for each concept, (N, w); one without a vector gets the mean of its neighbours, or of all.

    Raises ItmError when no concept has a vector.

    >>> graph = nx.DiGraph([("dog", "puppy")])
    >>> concept_vectors(graph, {"dog": np.float32([0, 2])}).tolist()
    [[0.0, 1.0], [0.0, 1.0]]
    """
    if not any(word in known for word in graph):
        raise ItmError("the word vectors hold none of the concepts; give vectors of the captions' language")
    units = {word: vector / max(float(np.linalg.norm(vector)), 1e-8) for word, vector in known.items()}
    everything = np.mean([units[word] for word in graph if word in units], axis=0)
    rows = []
    for word in graph:
        near = [units[other] for other in nx.all_neighbors(graph, word) if other in units]
        row = units[word] if word in units else np.mean(near, axis=0) if near else everything
        rows.append(row / max(float(np.linalg.norm(row)), 1e-8))
    return np.asarray(rows, dtype=np.float32)


def _forms(word: str) -> list[str]:
    return [word.lower(), uri_term(word), lemma(word.lower())]


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            source: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw
            total = path.stat().st_size
            with tqdm(
                total=total, unit="B", unit_scale=True, desc="read word vectors", leave=False, disable=None
            ) as bar:
                for number, line in enumerate(source):
                    if number % 10_000 == 0:
                        bar.update(raw.tell() - bar.n)
                    yield line
    except (OSError, EOFError, zlib.error) as error:
        raise ItmError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _dimension(first: bytes, path: str | Path) -> int:
    """The size of the vectors, from the first line of a file."""
    fields = first.split()
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        return int(fields[1])
    if len(fields) < 3 or _vector(fields[1:], len(fields) - 1) is None:
        raise ItmError(
            f"{path} holds no word vectors: the first line is {first[:40]!r}; give GloVe's or Numberbatch's text"
        )
    return len(fields) - 1


def _vector(numbers: Sequence[bytes], dim: int) -> npt.NDArray[np.float32] | None:
    try:
        vector = np.array([float(number) for number in numbers], dtype=np.float32)
    except ValueError:
        return None
    return vector if len(vector) == dim and np.isfinite(vector).all() else None
