"""Which words become concepts."""

from __future__ import annotations

import pytest

from lavis_itm_plugins.concepts import ConceptFinder, concept_vocabulary, load_tagger
from lavis_itm_plugins.concepts.vocabulary import kind_of, lemma
from lavis_itm_plugins.errors import ItmError


@pytest.mark.parametrize(
    ("form", "base"),
    [
        ("dogs", "dog"), ("boxes", "box"), ("puppies", "puppy"), ("men", "man"), ("leaves", "leaf"),
        ("running", "run"), ("sitting", "sit"), ("riding", "ride"), ("jumps", "jump"), ("catches", "catch"),
        ("carried", "carry"), ("carries", "carry"), ("lying", "lie"), ("building", "building"), ("grass", "grass"),
        ("bus", "bus"), ("red", "red"), ("tennis", "tennis"), ("dressed", "dressed"), ("t-shirts", "t-shirt"),
        ("boy's", "boy"), ("shoes", "shoe"), ("dress", "dress"), ("ring", "ring"),
    ],
)  # fmt: skip
def test_base_forms(form, base) -> None:
    assert lemma(form) == base
    assert lemma(base) == base


def test_kinds() -> None:
    kinds = {"dog": "object", "t-shirt": "object", "wooden": "property", "three": "property", "swim": "motion"}
    assert {word: kind_of(word) for word in kinds} == kinds
    assert kind_of("is") is None and kind_of("a") is None


CAPTIONS = ["two dogs are running on the wet grass", "a wet dog runs", "A man sits on the grass.", "the man is sitting"]


def test_things_properties_and_motions_in_their_shares() -> None:
    found = concept_vocabulary(CAPTIONS, 4, min_count=2)
    # three of four places are things' (7:2:1), and what is over goes to the most frequent
    assert found == {"dog": "object", "grass": "object", "man": "object", "wet": "property"}
    everything = concept_vocabulary(CAPTIONS, 100, min_count=1)
    assert everything == {**found, "two": "property", "run": "motion", "sit": "motion"}


def test_a_concept_counts_once_in_a_caption() -> None:
    repeated = ["dog dog dogs", "dog", "cat", "cat", "cat"]
    assert list(concept_vocabulary(repeated, 10, min_count=2)) == ["cat", "dog"]
    assert list(concept_vocabulary(repeated, 10, min_count=3)) == ["cat"]


def test_order_does_not_depend_on_that_of_the_captions() -> None:
    one, other = (concept_vocabulary(captions, 9, min_count=1) for captions in (CAPTIONS, CAPTIONS[::-1]))
    assert list(one) == list(other)


def test_a_tagger_decides_where_there_is_one() -> None:
    class Token:
        def __init__(self, word: str) -> None:
            self.lemma_, self.pos_ = {"saw": ("see", "VERB"), "dogs": ("dog", "NOUN")}.get(word, (word, "DET"))

    class Tagger:
        def pipe(self, captions, batch_size):
            return [[Token(word) for word in caption.split()] for caption in captions]

    found = concept_vocabulary(["the dogs saw the saw"], 5, min_count=1, tagger=Tagger())
    assert found == {"dog": "object", "see": "motion"}
    assert load_tagger("no_such_pipeline") is None


def test_nothing_to_choose_from_is_said() -> None:
    with pytest.raises(ItmError, match=r"no word occurs in 5 training captions; lower concept\.min_count"):
        concept_vocabulary(CAPTIONS)
    with pytest.raises(ItmError, match="a vocabulary of 0 concepts"):
        concept_vocabulary(CAPTIONS, 0)


def test_a_word_as_it_stands_comes_before_its_base_form() -> None:
    find = ConceptFinder(["dogs", "dog", "sitting"])
    assert find("dogs dog") == {0, 1} and find("puppy") == set()
    assert find(["sitting"]) == {2} and find("sit") == set()
