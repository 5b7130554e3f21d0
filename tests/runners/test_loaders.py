"""Batches by seed, epoch and rank; workers that outlive a signal to the group, but not their process."""

import subprocess
import sys
import time
from itertools import chain

import pytest

from lavis_itm_plugins.runners import loaders

HELD = """
import sys
from lavis_itm_plugins.runners.loaders import EvalBatches, make_loader

class Items(list):
    collater = staticmethod(list)
    def __getitem__(self, index):
        if index == 4:
            raise ValueError("item 4")
        return index

loader = make_loader(Items(range(8)), EvalBatches(8, 1), workers=2, seed=0, pin=False)
batches = iter(loader)
print(next(batches), flush=True)
if sys.argv[1] == "fail":
    list(batches)
"""


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("fail", 1)])
def test_a_process_that_ends_with_workers_does_not_wait_for_them(how, code):
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HELD, how], capture_output=True, text=True, timeout=100)
    assert done.returncode == code and done.stdout == "[0]\n", done.stderr
    assert ("item 4" in done.stderr) == (how == "fail")
    # torch waits 5 s for each worker that does not end
    assert time.monotonic() - started < 60


@pytest.fixture
def ranks(monkeypatch):
    """`ranks(size, act)`: what `act` gives on each of so many ranks."""

    def run(size, act):
        results = []
        for number in range(size):
            monkeypatch.setattr(loaders, "world_size", lambda: size)
            monkeypatch.setattr(loaders, "rank", lambda number=number: number)
            results.append(act())
        return results

    return run


def train_batches(batch_size, epoch=0, start=0, drop_last=False):
    batches = loaders.EpochBatches(23, batch_size, seed=5, drop_last=drop_last)
    batches.epoch, batches.start = epoch, start
    return list(batches)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_see_together_what_one_process_sees(size, ranks):
    [one] = ranks(1, lambda: train_batches(6))
    several = ranks(size, lambda: train_batches(6 // size))
    assert [list(chain(*parts)) for parts in zip(*several, strict=True)] == one
    assert sorted(chain(*one)) == list(range(23))


def test_an_epoch_starts_anywhere_and_differs_from_the_next():
    assert train_batches(6, start=2) == train_batches(6)[2:]
    assert train_batches(6, epoch=1) != train_batches(6)
    assert [len(batch) for batch in train_batches(6, drop_last=True)] == [6, 6, 6]


def test_no_rank_gets_an_empty_batch(ranks):
    # 23 = 2 x 11 + 1: the one item that is left cannot be shared
    several = ranks(2, lambda: train_batches(11 // 2 + 6))
    assert [[len(batch) for batch in batches] for batches in several] == [[11], [11]]
    assert ranks(3, lambda: list(loaders.EvalBatches(5, 3))) == [[[0, 1, 2]], [[3, 4]], [[0, 1, 2]]]


def test_networks_that_expect_every_image_get_them_on_every_rank(ranks):
    everything = [[0, 1, 2], [3, 4]]
    assert ranks(2, lambda: list(loaders.EvalBatches(5, 3, shared=False))) == [everything, everything]
