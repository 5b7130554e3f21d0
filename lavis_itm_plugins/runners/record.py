"""What a run writes down: its configuration, its environment, and each line of metrics, also to the sinks."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from omegaconf import OmegaConf

from lavis_itm_plugins.config.check import resolve_sections
from lavis_itm_plugins.distributed import from_first_rank, rank, world_size
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.runners.environment import describe_environment
from lavis_itm_plugins.runners.folder import RunFolder
from lavis_itm_plugins.runners.location import run_folder_of, run_path
from lavis_itm_plugins.runners.settings import RunConfig
from lavis_itm_plugins.runners.sinks import MetricSinks

log = logging.getLogger(__name__)


def resolved_config(config: Any, run: RunConfig) -> dict[str, Any]:
    """The project as it can be run again: without what one start of it added (processes, the checkpoint it went on).

    LAVIS's `preprocess` section is left out; it comes back from the default file.
    """
    whole = resolve_sections(config)
    again = replace(run, resume_ckpt_path=None, distributed=False, world_size=1, rank=None, gpu=None, dist_backend=None)
    return {"model": whole["model"], "datasets": whole["datasets"], "run": asdict(again)}


def open_folder(run: RunConfig, config: Mapping[str, Any]) -> RunFolder:
    """The run's folder, chosen and locked by the first rank; every rank gets its path.

    Raises ItmError when it holds another run, is in use, or cannot be written.
    """
    path = Path(from_first_rank(str(run_path(run, config)) if rank() == 0 else None))
    folder = RunFolder(path)
    if rank() == 0:
        folder.open()
        resume = run.resume_ckpt_path
        goes_on = resume == "auto" or bool(resume and run_folder_of(resume) == path)
        if folder.holds_run() and not (goes_on or run.evaluate):
            folder.close()
            raise ItmError(f"{path} holds a run already; go on with --resume, or choose another run.itm.run_name")
        folder.log_to_file()
    # LAVIS's tasks look both up here; its own runner refuses to register them twice in one process
    for name in ("result_dir", "output_dir"):
        registry.mapping["paths"][name] = str(path)
    return folder


class RunRecord:
    """Files and sinks of a run that has begun; only the first rank writes."""

    def __init__(self, folder: RunFolder, run: RunConfig, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self._sinks: MetricSinks | None = None
        if rank() == 0:
            folder.write_text(folder.config, OmegaConf.to_yaml(OmegaConf.create(config)))
            environment = describe_environment(run.seed, world_size())
            folder.write_text(folder.environment, json.dumps(environment, indent=2))
            tensorboard, wandb = run.itm.tensorboard, run.itm.wandb
            self._sinks = MetricSinks(folder.path, tensorboard=tensorboard, wandb=wandb, config=config)
        log.info("run folder: %s", folder.path)

    def add(self, line: Mapping[str, Any]) -> None:
        """Append one line of metrics and send it to the sinks."""
        if self._sinks is not None:
            self.folder.add_metrics(line)
            self._sinks.add(line)

    def close(self) -> None:
        """Flush the sinks, also when the run ends with an error."""
        if self._sinks is not None:
            self._sinks.close()
