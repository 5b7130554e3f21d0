"""Mined lists are the same from arrays, tensors and files, from tiles of any layout, and from faiss."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mining.mine_cases import sets

from lavis_itm_plugins.mining import DotProducts, MiningJob, mine_hard_negatives, passes
from lavis_itm_plugins.mining.exclusions import Exclusions


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
