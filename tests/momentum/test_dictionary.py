"""The ring of keys: against the reference numbers, against a plain list, and in a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import FIXTURES
from hypothesis import given
from hypothesis import strategies as st

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.momentum import Dictionary

FIXTURE = FIXTURES / "golden_coder.npz"


def test_golden_queue() -> None:
    golden = np.load(FIXTURE)
    dictionary = Dictionary(13, 8).double()
    for step in range(4):
        keys, ids = (torch.from_numpy(golden[f"queue_{name}_{step}"]) for name in ("keys", "gids"))
        dictionary.enqueue(keys, ids)
        assert torch.equal(dictionary.keys, torch.from_numpy(golden[f"queue_after_{step}"]))
        assert torch.equal(dictionary.image_ids, torch.from_numpy(golden[f"queue_gid_after_{step}"]))
        assert [int(dictionary.pointer), int(dictionary.filled)] == golden[f"queue_ptr_filled_{step}"].tolist()


@given(capacity=st.integers(0, 7), sizes=st.lists(st.integers(0, 11), max_size=6))
def test_holds_the_newest_keys_whatever_the_batches(capacity, sizes) -> None:
    dictionary, written = Dictionary(capacity, 1), []
    for size in sizes:
        ids = torch.arange(len(written), len(written) + size)
        dictionary.enqueue(ids[:, None].float(), ids, ids + 100)
        written += ids.tolist()
    newest = list(reversed(written[-capacity:])) if capacity else []
    slots = dictionary.newest(len(written))
    assert dictionary.image_ids[slots].tolist() == newest
    assert dictionary.keys[slots, 0].tolist() == newest
    assert dictionary.items[slots].tolist() == [item + 100 for item in newest]
    assert int(dictionary.filled) == len(newest)
    empty = torch.ones(capacity, dtype=torch.bool)
    empty[slots] = False
    assert (dictionary.image_ids[empty] == -1).all() and not dictionary.keys[empty].any()


def test_one_large_batch_equals_many_small_ones() -> None:
    keys, ids = torch.randn(23, 4), torch.arange(23)
    whole, parts = Dictionary(10, 4), Dictionary(10, 4)
    whole.enqueue(keys, ids)
    for rows in torch.arange(23).split(5):
        parts.enqueue(keys[rows], ids[rows])
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name


def test_starts_empty_and_image_0_is_an_image() -> None:
    dictionary = Dictionary(3, 2)
    assert not dictionary.negatives_of(torch.tensor([0, 5])).any()
    dictionary.enqueue(torch.ones(2, 2), torch.tensor([0, 5]))
    expected = [[False, True, False], [True, False, False], [True, True, False]]
    assert dictionary.negatives_of(torch.tensor([0, 5, 9])).tolist() == expected


def test_goes_on_from_a_checkpoint() -> None:
    dictionary, other = Dictionary(5, 2), Dictionary(5, 2)
    dictionary.enqueue(torch.randn(7, 2), torch.arange(7))
    other.load_state_dict(dictionary.state_dict())
    more = torch.randn(3, 2)
    for each in (dictionary, other):
        each.enqueue(more, torch.tensor([1, 2, 3]))
    for name, value in dictionary.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_keys_are_stored_in_float32_without_a_gradient() -> None:
    dictionary = Dictionary(2, 3)
    keys = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    dictionary.enqueue(keys, torch.tensor([0, 1]))
    assert dictionary.keys.dtype == torch.float32 and not dictionary.keys.requires_grad
    assert torch.equal(dictionary.keys, keys.detach().float())
    keys.data.zero_()
    assert dictionary.keys.any()


@pytest.mark.parametrize(
    ("keys", "ids", "message"),
    [
        (torch.zeros(2, 4), torch.tensor([0, 1]), r"keys \(2, 4\).*vectors of size 3"),
        (torch.zeros(2, 3), torch.tensor([0]), r"image ids \(1,\)"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "image id -1 is negative"),
    ],
)
def test_bad_keys_are_named(keys, ids, message) -> None:
    with pytest.raises(ItmError, match=message):
        Dictionary(4, 3).enqueue(keys, ids)


@pytest.mark.parametrize(("capacity", "dim"), [(-1, 2), (3, 0)])
def test_bad_sizes_are_named(capacity, dim) -> None:
    with pytest.raises(ItmError, match="cannot be made"):
        Dictionary(capacity, dim)
