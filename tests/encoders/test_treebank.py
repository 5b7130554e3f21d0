"""Words as NLTK's Treebank tokeniser gave them to the released vocabularies."""

import pytest

from lavis_itm_plugins.encoders.treebank import treebank_words
from lavis_itm_plugins.encoders.vocabulary import SPECIAL, UNKNOWN, Vocabulary


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Two dogs, one ball.", "two dogs , one ball ."),
        ("A man's hat isn't his", "a man 's hat is n't his"),
        ("the boys' team", "the boys ' team"),
        ('A sign that reads "stop".', "a sign that reads `` stop '' ."),
        ("a t-shirt -- red; 3,000 people & more", "a t-shirt -- red ; 3,000 people & more"),
        ("people (five) wait...", "people ( five ) wait ..."),
        ("They cannot run. They rest.", "they can not run . they rest ."),
        ("at 3:30 p.m. there", "at 3:30 p.m. there"),
        ("", ""),
        ("  spaces\tand\nlines ", "spaces and lines"),
    ],
)
def test_words_and_punctuation(caption, words):
    assert treebank_words(caption) == tuple(words.split())


def test_a_vocabulary_with_punctuation_is_read_so_and_ours_is_not():
    released = Vocabulary([*SPECIAL, "a", "dog", "'s", "ball", "."])
    assert released.encode("A dog's ball.") == [1, 4, 5, 6, 7, 8, 2]
    ours = Vocabulary.from_captions(["a dog's ball."], min_count=1)
    assert ours.encode("A dog's ball.")[1:-1] == [ours.ids[word] for word in ("a", "dog's", "ball")]
    assert UNKNOWN not in ours.encode("A dog's ball.")
