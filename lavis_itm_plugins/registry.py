"""Decorators that enter our classes into LAVIS's registry, and may be run twice.

LAVIS raises `KeyError` when a name is registered again, even by the same class, so a module that is executed twice
(`importlib.reload`, `python -m`, a notebook cell) would fail. Ours keep the first class and say nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lavis.common.registry import registry as lavis_registry

from lavis_itm_plugins.errors import ItmError

T = TypeVar("T")

LOSSES = "itm.losses"


def register_model(name: str) -> Callable[[T], T]:
    """Enter a model class under a `model.arch` name."""
    return _register("model", name)


def register_task(name: str) -> Callable[[T], T]:
    """Enter a task class under a `run.task` name."""
    return _register("task", name)


def register_runner(name: str) -> Callable[[T], T]:
    """Enter a runner class under a `run.runner` name."""
    return _register("runner", name)


def register_builder(name: str) -> Callable[[T], T]:
    """Enter a dataset builder class under a `datasets` name."""
    return _register("builder", name)


def register_lr_scheduler(name: str) -> Callable[[T], T]:
    """Enter a learning-rate scheduler class under a `run.lr_sched` name."""
    return _register("lr_scheduler", name)


def register_loss(name: str) -> Callable[[T], T]:
    """Enter a loss as `itm.losses.NAME`: LAVIS has no mapping for losses, so they live in the registry's state."""

    def enter(loss: T) -> T:
        # LAVIS overwrites state silently, so the clash check has to be ours
        if not _already_there("loss", name, lavis_registry.get(f"{LOSSES}.{name}", no_warning=True), loss):
            lavis_registry.register(f"{LOSSES}.{name}", loss)
        return loss

    return enter


def names(kind: str) -> list[str]:
    """Every name registered for a kind: model, task, runner, builder, lr_scheduler or processor.

    >>> "clip" in names("model")
    True
    """
    return sorted(registered(kind))


def registered(kind: str) -> dict[str, Any]:
    """LAVIS's own table of a kind: name to class."""
    table: dict[str, Any] = lavis_registry.mapping[f"{kind}_name_mapping"]
    return table


def _register(kind: str, name: str) -> Callable[[T], T]:
    """A decorator that delegates to LAVIS's own one, whose subclass checks stay in force."""

    def enter(cls: T) -> T:
        existing = registered(kind).get(name)
        if not _already_there(kind, name, existing, cls):
            getattr(lavis_registry, f"register_{kind}")(name)(cls)
        return cls

    return enter


def _already_there(kind: str, name: str, existing: Any, new: Any) -> bool:
    """Whether the name is taken by the same definition; taken by another one is an error."""
    if existing is None:
        return False
    if (existing.__module__, existing.__qualname__) == (new.__module__, new.__qualname__):
        return True
    raise ItmError(
        f'{kind} name "{name}" of {new.__module__}.{new.__qualname__} is taken by '
        f"{existing.__module__}.{existing.__qualname__}; choose another name"
    )
