"""Blocks of labels: the same whatever is asked for, 1 for own captions, and rows that are checked."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.relevance import CaptionLabels, gap_quantile, sampled_block


def test_the_layer_imports_no_lavis() -> None:
    script = "import sys, lavis_itm_plugins.relevance; print({'lavis', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class Table:
    """Similarities that are written down."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def similarity(self, references, captions):
        return self.values[np.ix_(references, captions)]


def table(caption_image, seed=0, **options) -> CaptionLabels:
    values = np.random.default_rng(seed).random((len(caption_image), len(caption_image)))
    return CaptionLabels(Table(values), caption_image, **options)


@given(data=st.data(), reduce=st.sampled_from(["max", "mean"]))
def test_equals_the_loops(data, reduce) -> None:
    """Any number of captions an image, in any order, any block with rows in any order and again."""
    n_images = data.draw(st.integers(1, 5))
    caption_image = data.draw(st.permutations([*range(n_images), *data.draw(st.lists(st.integers(0, n_images - 1)))]))
    source = table(caption_image, reduce=reduce)
    images = data.draw(st.lists(st.integers(0, n_images - 1), max_size=6))
    captions = data.draw(st.lists(st.integers(0, len(caption_image) - 1), max_size=6))
    labels = source.labels(images, captions)
    assert labels.shape == (len(images), len(captions)) and labels.dtype == np.float32
    for i, image in enumerate(images):
        own = [row for row, owner in enumerate(caption_image) if owner == image]
        for j, caption in enumerate(captions):
            values = [source.captions.values[row, caption] for row in own]
            expected = max(values) if reduce == "max" else sum(values) / len(values)
            assert labels[i, j] == pytest.approx(1.0 if caption in own else expected, rel=1e-6)


def test_images_with_six_and_seven_captions() -> None:
    caption_image = [0] * 6 + [1] * 7 + [2] * 5
    source = table(caption_image)
    labels = source.labels([1, 2], [0, 6])
    assert labels[0].tolist() == [pytest.approx(source.captions.values[6:13, 0].max()), 1.0]
    assert labels[1, 0] == pytest.approx(source.captions.values[13:, 0].max())


def test_the_nearest_caption_of_an_image() -> None:
    source = table([0, 1, 0, 1, 0])
    assert source.nearest(0, 1) == max((0, 2, 4), key=lambda row: source.captions.values[row, 1])


def test_gap_quantile_is_a_share_of_the_differences() -> None:
    caption_image = np.repeat(np.arange(60), 5)
    source = table(caption_image, reduce="mean")
    labels, own = source.labels(np.arange(60), np.arange(300)), caption_image == np.arange(60)[:, None]
    pairs = [np.abs(row[~mine][:, None] - row[~mine]).ravel() for row, mine in zip(labels, own, strict=True)]
    for share in (0.25, 0.8):
        assert (np.concatenate(pairs) <= gap_quantile(source, share)).mean() == pytest.approx(share, abs=0.02)


def test_the_sample_is_always_the_same_and_leaves_own_captions_out() -> None:
    source = table([0, 0, 1, 1, 2])
    images, captions, block = sampled_block(source, 4)
    again = sampled_block(source, 4)
    np.testing.assert_array_equal(block, again[2])
    own = images[:, None] == source.caption_image[captions]
    np.testing.assert_array_equal(np.isnan(block), own)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table([0, 2]), "image 1 has no caption"),
        (lambda: table([0, 1], reduce="sum"), 'unknown reduce "sum"'),
        (lambda: CaptionLabels(Table(np.eye(3)), [0, 1]), r"caption_image has shape \(2,\) for 3 captions"),
        (lambda: table([0, 1]).labels([2], [0]), "image row 2 is not among the 2"),
        (lambda: table([0, 1]).labels([0], [-1]), "caption row -1 is not among the 2"),
        (lambda: gap_quantile(table([0, 0, 0]), 0.5), "too few images and captions"),
    ],
)
def test_bad_input_is_named(make, message) -> None:
    with pytest.raises(ItmError, match=message):
        make()
