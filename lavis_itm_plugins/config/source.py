"""What LAVIS's registered configuration says: the file, and the data sets beside the model."""

from __future__ import annotations

from typing import Any

from lavis.common.registry import registry


def active_configuration() -> Any | None:
    """The `lavis.common.config.Config` of this run, or None outside one."""
    return registry.get("configuration", no_warning=True)


def where(section: str) -> str:
    """How errors name a section: `projects/x.yaml: model`, or the bare section outside a run.

    >>> where("model")
    'model'
    """
    configuration = active_configuration()
    path = getattr(getattr(configuration, "args", None), "cfg_path", None)
    return f"{path}: {section}" if path else section


def run_setting(name: str, default: Any = None) -> Any:
    """A key of the run section, or `default` outside a run."""
    configuration = active_configuration()
    return default if configuration is None else configuration.run_cfg.get(name, default)


def merged(below: Any, above: Any) -> Any:
    """`above` over `below`, key by key; OmegaConf would refuse a value in place of a section, which `parse` explains.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}
