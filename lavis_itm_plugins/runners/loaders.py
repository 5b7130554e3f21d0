"""Which items make which batch on which rank: fixed by (seed, epoch), so a run can stop and go on anywhere."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lavis_itm_plugins.data.randomness import seeded
from lavis_itm_plugins.distributed import rank, world_size


class EpochBatches(Sampler[list[int]]):
    """A permutation by (seed, epoch), cut into global batches; each rank takes its slice of each.

    R ranks with batch size B see in each step what one process with batch size R x B sees, in the same order.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int, drop_last: bool) -> None:
        self.size, self.batch_size, self.seed, self.drop_last = size, batch_size, seed, drop_last
        self.epoch, self.start = 0, 0

    @property
    def global_batch(self) -> int:
        """Items in one step, over all ranks."""
        return self.batch_size * world_size()

    def steps(self) -> int:
        """Steps in a whole epoch; a last batch that would leave a rank empty is dropped."""
        whole, rest = divmod(self.size, self.global_batch)
        return whole if self.drop_last or rest < world_size() else whole + 1

    def __len__(self) -> int:
        return self.steps() - self.start

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        for step in range(self.start, self.steps()):
            items = order[step * self.global_batch : (step + 1) * self.global_batch]
            yield np.array_split(items, world_size())[rank()].tolist()


class EvalBatches(Sampler[list[int]]):
    """Batches in order, dealt to the ranks in turn; a rank without one repeats the first, which the gather drops.

    A batch holds the same items whatever the number of ranks, so scores are the same to the last bit. Without
    `shared` every rank gets all of them.
    """

    def __init__(self, size: int, batch_size: int, *, shared: bool = True) -> None:
        batches = [list(range(start, min(start + batch_size, size))) for start in range(0, size, batch_size)]
        self.batches = (batches[rank() :: world_size()] or batches[:1]) if shared else batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches


class SeededItems(Dataset):
    """A data set whose random augmentation is a function of (seed, epoch, item): no worker or rank changes it."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins."""
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def collater(self, samples: Any) -> Any:
        """The data set's own."""
        return self.dataset.collater(samples)

    def __getitem__(self, index: int) -> Any:
        with seeded(self.seed, self.epoch, index):
            return self.dataset[index]


def make_loader(dataset: Any, batches: Sampler, *, workers: int, seed: int, pin: bool) -> DataLoader:
    """A loader over given batches; its workers' base seed comes from `seed`, not from the global generator.

    The global generator drives dropout: a loader that drew from it would make a resumed epoch differ.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=dataset.collater,
        pin_memory=pin,
        worker_init_fn=_outlive_group_signals,
        generator=torch.Generator().manual_seed(seed),
    )


def _outlive_group_signals(_worker: int) -> None:
    """A signal to the whole process group must not kill the workers under the step that is saved because of it.

    Only the parent's own SIGTERM ends a worker, as in torch's handler; Ctrl-C is the parent's alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_the_parent_says, daemon=True).start()


def _end_when_the_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
