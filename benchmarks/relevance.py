"""BCLS: labels against pycocoevalcap's scorer, the Kendall loss against all pairs, a training step against a plain one.

Captions are random words of very uneven frequency, or those of ITM_CAPTIONS (a text file, five lines an image).
Promises: a block of 128 x 128 labels of five captions an image at least 500 times faster than the
scorer; 30,000 captions ready in under 60 s; `kendall_loss`, window 16, stride 8, forward and backward on one thread,
under 10 ms at B = 128 and 120 ms at B = 512 (labels without ties and gap 0; 15 and 200 ms otherwise); a step at most
1.15 times a plain step. Run ``python -m benchmarks.relevance [--quick] [--threads 1] [--require]``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_itm_plugins.losses import kendall_loss
from lavis_itm_plugins.relevance import CaptionLabels, CiderSimilarity, CiderVectors, DocumentFrequency, tokenize
from lavis_itm_plugins.relevance.ngrams import count_ngrams

CAPTIONS_PER_IMAGE = 5
LIMITS = {128: (10, 15), 512: (120, 200)}


def generated_captions(count: int) -> list[str]:
    """Sentences about 20,000 words of very uneven frequency, five alike for each image."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, 20_001)
    words = np.array([f"word{n}" for n in range(20_000)])
    captions = []
    for _ in range(count // CAPTIONS_PER_IMAGE):
        theme = rng.choice(words, 30, p=frequency / frequency.sum())
        captions += [" ".join(rng.choice(theme, rng.integers(8, 16))) for _ in range(CAPTIONS_PER_IMAGE)]
    return captions


def captions_of(count: int) -> list[str]:
    """Those of the file that ITM_CAPTIONS names, or generated ones."""
    path = os.environ.get("ITM_CAPTIONS")
    return Path(path).read_text(encoding="utf-8").split("\n")[:count] if path else generated_captions(count)


def make_labels(captions: list[str]) -> tuple[CaptionLabels, float]:
    """Labels of the captions, and the seconds that it took to make them."""
    caption_image = np.arange(len(captions)) // CAPTIONS_PER_IMAGE
    start = time.process_time()
    counted = count_ngrams(map(tokenize, captions))
    frequency = DocumentFrequency.of_counted(counted, caption_image)
    labels = CaptionLabels(CiderSimilarity(CiderVectors.of(counted, frequency)), caption_image, reduce="mean")
    return labels, time.process_time() - start


def scorer_seconds(captions: list[str], images: np.ndarray, rows: np.ndarray) -> tuple[float, np.ndarray]:
    """CPU seconds of pycocoevalcap for a block, with document frequencies of these images, and the block."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    texts = [" ".join(tokenize(caption)) for caption in captions]
    references = [texts[CAPTIONS_PER_IMAGE * image :][:CAPTIONS_PER_IMAGE] for image in images]
    start = time.process_time()
    block = []
    for row in rows:
        scorer = CiderScorer(n=4, sigma=6.0)
        for own in references:
            scorer += (texts[row], own)
        block.append(scorer.compute_score()[1])
    return time.process_time() - start, np.stack(block, axis=1)


def median_ms(act: Callable[[int], Any], repeats: int) -> float:
    """Median CPU milliseconds of `act(number)`, after one call that does not count."""
    times = []
    for number in range(repeats + 1):
        start = time.process_time()
        act(number)
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times[1:])


def label_lines(quick: bool) -> list[bool]:
    """Print building and a block; whether each promise is kept."""
    captions = captions_of(5_000 if quick else 30_000)
    labels, seconds = make_labels(captions)
    print(f"labels of {len(captions)} captions ready in {seconds:.2f} CPU s", flush=True)
    rng, size = np.random.default_rng(0), 128
    rows = [rng.choice(len(captions), size, replace=False) for _ in range(6 if quick else 31)]
    ours = median_ms(lambda number: labels.labels(labels.caption_image[rows[number]], rows[number]), len(rows) - 1)
    # the scorer's time grows with images x captions: a part of the captions tells it
    part = 4 if quick else 16
    images = labels.caption_image[rows[0]]
    theirs, block = scorer_seconds(captions, images, rows[0][:part])
    theirs *= size / part
    sub = [CAPTIONS_PER_IMAGE * image + n for image in images for n in range(CAPTIONS_PER_IMAGE)]
    alone, _ = make_labels([captions[row] for row in sub])
    exact = alone.captions.similarity(np.arange(len(sub)), rows_in(sub, rows[0][:part]))
    exact = 10 * np.add.reduceat(exact, np.arange(0, len(sub), CAPTIONS_PER_IMAGE), axis=0) / CAPTIONS_PER_IMAGE
    difference = np.abs(exact - block).max()
    print(
        f"block of {size} x {size} labels, {CAPTIONS_PER_IMAGE} captions an image: pycocoevalcap {theirs:.1f} CPU s, "
        f"ours {ours:.2f} CPU ms, ratio {1000 * theirs / ours:.0f}; largest difference {difference:.1e}",
        flush=True,
    )
    return [seconds < 60, 1000 * theirs / ours >= 500, bool(difference < 1e-9)]


def rows_in(listed: list[int], rows: np.ndarray) -> np.ndarray:
    """Where each row stands in the list."""
    place = {row: number for number, row in enumerate(listed)}
    return np.array([place[row] for row in rows])


def all_pairs(scores: Tensor, labels: Tensor) -> Tensor:
    """As anybody would write it: every pair of candidates of every query, B x B x B at once, mean over the pairs."""
    losses = []
    for s, y in ((scores, labels), (scores.T, labels.T)):
        pairs = y[:, :, None] > y[:, None, :]
        costs = (s[:, None, :] - s[:, :, None]).clamp(min=0) * pairs
        losses.append((costs.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)).mean())
    return (losses[0] + losses[1]) / 2


chunked_pairs = partial(kendall_loss, split="none", mining="mean")


def loss_ms(loss: Callable[[Tensor], Tensor], scores: Tensor, repeats: int) -> float:
    """Median CPU milliseconds of forward and backward."""

    def step(_: int) -> None:
        scores.grad = None
        loss(scores).backward()

    return median_ms(step, repeats)


def loss_lines(quick: bool) -> list[bool]:
    """Print the Kendall loss at each size, with and without ties; whether each promise is kept."""
    kept = []
    for size in (128,) if quick else (128, 512):
        scores = torch.randn(size, size, requires_grad=True)
        labels = torch.rand(size, size)
        tied = (20 * labels).round() / 20
        repeats = 5 if quick else 15

        free = loss_ms(partial(kendall_loss, labels=labels), scores, repeats)
        other = loss_ms(partial(kendall_loss, labels=tied, gap=0.01), scores, repeats)
        # written out, B = 512 would take 8 GB
        pairs = partial(all_pairs if size == 128 else chunked_pairs, labels=labels)
        reference = loss_ms(pairs, scores, 2 if size == 128 else 1)
        print(
            f"kendall_loss, B {size}, window 16, stride 8: {free:.1f} CPU ms, with ties and a gap {other:.1f} CPU ms, "
            f"all pairs {reference:.1f} CPU ms",
            flush=True,
        )
        kept += [free < LIMITS[size][0], other < LIMITS[size][1]]
    return kept


def step_lines(quick: bool) -> list[bool]:
    """Print a BCLS step against the same matcher trained plainly with the same base loss; whether it is cheap."""
    from benchmarks.training import make_batches, make_model, tools
    from lavis_itm_plugins.config.schema import parse
    from lavis_itm_plugins.methods.bcls import BCLS, BclsConfig
    from lavis_itm_plugins.runners.loop import Epoch, train_steps

    size, dim = 128, 256
    captions = captions_of(5_000)
    labels, _ = make_labels(captions)
    config = parse(BclsConfig, {"matcher": {"arch": "itm_vse"}}, "model")
    rng = np.random.default_rng(0)
    batches = make_batches(3 if quick else 6, size, dim)
    for batch in batches:
        rows = rng.choice(len(captions), size, replace=False)
        batch["index"], batch["image_id"] = torch.from_numpy(rows), torch.from_numpy(labels.caption_image[rows])
    models = []
    for continuous in (False, True):
        matcher = make_model(dim, 512, 256)
        object.__setattr__(matcher.config, "base_loss", config.base_loss)
        model: Any = BCLS(config, matcher).train() if continuous else matcher
        if continuous:
            model.use_labels(labels)
        models.append((model, *tools(model)))

    def epoch(number: int, model: Any, optimizer: Any, scheduler: Any) -> None:
        train_steps(model, iter(batches), Epoch(number, len(batches)), optimizer=optimizer, scheduler=scheduler)

    times: list[list[float]] = [[], []]
    for number in range(3 if quick else 6):
        for side in (0, 1) if number % 2 else (1, 0):
            start = time.process_time()
            epoch(number, *models[side])
            times[side].append((time.process_time() - start) / len(batches))
    plain, ours = (1000 * statistics.median(values[1:]) for values in times)
    print(
        f"training step, batch {size}, 36 x {dim}, itm_vse: plain soft triplet {plain:.1f} CPU ms, "
        f"BCLS with CIDEr labels {ours:.1f} CPU ms, ratio {ours / plain:.3f}",
        flush=True,
    )
    return [ours / plain <= 1.15]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer captions, B = 128 only, fewer repeats")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--require", action="store_true", help="exit with 1 when a promise above is not kept")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from lavis_itm_plugins import register

    register()
    kept = [*label_lines(args.quick), *loss_lines(args.quick), *step_lines(args.quick)]
    return int(args.require and not all(kept))


if __name__ == "__main__":
    sys.exit(main())
