"""Where a run goes: a folder by name, a new one, or that of the run to go on with."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path
from lavis_itm_plugins.runners.settings import RunConfig

# Keys of `run` and `run.itm` that may change between the parts of one run.
FREE_KEYS = ("max_epoch", "num_workers", "batch_size_eval", "test_splits", "log_freq", "device", "output_dir", "itm")
FREE_ITM_KEYS = (
    *("run_name", "memory_budget_mb", "coco_1k_folds", "patience", "on_nonfinite", "on_collapse", "tensorboard"),
    *("wandb", "save_every_steps"),
)


def run_path(run: RunConfig, config: Mapping[str, Any]) -> Path:
    """This run's folder: that of `resume_ckpt_path`, `output_dir/run_name`, or a new one by date, time and arch.

    `auto` without a name takes the newest run of the same configuration, so that other runs in `output_dir` are left
    alone. A relative `output_dir` is relative to the current folder. Raises ItmError for a folder that holds no run.
    """
    root = user_path(run.output_dir).absolute()
    folder = run_folder_of(run.resume_ckpt_path) if run.resume_ckpt_path else None
    if folder is not None:
        return folder
    if run.itm.run_name:
        return root / run.itm.run_name
    arch = config["model"]["arch"]
    if run.resume_ckpt_path == "auto":
        earlier = [path.parent for path in root.glob(f"*-{arch}*/config.yaml") if _same_run(path, config)]
        if earlier:
            return max(earlier, key=_last_written)
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{arch}"
    candidates = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    return next(root / candidate for candidate in candidates if not (root / candidate).exists())


def run_folder_of(resume: str | Path) -> Path | None:
    """The run folder that a path to go on from names: itself, or the one its checkpoint lies in; None for neither."""
    if resume == "auto":
        return None
    path = user_path(resume).absolute()
    folder = path if path.is_dir() else path.parent
    if (folder / "config.yaml").is_file():
        return folder
    if path.is_dir():
        raise ItmError(f"{path} is no run folder (it has no config.yaml); give one, or a checkpoint")
    return None


def _same_run(config_path: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder's configuration trains the same thing."""
    try:
        earlier = OmegaConf.to_container(OmegaConf.load(config_path))
        return _deciding(earlier) == _deciding(config)  # type: ignore[arg-type]
    # another program's file, or one that is half written: not ours to judge
    except Exception:
        return False


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides what is trained."""
    run = {key: value for key, value in config["run"].items() if key not in FREE_KEYS}
    itm = {key: value for key, value in config["run"]["itm"].items() if key not in FREE_ITM_KEYS}
    return {"model": config["model"], "datasets": config["datasets"], "run": run, "itm": itm}


def _last_written(folder: Path) -> float:
    names = ("config.yaml", "checkpoint_last.pth", "checkpoint_previous.pth")
    return max((folder / name).stat().st_mtime for name in names if (folder / name).exists())
