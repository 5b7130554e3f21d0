"""Cross-attention scores of every image with every caption: ours against the official loop over captions.

Both sides have the same weights and must agree. Training steps have a loss over all negatives, where every score has a
gradient, or over the hardest ones, which these networks are trained with; SGRAF is in training mode, without dropout.
Rows of bfloat16 are under autocast, which rounds affinities of the official form too; of ours contexts, differences,
nodes and products with matrices. Ratios are of CPU seconds, of all threads together: other jobs on the machine change
them less than time by the clock. Peak memory is above the start, on one thread.
Run ``python -m benchmarks.scoring [--quick] [--threads 2] [names ...]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from benchmarks.memory import most_memory
from benchmarks.scoring_official import Score, bfan, dbl, per_caption, scan_i2t, scan_t2i, sgraf
from benchmarks.timing import cpu_seconds
from lavis_itm_plugins.losses import boosting_loss, triplet_loss
from lavis_itm_plugins.scoring import DBLScorer, SGRAFScorer, bfan_scores, scan_scores


@dataclass(frozen=True)
class Network:
    """The official loop and ours, over one module's weights."""

    official: Score
    ours: Score
    module: nn.Module | None = None


def networks(dim: int, sim_dim: int, regions: int) -> dict[str, Network]:
    torch.manual_seed(0)
    saf, sgr = (SGRAFScorer(dim, sim_dim, module=name, regions=regions, dropout=0.0).eval() for name in ("SAF", "SGR"))
    network = DBLScorer(dim, sim_dim)
    return {
        "SCAN t2i": Network(per_caption(scan_t2i), scan_scores),
        "SCAN i2t": Network(per_caption(scan_i2t), partial(scan_scores, direction="i2t", lambda_softmax=4.0)),
        "BFAN equal": Network(per_caption(bfan("equal")), bfan_scores),
        "BFAN prob": Network(per_caption(bfan("prob")), partial(bfan_scores, focal="prob")),
        "DBL": Network(per_caption(dbl(network)), network, network),
        "SGRAF SAF": Network(sgraf(saf), saf, saf),
        "SGRAF SGR": Network(sgraf(sgr), sgr, sgr),
    }


def tile(size: int, regions: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit regions and words that resemble each other, 5 to 19 words with a mean of about 13."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randn(size, generator=generator).mul(2.4).add(13.4).round().clamp(5, 19).long()
    images = torch.randn(size, regions, dim, generator=generator)
    captions = torch.randn(size, 19, dim, generator=generator) + images[:, :1]
    return normalize(images, dim=2), normalize(captions, dim=2), lengths


@torch.no_grad()
def scores(scorer: Score, _module: nn.Module | None, images: Tensor, captions: Tensor, lengths: Tensor) -> None:
    scorer(images, captions, lengths)


def step(
    negatives: str, scorer: Score, module: nn.Module | None, images: Tensor, captions: Tensor, lengths: Tensor
) -> None:
    """Forward and backward, with a gradient for every input and weight."""
    images, captions = images.clone().requires_grad_(), captions.clone().requires_grad_()
    with training(module):
        triplet_loss(scorer(images, captions, lengths), negatives=negatives).backward()


@contextmanager
def training(module: nn.Module | None) -> Iterator[None]:
    """In training mode; statistics and gradients are afterwards as before."""
    if module is None:
        yield
        return
    state = {name: value.clone() for name, value in module.state_dict().items()}
    module.train()
    yield
    module.eval().zero_grad()
    module.load_state_dict(state)


def dbl_step(score: Score, _module: nn.Module | None, images: Tensor, captions: Tensor, lengths: Tensor) -> None:
    """DBL's step on encoded sets: an anchor without a gradient, then the target against it."""
    with torch.no_grad():
        anchor = score(images, captions, lengths)
    images, captions = images.clone().requires_grad_(), captions.clone().requires_grad_()
    boosting_loss(score(images, captions, lengths), anchor).backward()


ACTS: dict[str, Callable[..., None]] = {
    "scores": scores,
    "step, all negatives": partial(step, "all"),
    "step, hardest negatives": partial(step, "hardest"),
}


@torch.no_grad()
def check(network: Network, inputs: Any) -> None:
    """Both sides agree; where BFAN's threshold meets a weight, rounding decides on which side it is."""
    difference = (network.ours(*inputs) - network.official(*inputs)).abs()
    assert float((difference < 2e-5).float().mean()) > 0.999, float(difference.max())


def compare(name: str, act: Callable[..., None], network: Network, inputs: Any, repeats: int, peak: int | None) -> None:
    """Print the CPU time of both sides, in float32 and under autocast."""
    pairs = len(inputs[0]) * len(inputs[1])
    plain = None
    for half in (False, True) if network.module is not None else (False,):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            slow, fast = (
                1e6 * cpu_seconds(partial(act, scorer, network.module, *inputs), repeats) / pairs
                for scorer in (network.official, network.ours)
            )
        plain = plain or slow
        kind, more = ("bfloat16", f", {plain / fast:.1f} of float32's official form") if half else ("float32", "")
        more += "" if peak is None or half else f", peak {peak} MiB"
        print(
            f"{name}, {kind}: official {slow:.0f} CPU us a pair, ours {fast:.0f}, ratio {slow / fast:.1f}{more}",
            flush=True,
        )


def gemm_rate() -> str:
    """What the machine does in products of the networks' sizes."""
    items, matrix = torch.randn(512, 1024), torch.randn(256, 1024)
    rates = []
    for kind in (torch.float32, torch.bfloat16):
        act = partial(linear, items.to(kind), matrix.to(kind))
        seconds = cpu_seconds(lambda act=act: [act() for _ in range(100)], 5)  # type: ignore[misc]
        rates.append(f"{kind} {200 * items.numel() * len(matrix) / seconds / 1e9:.0f}")
    return f"products with a matrix, GFLOP/s: {', '.join(rates)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="32 x 32 pairs instead of 128 x 128")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="of each measurement, of which the fastest counts")
    parser.add_argument("names", nargs="*", help="only these, such as DBL; step: DBL's step with its anchor")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size, dim, sim_dim = (32 if args.quick else 128), 1024, 256
    print(f"tile of {size} x {size}, 36 regions, D {dim}, K {sim_dim}, {args.threads} threads")
    inputs = tile(size, 36, dim)
    chosen = {k: v for k, v in networks(dim, sim_dim, regions=36).items() if not args.names or k in args.names}
    # before anything else: memory that was used and given back hides what is used again
    peaks = {
        (name, kind): most_memory(partial(act, network.ours, network.module, *inputs)) >> 20
        for name, network in chosen.items()
        for kind, act in ACTS.items()
    }
    print(gemm_rate())
    for name, network in chosen.items():
        check(network, inputs)
        for kind, act in ACTS.items():
            compare(f"{name}, {kind}", act, network, inputs, args.repeats, peaks[name, kind])
    if not args.names or "step" in args.names:
        network = networks(dim, sim_dim, regions=9)["DBL"]
        compare(
            f"DBL step with its anchor, B {size}, 9 regions", dbl_step, network, tile(size, 9, dim), args.repeats, None
        )


if __name__ == "__main__":
    main()
