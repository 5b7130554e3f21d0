"""The folder of one run: configuration, metrics, environment, checkpoints, and a lock while it is in use."""

from __future__ import annotations

import datetime
import fcntl
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lavis_itm_plugins.checkpoints import remove_leftovers
from lavis_itm_plugins.errors import ItmError

PACKAGES = ("lavis-itm-plugins", "salesforce-lavis", "torch", "torchvision", "transformers", "timm", "numpy")


class RunFolder:
    """Files of a run below `output_dir`; made by the first rank, used by it alone.

    Raises ItmError when the folder cannot be made or written, or another living process uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.environment = path / "environment.json"
        self.last = path / "checkpoint_last.pth"
        self.previous = path / "checkpoint_previous.pth"
        self.best = path / "checkpoint_best.pth"
        self._lock: Any = None

    def open(self) -> None:
        """Make the folder and take its lock, which ends with the process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "a")  # noqa: SIM115  held until the run ends
        except OSError as error:
            raise ItmError(f"cannot write {self.path}: {error.strerror}; set run.output_dir elsewhere") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise ItmError(
                f"run folder {self.path} is in use by another process; wait for it, or choose another"
            ) from None
        self._lock = lock
        remove_leftovers(self.path)

    def checkpoints(self) -> list[Path]:
        """Those that are there, the newest first."""
        return [path for path in (self.last, self.previous) if path.exists()]

    def holds_run(self) -> bool:
        """Whether a run has already written here."""
        return bool(self.checkpoints()) or self.best.exists() or bool(self.metric_lines())

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_text(self, path: Path, text: str) -> None:
        """Write a small file; raises ItmError when that fails."""
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ItmError(f"cannot write {path}: {error.strerror}") from None

    def add_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl: what a repeat of the run gives again, so no times."""
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
        except OSError as error:
            raise ItmError(f"cannot write {self.metrics}: {error.strerror}") from None

    def metric_lines(self) -> list[str]:
        """Lines written so far."""
        return self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []

    def keep_metrics(self, count: int) -> None:
        """Drop lines after the first `count`: what a killed run wrote after the checkpoint that is resumed."""
        self.write_text(self.metrics, "".join(f"{line}\n" for line in self.metric_lines()[:count]))

    def log_to_file(self) -> None:
        """Copy the log into `log.txt`."""
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s [%(levelname)s] %(message)s"))
        logging.getLogger().addHandler(handler)


def run_path(output_dir: str | Path, name: str | None, arch: str, resume: str | None) -> Path:
    """Path of this run's folder: `output_dir/name`, that of the run to go on with, or a new one by date, time and arch.

    A relative `output_dir` is relative to the current folder.
    """
    root = Path(output_dir).expanduser().absolute()
    if name:
        return root / name
    if resume == "auto":
        earlier = [path.parent for path in root.glob(f"*-{arch}*/checkpoint_last.pth")]
        if earlier:
            return max(earlier, key=lambda path: (path / "checkpoint_last.pth").stat().st_mtime)
    elif resume and (Path(resume).parent / "config.yaml").exists():
        return Path(resume).absolute().parent
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{arch}"
    candidates = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    return next(root / candidate for candidate in candidates if not (root / candidate).exists())


def describe_environment(seed: int) -> dict[str, Any]:
    """Versions, hardware, git state, seed and command of this run."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "cuda": torch.version.cuda,
        "gpus": devices,
        "git": _git_state(),
        "seed": seed,
        "command": sys.argv,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit and whether files were changed, of the current folder; None outside git."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(status.stdout.strip())} if not commit.returncode else None
