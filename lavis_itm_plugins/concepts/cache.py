"""What was read from ConceptNet and from word vectors, kept by content: the second start reads a small file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from lavis_itm_plugins.concepts.conceptnet import ATTRIBUTION, GAINS, read_conceptnet
from lavis_itm_plugins.concepts.vectors import Vectors, is_numberbatch, read_word_vectors
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path

log = logging.getLogger(__name__)

VERSION = 1  # raise it whenever a change keeps other assertions or vectors of the same files
ATTRIBUTION_FILE = "CONCEPTNET_LICENSE.txt"
_MEBIBYTE = 1 << 20


def cached_conceptnet(
    path: str | Path, vocabulary: Sequence[str], root: Path, *, shared_alike: bool = True
) -> nx.MultiDiGraph[str]:
    """``read_conceptnet`` of a file, from the cache below `root` when the same was read before.

    The licence is put there first, unless the assertions are not ConceptNet's (`shared_alike`). Safe against being
    killed and against several processes at once: a file appears whole or not at all, and one that cannot be read is
    made again. Raises ItmError as reading does, and when the cache is not writable.
    """
    if shared_alike:
        write_attribution(root)
    entry = root / f"conceptnet-{content_key(path, vocabulary, GAINS)}.npz"
    stored = _load(entry, ("start", "end", "relation", "weight"))
    if stored is not None:
        return _graph_of(stored, vocabulary)
    graph = read_conceptnet(path, vocabulary)
    _save(entry, _arrays_of(graph, vocabulary), {**graph.graph, "edges": graph.number_of_edges()})
    return graph


def cached_vectors(path: str | Path, words: Sequence[str], root: Path) -> Vectors:
    """``read_word_vectors``, kept as ``cached_conceptnet`` keeps assertions; Numberbatch has ConceptNet's licence."""
    if is_numberbatch(path):
        write_attribution(root)
    entry = root / f"vectors-{content_key(path, words, {})}.npz"
    stored = _load(entry, ("rows", "vectors"))
    if stored is None:
        found = read_word_vectors(path, words)
        rows = [row for row, word in enumerate(words) if word in found]
        vectors = np.asarray([found[words[row]] for row in rows], dtype=np.float32)
        _save(entry, {"rows": np.asarray(rows, dtype=np.int32), "vectors": vectors}, {"edges": len(rows)})
        return found
    return {words[row]: vector for row, vector in zip(stored["rows"], stored["vectors"], strict=True)}


def content_key(path: str | Path, words: Sequence[str], gains: Mapping[str, float]) -> str:
    """A name that changes with the file (size, time, first and last MiB), the words, the gains or our version."""
    file = user_path(path)
    try:
        about = file.stat()
        with file.open("rb") as content:
            first = content.read(_MEBIBYTE)
            content.seek(max(about.st_size - _MEBIBYTE, 0))
            last = content.read(_MEBIBYTE)
    except OSError as error:
        raise ItmError(f"cannot read {path}: {error.strerror or error}; check the path") from None
    told = json.dumps([VERSION, about.st_size, about.st_mtime_ns, list(words), sorted(gains.items())])
    return hashlib.sha256(first + last + told.encode()).hexdigest()[:32]


def write_attribution(folder: Path) -> None:
    """Put ConceptNet's licence and attribution beside files derived from it; raises ItmError when that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ATTRIBUTION_FILE).write_text(ATTRIBUTION, encoding="utf-8")
    except OSError as error:
        raise ItmError(f"cannot write {folder}: {error.strerror or error}; choose a folder you may write to") from None


def _arrays_of(graph: nx.MultiDiGraph[str], vocabulary: Sequence[str]) -> dict[str, Any]:
    rows = {word: row for row, word in enumerate(vocabulary)}
    relations = sorted({relation for _, _, relation in graph.edges(keys=True)})
    edges = list(graph.edges(keys=True, data="weight"))
    return {
        "start": np.asarray([rows[start] for start, _, _, _ in edges], dtype=np.int32),
        "end": np.asarray([rows[end] for _, end, _, _ in edges], dtype=np.int32),
        "relation": np.asarray([relations.index(name) for _, _, name, _ in edges], dtype=np.uint16),
        "weight": np.asarray([weight for *_, weight in edges], dtype=np.float64),
        "relations": np.asarray(relations, dtype=np.str_),
    }


def _graph_of(stored: Mapping[str, Any], vocabulary: Sequence[str]) -> nx.MultiDiGraph[str]:
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph(**{key: stored["about"][key] for key in ("lines", "bad_lines")})
    graph.add_nodes_from(vocabulary)
    columns = (stored[name].tolist() for name in ("start", "end", "relation", "weight"))
    for start, end, relation, weight in zip(*columns, strict=True):
        name = str(stored["relations"][relation])
        graph.add_edge(vocabulary[start], vocabulary[end], key=name, weight=weight)
    return graph


def _load(entry: Path, counted: Sequence[str]) -> dict[str, Any] | None:
    """The arrays of an entry and what was said of it under "about"; None when it is absent or damaged."""
    try:
        with np.load(entry, allow_pickle=False) as archive:
            stored = {name: archive[name] for name in archive.files}
            about = json.loads(str(stored.pop("about")))
            whole = all(len(stored[name]) == about["edges"] for name in counted)
    except FileNotFoundError:
        return None
    # a cut file fails in as many ways as there are places to cut it; it is made again
    except Exception as error:
        log.warning("%s is damaged (%s) and made again", entry, type(error).__name__)
        return None
    return {**stored, "about": about} if whole else None


def _save(entry: Path, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write under a name of its own, flush to the disk, then rename."""
    temporary = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=entry.parent, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, about=np.asarray(json.dumps(dict(about))), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, entry)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ItmError(f"cannot write {entry}: {error.strerror or error}; choose a folder you may write to") from None
