"""Evaluate a run folder, or a project with a checkpoint, on any split.

examples:
  lavis-itm evaluate runs/20260101-120000-itm_vse
  lavis-itm evaluate runs/20260101-120000-itm_vse --split val --checkpoint runs/other/checkpoint_best.pth
  lavis-itm evaluate my.yaml --checkpoint checkpoint.pth --options run.itm.coco_1k_folds=5
  lavis-itm evaluate runs/20260101-120000-itm_bcls --graded cider
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lavis_itm_plugins.cli.tables import graded_table, recall_table
from lavis_itm_plugins.errors import ItmError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = __doc__.split("\n\n", 1)[1]
    parser.add_argument("run", help="a run folder, or a YAML file")
    parser.add_argument("--split", default=None, choices=("train", "val", "test"), help="default: test, or else val")
    parser.add_argument("--checkpoint", help="default: checkpoint_best.pth of the run folder")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the configuration")
    parser.add_argument(
        "--graded", choices=("cider", "sentence", "scenes"), help="also compare with relevance labels of this source"
    )
    parser.add_argument("--json", metavar="FILE", help="also write all metrics to this file")


def run(given: argparse.Namespace) -> int:
    """Evaluate and print a table."""
    config_path, checkpoint = locate(given.run, given.checkpoint)
    from lavis_itm_plugins.evaluating import evaluate_checkpoint

    graded = [f"run.itm.graded.labels.source={given.graded}"] if given.graded else []
    result = evaluate_checkpoint(config_path, checkpoint, split=given.split, options=[*graded, *given.options])
    print(recall_table(rows_of(result.metrics, result.split)))
    if "txt_ndcg" in result.metrics:
        print(graded_table(result.metrics))
    print(f"{result.n_images} images, {result.n_captions} captions, {config_path}, {checkpoint}")
    if given.json:
        try:
            Path(given.json).write_text(json.dumps(result.metrics, indent=2), encoding="utf-8")
        except OSError as error:
            raise ItmError(f"cannot write {given.json}: {error.strerror}") from None
    return 0


def locate(run_path: str, checkpoint: str | None) -> tuple[Path, str]:
    """The configuration and the checkpoint that a person means; raises ItmError when one is missing."""
    from lavis_itm_plugins.resources import find_config

    folder = Path(run_path)
    if not folder.is_dir():
        if checkpoint is None:
            raise ItmError(f"{run_path} is no run folder; give one, or a YAML file with --checkpoint")
        return find_config(run_path), checkpoint
    config = folder / "config.yaml"
    if not config.exists():
        raise ItmError(f"{folder} has no config.yaml; give a run folder of itm_runner, or a YAML file")
    chosen = checkpoint or str(folder / "checkpoint_best.pth")
    return config, chosen


def rows_of(metrics: dict[str, Any], split: str) -> dict[str, dict[str, float]]:
    """A row for the whole split, and one for the mean over folds when it was asked for."""
    rows = {split: metrics}
    folds = {key.removeprefix("folds_"): value for key, value in metrics.items() if key.startswith("folds_")}
    if folds:
        rows[f"{split}, mean of folds"] = folds
    return rows
