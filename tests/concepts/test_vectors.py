"""Word vectors from text files of several kinds."""

from __future__ import annotations

import gzip

import networkx as nx
import numpy as np
import pytest

from lavis_itm_plugins.concepts import concept_vectors, read_word_vectors
from lavis_itm_plugins.errors import ItmError

GLOVE = "the 0.5 0.5\ndog 1.0 0.0\nt-shirt 0.0 2.0\n. . . 9.0 9.0\nrun 3.0 4.0\n"
ENGLISH = "3 2\ndog 1.0 0.0\nt_shirt 0.0 2.0\nrun 3.0 4.0\n"
MULTILINGUAL = "4 2\n/c/fr/dog 7.0 7.0\n/c/en/dog 1.0 0.0\n/c/en/t_shirt 0.0 2.0\n/c/en/run 3.0 4.0\n"


@pytest.mark.parametrize("content", [GLOVE, ENGLISH, MULTILINGUAL])
@pytest.mark.parametrize("packed", [False, True])
def test_each_form_gives_the_same(tmp_path, content, packed) -> None:
    path = tmp_path / "vectors.txt"
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    found = read_word_vectors(path, ["dog", "T-shirt", "running", "cat"])
    expected = {"dog": [1, 0], "T-shirt": [0, 2], "running": [3, 4]}
    assert {word: vector.tolist() for word, vector in found.items()} == expected


def test_broken_rows_are_left_out(tmp_path, caplog) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("dog 1 0\ncat 1 x\nrun nan 1\nball 1\nred 2 3\n")
    assert set(read_word_vectors(path, ["dog", "cat", "run", "ball", "red"])) == {"dog", "red"}
    assert "lines of wanted words are broken" in caplog.text


def test_rows_are_unit_and_gaps_filled_from_neighbours() -> None:
    graph = nx.DiGraph()
    graph.add_nodes_from(["dog", "cat", "puppy", "alone"])
    graph.add_edge("dog", "puppy")
    graph.add_edge("puppy", "cat")
    rows = concept_vectors(graph, {"dog": np.float32([2, 0]), "cat": np.float32([0, 5])})
    half = 0.5**0.5
    np.testing.assert_allclose(rows, [[1, 0], [0, 1], [half, half], [half, half]], rtol=1e-6)
    assert rows.dtype == np.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"one two three\n", "holds no word vectors: the first line is")],
)
def test_what_holds_no_vectors_is_named(tmp_path, content, message) -> None:
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    with pytest.raises(ItmError, match=message):
        read_word_vectors(path, ["dog"])


def test_absent_files_and_concepts_are_named(tmp_path) -> None:
    with pytest.raises(ItmError, match=r"cannot read .*absent.txt"):
        read_word_vectors(tmp_path / "absent.txt", ["dog"])
    with pytest.raises(ItmError, match="the word vectors hold none of the concepts"):
        concept_vectors(nx.DiGraph([("a", "b")]), {})
