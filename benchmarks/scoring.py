"""Cross-attention scores of every image with every caption: ours against the official loop over captions.

References, written out below: SCAN, BFAN, SGRAF and DBL's release score one caption with all images at a time, with the
contexts of all pairs as vectors. Both sides have the same weights and must agree. Ratios are of CPU seconds on one
thread: other jobs on the machine hardly change them. Peak memory is that of a forked process above its start.
Run ``python -m benchmarks.scoring [--quick] [--threads 2] [names ...]``.
"""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, normalize

from benchmarks.timing import cpu_seconds
from lavis_itm_plugins.losses import boosting_loss
from lavis_itm_plugins.scoring import DBLScorer, SGRAFScorer, bfan_scores, scan_scores

Score = Callable[[Tensor, Tensor, Tensor], Tensor]


def l2(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(dim=-1, keepdim=True).sqrt() + 1e-8)


def attend(query: Tensor, context: Tensor, smooth: float, focal: str = "") -> Tensor:
    """Contexts (I, q, D) of queries (I, q, D) over (I, s, D), with the official order of axes: D before q in memory."""
    affinity = leaky_relu(torch.bmm(context, query.transpose(1, 2)), 0.1)
    weights = torch.softmax(l2(affinity).transpose(1, 2).contiguous() * smooth, dim=2)
    if focal == "equal":
        weights = weights * (weights * weights.shape[2] - weights.sum(dim=2, keepdim=True) > 0)
        weights = weights / weights.sum(dim=2, keepdim=True)
    elif focal == "prob":
        excess = (weights.unsqueeze(3) - weights.unsqueeze(2)) * weights.unsqueeze(2).sqrt()
        weights = weights * (excess.sum(dim=3) > 0)
        weights = weights / weights.sum(dim=2, keepdim=True)
    return torch.bmm(context.transpose(1, 2), weights.transpose(1, 2).contiguous()).transpose(1, 2)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    lengths = torch.norm(one, 2, 2) * torch.norm(other, 2, 2)
    return (one * other).sum(dim=2) / lengths.clamp(min=1e-8)


def per_caption(score: Callable[[Tensor, Tensor], Tensor]) -> Score:
    """The official shape: (I, R, D) images and one caption (I, n, D) at a time."""

    def loop(images: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        columns = []
        for caption, length in zip(captions, lengths.tolist(), strict=True):
            columns.append(score(images, caption[None, :length].repeat(len(images), 1, 1)))
        return torch.stack(columns, dim=1)

    return loop


def scan_t2i(images: Tensor, caption: Tensor) -> Tensor:
    return cosine(caption, attend(caption, images, 9.0)).mean(dim=1)


def scan_i2t(images: Tensor, caption: Tensor) -> Tensor:
    return cosine(images, attend(images, caption, 4.0)).mean(dim=1)


def bfan(focal: str) -> Callable[[Tensor, Tensor], Tensor]:
    def score(images: Tensor, caption: Tensor) -> Tensor:
        words = cosine(caption, attend(caption, images, 20.0, focal)).mean(dim=1)
        return words + cosine(images, attend(images, caption, 20.0, focal)).mean(dim=1)

    return score


def dbl(scorer: DBLScorer) -> Callable[[Tensor, Tensor], Tensor]:
    def score(images: Tensor, caption: Tensor) -> Tensor:
        local = l2(scorer.sim_tran_w((l2(attend(caption, images, 9.0)) - caption).pow(2)))
        return scorer.sim_eval_w(l2(local.mean(dim=1))).squeeze(1).tanh()

    return score


def sgraf(scorer: SGRAFScorer) -> Score:
    def reasoned(nodes: Tensor) -> Tensor:
        for step in scorer.SGR_module:
            edges = torch.softmax(step.graph_query_w(nodes) @ step.graph_key_w(nodes).transpose(1, 2), dim=-1)
            nodes = step.sim_graph_w(edges @ nodes).relu()
        return nodes[:, 0]

    def filtered(nodes: Tensor) -> Tensor:
        module = scorer.SAF_module
        gates = module.bn(module.attn_sim_w(nodes).transpose(1, 2)).sigmoid()
        return l2((gates / (gates.sum(dim=2, keepdim=True) + 1e-8) @ nodes).squeeze(1))

    def loop(images: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        whole_images = scorer.v_global_w(images)

        def score(images: Tensor, caption: Tensor) -> Tensor:
            whole = scorer.t_global_w(caption[:1])
            local = l2(scorer.sim_tranloc_w((l2(attend(caption, images, 9.0)) - caption).pow(2)))
            first = l2(scorer.sim_tranglo_w((whole_images - whole).pow(2)))
            nodes = torch.cat([first.unsqueeze(1), local], dim=1)
            similar = reasoned(nodes) if hasattr(scorer, "SGR_module") else filtered(nodes)
            return scorer.sim_eval_w(similar).squeeze(1).sigmoid()

        return per_caption(score)(images, captions, lengths)

    return loop


def networks(dim: int, sim_dim: int, regions: int) -> dict[str, Network]:
    torch.manual_seed(0)
    saf, sgr = (SGRAFScorer(dim, sim_dim, module=name, regions=regions).eval() for name in ("SAF", "SGR"))
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
def score(scorer: Score, _module: nn.Module | None, images: Tensor, captions: Tensor, lengths: Tensor) -> None:
    scorer(images, captions, lengths)


def step(scorer: Score, module: nn.Module | None, images: Tensor, captions: Tensor, lengths: Tensor) -> None:
    """Forward and backward of a matching loss with a gradient for every input and weight."""
    images, captions = images.clone().requires_grad_(), captions.clone().requires_grad_()
    scores = scorer(images, captions, lengths)
    (0.2 + scores - scores.diagonal()[:, None]).clamp(min=0).sum().backward()
    if module is not None:
        module.zero_grad()


def dbl_step(score: Score, images: Tensor, captions: Tensor, lengths: Tensor) -> None:
    """DBL's step on encoded sets: an anchor without a gradient, then the target against it."""
    with torch.no_grad():
        anchor = score(images, captions, lengths)
    images, captions = images.clone().requires_grad_(), captions.clone().requires_grad_()
    boosting_loss(score(images, captions, lengths), anchor).backward()


def peak_mb(act: Callable[..., Any], *given: Any) -> int:
    """Memory that `act(*given)` needs above what is there, in MiB, measured in a forked process."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        act(*given)
        os.write(writer, str((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024).encode())
        os._exit(0)
    os.wait()
    return int(os.read(reader, 32))


@dataclass(frozen=True)
class Network:
    """The official loop and ours, over one module's weights."""

    official: Score
    ours: Score
    module: nn.Module | None = None

    def peaks(self, inputs: Any) -> list[int]:
        return [peak_mb(act, self.ours, self.module, *inputs) for act in (score, step)]

    def compare(self, name: str, inputs: Any, peaks: list[int], repeats: int) -> None:
        with torch.no_grad():
            torch.testing.assert_close(self.ours(*inputs), self.official(*inputs), rtol=0, atol=2e-5)
        pairs = len(inputs[0]) * len(inputs[1])
        for kind, act, peak in zip(("scores", "training step"), (score, step), peaks, strict=True):
            slow, fast = (
                1e6 * cpu_seconds(partial(act, scorer, self.module, *inputs), repeats) / pairs
                for scorer in (self.official, self.ours)
            )
            ratio = f"ratio {slow / fast:.1f}, peak {peak} MiB"
            print(f"{name}, {kind}: official {slow:.0f} CPU us a pair, ours {fast:.0f}, {ratio}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="32 x 32 pairs instead of 128 x 128")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("names", nargs="*", help="only these, such as DBL")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size, dim, sim_dim = (32 if args.quick else 128), 1024, 256
    print(f"tile of {size} x {size}, 36 regions, D {dim}, K {sim_dim}, {args.threads} threads")
    inputs = tile(size, 36, dim)
    chosen = {k: v for k, v in networks(dim, sim_dim, regions=36).items() if not args.names or k in args.names}
    # before anything else: memory that was used and given back hides what is used again
    peaks = {name: network.peaks(inputs) for name, network in chosen.items()}
    for name, network in chosen.items():
        network.compare(name, inputs, peaks[name], repeats=2 if args.quick else 1)
    if not args.names or "step" in args.names:
        network, inputs = networks(dim, sim_dim, regions=9)["DBL"], tile(size, 9, dim)
        slow, fast = (cpu_seconds(partial(dbl_step, scorer, *inputs), 1) for scorer in (network.official, network.ours))
        ratio = f"ratio {slow / fast:.1f}"
        print(f"DBL step with its anchor, B {size}, 9 regions: official {slow:.1f} CPU s, ours {fast:.1f}, {ratio}")


if __name__ == "__main__":
    main()
