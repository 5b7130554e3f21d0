"""Where metrics go besides metrics.jsonl: TensorBoard and Weights & Biases, when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_itm_plugins.optional import require


class MetricSinks:
    """Passes each line of metrics on; nothing is imported unless a sink is configured."""

    def __init__(self, folder: Path, *, tensorboard: bool, wandb: str | None, config: Mapping[str, Any]) -> None:
        self._writer = self._run = None
        if tensorboard:
            require("tensorboard", "tensorboard", "run.itm.tensorboard")
            module = require("torch.utils.tensorboard", "tensorboard", "run.itm.tensorboard")
            self._writer = module.SummaryWriter(str(folder / "tensorboard"))
        if wandb:
            module = require("wandb", "wandb", "run.itm.wandb")
            self._run = module.init(project=wandb, name=folder.name, dir=str(folder), config=dict(config))

    def add(self, line: Mapping[str, Any]) -> None:
        """Send one line's numbers under `split/name`, with the epoch as step."""
        numbers = {f"{line['split']}/{k}": v for k, v in line.items() if k not in ("epoch", "split")}
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, line["epoch"])
        if self._run is not None:
            self._run.log({**numbers, "epoch": line["epoch"]})

    def close(self) -> None:
        """Flush and end."""
        if self._writer is not None:
            self._writer.close()
        if self._run is not None:
            self._run.finish()
