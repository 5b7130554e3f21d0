"""mine_hard_negatives against a sort of every row, over ties, copies, ragged captions, tiles, and odd input."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.mining import (
    CandidateFilters,
    DotProducts,
    HardNegatives,
    MiningJob,
    mine_hard_negatives,
    passes,
)
from lavis_itm_plugins.mining.exclusions import Exclusions, normalized
from lavis_itm_plugins.mining.negatives import NO_FILTERS
from lavis_itm_plugins.mining.running import RunningTopK

FIXTURE = Path(__file__).parents[1] / "fixtures" / "golden_candidates.npz"


def direct(scores, caption_image, k_captions, k_images, *, captions=None, groups=None, filters=NO_FILTERS):
    """Every row sorted, from the definition."""
    n_images, n_captions = scores.shape
    groups = list(range(n_images)) if groups is None else groups
    texts = list(range(n_captions)) if captions is None else [normalized(text) for text in captions]
    owned = {group: set() for group in groups}
    for caption, image in enumerate(caption_image):
        owned[groups[image]].add(texts[caption])
    own = np.array([[texts[j] in owned[groups[i]] for j in range(n_captions)] for i in range(n_images)], dtype=bool)
    own = own.reshape(scores.shape)
    positives = np.array([scores[i, j] for j, i in enumerate(caption_image)])

    def limit(values):
        highest = np.inf if filters.max_score is None else filters.max_score
        if filters.relative_margin is not None and len(values):
            best = max(values)
            highest = min(highest, best - np.float32(filters.relative_margin) * abs(best))
        return highest

    def ranked(row, left_out, highest, k):
        found = [i for i in range(len(row)) if not left_out[i] and row[i] <= highest]
        found = sorted(found, key=lambda i: (-row[i], i))[filters.skip :][:k]
        return found + [-1] * (k - len(found))

    by_image = [
        ranked(scores[i], own[i], limit([positives[j] for j in range(n_captions) if caption_image[j] == i]), k_captions)
        for i in range(n_images)
    ]
    by_caption = [ranked(scores[:, j], own[:, j], limit([positives[j]]), k_images) for j in range(n_captions)]
    shapes = (n_images, k_captions), (n_captions, k_images)
    return np.array(by_image, dtype=np.int64).reshape(shapes[0]), np.array(by_caption, dtype=np.int64).reshape(
        shapes[1]
    )


@st.composite
def sets(draw):
    """Embeddings of few distinct values, so that many products tie exactly; images with any number of captions."""
    n_images, n_captions, size = draw(st.integers(1, 9)), draw(st.integers(0, 24)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images, captions = (rng.integers(-2, 3, (n, size)).astype(np.float32) / 4 for n in (n_images, n_captions))
    return images, captions, rng.integers(0, n_images, n_captions), rng


@settings(deadline=None, max_examples=60)
@given(
    data=sets(),
    lengths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    tile=st.tuples(st.integers(1, 11), st.integers(1, 30)),
    strip=st.sampled_from([1, 7, 40, 2**22]),
    copies=st.booleans(),
    filters=st.sampled_from(
        [
            *[CandidateFilters()] * 3,
            CandidateFilters(skip=2),
            CandidateFilters(relative_margin=0.25),
            CandidateFilters(max_score=0.1, skip=1),
        ]
    ),
)
def test_equals_sorting_every_row(data, lengths, tile, strip, copies, filters) -> None:
    images, captions, owners, rng = data
    extra = {}
    if copies:
        words = ["a dog", "A dog.", "two dogs", "cat"]
        extra = {"captions": [words[i] for i in rng.integers(0, 4, len(captions))]}
        extra["image_groups"] = rng.integers(0, len(images), len(images)).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "_STRIP", strip)
        patch.setattr(passes, "tile_shape", lambda *_: tile)
        patch.setattr("lavis_itm_plugins.mining.mine.tile_shape", lambda *_: tile)
        mined = mine_hard_negatives(
            *(images, captions, owners),
            captions_per_image=lengths[0],
            images_per_caption=lengths[1],
            filters=filters,
            **extra,
        )
    scores = images @ captions.T
    expected = direct(
        *(scores, owners.tolist(), *lengths),
        captions=extra.get("captions"),
        groups=extra.get("image_groups"),
        filters=filters,
    )
    np.testing.assert_array_equal(mined.captions, expected[0])
    np.testing.assert_array_equal(mined.images, expected[1])
    assert mined.captions.dtype == mined.images.dtype == np.int32
    check_scores(mined, scores, owners)


def check_scores(mined: HardNegatives, scores: np.ndarray, owners: np.ndarray) -> None:
    rows = np.arange(len(scores))[:, None]
    if scores.size:
        np.testing.assert_array_equal(
            mined.caption_scores, np.where(mined.captions < 0, -np.inf, scores[rows, mined.captions])
        )
    np.testing.assert_array_equal(mined.positive_scores, scores[owners, np.arange(len(owners))])
    assert mined.report["short_images"] == (mined.valid_captions < mined.captions.shape[1]).sum()
    assert mined.report["short_captions"] == (mined.valid_images < mined.images.shape[1]).sum()


@pytest.fixture(params=["fixture", "shared"])
def golden(request):
    if request.param == "fixture":
        return np.load(FIXTURE)
    return np.load(request.getfixturevalue("shared") / "golden" / "aoq.npz")


def test_golden_lists(golden) -> None:
    """Those of the official tool in float32; its half precision ties scores, so its lists overlap but for a few."""
    embeds = golden["cand__in_img_embs"], golden["cand__in_cap_embs"]
    mined = mine_hard_negatives(*embeds, np.arange(120) // 5, captions_per_image=20, images_per_caption=8)
    np.testing.assert_array_equal(mined.captions, golden["cand__out_i2t_f32"])
    np.testing.assert_array_equal(mined.images, golden["cand__out_t2i_f32"])
    half = mine_hard_negatives(
        *(embed.astype(np.float16) for embed in embeds),
        np.arange(120) // 5,
        captions_per_image=20,
        images_per_caption=8,
    )
    for lists, name in ((half.captions, "i2t"), (half.images, "t2i")):
        official = golden[f"cand__out_{name}_half"]
        overlap = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(lists, official, strict=True)])
        assert overlap > 0.99


def test_fixture_is_part_of_the_shared_archive(shared) -> None:
    whole, part = np.load(shared / "golden" / "aoq.npz"), np.load(FIXTURE)
    for key in part.files:
        np.testing.assert_array_equal(part[key], whole[key])


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def medium():
    """More candidates than a list's buffer holds, in many tiles; captions in random order."""
    rng = np.random.default_rng(0)
    images = unit(rng, 150, 8)
    owners = rng.integers(0, 150, 700)
    return images, unit(rng, 700, 8), owners


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("order", ["random", "rising"])
def test_lists_much_shorter_than_the_set(medium, order, threads, monkeypatch) -> None:
    """Rising: every candidate beats those before it, so each list is cut again and again."""
    images, captions, owners = medium
    if order == "rising":
        captions = captions[np.argsort(captions @ images[0])]
        images = images[np.argsort(images @ captions[-1])]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    mined = mine_hard_negatives(
        *(images, captions, owners), captions_per_image=9, images_per_caption=5, memory_budget_mb=0.1
    )
    expected = direct(images @ captions.T, owners.tolist(), 9, 5)
    # tiles round in another way than the whole product: neighbours in a list may change places
    for found, wanted in zip((mined.captions, mined.images), expected, strict=True):
        assert np.mean(np.sort(found) == np.sort(wanted)) > 0.999


def test_equal_embeddings_are_listed_by_id() -> None:
    same = np.ones((40, 2), np.float32)
    mined = mine_hard_negatives(same[:8], same, np.arange(40) // 5, captions_per_image=7, images_per_caption=3)
    assert mined.captions[0].tolist() == [5, 6, 7, 8, 9, 10, 11] and mined.captions[5].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert mined.images[0].tolist() == [1, 2, 3] and mined.images[39].tolist() == [0, 1, 2]


def test_arrays_tensors_halves_and_maps_give_the_same(medium, tmp_path) -> None:
    images, captions, owners = (part[:40] if len(part) == 150 else part for part in medium)
    owners = owners % 40
    halves = images.astype(np.float16), captions.astype(np.float16)
    reference = mine_hard_negatives(*(half.astype(np.float32) for half in halves), owners, captions_per_image=5)
    np.save(tmp_path / "captions.npy", halves[1])
    mapped = np.load(tmp_path / "captions.npy", mmap_mode="r")
    tensors = torch.from_numpy(halves[0]), torch.from_numpy(halves[1])
    for embeds in ((halves[0], mapped), tensors):
        mined = mine_hard_negatives(*embeds, torch.from_numpy(owners), captions_per_image=5)
        np.testing.assert_array_equal(mined.captions, reference.captions)
        np.testing.assert_array_equal(mined.images, reference.images)


def test_normalize_changes_the_order_to_that_of_cosines() -> None:
    images, captions = np.array([[1.0, 0], [0, 1]], np.float32), np.array([[9, 9], [0, 1], [2, 0]], np.float32)
    lists = {
        flag: mine_hard_negatives(images, captions, [1, 1, 1], captions_per_image=2, normalize=flag)
        .captions[0]
        .tolist()
        for flag in (False, True)
    }
    assert lists == {False: [0, 2], True: [2, 0]}


def test_filters_report_what_they_drop(medium) -> None:
    images, captions, owners = medium
    filters = CandidateFilters(skip=1, relative_margin=0.1, max_score=0.8)
    mined = mine_hard_negatives(
        *(images, captions, owners), captions_per_image=9, images_per_caption=5, filters=filters, memory_budget_mb=0.1
    )
    scores = images @ captions.T
    own = owners[None, :] == np.arange(150)[:, None]
    best = np.where(own, scores, -np.inf).max(axis=1)
    limits = np.minimum(np.where(np.isfinite(best), best - 0.1 * np.abs(best), np.inf), 0.8)
    assert mined.report["dropped_captions"] == ((scores > limits[:, None]) & ~own).sum() > 0
    positives = scores[owners, np.arange(700)]
    limits = np.minimum(positives - 0.1 * np.abs(positives), 0.8)
    assert mined.report["dropped_images"] == ((scores > limits) & ~own).sum() > 0
    assert 0 < mined.report["skipped_captions"] <= 150
    expected = direct(scores, owners.tolist(), 9, 5, filters=filters)
    assert np.mean(mined.captions == expected[0]) > 0.999 and np.mean(mined.images == expected[1]) > 0.999


@pytest.mark.parametrize(("n_images", "n_captions"), [(0, 0), (1, 0), (1, 3), (2, 1)])
def test_sets_with_hardly_anything_in_them(n_images, n_captions) -> None:
    rng = np.random.default_rng(0)
    mined = mine_hard_negatives(unit(rng, n_images, 4), unit(rng, n_captions, 4), np.zeros(n_captions, int))
    assert mined.captions.shape == (n_images, 300) and mined.images.shape == (n_captions, 60)
    others = n_captions if n_images == 2 else 0
    assert (mined.captions >= 0).sum() == others and (mined.images >= 0).sum() == others * (n_images - 1)


def test_tiles_stay_within_the_budget(medium, monkeypatch) -> None:
    images, captions, owners = medium
    seen = []
    stock = passes.TilePass._scored

    def scored(*given):
        tile = stock(*given)
        seen.append(tile.numel() * passes.BYTES_PER_PAIR)
        return tile

    monkeypatch.setattr(passes.TilePass, "_scored", scored)
    mine_hard_negatives(images, captions, owners, memory_budget_mb=0.1)
    assert len(seen) > 10 and max(seen) <= 0.1 * 2**20


@pytest.mark.parametrize(
    "filters", [CandidateFilters(), CandidateFilters(relative_margin=0.05), CandidateFilters(skip=2)]
)
def test_few_candidates_are_looked_at_again(medium, filters, monkeypatch) -> None:
    """Also with limits: every list has a threshold before its first candidates are sorted."""
    images, captions, owners = medium
    stock, looked_at = RunningTopK.add, []

    def add(self, part, counts, *rest):
        looked_at.append(int(counts.sum()))
        return stock(self, part, counts, *rest)

    monkeypatch.setattr(RunningTopK, "add", add)
    lengths = {"captions_per_image": 4, "images_per_caption": 2}
    mine_hard_negatives(images, captions, owners, **lengths, filters=filters, memory_budget_mb=0.1)
    assert sum(looked_at) < 0.2 * 2 * len(images) * len(captions)


def test_tiles_that_are_not_contiguous_give_the_same_lists(medium, monkeypatch) -> None:
    images, captions, owners = medium
    scorer = DotProducts(images, captions)
    expected = MiningJob(scorer, owners, Exclusions(owners, len(images)), 7, 5).mine()
    turned = SimpleNamespace(n_images=len(images), n_captions=len(captions), pairs=scorer.pairs)
    turned.tile = lambda rows, columns: scorer.tile(rows, columns).t().contiguous().t()
    stock, layouts = passes.survivors, []
    monkeypatch.setattr(
        passes, "survivors", lambda tile, *rest: (layouts.append(tile.is_contiguous()), stock(tile, *rest))[1]
    )
    found = MiningJob(turned, owners, Exclusions(owners, len(images)), 7, 5).mine()
    # else every strip would copy the whole tile
    assert layouts and all(layouts)
    np.testing.assert_array_equal(found.captions, expected.captions)
    np.testing.assert_array_equal(found.images, expected.images)


def test_running_lists_take_the_memory_they_say() -> None:
    best = RunningTopK(1000, k=60)
    assert best._keys.nbytes == 1000 * 8 * (2 * 60 + 32)


def faiss_or_skip():
    pytest.importorskip("faiss", reason="faiss is an extra")


@settings(deadline=None, max_examples=30)
@given(data=sets(), lengths=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_faiss_gives_equal_lists(data, lengths) -> None:
    faiss_or_skip()
    images, captions, owners, rng = data
    texts = [["a dog", "two dogs", "a cat"][i] for i in rng.integers(0, 3, len(captions))]
    options = {"captions_per_image": lengths[0], "images_per_caption": lengths[1], "captions": texts}
    torch_lists, faiss_lists = (
        mine_hard_negatives(images, captions, owners, backend=backend, **options) for backend in ("torch", "faiss")
    )
    for name in ("captions", "images", "caption_scores", "image_scores"):
        np.testing.assert_array_equal(getattr(faiss_lists, name), getattr(torch_lists, name))
    assert faiss_lists.report == torch_lists.report


def test_without_faiss_a_sentence_says_what_to_install(medium, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ItmError, match=r'needs faiss; run: pip install "lavis-itm-plugins\[faiss\]"'):
        mine_hard_negatives(*medium, backend="faiss")


def test_faiss_refuses_what_is_not_finite(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", ModuleType("faiss"))
    with pytest.raises(ItmError, match="row 1 of caption_embeds is not finite"):
        mine_hard_negatives(GOOD, np.diag([1, np.inf, 1]).astype(np.float32), [0, 1, 2], backend="faiss")


def broadcast(rows: int) -> np.ndarray:
    return np.broadcast_to(np.zeros((1, 2), np.float32), (rows, 2))


GOOD = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    ("images", "captions", "owners", "options", "message"),
    [
        (GOOD, GOOD[:, :2], [0, 1, 2], {}, "image_embeds have 3 values each and caption_embeds 2"),
        (GOOD[0], GOOD, [0, 1, 2], {}, r"image_embeds is \(3,\)"),
        (GOOD.astype(int), GOOD, [0, 1, 2], {}, "image_embeds is int64; give floating-point"),
        (GOOD.tolist(), GOOD, [0, 1, 2], {}, "image_embeds is list"),
        (GOOD, GOOD, [0, 1], {}, "caption_image has 2 entries; give 3"),
        (GOOD, GOOD, [0, 1, 3], {}, "caption 2 has image number 3; give rows of image_embeds, 0 to 2"),
        (GOOD, GOOD, [0, 1, -1], {}, "caption 2 has image number -1"),
        (GOOD, GOOD, [0.0, 1, 2], {}, "caption_image is float64"),
        (GOOD, GOOD, [0, 1, 2], {"captions": ["a"]}, "captions has 1 entries; give 3"),
        (GOOD, GOOD, [0, 1, 2], {"image_groups": [0]}, "image_groups has 1 entries; give 3"),
        (GOOD, GOOD, [0, 1, 2], {"backend": "fais"}, 'unknown backend "fais"; did you mean faiss'),
        (GOOD, GOOD, [0, 1, 2], {"captions_per_image": 0}, "captions_per_image is 0; give a whole number"),
        (GOOD, GOOD, [0, 1, 2], {"memory_budget_mb": 0}, "memory_budget_mb is 0"),
        (
            GOOD * np.nan,
            GOOD,
            [0, 1, 2],
            {},
            "the score of image 0 and caption 0 is not finite; look for the embedding",
        ),
        (GOOD, np.diag([1, np.inf, 1]).astype(np.float32), [0, 1, 2], {}, "the score of image . and caption 1 is not"),
        (GOOD[:, :2], broadcast(2**31), [0], {}, "caption_embeds has 2147483648 rows; candidate lists hold 32-bit"),
    ],
)
def test_bad_input_is_named(images, captions, owners, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        mine_hard_negatives(images, captions, owners, **options)


def test_large_finite_scores_are_no_error() -> None:
    """Their sum overflows, which is no sign of a broken embedding."""
    huge = np.full((3, 1), 1.5e19, np.float32)
    mined = mine_hard_negatives(huge, huge, [0, 1, 2], captions_per_image=1, images_per_caption=1)
    assert mined.captions[:, 0].tolist() == [1, 0, 0]
