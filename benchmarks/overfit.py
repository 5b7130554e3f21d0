"""A small CLIP from random weights learns photographs by heart: the whole path from picture files to recalls.

`projects/baseline/train/clip_small_pairs.yaml` as shipped, on the training split of an annotation file of any form that
`itm_pairs` reads. Prints the recall at 1 on these same pictures in both directions, and what it took.
Run ``python -m benchmarks.overfit --annotations FILE [--images FOLDER] [--quick] [--threads 1] [--require 90]``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.timing import fastest

PROJECT = "projects/baseline/train/clip_small_pairs.yaml"


def learn(folder: Path, annotations: str, images: str | None, options: list[str]) -> float:
    """Train into `folder`/by-heart and print one line; the lower recall at 1 is given back."""
    from lavis_itm_plugins.evaluating import evaluate_checkpoint
    from lavis_itm_plugins.train import run_training

    data = [f"datasets.itm_pairs.annotations={json.dumps(annotations)}"]
    data += [f"datasets.itm_pairs.images={json.dumps(images)}"] if images else []
    where = [f"run.output_dir={json.dumps(str(folder))}", "run.itm.run_name=by-heart"]
    used, waited, runner = fastest(lambda: run_training(PROJECT, [*data, *where, *options]))
    run = runner.folder.path
    found = evaluate_checkpoint(run / "config.yaml", run / "checkpoint_best.pth", split="train")
    print(
        f"itm_clip by heart, {found.n_images} images, {found.n_captions} captions, {runner.settings.max_epoch} epochs: "
        f"R@1 on them i2t {found.metrics['txt_r1']:.1f}, t2i {found.metrics['img_r1']:.1f}; "
        f"{used:.0f} CPU s, {waited:.0f} s by the clock, {torch.get_num_threads()} threads",
        flush=True,
    )
    return min(found.metrics["txt_r1"], found.metrics["img_r1"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", default="data/pairs/captions.csv", help="an annotation file")
    parser.add_argument("--images", help="folder of the images; default: the annotation file's")
    parser.add_argument("--quick", action="store_true", help="two epochs: only that all of it runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--require", type=float, default=0.0, help="exit with 1 if a recall at 1 is lower")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not Path(args.annotations).exists():
        print(f"overfit: {args.annotations} does not exist; give --annotations with pictures to learn by heart")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        lowest = learn(
            Path(folder), args.annotations, args.images, ["run.max_epoch=2", "run.warmup_steps=0"] if args.quick else []
        )
    return int(lowest < args.require)


if __name__ == "__main__":
    sys.exit(main())
