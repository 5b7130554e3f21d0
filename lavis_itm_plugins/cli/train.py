"""Train a project: a YAML file of yours, or one of the shipped projects/...

examples:
  lavis-itm train --cfg-path projects/baseline/train/scenes.yaml
  lavis-itm train --cfg-path projects/baseline/train/precomp.yaml --options datasets.itm_precomp.root=data/f30k_precomp
  lavis-itm train --cfg-path my.yaml --resume               go on with the last run of my.yaml, or start it
  lavis-itm train --resume runs/20260101-120000-itm_vse     go on with this run, as it was configured
  torchrun --nproc_per_node=2 -m lavis_itm_plugins.cli.main train --cfg-path my.yaml
"""

from __future__ import annotations

import argparse
import json

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = __doc__.split("\n\n", 1)[1]
    parser.add_argument("--cfg-path", help="YAML file with the sections model, datasets and run")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="RUN",
        help="go on from the last good checkpoint of a run folder, or from a checkpoint; "
        "without a value: of this configuration's last run",
    )
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides, such as run.seed=1 run.max_epoch=2"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")


def run(given: argparse.Namespace) -> int:
    """Train, or print what would be trained."""
    config_path, options = what_to_train(given.cfg_path, given.resume, given.options)
    if given.print_config:
        from omegaconf import OmegaConf

        from lavis_itm_plugins.config.check import resolve_sections
        from lavis_itm_plugins.config.load import ProjectConfig
        from lavis_itm_plugins.resources import find_config

        project = ProjectConfig(find_config(config_path), options)
        print(OmegaConf.to_yaml(OmegaConf.create(resolve_sections(project.config))), end="")
        return 0
    from lavis_itm_plugins.train import run_training

    run_training(config_path, options)
    return 0


def what_to_train(cfg_path: str | None, resume: str | None, options: list[str]) -> tuple[str, list[str]]:
    """The configuration file and the overrides that the arguments mean.

    A run folder that is resumed brings its own configuration; `resume` becomes `run.resume_ckpt_path`. Raises ItmError
    when there is no configuration, or nothing where the run should be.
    """
    if resume is None:
        if cfg_path is None:
            raise ItmError("--cfg-path is missing; give a YAML file, or --resume with a run folder")
        return cfg_path, options
    # quoted: the value is read as YAML
    asked = [*options, f"run.resume_ckpt_path={json.dumps(resume)}"]
    if resume == "auto":
        if cfg_path is None:
            raise ItmError("--resume alone goes on with a configuration's last run; give --cfg-path or a run folder")
        return cfg_path, asked
    path = user_path(resume)
    if not path.exists():
        raise ItmError(f"--resume: {resume} does not exist; give a run folder or a checkpoint")
    own = (path if path.is_dir() else path.parent) / "config.yaml"
    if cfg_path is None and not own.is_file():
        raise ItmError(f"{own.parent} is no run folder (it has no config.yaml); give the configuration with --cfg-path")
    return cfg_path or str(own), asked
