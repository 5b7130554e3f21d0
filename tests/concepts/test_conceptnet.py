"""Reading ConceptNet's assertions: what is kept, what is broken, and from where it comes."""

from __future__ import annotations

import gzip
import io
import sys
import tracemalloc
from pathlib import Path

import pytest
from concepts.conceptnet_lines import assertion, assertions
from hypothesis import given
from hypothesis import strategies as st

from lavis_itm_plugins.concepts import read_conceptnet
from lavis_itm_plugins.errors import ItmError

WORDS = ["dog", "run", "ball", "t-shirt", "beach"]


def read(content: bytes, words=WORDS, **options):
    return read_conceptnet(io.BytesIO(content), words, **options)


def edges(graph) -> set[tuple[str, str, str, float]]:
    return {(start, relation, end, weight) for start, end, relation, weight in graph.edges(keys=True, data="weight")}


def test_edges_between_the_words_are_kept() -> None:
    content = assertions("dog CapableOf run 2.0, dog IsA animal 1.0, t_shirt RelatedTo ball 0.5, dog Antonym ball 1.0")
    graph = read(content)
    assert list(graph) == WORDS
    expected = {("dog", "CapableOf", "run", 2.0), ("t-shirt", "RelatedTo", "ball", 0.5), ("dog", "Antonym", "ball", 1)}
    assert edges(graph) == expected
    assert graph.graph == {"lines": 4, "bad_lines": 0}


def test_senses_are_one_and_the_heaviest_duplicate_stays() -> None:
    lines = [("dog/n/wn/animal", 1.0), ("dog", 3.0), ("dog/v", 2.0)]
    content = b"".join(assertion(start, "CapableOf", "run/v", weight) for start, weight in lines)
    assert edges(read(content + assertion("run", "CapableOf", "dog", 0.5))) == {
        ("dog", "CapableOf", "run", 3.0),
        ("run", "CapableOf", "dog", 0.5),
    }


def test_a_word_related_to_itself_is_left_out() -> None:
    assert not edges(read(assertions("dog RelatedTo dog 2.0, t_shirt FormOf t_shirt 1")))


def test_base_forms_are_found_unless_they_are_words_of_their_own() -> None:
    content = assertions("dog CapableOf run 2.0, dogs CapableOf run 1.0")
    assert edges(read(content, ["dogs", "running"])) == {("dogs", "CapableOf", "running", 2.0)}
    both = edges(read(content, ["dog", "dogs", "run"]))
    assert both == {("dog", "CapableOf", "run", 2.0), ("dogs", "CapableOf", "run", 1.0)}


def test_other_languages_are_left_out() -> None:
    french = assertion("dog", "CapableOf", "run").replace(b"/c/en/dog", b"/c/fr/dog")
    mixed = assertion("dog", "CapableOf", "run")
    graph = read(french + mixed)
    assert edges(graph) == {("dog", "CapableOf", "run", 1.0)} and graph.graph["bad_lines"] == 0
    whole = assertion("dog", "CapableOf", "run").replace(b"/c/en/", b"/c/fr/")
    assert edges(read(whole, language="fr")) == {("dog", "CapableOf", "run", 1.0)}


@pytest.mark.parametrize(
    "line",
    [
        b"/a/1\t/r/IsA\t/c/en/dog\t/c/en/ball\n",
        b"\n",
        b"no columns at all\n",
        b"five\tcolumns\tof\tsomething\telse\n",
        assertion("dog", "IsA", "ball", None),
        assertion("dog", "IsA", "ball", "heavy"),
        assertion("dog", "IsA", "ball", -1),
        assertion("dog", "IsA", "ball", "NaN"),
        assertion("dog", "IsA", "ball", 12.5).removesuffix(b".5}\n") + b"\n",
        assertion("dog", "IsA", "ball")[:-12] + b"\n",
        assertion("dog", "IsA", "ball").replace(b"dog", b"d\xffg"),
        assertion("dog", "IsA", "ball").replace(b"\t/r/IsA", b"\tIsA"),
    ],
)
def test_a_broken_line_is_counted_and_never_fatal(line, caplog) -> None:
    good = assertion("dog", "CapableOf", "run")
    graph = read(good + line + good)
    assert edges(graph) == {("dog", "CapableOf", "run", 1.0)}
    assert graph.graph == {"lines": 3, "bad_lines": 1}
    assert "1 of 3 lines are broken and left out" in caplog.text


@given(st.binary(max_size=300))
def test_no_bytes_are_fatal(content) -> None:
    lines = content.count(b"\n") + (not content.endswith(b"\n") and bool(content))
    assert read(content).graph["lines"] == lines


def test_an_empty_file_and_an_absent_word() -> None:
    graph = read(b"")
    assert list(graph) == WORDS and not edges(graph) and graph.graph == {"lines": 0, "bad_lines": 0}
    assert edges(read(assertions("dog CapableOf run 1"), ["cat"])) == set()


def test_words_in_other_scripts() -> None:
    assert edges(read(assertion("été", "RelatedTo", "dog"), ["dog", "été"])) == {("été", "RelatedTo", "dog", 1.0)}


def test_plain_gzipped_and_standard_input_are_the_same(tmp_path, monkeypatch) -> None:
    content = assertions("dog CapableOf run 2.0, ball IsA beach 1.0")
    # what decides is the content, not the name
    places = [tmp_path / "a.csv", tmp_path / "a.csv.gz", tmp_path / "misnamed.csv"]
    for place, packed in zip(places, (False, True, True), strict=True):
        place.write_bytes(gzip.compress(content) if packed else content)
    expected = edges(read(content))
    for place in places:
        assert edges(read_conceptnet(place, WORDS)) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(gzip.compress(content)))))
    assert edges(read_conceptnet("-", WORDS)) == expected


def test_a_file_that_cannot_be_read_is_named(tmp_path) -> None:
    with pytest.raises(ItmError, match=r"cannot read .*absent.csv: No such file"):
        read_conceptnet(tmp_path / "absent.csv", WORDS)


def test_a_packed_file_that_is_cut_or_damaged_is_no_smaller_graph(tmp_path) -> None:
    lines = b"".join(assertion(f"dog{number}", "IsA", "ball", number + 1) for number in range(50_000))
    packed, place = gzip.compress(lines), tmp_path / "assertions.csv.gz"
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 255
    for content in (packed[: len(packed) // 2], packed[:-4], bytes(flipped)):
        place.write_bytes(content)
        with pytest.raises(ItmError, match=r"assertions.csv.gz is cut short or damaged after line \d+.*fetch it again"):
            read_conceptnet(place, WORDS)
    # unpacked, the lines before the cut are whole, and the last one is broken
    graph = read(lines[: lines.index(b"dog9999") + 80], [f"dog{number}" for number in range(10_000)] + ["ball"])
    assert graph.graph["bad_lines"] == 1 and graph.graph["lines"] == graph.number_of_edges() + 1 == 10_000


def test_memory_follows_what_is_kept(tmp_path) -> None:
    """A file of 20 MB with one edge in it."""
    place = tmp_path / "large.csv"
    line = assertion("some_" * 20, "RelatedTo", "thing")
    place.write_bytes(line * (20_000_000 // len(line)) + assertion("dog", "IsA", "ball"))
    tracemalloc.start()
    graph = read_conceptnet(place, WORDS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(edges(graph)) == 1 and peak < 8_000_000


def test_the_real_file(shared: Path) -> None:
    path = shared / "data" / "conceptnet" / "assertions_flickr8k.csv.gz"
    graph = read_conceptnet(path, ["dog", "run", "beach", "sand", "unseenword"])
    assert graph.graph["lines"] == 43_239 and graph.graph["bad_lines"] == 0
    assert graph.has_edge("dog", "beach", "AtLocation") and graph.has_edge("sand", "beach", "AtLocation")
    assert not graph.degree("unseenword")
    genuine = read_conceptnet(shared / "data" / "conceptnet" / "conceptnet5_fixture_en_5col.tsv", ["carrot", "carrots"])
    assert genuine.graph == {"lines": 96, "bad_lines": 0}
    assert edges(genuine) == {("carrots", "FormOf", "carrot", 1.0)}
