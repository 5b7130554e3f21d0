"""Encoded images and captions: rows, joining sets of different size, lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lavis_itm_plugins.encoders.encoded import Encoded, concatenate


def sets(rows, size, *, masked):
    mask = torch.rand(rows, size) < 0.7 if masked else None
    return Encoded(torch.randn(rows, 2), torch.randn(rows, size, 3), mask)


def real_items(encoded, row):
    keep = slice(None) if encoded.mask is None else encoded.mask[row]
    return encoded.regions[row][keep]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.booleans()), min_size=1, max_size=4))
def test_concatenating_keeps_every_rows_vectors(shapes):
    parts = [sets(rows, size, masked=masked) for rows, size, masked in shapes]
    whole = concatenate(parts)
    expected = [(part, row) for part in parts for row in range(len(part))]
    assert len(whole) == len(expected)
    for row, (part, own) in enumerate(expected):
        assert torch.equal(whole.pooled[row], part.pooled[own])
        assert torch.equal(real_items(whole, row), real_items(part, own))
        assert whole.lengths[row] == part.lengths[own]


def test_sets_of_one_size_without_a_mask_get_none():
    assert concatenate([sets(2, 3, masked=False), sets(1, 3, masked=False)]).mask is None
    assert concatenate([sets(2, 3, masked=False), sets(1, 4, masked=False)]).mask.sum(dim=1).tolist() == [3, 3, 4]


def test_pooled_vectors_alone():
    whole = concatenate([Encoded(pooled=torch.ones(2, 3)), Encoded(pooled=torch.zeros(1, 3))])
    assert len(whole) == 3 and whole.regions is None and whole.mask is None
    assert whole[torch.tensor([2, 0])].pooled.tolist() == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize(
    "rows", [slice(1, 3), slice(0, 0), torch.tensor([2, 2, 0]), torch.tensor([True, False, True, False])]
)
def test_rows_of_everything_that_is_there(rows):
    whole = sets(4, 3, masked=True)
    part = whole[rows]
    for name in ("pooled", "regions", "mask"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[rows])


def test_to_another_type_or_device_leaves_out_what_is_not_there():
    moved = Encoded(pooled=torch.ones(2, 3)).to("meta")
    assert moved.pooled.device.type == "meta" and moved.mask is None
