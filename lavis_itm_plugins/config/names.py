"""The names in a YAML file, checked before anything heavy starts.

LAVIS looks them up in a dictionary at the moment it needs them, some after the data was loaded, and an unknown one
ends in `'NoneType' object is not callable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.registry import names, registered

SECTIONS = ("model", "datasets", "run")


def check_names(config: Mapping[str, Any], source: str) -> None:
    """Raise ItmError for a section, model, dataset, task, runner or scheduler that does not exist.

    `config` is the plain content of a YAML file with its overrides, `source` the file named in the error.

    >>> check_names({"modle": {"arch": "itm_vse"}}, "projects/x.yaml")
    Traceback (most recent call last):
    ...
    lavis_itm_plugins.errors.ItmError: projects/x.yaml: unknown section "modle"; did you mean model?
    """
    # LAVIS drops any other top-level key silently, and with it whatever was set there
    for section in config:
        if section not in SECTIONS:
            raise ItmError(f"{source}: {unknown_name('section', str(section), SECTIONS)}")
    model, datasets, run = (_section(config, section, source) for section in SECTIONS)
    _check_model(model, source)
    _check_datasets(datasets, source)
    _known(run, "run.task", "task", source)
    _known({"runner": "runner_base", **run}, "run.runner", "runner", source)
    if "lr_sched" in run:
        _known(run, "run.lr_sched", "lr_scheduler", source)


def _section(config: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise ItmError(f"{source}: {name}: expected a section of keys, got {section!r}")
    return section


def _known(section: Mapping[str, Any], key: str, kind: str, source: str) -> str:
    """The registered name under a key such as `run.task`, or an error that says which file and key."""
    value = section.get(key.rpartition(".")[2])
    if value is None:
        raise ItmError(f"{source}: {key}: missing; choose from: {', '.join(names(kind))}")
    # also a list or a section, which no dictionary could look up
    if not isinstance(value, str) or value not in names(kind):
        raise ItmError(f"{source}: {key}: {unknown_name(kind.replace('lr_', ''), str(value), names(kind))}")
    return str(value)


def _check_model(model: Mapping[str, Any], source: str) -> None:
    model_class = registered("model")[_known(model, "model.arch", "model", source)]
    types = model_class.PRETRAINED_MODEL_CONFIG_DICT
    model_type = model.get("model_type")
    if model_type is None:
        raise ItmError(f"{source}: model.model_type: missing; choose from: {', '.join(types)}")
    if not isinstance(model_type, str):
        raise ItmError(f"{source}: model.model_type: expected text, got {model_type!r}")
    try:
        # the class decides, not the dictionary: CLIP also takes "base"
        model_class.default_config_path(model_type=model_type)
    except (AssertionError, KeyError, ItmError):
        raise ItmError(f"{source}: model.model_type: {unknown_name('type', str(model_type), types)}") from None


def _check_datasets(datasets: Mapping[str, Any], source: str) -> None:
    if not datasets:
        raise ItmError(f"{source}: datasets: none given; choose from: {', '.join(names('builder'))}")
    for name, settings in datasets.items():
        if name not in names("builder"):
            raise ItmError(f"{source}: datasets: {unknown_name('dataset', str(name), names('builder'))}")
        # LAVIS calls .get on it: `itm_scenes:` with nothing below is None
        if not isinstance(settings, Mapping):
            raise ItmError(f"{source}: datasets.{name}: expected a section of keys, got {settings!r}; write {{}}")
        types = registered("builder")[name].DATASET_CONFIG_DICT
        if not isinstance(kind := settings.get("type", "default"), str) or kind not in types:
            raise ItmError(f"{source}: datasets.{name}.type: {unknown_name('type', str(kind), types)}")
