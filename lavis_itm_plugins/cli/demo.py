"""Train on generated pictures and show what was learned; needs no data, no GPU, no network.

Draws pictures of simple scenes with five captions each, trains itm_vse on them from random weights, then goes on from
there with each training method for a few epochs, beside plain training for as many steps. Prints the recalls on
held-out pictures, and how well scores follow the known relevance of every caption (Kendall's tau).
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

from lavis_itm_plugins.cli.tables import recall_table

PLAIN = "projects/baseline/train/scenes.yaml"
SHARED = ["datasets.itm_scenes.train=2000", "run.itm.graded.labels.source=scenes"]
FIRST = ["run.max_epoch=5"]
# the same few epochs for every row that goes on from the plain run
CONTINUED = ["run.max_epoch=2", "run.init_lr=5e-4", "run.warmup_steps=20"]
ROWS = {
    "plain": (PLAIN, []),
    "DBL": ("projects/dbl/train/scenes_frozen.yaml", ["model.dbl.anchor={start}"]),
    "AOQ": ("projects/aoq/train/scenes.yaml", ["model.candidates.source={start}"]),
    "BCLS": ("projects/bcls/train/scenes.yaml", ["model.base_loss.warmup_epochs=0"]),
    "CODER": ("projects/coder/train/scenes.yaml", []),
}
FULL = ["run.max_epoch=20", "datasets.itm_scenes.train=6000"]
FULL_CONTINUED = ["run.max_epoch=10", "datasets.itm_scenes.train=6000"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = __doc__.split("\n\n", 1)[1]
    parser.add_argument("--full", action="store_true", help="more pictures and more epochs, about two hours")
    parser.add_argument("--output-dir", default="runs", help="where the run folders go (default: %(default)s)")
    parser.add_argument("--methods", nargs="*", metavar="NAME", choices=[*ROWS], help="only these rows after the first")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides, such as run.seed=2")


def run(given: argparse.Namespace) -> int:
    """Train, test, print the table."""
    print("loading LAVIS ...", flush=True)
    started = time.monotonic()
    # LAVIS prints the whole configuration; here only our own lines are of interest
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("lavis_itm_plugins").setLevel(logging.INFO)
    from lavis_itm_plugins.data.randomness import seeded
    from lavis_itm_plugins.evaluating import evaluate_checkpoint
    from lavis_itm_plugins.train import run_training

    everywhere = [*SHARED, f"run.output_dir={given.output_dir}"]
    options = [*everywhere, *FIRST, *(FULL if given.full else []), *given.options]
    # an evaluation has no seed of its own, and a second demo shall print the same table
    with seeded(1):
        untrained = evaluate_checkpoint(PLAIN, None, options=options)
    first = run_training(PLAIN, options).folder
    rows = {"untrained": untrained.metrics, "itm_vse": final_metrics(first.path)}
    folders = {"itm_vse": first.path}
    for name, (project, its_own) in ROWS.items():
        if given.methods is not None and name not in given.methods:
            continue
        print(f"\n{name}: on from {first.path}", flush=True)
        own = [option.format(start=first.path) for option in its_own]
        shared = [*everywhere, *CONTINUED, *(FULL_CONTINUED if given.full else []), f"model.finetuned={first.best}"]
        row = f"+ {name}"
        folders[row] = run_training(project, [*shared, *own, *given.options]).folder.path
        rows[row] = final_metrics(folders[row])
    print(f"\n{untrained.n_images} test pictures, {untrained.n_captions} captions; recalls in percent, tau against the")
    print("known relevance; the rows with + go on from itm_vse for the same number of steps")
    print(recall_table(rows))
    print(f"\ntook {time.monotonic() - started:.0f} s; run folders:")
    print("\n".join(f"  {path}" for path in folders.values()))
    print(f"next: lavis-itm evaluate {first.path} --split val")
    return 0


def final_metrics(folder: Path) -> dict[str, float]:
    """What a finished run wrote of its test split."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return next(line for line in reversed(lines) if line["split"] == "test")
