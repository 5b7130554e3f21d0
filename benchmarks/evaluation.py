"""Recall@K both ways, rsum and the five 1K folds, from embeddings: ours against LAVIS's own evaluation.

Reference: ``RetrievalTask._report_metrics`` of LAVIS 1.0.2 (tasks/retrieval.py: an argsort per query), after one
product; it has no folds. Both sides start from the embeddings, run in one process with the same threads, and must agree
on every recall. The ratio is of CPU seconds on one thread: other jobs on the machine hardly change it.
Run ``python -m benchmarks.evaluation [--quick] [--threads 2] [--require 5]``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile

import numpy as np
import torch

from benchmarks.timing import fastest
from lavis_itm_plugins._torchvision import declare_operators
from lavis_itm_plugins.evaluation import evaluate_tiles


def hard_embeddings(n_images: int, per_image: int, dimension: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors whose recalls are far from both 0 and 100."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n_images, dimension, generator=generator)
    noise = torch.randn(n_images * per_image, dimension, generator=generator)
    captions = images.repeat_interleave(per_image, dim=0) + 8 * noise
    return torch.nn.functional.normalize(images, dim=1), torch.nn.functional.normalize(captions, dim=1)


def lavis_metrics(images: torch.Tensor, captions: torch.Tensor, caption_image: np.ndarray) -> dict[str, float]:
    from lavis.tasks.retrieval import RetrievalTask

    image_captions = {image: np.flatnonzero(caption_image == image).tolist() for image in range(len(images))}
    scores = images @ captions.T
    # The transpose is a view, as LAVIS's CLIP returns it (clip_models/model.py: compute_sim_matrix).
    both = scores.numpy(), scores.t().numpy()
    return RetrievalTask._report_metrics(*both, dict(enumerate(caption_image.tolist())), image_captions)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 x 5,000 x 256 instead of 5,000 x 25,000 x 1,024")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--require", type=float, default=0.0, help="exit with 1 if the ratio is smaller")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    declare_operators()
    from lavis.common.registry import registry

    n_images, dimension = (1000, 256) if args.quick else (5000, 1024)
    images, captions = hard_embeddings(n_images, 5, dimension)
    caption_image = np.arange(len(captions)) // 5
    ours, ours_clock, metrics = fastest(
        lambda: evaluate_tiles(images, captions, lambda a, b: a @ b.T, caption_image, folds=5), repeats=3
    )
    with tempfile.TemporaryDirectory() as folder:
        registry.register_path("output_dir", folder)
        theirs, theirs_clock, reference = fastest(lambda: lavis_metrics(images, captions, caption_image), repeats=1)
    for key in ("txt_r1", "txt_r5", "txt_r10", "img_r1", "img_r5", "img_r10"):
        assert abs(metrics[key] - reference[key]) < 0.05, (key, metrics[key], reference[key])
    print(
        f"evaluation {n_images} x {len(captions)} x {dimension}, {args.threads} threads, rsum {metrics['rsum']:.1f}: "
        f"LAVIS {theirs:.2f} CPU s ({theirs_clock:.2f} s), ours with five folds {ours:.2f} CPU s ({ours_clock:.2f} s), "
        f"ratio {theirs / ours:.1f}"
    )
    return int(theirs / ours < args.require)


if __name__ == "__main__":
    sys.exit(main())
