"""Train a project: a YAML file of yours, or one of the shipped projects/...

examples:
  lavis-itm train --cfg-path projects/baseline/train/scenes.yaml
  lavis-itm train --cfg-path projects/baseline/train/precomp.yaml --options datasets.itm_precomp.root=data/f30k_precomp
  torchrun --nproc_per_node=2 -m lavis_itm_plugins.cli.main train --cfg-path my.yaml
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = __doc__.split("\n\n", 1)[1]
    parser.add_argument("--cfg-path", required=True, help="YAML file with the sections model, datasets and run")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides, such as run.seed=1 run.max_epoch=2"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")


def run(given: argparse.Namespace) -> int:
    """Train, or print what would be trained."""
    if given.print_config:
        from omegaconf import OmegaConf

        from lavis_itm_plugins.config.load import ProjectConfig
        from lavis_itm_plugins.resources import find_config

        print(OmegaConf.to_yaml(ProjectConfig(find_config(given.cfg_path), given.options).config, resolve=True), end="")
        return 0
    from lavis_itm_plugins.train import run_training

    run_training(given.cfg_path, given.options)
    return 0
