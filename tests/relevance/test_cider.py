"""CIDEr labels against pycocoevalcap's scorer, dictionaries and loops, and everything that could shift them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.data.scenes import SceneConfig, build_scenes, load_scenes
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.relevance import (
    CaptionLabels,
    CiderSimilarity,
    CiderVectors,
    DocumentFrequency,
    cached_cider,
    cider,
    cider_relevance,
    tokenize,
)
from lavis_itm_plugins.relevance.cider import cider_similarity
from lavis_itm_plugins.relevance.ngrams import count_ngrams

WORDS = ("a", "dog", "dog's", "red", "runs", "on", "grass", "2")


def official(image_captions: list[list[str]], caption: str) -> np.ndarray:
    """CIDEr of one caption for every image, document frequencies from all images' captions."""
    scorer_class = pytest.importorskip("pycocoevalcap.cider.cider_scorer").CiderScorer
    scorer = scorer_class(n=4, sigma=6.0)
    for own in image_captions:
        scorer += (" ".join(tokenize(caption)), [" ".join(tokenize(reference)) for reference in own])
    return scorer.compute_score()[1]


def assert_official(image_captions: list[list[str]], captions: list[str]) -> None:
    ours = 10 * cider_relevance(image_captions, captions, reduce="mean")
    theirs = np.stack([official(image_captions, caption) for caption in captions], axis=1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert theirs.max() > 1 and (theirs == 0).any()


def test_equals_the_official_scorer_on_scenes(tmp_path: Path) -> None:
    scenes = load_scenes(build_scenes(SceneConfig(train=50, val=1, test=1), tmp_path, progress=False), "train")
    images = [
        [c for c, i in zip(scenes.captions, scenes.caption_image, strict=True) if i == image] for image in range(50)
    ]
    assert_official(images, scenes.captions[::75])


@pytest.mark.parametrize("name", ["flickr8k_precomp/dev_caps.txt", "captions/coco_testall_caps.txt"])
def test_equals_the_official_scorer_on_real_captions(shared: Path, name: str) -> None:
    captions = (shared / "data" / name).read_text(encoding="utf-8").split("\n")[:300]
    assert_official([captions[i : i + 5] for i in range(0, 300, 5)], captions[::75])


def naive(reference: str, caption: str, frequency: dict[tuple[str, ...], int], n_images: int) -> float:
    """CIDEr / 10 of a caption against one reference, with dictionaries."""

    def vector(text: str, n: int) -> Counter:
        words = tokenize(text)
        counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        return Counter({g: c * (math.log(n_images) - math.log(max(1, frequency.get(g, 0)))) for g, c in counts.items()})

    total = 0.0
    for n in range(1, 5):
        h, r = vector(caption, n), vector(reference, n)
        norms = math.sqrt(sum(v * v for v in h.values())) * math.sqrt(sum(v * v for v in r.values()))
        total += sum(min(h[g], r[g]) * r[g] for g in h) / norms if norms else 0.0
    bigrams = [max(len(tokenize(text)) - 1, 0) for text in (reference, caption)]
    return total / 4 * math.exp(-((bigrams[0] - bigrams[1]) ** 2) / 72)


def naive_frequency(captions: list[str], caption_image: list[int]) -> dict[tuple[str, ...], int]:
    images: dict[tuple[str, ...], set[int]] = {}
    for caption, image in zip(captions, caption_image, strict=True):
        words = tokenize(caption)
        for n in range(1, 5):
            for i in range(len(words) - n + 1):
                images.setdefault(tuple(words[i : i + n]), set()).add(image)
    return {gram: len(found) for gram, found in images.items()}


sentences = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


@settings(max_examples=60)
@given(
    images=st.lists(st.lists(sentences, min_size=1, max_size=7), min_size=1, max_size=5),
    captions=st.lists(sentences, max_size=6),
    training=st.none() | st.lists(sentences, min_size=1, max_size=8),
    reduce=st.sampled_from(["max", "mean"]),
    at_once=st.sampled_from([1, 4, 128]),
)
def test_equals_the_loops(images, captions, training, reduce, at_once) -> None:
    flat = [(caption, row) for row, own in enumerate(images) for caption in own]
    texts, rows = (training, list(range(len(training)))) if training else map(list, zip(*flat, strict=True))
    given_frequency = DocumentFrequency.of(texts, rows) if training else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cider.CiderSimilarity._products.__globals__, "AT_ONCE", at_once)
        ours = cider_relevance(images, captions, document_frequency=given_frequency, reduce=reduce)
    frequency, n_images = naive_frequency(texts, rows), len(set(rows))
    pick = max if reduce == "max" else lambda values: sum(values) / len(values)
    expected = [[pick([naive(r, caption, frequency, n_images) for r in own]) for caption in captions] for own in images]
    np.testing.assert_allclose(ours, np.array(expected).reshape(len(images), len(captions)), rtol=0, atol=1e-12)
    assert ours.dtype == np.float64 and (ours >= 0).all() and (ours <= 1 + 1e-12).all()


def test_the_cache_gives_what_the_captions_give(tmp_path: Path) -> None:
    captions = ["a red dog runs", "a dog on grass", "two cats sleep", "the cats sleep", "a dog runs runs runs", "sea"]
    caption_image = [0, 0, 1, 1, 2, 2]
    for _ in range(2):
        source = CaptionLabels(cached_cider(captions, caption_image, tmp_path), caption_image)
        expected = cider_relevance([captions[:2], captions[2:4], captions[4:]], captions)
        expected[caption_image, np.arange(6)] = 1
        np.testing.assert_allclose(source.labels(np.arange(3), np.arange(6)), expected, rtol=1e-6)
    assert len(list(tmp_path.glob("cider-*"))) == 1


def test_evaluation_takes_the_training_frequencies() -> None:
    training, caption_image = ["a dog runs", "a cat runs", "a bird sings"], [0, 1, 2]
    frequency = DocumentFrequency.of(training, caption_image)
    captions = ["a zebra runs", "one zebra runs", "a dog sings"]
    ours = CaptionLabels(cider_similarity(captions, frequency), [0, 1, 2]).labels([0, 1, 2], [0, 1, 2])
    expected = cider_relevance([[caption] for caption in captions], captions, document_frequency=frequency)
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(ours[off], expected[off], rtol=1e-6)
    # the zebra occurs in no training caption, so it weighs as much as a word of one image
    assert expected[0, 1] > cider_relevance([[caption] for caption in captions], captions)[0, 1]


def test_document_frequency_counts_images_not_captions() -> None:
    frequency = DocumentFrequency.of(["a dog", "a dog runs", "a cat"], [0, 0, 1])
    words = list(frequency.ngrams.words)
    assert dict(zip(words, frequency.counts[0].tolist(), strict=True)) == {"a": 2, "dog": 1, "runs": 1, "cat": 1}
    assert frequency.n_images == 2 and frequency.counts[3].tolist() == []


def test_a_block_leaves_nothing_behind() -> None:
    captions = ["a red dog", "a red cat", "a blue sea", "the blue sea"]
    similarity = cider_similarity(captions, DocumentFrequency.of(captions, range(4)))
    whole = similarity.similarity(np.arange(4), np.arange(4))
    for row in (3, 0, 2, 1):
        np.testing.assert_array_equal(similarity.similarity(np.arange(4), np.array([row]))[:, 0], whole[:, row])
    assert similarity.similarity(np.arange(0), np.arange(4)).shape == (0, 4)
    assert similarity.similarity(np.arange(4), np.arange(0)).shape == (4, 0)


def test_repeated_words_are_clipped() -> None:
    """Against "dog dog", a third "dog" gains nothing: its count is clipped, and its length costs."""
    captions = ["dog dog", "cat sea"]
    twice, thrice = cider_relevance([[caption] for caption in captions], ["dog dog", "dog dog dog"])[0]
    assert twice == pytest.approx(0.5) and thrice < twice


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([["a dog"], []], {}, "image 1 has no caption"),
        ([["a dog"]], {"reduce": "min"}, 'unknown reduce "min"'),
    ],
)
def test_bad_input_is_named(images, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        cider_relevance(images, ["a cat"], **options)


def test_captions_of_another_alphabet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ItmError, match="3 of 4 captions have no word of a-z and 0-9, which CIDEr compares"):
        cached_cider(["собака", "кошка", "a dog", "море"], [0, 1, 2, 3], tmp_path)


def test_frequency_needs_an_image_for_each_caption() -> None:
    with pytest.raises(ItmError, match=r"caption_image has shape \(1,\) for 2 captions"):
        DocumentFrequency.of(["a", "b"], [0])


def test_vectors_of_no_captions() -> None:
    vectors = CiderVectors.of(count_ngrams([]), DocumentFrequency.of(["a dog"], [0]))
    assert len(CiderSimilarity(vectors)) == 0
