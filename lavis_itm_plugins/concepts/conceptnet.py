"""ConceptNet's assertions, read line by line into a graph over a vocabulary.

Speer, Chin and Havasi, "ConceptNet 5.5", AAAI 2017; file format: github.com/commonsense/conceptnet5/wiki/Downloads.
"""

from __future__ import annotations

import gzip
import logging
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import networkx as nx
from tqdm import tqdm

from lavis_itm_plugins.concepts.vocabulary import lemma
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path

log = logging.getLogger(__name__)

# How much an assertion says of two things belonging together; every other relation says nothing.
GAINS = {
    **dict.fromkeys(
        (
            "IsA", "PartOf", "HasA", "UsedFor", "CapableOf", "AtLocation", "HasProperty", "LocatedNear", "MadeOf",
            "HasSubevent", "ReceivesAction", "Causes", "HasPrerequisite", "CreatedBy",
        ),
        1.0,
    ),
    **dict.fromkeys(("Synonym", "SimilarTo"), 0.7),
    "RelatedTo": 0.5,
}  # fmt: skip
STANDARD_INPUT = "-"
_CHUNK_LINES = 10_000

ATTRIBUTION = """\
Files in this folder hold data derived from ConceptNet 5, licensed CC BY-SA 4.0
(https://creativecommons.org/licenses/by-sa/4.0/). Whoever passes them on has to name the source and keep the licence.

This work includes data from ConceptNet 5, which was compiled by the Commonsense Computing Initiative. ConceptNet 5 is
freely available under the Creative Commons Attribution-ShareAlike license (CC BY SA 4.0) from https://conceptnet.io.
The included data was created by contributors to Commonsense Computing projects, contributors to Wikimedia projects,
Games with a Purpose, Princeton University's WordNet, DBPedia, OpenCyc, and Umbel.

Robyn Speer, Joshua Chin and Catherine Havasi. ConceptNet 5.5: An Open Multilingual Graph of General Knowledge.
AAAI 2017.
"""


@dataclass
class _Reading:
    """What has been kept so far: the weight of each (start, relation, end), and the lines counted."""

    words_of: dict[bytes, list[str]]
    prefix: bytes
    weights: dict[tuple[str, str, str], float] = field(default_factory=dict)
    lines: int = 0
    bad: int = 0


def read_conceptnet(
    path: str | Path | BinaryIO, vocabulary: Sequence[str], *, language: str = "en"
) -> nx.MultiDiGraph[str]:
    r"""The assertions between words of a vocabulary; a line that is broken is counted and left out.

    Memory grows with what is kept, not with the file. A word is found as it stands ("t-shirt" as t_shirt) and, unless
    that is a word of its own here, by its base form; senses of a term are one; of several equal assertions the
    heaviest stays; a word related to itself is left out.

    Args:
        path: assertions in ConceptNet 5's five tab-separated columns, plain or gzipped whatever the name says;
            "-" is standard input; an open binary file is read to its end.
        vocabulary: words; spaces and hyphens match ConceptNet's underscores.
        language: both ends must be in it.

    Returns:
        The words as nodes, in order; edges with the relation's name as key ("IsA") and attribute `weight`.
        `.graph["lines"]` and `.graph["bad_lines"]` count the file's lines. Broken is a line without five columns, a
        relation and a start; with bytes that are no UTF-8; or, between words of the vocabulary, without a positive
        weight.

    Raises:
        ItmError: the file cannot be read, or is a gzipped one that is cut short or damaged.

    >>> import io
    >>> line = b'/a/1\t/r/CapableOf\t/c/en/dog/n\t/c/en/run/v/wn\t{"weight": 2.0}'
    >>> graph = read_conceptnet(io.BytesIO(line), ["dog", "run"])
    >>> list(graph.edges(keys=True, data="weight")), graph.graph["lines"], graph.graph["bad_lines"]
    ([('dog', 'run', 'CapableOf', 2.0)], 1, 0)
    """
    reading = _Reading(_terms(vocabulary), f"/c/{language}/".encode())
    with ExitStack() as opened:
        try:
            for chunk in _chunks(path, opened):
                _read_lines(chunk, reading)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            # what was read so far would pass for the whole
            raise ItmError(
                f"{path} is cut short or damaged after line {reading.lines} ({error}); fetch it again"
            ) from None
        except OSError as error:
            raise ItmError(f"cannot read {path}: {error.strerror or error}") from None
    if reading.bad:
        log.warning("%s: %d of %d lines are broken and left out", path, reading.bad, reading.lines)
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph(lines=reading.lines, bad_lines=reading.bad)
    graph.add_nodes_from(vocabulary)
    for (start, relation, end), weight in reading.weights.items():
        graph.add_edge(start, end, key=relation, weight=weight)
    return graph


def uri_term(word: str) -> str:
    """A word as ConceptNet writes it.

    >>> uri_term("T-shirt")
    't_shirt'
    """
    return "_".join(word.lower().replace("-", " ").split())


def _terms(vocabulary: Sequence[str]) -> dict[bytes, list[str]]:
    """ConceptNet's terms, and the words of the vocabulary that each stands for."""
    terms: dict[bytes, list[str]] = {}
    for word in vocabulary:
        terms.setdefault(uri_term(word).encode(), []).append(word)
    as_they_stand = frozenset(terms)
    for word in vocabulary:
        base = uri_term(lemma(word.lower())).encode()
        if base not in as_they_stand:
            terms.setdefault(base, []).append(word)
    return terms


def _chunks(path: str | Path | BinaryIO, opened: ExitStack) -> Iterator[list[bytes]]:
    """The lines, many at a time, with a bar that follows the bytes read from the disk."""
    raw, total = _open(path, opened)
    packed = raw.peek(2)[:2] == b"\x1f\x8b" if hasattr(raw, "peek") else False
    lines: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="read ConceptNet", leave=False, disable=None)
    opened.callback(bar.close)
    source = iter(lines)
    while chunk := list(islice(source, _CHUNK_LINES)):
        if total is not None:
            bar.update(raw.tell() - bar.n)
        yield chunk


def _open(path: str | Path | BinaryIO, opened: ExitStack) -> tuple[BinaryIO, int | None]:
    """A binary stream and its size, None where there is no telling."""
    if not isinstance(path, (str, Path)):
        return path, None
    if str(path) == STANDARD_INPUT:
        return sys.stdin.buffer, None
    file = user_path(path)
    return opened.enter_context(file.open("rb")), file.stat().st_size


def _read_lines(chunk: Iterable[bytes], reading: _Reading) -> None:
    """Keep the assertions of some lines; the cheap tests come first, since nearly every line fails one."""
    prefix, words_of = reading.prefix, reading.words_of
    skip = len(prefix)
    for line in chunk:
        reading.lines += 1
        fields = line.split(b"\t", 4)
        whole = len(fields) == 5 and fields[1].startswith(b"/r/") and fields[2].startswith(b"/c/")
        if not whole or not (line.isascii() or _is_utf8(line)):
            reading.bad += 1
            continue
        start, end = fields[2], fields[3]
        if not (start.startswith(prefix) and end.startswith(prefix)):
            continue
        starts = words_of.get(start[skip:].split(b"/", 1)[0])
        ends = words_of.get(end[skip:].split(b"/", 1)[0]) if starts else None
        if starts and ends:
            _keep(fields, starts, ends, reading)


def _keep(fields: Sequence[bytes], starts: Sequence[str], ends: Sequence[str], reading: _Reading) -> None:
    weight = _weight(fields[4])
    if weight is None:
        reading.bad += 1
        return
    relation = fields[1][3:].decode()
    for start in starts:
        for end in ends:
            if start != end:
                key = (start, relation, end)
                reading.weights[key] = max(weight, reading.weights.get(key, 0.0))


def _weight(about: bytes) -> float | None:
    """The positive number after the last "weight" of an assertion's JSON, which is its last key.

    Without the brace after it the line is cut, maybe within the number.
    """
    _, found, rest = about.rpartition(b'"weight"')
    number, closed, _ = rest.partition(b"}")
    try:
        weight = float(number.strip().removeprefix(b":").split(b",", 1)[0]) if found and closed else 0.0
    except ValueError:
        return None
    return weight if 0 < weight < float("inf") else None


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
