"""Evaluate two or more runs as one model: the mean of their scores.

examples:
  lavis-itm ensemble runs/seed1 runs/seed2
  lavis-itm ensemble runs/seed1 runs/seed2 runs/seed3 --split val --json ensemble.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lavis_itm_plugins.cli.evaluate import locate, rows_of
from lavis_itm_plugins.cli.tables import recall_table
from lavis_itm_plugins.errors import ItmError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = __doc__.split("\n\n", 1)[1]
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders with the same images and captions")
    parser.add_argument("--split", default=None, choices=("train", "val", "test"), help="default: test, or else val")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of each configuration")
    parser.add_argument("--json", metavar="FILE", help="also write all metrics to this file")


def run(given: argparse.Namespace) -> int:
    """Evaluate each run and their mean, and print a table."""
    if len(given.runs) < 2:
        raise ItmError("one run is no ensemble; give at least two run folders, or use lavis-itm evaluate")
    places = [locate(run, None) for run in given.runs]
    print("loading LAVIS ...", flush=True)
    from lavis_itm_plugins.evaluating import evaluate_ensemble

    split, results = evaluate_ensemble(places, split=given.split, options=given.options)
    names = [Path(run).name for run in given.runs]
    # two folders may have the same name
    names = [name if names.count(name) == 1 else str(run) for name, run in zip(names, given.runs, strict=True)]
    rows: dict[str, Any] = {}
    for name, metrics in zip([*names, f"mean of {len(names)}"], results, strict=True):
        rows |= rows_of(metrics, f"{name}, {split}")
    print(recall_table(rows))
    if given.json:
        try:
            Path(given.json).write_text(json.dumps(rows, indent=2), encoding="utf-8")
        except OSError as error:
            raise ItmError(f"cannot write {given.json}: {error.strerror}") from None
    return 0
