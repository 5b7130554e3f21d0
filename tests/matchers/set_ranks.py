"""What one process and each of two compute for test_sets.py: losses and gradients of region matchers, in float64."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matchers.sets import SECTIONS, batch_of, make
from runners.ranks import fork, rank, size, start_group
from torch.nn.parallel import DistributedDataParallel

IMAGE_IDS = [0, 1, 2, 0, 3, 4, 2]


def main(folder: Path) -> None:
    start_group()
    results = {}
    for name in SECTIONS:
        # VSRN's batch statistics are those of each rank
        if name == "vsrn":
            continue
        model = make(name).double()
        wrapped = DistributedDataParallel(model) if size() > 1 else model
        batch = batch_of(IMAGE_IDS)
        own = np.array_split(np.arange(len(IMAGE_IDS)), size())[rank()]
        mask = torch.ones(len(IMAGE_IDS), 4, dtype=torch.bool)
        mask[1, 2] = False
        share = {
            "image": batch["image"].double()[own],
            "text_input": [batch["text_input"][i] for i in own],
            "image_id": batch["image_id"][own],
            "image_mask": mask[own],
            "epoch": 0,
        }
        loss = wrapped(share)["loss"]
        loss.backward()
        results |= {f"{name}.loss": loss.detach()} | {f"{name}.{key}": p.grad for key, p in model.named_parameters()}
        results |= {f"{name}.{key}": value for key, value in model.named_buffers()}
    if rank() == 0:
        torch.save(results, folder / f"ranks_{size()}.pt")


if __name__ == "__main__":
    sys.exit(fork(partial(main, Path(sys.argv[1])), [1, 2]))
