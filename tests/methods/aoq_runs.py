"""Projects of itm_aoq for whole runs, and what such a run leaves."""

from __future__ import annotations

import json

import tiny

from lavis_itm_plugins.checkpoints import read_checkpoint

LISTS = {"captions_per_image": 9, "images_per_caption": 5}
SHARED = {
    "base_loss": {"name": "infonce"},
    "aoq": {"offline": "shared", "pairs": False, "draws": 2, "distill": 1.0},
}


def aoq_project(folder, name, *, source="plain", candidates=None, model=None, itm=None, region_drop=0.0, **run):
    content = tiny.project(folder / "data", folder, itm={"run_name": name, **(itm or {})}, **run)
    content["datasets"]["itm_precomp"]["region_drop"] = region_drop
    lists = {**LISTS, **({"source": str(folder / source)} if source else {}), **(candidates or {})}
    section = {"arch": "itm_aoq", "model_type": "two_rounds", "matcher": content["model"], "candidates": lists}
    content["model"] = {**section, **(model or {})}
    return content


def epochs(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "train"]


def lists_of(folder):
    return read_checkpoint(folder / "checkpoint_last.pth")["model"]["_extra_state"]["candidates"]
