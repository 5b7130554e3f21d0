"""Words to ids: built from captions, read from each JSON form that the field uses, and refused with a sentence."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lavis_itm_plugins.encoders.vocabulary import END, PAD, SPECIAL, START, UNKNOWN, Vocabulary, words_of
from lavis_itm_plugins.errors import ItmError

WORDS = [*SPECIAL, "a", "dog", "runs"]
BY_ID = {word: number for number, word in enumerate(WORDS)}


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "content",
    [
        WORDS,
        BY_ID,
        dict(reversed(BY_ID.items())),
        {"word2idx": BY_ID, "idx2word": {str(i): word for word, i in BY_ID.items()}, "idx": len(WORDS)},
    ],
    ids=["list", "dictionary", "unordered", "SCAN"],
)
def test_every_released_json_form_gives_the_same_ids(tmp_path, content):
    vocabulary = Vocabulary.load(written(tmp_path / "v.json", content))
    assert vocabulary.words == WORDS
    assert vocabulary.encode("A dog SLEEPS.") == [START, 4, 5, UNKNOWN, END]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not a JSON vocabulary"),
        ("", "is not a JSON vocabulary"),
        ("3", "holds no vocabulary"),
        ({"a": 1, "b": 5}, "holds no vocabulary"),
        ({"a": 0, "b": 0}, "holds no vocabulary"),
        ({"a": 0, "b": "one"}, "holds no vocabulary"),
        ({"a": 0, "b": None, "c": [1]}, "holds no vocabulary"),
        ([1, 2], "holds no vocabulary"),
        (["a", "dog"], "a vocabulary starts with <pad> <start> <end> <unk>, this one with"),
        ([*WORDS, "dog"], "a word appears twice"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, content, reason):
    with pytest.raises(ItmError, match=reason) as caught:
        Vocabulary.load(written(tmp_path / "v.json", content))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_not_utf8(tmp_path):
    with pytest.raises(ItmError, match=r"cannot read the vocabulary .*v.json: No such file"):
        Vocabulary.load(tmp_path / "v.json")
    (tmp_path / "v.json").write_bytes('["caf\xe9"]'.encode("latin-1"))
    with pytest.raises(ItmError, match="is not a JSON vocabulary"):
        Vocabulary.load(tmp_path / "v.json")


def test_built_from_captions_frequent_words_first():
    captions = ["the dog runs", "the dog", "The cat, the end"]
    assert Vocabulary.from_captions(captions, min_count=1).words[4:] == ["the", "dog", "cat", "end", "runs"]
    assert Vocabulary.from_captions(captions, min_count=2).words[4:] == ["the", "dog"]
    with pytest.raises(ItmError, match="no word occurs 9 times in the training captions; lower min_count"):
        Vocabulary.from_captions(captions, min_count=9)


@given(st.lists(st.text(max_size=12), max_size=6))
def test_save_and_load_gives_the_same_vocabulary(tmp_path_factory, captions):
    vocabulary = Vocabulary.from_captions(["always a word", *captions], min_count=1)
    path = tmp_path_factory.mktemp("vocabulary") / "v.json"
    vocabulary.save(path)
    assert Vocabulary.load(path).words == vocabulary.words
    assert set(json.loads(path.read_text(encoding="utf-8"))) == {"word2idx", "idx2word", "idx"}


@given(st.text(max_size=30))
def test_a_caption_never_gives_a_special_word(caption):
    vocabulary = Vocabulary([*SPECIAL, "start", "pad", "a"])
    assert not set(words_of(caption)) & set(SPECIAL)
    ids = vocabulary.encode(caption)
    assert (ids[0], ids[-1]) == (START, END) and not {PAD, START, END} & set(ids[1:-1])


def test_a_batch_is_padded_and_long_captions_are_cut_with_their_end_kept():
    vocabulary = Vocabulary(WORDS)
    ids, lengths = vocabulary.batch(["a dog", "dog " * 10_000, ""], max_words=3)
    assert lengths.tolist() == [4, 5, 2] and ids.dtype == lengths.dtype == torch.int64
    assert ids.tolist() == [[1, 4, 5, 2, 0], [1, 5, 5, 5, 2], [1, 2, 0, 0, 0]]
    assert vocabulary.batch(["a dog"])[0].tolist() == [[1, 4, 5, 2]]
