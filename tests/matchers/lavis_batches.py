"""Seven captions of five pictures, and a batch of them for LAVIS's networks."""

from __future__ import annotations

import lavis_tiny
import torch

CAPTIONS = [
    "a red ball",
    "two dogs on a box",
    "a cat",
    "a blue box on the left",
    "the red circle",
    "a tiny star",
    "a dog",
]
OWNERS = [0, 1, 2, 3, 3, 4, 1]


def a_batch(count=7, seed=1):
    torch.manual_seed(seed)
    ids = torch.tensor(OWNERS[:count])
    pictures = torch.rand(5, 3, lavis_tiny.SIZE, lavis_tiny.SIZE)[ids]
    steps = {"epoch": 0, "iters": 3, "num_iters_per_epoch": 4}
    return {"image": pictures, "text_input": CAPTIONS[:count], "image_id": ids, **steps}
