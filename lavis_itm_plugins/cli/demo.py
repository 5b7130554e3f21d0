"""Train on generated pictures and show what was learned; needs no data, no GPU, no network.

Draws pictures of simple scenes with five captions each, trains itm_vse on them from random weights, and prints the
recalls on held-out pictures before and after.
"""

from __future__ import annotations

import argparse
import logging
import time

from lavis_itm_plugins.cli.tables import recall_table

PROJECT = "projects/baseline/train/scenes.yaml"
FULL = ["run.max_epoch=30", "datasets.itm_scenes.train=6000"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = __doc__.split("\n\n", 1)[1]
    parser.add_argument("--full", action="store_true", help="more pictures and more epochs, about half an hour")
    parser.add_argument("--output-dir", default="runs", help="where the run folder goes (default: %(default)s)")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides, such as run.seed=2")


def run(given: argparse.Namespace) -> int:
    """Train, test, print the table."""
    print("loading LAVIS ...", flush=True)
    started = time.monotonic()
    options = [f"run.output_dir={given.output_dir}", *(FULL if given.full else []), *given.options]
    # LAVIS prints the whole configuration; here only our own lines are of interest
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("lavis_itm_plugins").setLevel(logging.INFO)
    from lavis_itm_plugins.evaluating import evaluate_checkpoint
    from lavis_itm_plugins.train import run_training

    untrained = evaluate_checkpoint(PROJECT, None, options=options)
    runner = run_training(PROJECT, options)
    trained = evaluate_checkpoint(runner.folder.config, runner.folder.best)
    print(f"\n{trained.n_images} test pictures, {trained.n_captions} captions; recalls in percent")
    print(recall_table({"itm_vse, untrained": untrained.metrics, "itm_vse, trained": trained.metrics}))
    print(f"\ntook {time.monotonic() - started:.0f} s; run folder: {runner.folder.path}")
    print(f"next: lavis-itm evaluate {runner.folder.path} --split val")
    return 0
