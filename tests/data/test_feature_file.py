"""Features come out of their file exactly, in float32 and in memory of one's own; the file is mapped, never written."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from data.precomp_files import features_of
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.data.features import FeatureFile


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4)),
    dtype=st.sampled_from([np.float16, np.float32]),
    order=st.sampled_from("CF"),
    data=st.data(),
)
def test_fetched_rows_are_the_files_rows_in_float32(tmp_path_factory, shape, dtype, order, data):
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    path = tmp_path_factory.mktemp("features") / "a.npy"
    np.save(path, np.asarray(array, order=order))
    rows = np.array(data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=9)), dtype=np.int64)
    fetched = FeatureFile(path).fetch(rows)
    assert fetched.dtype == torch.float32 and fetched.shape == (len(rows), *shape[1:])
    assert torch.equal(fetched, torch.from_numpy(array[rows].astype(np.float32)))


def test_every_float16_value_is_widened_exactly(tmp_path):
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    np.save(tmp_path / "a.npy", values.reshape(2, -1))
    fetched = FeatureFile(tmp_path / "a.npy").fetch(np.array([0, 1])).numpy().ravel()
    np.testing.assert_array_equal(fetched, values.astype(np.float32))


def test_a_batch_keeps_its_values_while_anyone_holds_it(tmp_path):
    """Memory of batches is used again, but only when nothing refers to it: no tensor, view or array."""
    np.save(tmp_path / "a.npy", features_of(40))
    file, held = FeatureFile(tmp_path / "a.npy"), []
    for first in range(0, 38):
        batch = file.fetch(np.array([first, first + 1]))
        held.append((batch, batch[1:, 0], batch.numpy()[0])[first % 3])
        del batch
    for first, kept in enumerate(held):
        expected = ([[[first] * 3] * 2, [[first + 1] * 3] * 2], [[first + 1] * 3], [[first] * 3] * 2)[first % 3]
        assert kept.tolist() == expected


def test_memory_is_used_again_once_a_batch_is_gone(tmp_path):
    np.save(tmp_path / "a.npy", features_of(4))
    file, rows = FeatureFile(tmp_path / "a.npy"), np.array([0, 1])
    first, second = file.fetch(rows), file.fetch(rows)
    address = first.data_ptr()
    assert second.data_ptr() != address
    del first
    assert file.fetch(rows).data_ptr() == address


def test_a_file_is_mapped_and_not_read(tmp_path):
    """Opening it and sending it to a worker cost nothing at any size; this one is half a gigabyte of holes."""
    path = tmp_path / "big.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1_700, 36, 2048))
    array[1_699] = 2.0
    del array
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = FeatureFile(path)
    sent = pickle.dumps(file)
    assert len(sent) < 1000
    assert pickle.loads(sent).fetch(np.array([1_699])).mean() == 2.0


def test_nothing_can_be_written_to_the_file(tmp_path):
    np.save(tmp_path / "a.npy", features_of(2))
    before = (tmp_path / "a.npy").read_bytes()
    file = FeatureFile(tmp_path / "a.npy")
    file.fetch(np.array([0, 1])).fill_(9.0)
    with pytest.raises(ValueError, match="read-only"):
        file.array[0] = 9.0
    assert (tmp_path / "a.npy").read_bytes() == before
