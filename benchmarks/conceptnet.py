"""ConceptNet's reader on a generated file with broken lines, and on real files.

A gzipped file of 2 million lines, one in a hundred broken in one of eight ways, is read for a small and a large
vocabulary. What the reader keeps and counts must be what was written: how many edges, the sum of their weights, and the
broken lines. The promise is 200,000 lines a second on one core, and memory that follows what is kept.
``--conceptnet FILE --captions FILE`` reads assertions over the captions' words and prints how many it knows.
Run ``python -m benchmarks.conceptnet [--quick] [--require 200000]``.
"""

from __future__ import annotations

import argparse
import gzip
import math
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.memory import PeakMemory

LANGUAGES = ("en", "en", "en", "fr", "de", "ja", "es", "fi", "ru", "la")
RELATIONS = ("RelatedTo", "IsA", "HasContext", "Synonym", "FormOf", "AtLocation")
VOCABULARIES = (300, 10_000)
TAIL = '"license": "cc:by-sa/4.0", "sources": [{"contributor": "/s/resource/wiktionary/en"}]'
# broken whatever their words are
ALWAYS = ("four columns", "no UTF-8", "empty", "junk")
# broken where the words are looked up
WEIGHTS = {
    "no weight": "}}",
    "NaN": ', "weight": NaN}}',
    "negative": ', "weight": -{weight}}}',
    "truncated": ', "weight": {weight}',
}


@dataclass
class Written:
    """What a generated file holds: edges between the first so many words, and broken lines by kind."""

    heaviest: dict[tuple[int, str, int], float] = field(default_factory=dict)
    always: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ALWAYS, 0))
    # the larger of both words' numbers, of each English line without a sound weight
    weights: dict[str, list[int]] = field(default_factory=lambda: {kind: [] for kind in WEIGHTS})

    def edges(self, words: int) -> list[float]:
        """The weights of what is kept for this vocabulary."""
        return [weight for (a, _, b), weight in self.heaviest.items() if max(a, b) < words and a != b]

    def broken(self, words: int) -> int:
        """The lines that are counted for this vocabulary."""
        return sum(self.always.values()) + sum(largest < words for kind in self.weights.values() for largest in kind)

    @property
    def all_broken(self) -> int:
        """Of the whole file, whatever their words are."""
        return sum(self.always.values()) + sum(map(len, self.weights.values()))


class Writer:
    """Lines in ConceptNet's form; the words' numbers lean towards the small ones, as real words do."""

    def __init__(self, seed: int = 0) -> None:
        self.rng, self.written = random.Random(seed), Written()

    def line(self, broken: str | None) -> bytes:
        """One line, sound or broken in this way."""
        if broken == "empty":
            content = b""
        elif broken == "junk":
            content = self.rng.randbytes(self.rng.randrange(1, 200)).replace(b"\n", b"") + b"\xff"
        else:
            content = self._assertion(broken)
        if broken in self.written.always:
            self.written.always[broken] += 1
        return content + b"\n"

    def _assertion(self, broken: str | None) -> bytes:
        rng = self.rng
        # where it is looked up, so that every such line is one that can be counted
        language = "en" if broken in WEIGHTS else rng.choice(LANGUAGES)
        relation, weight = rng.choice(RELATIONS), round(4 * rng.random() + 0.001, 3)
        a, b = (int(50_000 * rng.random() ** 3) for _ in range(2))
        if language == "en" and broken is None:
            key = (a, relation, b)
            self.written.heaviest[key] = max(weight, self.written.heaviest.get(key, 0.0))
        elif broken in WEIGHTS:
            self.written.weights[broken].append(max(a, b))
        end = WEIGHTS.get(broken or "", ', "weight": {weight}}}').format(weight=weight)
        start, stop = f"/c/{language}/word{a}/n", f"/c/{language}/word{b}"
        columns = [f"/a/[/r/{relation}/,{start}/,{stop}/]", f"/r/{relation}", start, stop]
        if broken != "four columns":
            columns.append(f'{{"dataset": "/d/generated", {TAIL}{end}')
        line = "\t".join(columns).encode()
        return line.replace(b"generated", b"gener\xe9", 1) if broken == "no UTF-8" else line


def write_assertions(path: Path, lines: int) -> Written:
    """A gzipped file, one line in a hundred broken, each kind in turn."""
    writer, kinds = Writer(), (*ALWAYS, *WEIGHTS)
    with gzip.open(path, "wb", compresslevel=6) as file:
        for number in range(lines):
            file.write(writer.line(kinds[number // 100 % len(kinds)] if number % 100 == 0 else None))
    return writer.written


def check(graph: Any, written: Written, words: int, lines: int) -> None:
    """End with a sentence where the reader found something else than was written."""
    weights = written.edges(words)
    kept = sum(weight for *_, weight in graph.edges(data="weight"))
    pairs = {
        "lines": (graph.graph["lines"], lines),
        "broken lines": (graph.graph["bad_lines"], written.broken(words)),
        "edges": (graph.number_of_edges(), len(weights)),
    }
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise SystemExit(f"{found} {name} were found, {expected} were written")
    if not math.isclose(kept, math.fsum(weights), rel_tol=1e-9):
        raise SystemExit(f"the edges weigh {kept}, {math.fsum(weights)} was written")


def reading(lines: int) -> float:
    """Print what the reader does with a generated file; gives back the lines of a CPU second at the slowest."""
    from lavis_itm_plugins.concepts import read_conceptnet

    rates = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "assertions.csv.gz"
        written = write_assertions(path, lines)
        size = path.stat().st_size / 2**20
        print(
            f"read_conceptnet, {lines:,} lines, {written.all_broken:,} of them broken, {size:.0f} MB packed", flush=True
        )
        for words in VOCABULARIES:
            vocabulary = [f"word{number}" for number in range(words)]
            start = time.process_time()
            with PeakMemory() as memory:
                graph = read_conceptnet(path, vocabulary)
            rates.append(lines / (time.process_time() - start))
            check(graph, written, words, lines)
            found = f"{graph.number_of_edges():,} edges kept, {graph.graph['bad_lines']:,} broken lines counted"
            print(
                f"  {words:,} words: {rates[-1]:,.0f} lines a CPU second; {found}, both as written; "
                f"{memory.extra / 2**20:.0f} MB at most",
                flush=True,
            )
    return min(rates)


def coverage(assertions: str, captions: str) -> str:
    """How many of the captions' words a real file knows."""
    from lavis_itm_plugins.concepts import concept_vocabulary, read_conceptnet

    texts = Path(captions).read_text(encoding="utf-8").splitlines()
    words = list(concept_vocabulary(texts, sys.maxsize))
    start = time.process_time()
    graph = read_conceptnet(assertions, words)
    rate = graph.graph["lines"] / (time.process_time() - start)
    known = sum(1 for _, degree in graph.degree() if degree)
    return (
        f"{assertions}: {graph.graph['lines']:,} lines at {rate:,.0f} a CPU second, {graph.graph['bad_lines']} broken; "
        f"{graph.number_of_edges():,} edges between {known} of {len(words)} words of at least 5 captions "
        f"({100 * known / len(words):.0f} %)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a file of 50,000 lines")
    parser.add_argument("--threads", type=int, default=1, help="of torch; the reader has one")
    parser.add_argument("--require", type=float, default=0.0, help="exit with 1 below so many lines a CPU second")
    parser.add_argument("--conceptnet", help="also read this file")
    parser.add_argument("--captions", help="whose words are looked up in it")
    args = parser.parse_args()
    slowest = reading(50_000 if args.quick else 2_000_000)
    if args.conceptnet and args.captions:
        print(coverage(args.conceptnet, args.captions))
    else:
        print("no real file was read; give --conceptnet and --captions to see what it knows of the captions' words")
    return int(bool(args.require) and slowest < args.require)


if __name__ == "__main__":
    sys.exit(main())
