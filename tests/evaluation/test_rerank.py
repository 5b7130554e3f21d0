"""A shortlist by one score, ordered by another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation import reranked


def product(images, captions):
    return images @ captions.t()


def slow(coarse, fine, k):
    """Each row's order: the first k of `coarse` by `fine`, then the others by `coarse`."""
    orders = []
    for rough, exact in zip(coarse, fine, strict=True):
        order = np.argsort(-rough)
        orders.append([*sorted(order[:k], key=lambda i: -exact[i]), *order[k:]])
    return np.array(orders)


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 10), st.integers(0, 1000))
def test_candidates_come_first_in_their_new_order(n_images, n_captions, k, seed):
    rng = np.random.default_rng(seed)
    coarse = rng.permutation(n_images * n_captions).reshape(n_images, n_captions) / 10 - 3
    images, captions = (
        torch.from_numpy(rng.normal(size=(n_images, 3))),
        torch.from_numpy(rng.normal(size=(n_captions, 3))),
    )
    fine = product(images, captions).numpy()
    before = coarse.copy()
    by_image, by_caption = reranked(coarse, images, captions, product, k=k)
    assert np.array_equal(coarse, before)
    assert np.array_equal(np.argsort(-by_image, axis=1), slow(coarse, fine, k))
    assert np.array_equal(np.argsort(-by_caption.T, axis=1), slow(coarse.T, fine.T, k))
    if k >= max(n_images, n_captions):
        np.testing.assert_allclose(by_image, fine)
        np.testing.assert_allclose(by_caption, fine)


def test_only_candidates_are_scored():
    pairs = []

    def counted(images, captions):
        pairs.append((len(images), len(captions)))
        return product(images, captions)

    reranked(torch.rand(4, 20), torch.rand(4, 3), torch.rand(20, 3), counted, k=3)
    assert pairs == [(1, 3)] * 4 + [(3, 1)] * 20


def test_what_does_not_fit_is_said_in_a_sentence():
    with pytest.raises(ItmError, match="k is 0; give at least 1 candidate"):
        reranked(torch.rand(2, 2), torch.rand(2, 1), torch.rand(2, 1), product, k=0)
    with pytest.raises(ItmError, match="1 of 4 scores are not finite"):
        reranked(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), torch.rand(2, 1), torch.rand(2, 1), product, k=1)
