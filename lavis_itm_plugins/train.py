"""`python -m lavis_itm_plugins.train [train.py] --cfg-path X [--options key=value ...]`.

The way in that needs no import hook: it works where `LAVIS_ITM_AUTOLOAD=0` or `TORCH_DEVICE_BACKEND_AUTOLOAD=0` is set,
and from a checkout that is not installed. With a file, LAVIS's own train.py (or evaluate.py) runs unchanged; without
one, the same steps run from here, since LAVIS's wheel holds no train.py.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lavis_itm_plugins import _autoload
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.resources import find_config


def run_training(cfg_path: str | Path, options: Sequence[str] = ()) -> Any:
    """Train as a YAML file says, and give back the runner that did it.

    `options` are `key=value` overrides. Raises ItmError for a file, key or name that does not exist, before anything
    heavy starts.
    """
    path = find_config(cfg_path)
    _autoload.install()
    from lavis import tasks
    from lavis.common.dist_utils import init_distributed_mode
    from lavis.common.logger import setup_logger
    from lavis.common.registry import registry
    from lavis.common.utils import now

    from lavis_itm_plugins.config.load import ProjectConfig

    config = ProjectConfig(path, options)
    # LAVIS's id, good to ten minutes: itm_runner makes a folder of its own, a stock runner behaves as it always does
    job_id = now()
    init_distributed_mode(config.run_cfg)
    seed_everything(int(config.run_cfg.get("seed", 42)))
    setup_logger()  # after init_distributed_mode: only the first rank logs
    config.pretty_print()
    task = tasks.setup_task(config)
    datasets = task.build_datasets(config)
    model = task.build_model(config)
    runner_class = registry.get_runner_class(config.run_cfg.get("runner", "runner_base"))
    runner = runner_class(cfg=config, job_id=job_id, task=task, model=model, datasets=datasets)
    runner.train()
    return runner


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, each rank with a number of its own, as LAVIS's train.py does."""
    import random

    import numpy as np
    import torch
    from lavis.common.dist_utils import get_rank

    seed += get_rank()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def run_script(script: str, cfg_path: str, options: Sequence[str], rest: Sequence[str] = ()) -> None:
    """Run LAVIS's train.py or evaluate.py unchanged, with us registered and its names checked first."""
    if not Path(script).is_file():
        raise ItmError(f"{script}: no such file; leave it out to use the steps that come with us")
    path = find_config(cfg_path)
    _autoload.install()
    from lavis_itm_plugins.config.load import ProjectConfig

    ProjectConfig(path, options)
    sys.argv = [script, "--cfg-path", str(path), *rest, *(["--options", *options] if options else [])]
    runpy.run_path(script, run_name="__main__")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; a mistake in its input ends in one sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m lavis_itm_plugins.train", description="Train a LAVIS project.")
    parser.add_argument("script", nargs="?", help="LAVIS's train.py or evaluate.py; without it the same steps run here")
    parser.add_argument("--cfg-path", required=True, help="YAML file: yours, or a shipped projects/...")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides, such as run.seed=1")
    given, rest = parser.parse_known_args(arguments)
    try:
        if given.script:
            run_script(given.script, given.cfg_path, given.options, rest)
        elif rest:
            raise ItmError(f"{rest[0]}: unknown argument; the arguments are --cfg-path and --options")
        else:
            run_training(given.cfg_path, given.options)
    except ItmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
