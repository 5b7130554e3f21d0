"""Reads a project's YAML file with its overrides into LAVIS's Config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lavis.common.config import Config
from lavis.common.registry import registry
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lavis_itm_plugins.config.check import check_sections
from lavis_itm_plugins.config.names import check_names
from lavis_itm_plugins.config.source import merged
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.registration import register_all


class ProjectConfig(Config):
    """LAVIS's Config, except that overrides count before the default files are chosen.

    LAVIS merges them last: there `--options model.model_type=X` keeps the defaults of the old type, and a dataset named
    only by an option gets none at all.
    """

    def __init__(self, path: Path, options: Sequence[str] = ()) -> None:
        register_all()
        self.args = argparse.Namespace(cfg_path=str(path), options=list(options))
        project = _read(path, options)
        check_names(OmegaConf.to_container(project), str(path))  # type: ignore[arg-type]
        # the runners read both as attributes, where LAVIS has no defaults for a run
        project.run = OmegaConf.merge({"distributed": False, "evaluate": False, "dist_url": "env://"}, project.run)
        self.config = project
        registry.register("configuration", self)
        self.config = self._with_defaults(project, path)
        check_sections(self.config)

    def _with_defaults(self, project: DictConfig, path: Path) -> DictConfig:
        """The project merged over the default files of its model and data sets."""
        try:
            return OmegaConf.merge(  # type: ignore[return-value]
                self.build_runner_config(project), self.build_model_config(project), self.build_dataset_config(project)
            )
        except (TypeError, OmegaConfBaseException) as error:
            # a list where the default file has a section; the classes say which key that is
            check_sections(project)
            raise ItmError(f"{path}: {' '.join(str(error).split())}") from error


def _read(path: Path, options: Sequence[str]) -> DictConfig:
    """The file and its overrides, merged."""
    for option in options:
        # LAVIS also takes `key value` pairs, and then reads `a=1 b 2` as b: None
        if "=" not in option:
            raise ItmError(f'--options: "{option}" has no "="; write key=value')
    try:
        project = OmegaConf.load(path)
        if not isinstance(project, DictConfig):
            raise ItmError(f"{path}: expected the sections model, datasets and run")
        given = OmegaConf.from_dotlist(list(options))
        project = OmegaConf.create(merged(OmegaConf.to_container(project), OmegaConf.to_container(given)))
        # `${...}` and `???` are settled here, where an error can still name the file
        return OmegaConf.create(OmegaConf.to_container(project, resolve=True, throw_on_missing=True))
    except ItmError:
        raise
    # OmegaConf answers a file that is no mapping with OSError, and odd merges with TypeError
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError) as error:
        raise ItmError(f"{path}: {' '.join(str(error).split())}") from error
