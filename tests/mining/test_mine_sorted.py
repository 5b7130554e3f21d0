"""mine_hard_negatives lists what a sort of every row does, over ties, copies, ragged captions, tiles and filters."""

from __future__ import annotations

import numpy as np
import pytest
from golden import FIXTURES, check_extract
from hypothesis import given, settings
from hypothesis import strategies as st
from mining.mine_cases import direct, sets, unit

from lavis_itm_plugins.mining import CandidateFilters, HardNegatives, mine_hard_negatives, passes

FIXTURE = FIXTURES / "golden_candidates.npz"


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
    check_extract(FIXTURE, shared / "golden" / "aoq.npz")


def test_equal_embeddings_are_listed_by_id() -> None:
    same = np.ones((40, 2), np.float32)
    mined = mine_hard_negatives(same[:8], same, np.arange(40) // 5, captions_per_image=7, images_per_caption=3)
    assert mined.captions[0].tolist() == [5, 6, 7, 8, 9, 10, 11] and mined.captions[5].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert mined.images[0].tolist() == [1, 2, 3] and mined.images[39].tolist() == [0, 1, 2]


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
