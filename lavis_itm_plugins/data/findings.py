"""What a look at a data set found: a table row for each split, problems counted by kind, checksums."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lavis_itm_plugins.data.text import has_words

NAMED = 3


class Findings:
    """Problems by kind: all are counted, the first few are named.

    >>> found = Findings()
    >>> for name in "abcd":
    ...     found.add("missing image files", name)
    >>> found.lines(), found.fatal
    (['missing image files: 4 (a; b; c; ...)'], True)
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.fatal_kinds: set[str] = set()

    def add(self, kind: str, example: str, *, fatal: bool = True) -> None:
        """Note one; a fatal kind makes the data unusable."""
        self.counts[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < NAMED:
            examples.append(example)
        if fatal:
            self.fatal_kinds.add(kind)

    @property
    def fatal(self) -> bool:
        """Whether the data cannot be trained on as they are."""
        return bool(self.fatal_kinds)

    def lines(self) -> list[str]:
        """A line for each kind, the fatal ones first."""
        return [self.line(kind) for kind in sorted(self.counts, key=lambda kind: kind not in self.fatal_kinds)]

    def line(self, kind: str) -> str:
        """`kind: count (examples)`."""
        more = "; ..." if self.counts[kind] > NAMED else ""
        return f"{kind}: {self.counts[kind]} ({'; '.join(self.examples[kind])}{more})"


@dataclass
class Report:
    """One data set's table (header and rows), findings, and sha256 sums by name."""

    title: str
    header: Sequence[str] = ()
    rows: list[list[str]] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    checksums: list[tuple[str, str]] = field(default_factory=list)

    def add_files(self, files: Sequence[Path]) -> None:
        """Add checksums of files."""
        self.checksums += [(str(file), sha256(file)) for file in files if file.is_file()]


CAPTION_COLUMNS = ("images", "captions", "per image", "duplicate", "shared")


def caption_cells(captions: Sequence[Sequence[str]], split: str, findings: Findings) -> list[str]:
    """Cells for `CAPTION_COLUMNS`, from each image's captions; the captions' faults go to `findings`.

    Duplicate: again for the same image. Shared: also another image's, so it cannot tell the two apart.
    """
    owners: Counter[str] = Counter()
    duplicates = 0
    for texts in captions:
        distinct = {" ".join(text.split()).lower() for text in texts}
        duplicates += len(texts) - len(distinct)
        owners.update(distinct)
        for text in texts:
            if not has_words(text):
                findings.add("captions without words", f"{split}: {text!r}")
    for text, count in owners.items():
        if count > 1:
            findings.add("captions shared by several images", f"{split}: {text[:60]!r} {count} times", fatal=False)
    counts = [len(texts) for texts in captions] or [0]
    spread = f"{min(counts)}/{sum(counts) / len(counts):.2f}/{max(counts)}"
    shared = sum(count > 1 for count in owners.values())
    return [str(len(captions)), str(sum(counts)), spread, str(duplicates), str(shared)]


def sha256(file: Path) -> str:
    """Checksum of a file's bytes."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
