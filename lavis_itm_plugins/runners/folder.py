"""The folder of one run: configuration, metrics, environment, checkpoints, and a lock while it is in use."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_itm_plugins.checkpoints import remove_leftovers
from lavis_itm_plugins.errors import ItmError


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
        self._log_handler: logging.Handler | None = None

    def open(self) -> None:
        """Make the folder and take its lock, which ends with the process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "a")  # noqa: SIM115  held until the run ends
        except OSError as error:
            raise ItmError(f"cannot write {self.path}: {error.strerror}; set run.output_dir elsewhere") from None
        try:
            # not flock: loader workers would inherit it, and hold it for seconds after this process was killed
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
        """Give the lock back, and end the copy of the log."""
        if self._log_handler is not None:
            logging.getLogger().removeHandler(self._log_handler)
            self._log_handler.close()
            self._log_handler = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def set_aside(self, path: Path) -> None:
        """Rename a file that cannot be used: nothing is lost, and it never counts as a checkpoint again."""
        path.replace(path.with_name(f"{path.name}.unusable"))

    def write_text(self, path: Path, text: str) -> None:
        """Write a small file whole or not at all; raises ItmError when that fails."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ItmError(f"cannot write {path}: {error.strerror}") from None

    def add_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl: what a repeat of the run gives again, so no times."""
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise ItmError(f"cannot write {self.metrics}: {error.strerror}") from None

    def metric_lines(self) -> list[str]:
        """Lines written so far."""
        return self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []

    def keep_metrics(self, count: int) -> int:
        """Drop lines after the first `count`, which a killed run wrote after its checkpoint; returns how many stay."""
        kept = self.metric_lines()[:count]
        self.write_text(self.metrics, "".join(f"{line}\n" for line in kept))
        return len(kept)

    def log_to_file(self) -> None:
        """Copy the log into `log.txt`."""
        try:
            self._log_handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        except OSError as error:
            raise ItmError(f"cannot write {self.path / 'log.txt'}: {error.strerror}") from None
        self._log_handler.setFormatter(logging.Formatter("%(asctime)s [%(levelname)s] %(message)s"))
        logging.getLogger().addHandler(self._log_handler)
