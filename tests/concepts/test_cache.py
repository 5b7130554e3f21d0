"""What was read once is not read again, unless something changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from concepts.conceptnet_lines import assertion, assertions

from lavis_itm_plugins.concepts import cache, cached_conceptnet, cached_vectors
from lavis_itm_plugins.errors import ItmError

WORDS = ["dog", "run", "ball"]


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "assertions.csv"
    path.write_bytes(assertions("dog CapableOf run 2.0, ball RelatedTo dog 0.123"))
    return path


@pytest.fixture
def reads(monkeypatch) -> list:
    """Each reading of an assertions file."""
    calls, stock = [], cache.read_conceptnet
    monkeypatch.setattr(cache, "read_conceptnet", lambda *given: (calls.append(given), stock(*given))[1])
    return calls


def same(one, other) -> bool:
    edges = [sorted(graph.edges(keys=True, data="weight")) for graph in (one, other)]
    return edges[0] == edges[1] and list(one) == list(other) and one.graph == other.graph


def test_the_second_reading_comes_from_the_cache(source, tmp_path, reads) -> None:
    first = cached_conceptnet(source, WORDS, tmp_path / "cache")
    (tmp_path / "cache" / "CONCEPTNET_LICENSE.txt").unlink()
    second = cached_conceptnet(source, WORDS, tmp_path / "cache")
    assert len(reads) == 1 and same(first, second) and first.number_of_edges() == 2
    licence = (tmp_path / "cache" / "CONCEPTNET_LICENSE.txt").read_text()
    assert "CC BY-SA 4.0" in licence and "Commonsense Computing Initiative" in licence


def test_whatever_changes_is_read_again(source, tmp_path, reads, monkeypatch) -> None:
    root = tmp_path / "cache"
    cached_conceptnet(source, WORDS, root)
    cached_conceptnet(source, [*WORDS, "cat"], root)
    source.write_bytes(source.read_bytes() + assertion("run", "IsA", "ball"))
    assert cached_conceptnet(source, WORDS, root).number_of_edges() == 3
    monkeypatch.setattr(cache, "GAINS", {**cache.GAINS, "IsA": 0.5})
    cached_conceptnet(source, WORDS, root)
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    cached_conceptnet(source, WORDS, root)
    assert len(reads) == 5


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"PK\x03"])
def test_a_damaged_entry_is_made_again(source, tmp_path, reads, damage, caplog) -> None:
    first = cached_conceptnet(source, WORDS, tmp_path / "cache")
    [entry] = (tmp_path / "cache").glob("*.npz")
    entry.write_bytes(damage(entry.read_bytes()))
    assert same(first, cached_conceptnet(source, WORDS, tmp_path / "cache"))
    assert len(reads) == 2 and "made again" in caplog.text
    assert same(first, cached_conceptnet(source, WORDS, tmp_path / "cache")) and len(reads) == 2


def test_two_processes_at_once(source, tmp_path) -> None:
    program = (
        "import sys; from pathlib import Path; from lavis_itm_plugins.concepts import cached_conceptnet\n"
        f"print(cached_conceptnet(sys.argv[1], {WORDS}, Path(sys.argv[2])).number_of_edges())"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == ["2", "2"]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_vectors_are_kept_too(tmp_path, monkeypatch) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("dog 1 2\nball 3 4\n")
    first = cached_vectors(path, WORDS, tmp_path / "cache")
    monkeypatch.setattr(cache, "read_word_vectors", None)
    second = cached_vectors(path, WORDS, tmp_path / "cache")
    assert first.keys() == second.keys() == {"dog", "ball"}
    for word, vector in first.items():
        assert np.array_equal(vector, second[word])


def test_what_cannot_be_read_or_written_is_named(source, tmp_path) -> None:
    with pytest.raises(ItmError, match=r"cannot read .*absent.csv: No such file"):
        cached_conceptnet(tmp_path / "absent.csv", WORDS, tmp_path)
    with pytest.raises(ItmError, match=r"cannot write .*assertions.csv"):
        cached_conceptnet(source, WORDS, source)
