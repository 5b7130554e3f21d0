"""Every key of a project that belongs to us, checked before data or weights are touched, and with its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lavis.common.registry import registry
from omegaconf import OmegaConf


def check_sections(config: Any) -> None:
    """Parse the model, data set and run sections of our own classes; raises ItmError as they would later."""
    resolve_sections(config)


def resolve_sections(config: Any) -> dict[str, Any]:
    """The three sections as plain values, with every default of ours, so that a later default changes no old run.

    Sections of LAVIS's own classes stay as they are.
    """
    from lavis_itm_plugins.runners.settings import parse_itm, parse_run

    run = OmegaConf.to_container(config.run, resolve=True)
    if run.get("runner") == "itm_runner":
        run = asdict(parse_run(config.run))
    elif run.get("task") == "itm_retrieval":
        run = {**run, "itm": asdict(parse_itm(config.run))}
    builders = {name: registry.get_builder_class(name) for name in config.datasets}
    return {
        "model": _resolved(registry.get_model_class(config.model.arch), config.model),
        "datasets": {name: _resolved(builder, config.datasets[name]) for name, builder in builders.items()},
        "run": run,
    }


def _resolved(owner: Any, section: Any) -> Mapping[str, Any]:
    """A section with the defaults of the class that reads it."""
    plain = OmegaConf.to_container(section, resolve=True)
    return {**plain, **asdict(owner.parse_config(section))} if hasattr(owner, "parse_config") else plain
