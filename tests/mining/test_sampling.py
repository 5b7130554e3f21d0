"""Draws of mined negatives: the official rows, their independence of each other, and lists that are too short."""

from __future__ import annotations

import numpy as np
import pytest
from golden import FIXTURES

from lavis_itm_plugins.data.randomness import keyed_uniform
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.mining import HardNegatives
from lavis_itm_plugins.mining.sampling import DRAWS, QuintupleSampler

FIXTURE = FIXTURES / "golden_candidates.npz"


def lists(captions, images) -> HardNegatives:
    empty = np.zeros((0, 0))
    return HardNegatives(np.asarray(captions), np.asarray(images), empty, empty, empty)


@pytest.fixture(scope="module")
def golden():
    return np.load(FIXTURE)


@pytest.fixture
def official(golden) -> QuintupleSampler:
    mined = lists(golden["sampler__in_i2t"], golden["sampler__in_t2i"])
    size = int(golden["sampler__in_offcandisize"])
    return QuintupleSampler(mined, np.arange(120) // 5, captions=size, images=size // 5, cross_pair="keep")


def test_golden_rows(golden, official):
    """The middle of each whole number's share of [0, 1) draws that number."""
    rank, caption = golden["sampler__in_draws"].T
    uniforms = np.zeros((120, DRAWS))
    uniforms[:, 0], uniforms[:, 2] = (rank + 0.5) / 20, (caption + 0.5) / 5
    drawn = official.draw(np.arange(120), uniforms)
    owners = np.arange(120) // 5
    images = owners[drawn.partner_captions]
    rows = [np.arange(120), owners, images, drawn.offline_captions, owners[drawn.offline_captions]]
    np.testing.assert_array_equal(np.stack([*rows, drawn.partner_captions], axis=1), golden["sampler__out_rows"])
    assert (~drawn.apart).sum() == 14


def sampler(golden, **options) -> QuintupleSampler:
    return QuintupleSampler(
        lists(golden["sampler__in_i2t"], golden["sampler__in_t2i"]), np.arange(120) // 5, images=4, **options
    )


def test_all_ranks_are_drawn_alike_and_tied_or_not(golden):
    rows = np.repeat(7, 20000)
    uniforms = np.random.default_rng(0).random((20000, DRAWS))
    for tie in (True, False):
        drawn = sampler(golden, tie_ranks=tie).draw(rows, uniforms)
        i2t, t2i = golden["sampler__in_i2t"][1].tolist(), golden["sampler__in_t2i"][7].tolist()
        ranks = np.array([i2t.index(row) for row in drawn.offline_captions])
        image_ranks = np.array([t2i.index(row // 5) for row in drawn.partner_captions])
        for found, size in ((ranks, 20), (image_ranks, 4), (drawn.partner_captions % 5, 5)):
            counts = np.bincount(found, minlength=size)
            assert len(counts) == size and abs(counts / 20000 - 1 / size).max() < 0.02
        assert np.array_equal(ranks // 5, image_ranks) is tie


def test_resampling_keeps_the_images_apart_where_it_can(golden):
    rows, uniforms = np.arange(120), np.random.default_rng(0).random((120, DRAWS))
    kept, again = (sampler(golden, cross_pair=how).draw(rows, uniforms) for how in ("keep", "resample"))
    assert (~kept.apart).sum() > 5 and again.apart.all()
    np.testing.assert_array_equal(again.offline_captions[kept.apart], kept.offline_captions[kept.apart])
    # both lists name one image only: no draw helps
    only = QuintupleSampler(lists([[1], [0]], [[1], [0]]), np.array([0, 1]), cross_pair="resample")
    assert not only.draw(np.array([0, 1]), np.random.default_rng(0).random((2, DRAWS))).apart.any()


def test_one_draw_does_not_depend_on_the_others(official):
    rows = np.array([3, 90, 11, 3])
    alone = [official.draw(row[None], keyed_uniform(1, 2, row[None], DRAWS)) for row in rows]
    together = official.draw(rows, keyed_uniform(1, 2, rows, DRAWS))
    assert together.offline_captions.tolist() == [int(one.offline_captions[0]) for one in alone]
    assert together.partner_captions[0] == together.partner_captions[3]


def test_short_lists_are_drawn_from_as_far_as_they_go():
    mined = lists([[2, 3, -1], [0, -1, -1]], [[1], [1], [0], [0]])
    drawn = QuintupleSampler(mined, np.array([0, 0, 1, 1])).draw(
        np.repeat([0, 2], 500), np.random.default_rng(0).random((1000, DRAWS))
    )
    assert set(drawn.offline_captions[:500].tolist()) == {2, 3} and set(drawn.offline_captions[500:].tolist()) == {0}


def test_one_candidate_is_enough():
    """K = 1: the official rank of the image, n // 5, is 0."""
    drawn = QuintupleSampler(lists([[1], [0]], [[1], [0]]), np.array([0, 1])).draw(
        np.array([0, 1]), np.full((2, DRAWS), 0.999)
    )
    assert drawn.offline_captions.tolist() == [1, 0] and drawn.partner_captions.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("captions", "images", "owners", "options", "message"),
    [
        ([[1], [0]], [[1], [0]], [0, 1], {"captions": 2}, "draws from 2 captions are asked for, but the lists hold 1"),
        ([[1], [0]], [[1], [0]], [0, 1], {"images": 9}, "draws from 9 images are asked for, but the lists hold 1"),
        ([[-1], [0]], [[1], [0]], [0, 1], {}, "1 training captions have no mined captions, the first is caption 0"),
        ([[1], [0]], [[1], [-1]], [0, 1], {}, "1 training captions have no mined images, the first is caption 1"),
        ([[1], [0], [0]], [[1], [0]], [0, 1], {}, "image 2 has no caption, so it makes no pair"),
    ],
)
def test_lists_that_cannot_be_drawn_from(captions, images, owners, options, message):
    with pytest.raises(ItmError, match=message):
        QuintupleSampler(lists(captions, images), np.array(owners), **options)
