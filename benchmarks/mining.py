"""Hard negatives of a whole training set, 300 captions of each image and 60 images of each caption: ours, one bare
product of the same size, and the official way.

The official way (AOQ's tools) takes one query at a time: the element-wise product with every item, its sum, top-k. Here
it runs in float32 on a few queries of both directions, over as many items as Flickr30K has. All start from the
embeddings, in one process with the same threads, and our lists must hold what the official way finds. Ratios are of CPU
seconds: other jobs on the machine hardly change them; seconds by the clock stand beside them. A small set costs more in
proportion: each query looks again at some 300 ln(n) candidates, however few the n are.
Run ``python -m benchmarks.mining [--quick] [--images 29000] [--threads 2] [--at-most 1.6] [--at-least 50]``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.timing import fastest
from lavis_itm_plugins.mining import HardNegatives, mine_hard_negatives
from lavis_itm_plugins.mining.passes import tile_shape

PER_IMAGE, CAPTIONS, IMAGES = 5, 300, 60
QUERIES = 8
FLICKR = 29_000 * 145_000
COCO = 113_287 * 566_435


def embeddings(n_images: int, dimension: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors in which an image's captions are often, and not always, its nearest."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n_images, dimension, generator=generator)
    captions = images.repeat_interleave(PER_IMAGE, dim=0)
    captions += 4 * torch.randn(captions.shape, generator=generator)
    return torch.nn.functional.normalize(images, dim=1), torch.nn.functional.normalize(captions, dim=1)


def bare_product(images: torch.Tensor, captions: torch.Tensor) -> None:
    """Every score once, in tiles of our size, written over each other."""
    rows, columns = tile_shape(1024, len(images))
    memory = torch.empty(rows * columns)
    for first in images.split(rows):
        for second in captions.split(columns):
            torch.mm(first, second.t(), out=memory[: len(first) * len(second)].view(len(first), len(second)))


def one_by_one(queries: torch.Tensor, items: torch.Tensor, own: torch.Tensor, k: int) -> torch.Tensor:
    """The official way: ids (n, k) of the best items of each query; ``own`` (n, items) marks its positives."""
    lists = []
    for query, positives in zip(queries, own, strict=True):
        scores = (query * items).sum(dim=1)
        scores[positives] = -9999
        lists.append(scores.topk(k).indices)
    return torch.stack(lists)


def memory_mb(name: str) -> float:
    """Memory of this process: resident now (VmRSS), or at most since it was last asked to forget (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def official_seconds(n_items: int, dimension: int, k: int) -> tuple[float, float]:
    """CPU seconds and seconds by the clock of a pair, one query at a time over as many items as Flickr30K has.

    Fewer items would stay in the processor's cache, which the real ones do not.
    """
    items = torch.randn(n_items, dimension)
    own = torch.zeros(QUERIES, n_items, dtype=torch.bool)
    cpu, clock, _ = fastest(lambda: one_by_one(torch.randn(QUERIES, dimension), items, own, k))
    return cpu / own.numel(), clock / own.numel()


def check(mined: HardNegatives, images: torch.Tensor, captions: torch.Tensor, owners: torch.Tensor) -> None:
    """Our lists hold what is found one by one, up to rounding at their ends."""
    chosen = torch.linspace(0, len(images) - 1, QUERIES).long()
    own = owners[None, :] == chosen[:, None]
    by_image = one_by_one(images[chosen], captions, own, CAPTIONS)
    mine = torch.nn.functional.one_hot(chosen, len(images)).bool()
    by_caption = one_by_one(captions[chosen * PER_IMAGE], images, mine, IMAGES)
    for ours, official in ((mined.captions[chosen], by_image), (mined.images[chosen * PER_IMAGE], by_caption)):
        shares = [len(set(a.tolist()) & set(b.tolist())) / len(b) for a, b in zip(ours, official, strict=True)]
        assert min(shares) > 0.98, shares


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 x 10,000 x 256")
    parser.add_argument("--images", type=int, default=29_000, help="default: %(default)s, Flickr30K")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--at-most", type=float, default=0.0, help="exit with 1 above this ratio to the bare product")
    parser.add_argument("--at-least", type=float, default=0.0, help="exit with 1 if the official way is nearer")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    n_images, dimension = (2000, 256) if args.quick else (args.images, 1024)
    images, captions = embeddings(n_images, dimension)
    owners = torch.arange(len(captions)) // PER_IMAGE
    pairs = n_images * len(captions)
    bare, bare_clock, _ = fastest(lambda: bare_product(images, captions), repeats=2)
    before = memory_mb("VmRSS")
    # from here on the system keeps the highest number anew
    Path("/proc/self/clear_refs").write_text("5")
    lengths = {"captions_per_image": CAPTIONS, "images_per_caption": IMAGES}
    ours, ours_clock, mined = fastest(lambda: mine_hard_negatives(images, captions, owners, **lengths))
    memory = memory_mb("VmHWM") - before
    check(mined, images, captions, owners)
    report(pairs, dimension, args.threads, (bare, bare_clock), (ours, ours_clock), memory)
    # per pair and direction; ours has both directions from one pass
    each, each_clock = ours / pairs / 2, ours_clock / pairs / 2
    ratios = {}
    for name, items, k in (("i2t", 145_000, CAPTIONS), ("t2i", 29_000, IMAGES)):
        official, clock = official_seconds(items // (10 if args.quick else 1), dimension, k)
        ratios[name] = official / each
        by_clock = clock / each_clock
        print(f"  one query at a time, {name}: {ratios[name]:.0f} times as long ({by_clock:.0f} by the clock)")
    return int((args.at_most and ours / bare > args.at_most) or min(ratios.values()) < args.at_least)


def report(
    pairs: int,
    dimension: int,
    threads: int,
    bare: tuple[float, float],
    ours: tuple[float, float],
    memory: float,
) -> None:
    """The figures of this size, and what they mean for whole data sets."""
    print(
        f"mining {CAPTIONS}/{IMAGES}, {pairs / 1e6:.0f} M pairs ({pairs / FLICKR:.1%} of Flickr30K) x {dimension}, "
        f"{threads} threads: bare product {bare[0]:.2f} CPU s ({bare[1]:.2f} s), both directions {ours[0]:.2f} CPU s "
        f"({ours[1]:.2f} s), ratio {ours[0] / bare[0]:.2f}; {memory:.0f} MB beyond the embeddings, lists among them"
    )
    for name, size in (("Flickr30K", FLICKR), ("COCO", COCO)):
        print(f"  {name}, {size / 1e9:.1f} G pairs, by scaling: {ours[0] * size / pairs / 60:.1f} CPU minutes")


if __name__ == "__main__":
    sys.exit(main())
