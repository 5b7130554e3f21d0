"""score_tiles: every pair once, within the budget, without gradient, for anything that has a length and slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation import score_tiles, tile_grid


@settings(deadline=None, max_examples=200)
@given(
    n_images=st.integers(0, 60),
    n_captions=st.integers(0, 60),
    pairs=st.integers(1, 4000),
    bytes_per_pair=st.sampled_from([1, 16, 1000]),
)
def test_grid_covers_every_cell_once_within_the_budget(n_images, n_captions, pairs, bytes_per_pair) -> None:
    budget = pairs * bytes_per_pair / 2**20
    seen = np.zeros((n_images, n_captions), dtype=int)
    for rows, columns in tile_grid(n_images, n_captions, memory_budget_mb=budget, bytes_per_pair=bytes_per_pair):
        seen[rows, columns] += 1
        assert 0 < seen[rows, columns].size <= pairs
    assert (seen == 1).all()


def test_grid_of_coco() -> None:
    """Tiles stay in the cache, begin at cache lines, and few hold the positives of captions in image order."""
    grid = tile_grid(5000, 25000)
    assert all(columns.start % 16 == 0 for _, columns in grid)
    assert max((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in grid) <= 2**20
    with_positives = sum(rows.start * 5 < columns.stop and columns.start < rows.stop * 5 for rows, columns in grid)
    assert with_positives / len(grid) < 0.2


@dataclass
class Encoded:
    """Like the matchers' Encoded: a dataclass of tensors with a length and slices."""

    pooled: torch.Tensor

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, items: slice) -> Encoded:
        return Encoded(self.pooled[items])


def product(images, captions):
    if isinstance(images, Encoded):
        return images.pooled @ captions.pooled.T
    return images @ captions.T


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray, lambda array: Encoded(torch.from_numpy(array))])
def test_tiles_are_the_matrix(kind) -> None:
    generator = np.random.default_rng(0)
    images, captions = generator.integers(-9, 9, (7, 3)) * 1.0, generator.integers(-9, 9, (20, 3)) * 1.0
    scores = np.full((7, 20), np.nan)
    tiles = list(score_tiles(kind(images), kind(captions), product, memory_budget_mb=3e-4))
    assert len(tiles) > 5
    for rows, columns, tile in tiles:
        scores[rows, columns] = np.asarray(tile)
    np.testing.assert_array_equal(scores, images @ captions.T)


def test_scores_have_no_gradient_and_the_loop_keeps_its_own() -> None:
    images = torch.randn(4, 2, requires_grad=True)
    for _, _, scores in score_tiles(images, torch.randn(4, 2), product, memory_budget_mb=1e-4):
        assert not scores.requires_grad
        assert torch.is_grad_enabled()


def test_nothing_to_score() -> None:
    assert list(score_tiles(torch.zeros(0, 2), torch.zeros(3, 2), product)) == []


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda a, b: (a @ b.T).T, r"score returned shape \(3, 2\) for 2 images and 3 captions"),
        (lambda a, b: (a * b[:2]).sum(1), r"score returned shape \(2,\)"),
        (lambda a, b: [[0.0] * 3] * 2, "score returned a list; it must return a tensor"),
    ],
)
def test_scores_of_the_wrong_shape_are_named(score, message) -> None:
    with pytest.raises(ItmError, match=message):
        list(score_tiles(torch.zeros(2, 4), torch.zeros(3, 4), score))


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (None, {}, "images is a NoneType; give a tensor"),
        (torch.tensor(1.0), {}, "images is a Tensor; give a tensor"),
        (torch.zeros(2, 4), {"memory_budget_mb": 0}, "memory_budget_mb is 0; give a number above 0"),
        (torch.zeros(2, 4), {"memory_budget_mb": float("nan")}, "memory_budget_mb is nan"),
        (torch.zeros(2, 4), {"bytes_per_pair": 0}, "bytes_per_pair is 0"),
    ],
)
def test_bad_input_is_named_before_the_first_tile(images, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        score_tiles(images, torch.zeros(3, 4), product, **options)
