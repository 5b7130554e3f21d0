"""A training step of itm_clip on a batch of pictures: whole, in chunks, and with recomputed blocks.

The most memory of a step (forward, backward, optimiser) above what was there before, each on one thread in a forked
process that gives freed memory back at once, and the CPU seconds of a step, in turn in one process. Gradients and
AdamW's state are in each figure. Cached gradients cost one more forward pass: 4/3 of the time. The network is a ViT of
6 layers on pictures of 96 pixels, with random weights.
Run ``python -m benchmarks.chunks [--quick] [--threads 1] [--require 1.4]``.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.coder import stepper
from benchmarks.memory import most_memory
from lavis_itm_plugins import register

SIZE = 96


def make_clip(width: int, layers: int, **keys: Any) -> Any:
    from lavis_itm_plugins.config.schema import parse
    from lavis_itm_plugins.matchers.clip import ClipConfig, ClipMatcher

    torch.manual_seed(0)
    vit = {"size": SIZE, "patch": 16, "width": width, "layers": layers}
    text = {"width": width, "layers": layers, "heads": width // 64, "context": 32}
    return ClipMatcher(parse(ClipConfig, {"vit": vit, "text": text, **keys}, "model")).train()


def make_batch(size: int) -> dict[str, Any]:
    torch.manual_seed(1)
    captions = [f"a picture of {number} things on a table beside a window" for number in range(size)]
    return {"image": torch.rand(size, 3, SIZE, SIZE), "text_input": captions, "image_id": torch.arange(size)}


def returning(step: Callable[[int], None]) -> Callable[[], None]:
    """The first step without glibc's habit of keeping freed blocks, which would count as memory in use."""

    def act() -> None:
        mmap_threshold = -3
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 16)
        step(0)

    return act


def measure(batch: int, width: int, layers: int, chunk: int, rounds: int) -> dict[str, tuple[float, float]]:
    """The most memory in MB and the median CPU seconds of a step, of each form."""
    forms: dict[str, Any] = {"whole": {}, "in chunks": {"encode_chunk": chunk}}
    forms["blocks recomputed"] = {"checkpoint": True}
    steps = {name: stepper(make_clip(width, layers, **keys), [make_batch(batch)]) for name, keys in forms.items()}
    memory = {name: most_memory(returning(step)) / 2**20 for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step(number)
            times[name].append(time.process_time() - start)
    return {name: (memory[name], statistics.median(times[name])) for name in steps}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small network and batch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--require", type=float, default=0.0, help="exit with 1 if chunks take more than so many times")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    register()
    if args.quick:
        sizes = {"batch": 32, "width": 64, "layers": 2, "chunk": 8, "rounds": 1}
    else:
        sizes = {"batch": 256, "width": 192, "layers": 6, "chunk": 32, "rounds": 3}
    found = measure(**sizes)
    weights = sum(parameter.nbytes for parameter in make_clip(sizes["width"], sizes["layers"]).parameters()) / 2**20
    print(
        f"itm_clip step, batch {sizes['batch']}, width {sizes['width']}, {args.threads} threads; gradients and AdamW's "
        f"state {3 * weights:.0f} MB",
        flush=True,
    )
    for name, (memory, seconds) in found.items():
        said = f"{name} of {sizes['chunk']}" if name == "in chunks" else name
        ratios = f"memory {memory / found['whole'][0]:.2f}, time {seconds / found['whole'][1]:.2f} of the whole"
        print(f"  {said}: {memory:.0f} MB at most, {seconds:.2f} CPU s ({ratios})")
    ratio = found["in chunks"][1] / found["whole"][1]
    return int(bool(args.require) and ratio > args.require)


if __name__ == "__main__":
    sys.exit(main())
