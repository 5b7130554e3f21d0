"""A step of itm_coder against a plain step of the same matcher.

The step: both branches, key tower, four dictionaries, pseudo labels and `after_step` against the plain InfoNCE step, on
the same batches, in turn in one process, in CPU seconds; the promise is a ratio of at most 2.2 at B = 128 with
dictionaries of 4,096 keys. Memory: the extra state, and the most memory of a step above what was there before, on one
thread.
Run ``python -m benchmarks.coder [--quick] [--threads 1] [--require 2.2]``.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import most_memory
from benchmarks.training import make_batches, make_model
from lavis_itm_plugins import register


def make_coder(matcher: Any, size: int, folder: Path) -> Any:
    """The whole method around a matcher, over concepts of generated captions."""
    from lavis_itm_plugins.concepts import ConceptRecipe, make_concepts, save_concepts
    from lavis_itm_plugins.config.schema import parse
    from lavis_itm_plugins.methods.coder import Coder
    from lavis_itm_plugins.methods.coder_config import CoderConfig

    rng = random.Random(0)
    letters = "abcdefghijklmnopqrst"
    words = [f"{a}{b}{c}" for a in letters for b in letters for c in letters][:300]
    captions = [" ".join(rng.sample(words, 6)) for _ in range(3000)]
    save_concepts(make_concepts(captions, ConceptRecipe(mode="knn"), folder), folder)
    section = {"dictionary": {"size": size}, "concept": {"graph": str(folder)}}
    return Coder(parse(CoderConfig, section, "model"), matcher).train()


def stepper(model: Any, batches: list[dict[str, Any]]) -> Callable[[int], None]:
    """Forward, backward, optimiser and the hook."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(number: int) -> None:
        batch = {**batches[number % len(batches)], "epoch": 0, "iters": number, "num_iters_per_epoch": 100}
        optimizer.zero_grad(set_to_none=True)
        model(batch)["loss"].backward()
        optimizer.step()
        model.after_step()

    return step


def step_costs(rounds: int, batch: int, dim: int, size: int, keys: int) -> dict[str, float]:
    """Median CPU seconds of a step, plain and ours, and memory in MB."""
    batches = make_batches(4, batch, dim)
    with tempfile.TemporaryDirectory() as folder:
        plain, coder = make_model(dim, size, size), make_coder(make_model(dim, size, size), keys, Path(folder))
    steps = {"plain": stepper(plain, batches), "coder": stepper(coder, batches)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    memory = {name: most_memory(partial(step, 0)) / 2**20 for name, step in steps.items()}
    for number in range(rounds + 1):
        # the order changes, so that neither always finds the caches warm
        for name in sorted(steps, reverse=bool(number % 2)):
            start = time.process_time()
            steps[name](number)
            if number:
                times[name].append(time.process_time() - start)
    state = sum(value.nbytes for value in coder.state_dict().values() if torch.is_tensor(value))
    own = sum(parameter.nbytes for parameter in coder.matcher.parameters())
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {**medians, **{f"{name}_mb": value for name, value in memory.items()}, "state_mb": (state - own) / 2**20}


def cases(quick: bool) -> Iterator[tuple[str, dict[str, int]]]:
    """The quick one only makes sure that all of it runs."""
    if quick:
        yield "small", {"rounds": 3, "batch": 16, "dim": 64, "size": 64, "keys": 256}
    else:
        yield "as in configs", {"rounds": 5, "batch": 128, "dim": 2048, "size": 1024, "keys": 4096}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--require", type=float, default=0.0, help="exit with 1 if the step's ratio is larger")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    register()
    failed = False
    for name, sizes in cases(args.quick):
        found = step_costs(**sizes)
        ratio = found["coder"] / found["plain"]
        print(
            f"itm_coder step, {name} (batch {sizes['batch']}, 36 x {sizes['dim']}, {sizes['keys']} keys), "
            f"{args.threads} threads: plain {found['plain']:.3f} CPU s, ours {found['coder']:.3f}, ratio {ratio:.2f}; "
            f"most memory of a step {found['plain_mb']:.0f} and {found['coder_mb']:.0f} MB, extra state "
            f"{found['state_mb']:.0f} MB",
            flush=True,
        )
        failed |= bool(args.require) and ratio > args.require
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
