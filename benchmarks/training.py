"""One training step through our loop, and one checkpoint: time against a bare PyTorch loop, memory while saving.

The step: `train_steps` as `itm_runner` calls it (schedule, finite checks, clipping, sums, hooks, signals) against
forward, backward, clipping, optimiser and schedule alone, on the same model and batches, in turn in one process. The
promise is a ratio of at most 1.05. The checkpoint: a model of 50 million parameters with AdamW's state, and the most
memory above what was there before; the promise is at most 0.3 times model and optimiser state.
Run ``python -m benchmarks.training [--quick] [--threads 1] [--require 1.05]``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.memory import PeakMemory
from lavis_itm_plugins import register
from lavis_itm_plugins.checkpoints import write_checkpoint

CLIP = 2.0


def make_model(dim: int, embed_dim: int, hidden: int) -> Any:
    from lavis_itm_plugins.config.schema import parse
    from lavis_itm_plugins.encoders.vocabulary import Vocabulary
    from lavis_itm_plugins.matchers.vse import VseConfig, VseMatcher

    torch.manual_seed(0)
    words = Vocabulary.from_captions([f"word{n}" for n in range(2000)], min_count=1)
    section = {"embed_dim": embed_dim, "image": {"kind": "regions", "dim": dim}, "text": {"hidden": hidden}}
    return VseMatcher(parse(VseConfig, section, "model"), words).train()


def make_batches(number: int, size: int, dim: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "image": torch.from_numpy(rng.normal(size=(size, 36, dim)).astype(np.float32)),
            "text_input": [" ".join(f"word{n}" for n in rng.integers(0, 2000, 12)) for _ in range(size)],
            "image_id": torch.arange(size),
        }
        for _ in range(number)
    ]


def tools(model: Any) -> tuple[Any, Any]:
    """AdamW and our cosine schedule."""
    from lavis_itm_plugins.runners.schedulers import CosineSchedule

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return optimizer, CosineSchedule(optimizer, max_epoch=1000, min_lr=0.0, init_lr=1e-4)


def bare(model: Any, batches: list[dict[str, Any]]) -> Callable[[int], None]:
    """What anybody would write."""
    optimizer, scheduler = tools(model)
    scheduler.steps_per_epoch = len(batches)

    def epoch(number: int) -> None:
        for step, batch in enumerate(batches):
            scheduler.step(cur_epoch=number, cur_step=step)
            optimizer.zero_grad(set_to_none=True)
            loss = model({**batch, "epoch": number})["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()

    return epoch


def ours(model: Any, batches: list[dict[str, Any]]) -> Callable[[int], None]:
    """As `itm_runner` takes an epoch's steps, deterministic, without a loader: both sides get the same batches."""
    from lavis_itm_plugins.runners.loop import Epoch, LoopSettings, train_steps
    from lavis_itm_plugins.runners.saving import CheckpointKeeper
    from lavis_itm_plugins.runners.state import TrainState, be_deterministic
    from lavis_itm_plugins.runners.watch import FiniteWatch

    optimizer, scheduler = tools(model)
    itm = SimpleNamespace(save_every_steps=None)
    keeper = CheckpointKeeper(SimpleNamespace(state=TrainState(), average=None, itm=itm))

    def epoch(number: int) -> None:
        be_deterministic(gpu=False)
        train_steps(
            model,
            iter(batches),
            Epoch(number, len(batches)),
            optimizer=optimizer,
            scheduler=scheduler,
            settings=LoopSettings(clip=CLIP, log_every=50),
            watch=FiniteWatch(),
            after_step=keeper.after_step,
        )
        torch.use_deterministic_algorithms(False)

    return epoch


def step_times(rounds: int, steps: int, batch: int, dim: int, size: int) -> tuple[float, float]:
    """Median CPU seconds of one step, bare and ours: epochs in turn, each with a model of its own from one seed."""
    batches = make_batches(steps, batch, dim)
    runs = [bare(make_model(dim, size, size), batches), ours(make_model(dim, size, size), batches)]
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        # the order changes, so that neither always finds the caches warm
        for side in (0, 1) if number % 2 else (1, 0):
            start = time.process_time()
            runs[side](number)
            if number:
                times[side].append((time.process_time() - start) / steps)
    return statistics.median(times[0]), statistics.median(times[1])


def checkpoint_cost(parameters: int) -> tuple[float, float]:
    """Seconds to write a checkpoint, and its extra memory relative to model and optimiser state."""
    width = int((parameters / 12) ** 0.5)
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(12)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, width)).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state = 3 * sum(p.numel() * p.element_size() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        start = time.perf_counter()
        write_checkpoint(
            Path(folder) / "checkpoint_last.pth", {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        )
        seconds = time.perf_counter() - start
    return seconds, memory.extra / state


def cases(quick: bool) -> Iterator[tuple[str, dict[str, int]]]:
    """Models where a step is short and where it is long; the quick ones only make sure that all of it runs."""
    if quick:
        yield "small", {"rounds": 6, "steps": 10, "batch": 32, "dim": 64, "size": 128}
        return
    yield "small", {"rounds": 20, "steps": 20, "batch": 64, "dim": 256, "size": 256}
    yield "as in configs", {"rounds": 4, "steps": 2, "batch": 64, "dim": 2048, "size": 1024}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small model, a checkpoint of 5 million parameters")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--require", type=float, default=0.0, help="exit with 1 if a step's ratio is larger")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    register()
    parameters = 5_000_000 if args.quick else 50_000_000
    seconds, extra = checkpoint_cost(parameters)
    print(
        f"checkpoint of {parameters / 1e6:.0f} M parameters: {seconds:.2f} s, "
        f"extra memory {extra:.2f} x model and optimiser state",
        flush=True,
    )
    failed = False
    for name, sizes in cases(args.quick):
        plain, through_us = step_times(**sizes)
        print(
            f"training step, {name} (batch {sizes['batch']}, 36 x {sizes['dim']}), {args.threads} threads: "
            f"bare PyTorch {plain:.4f} CPU s, ours {through_us:.4f} CPU s, ratio {through_us / plain:.3f}",
            flush=True,
        )
        failed |= bool(args.require) and through_us / plain > args.require
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
