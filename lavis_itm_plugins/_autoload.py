"""Makes a pip install visible to LAVIS's own train.py, which imports nothing of ours.

`import torch` ends by calling every `torch.backends` entry point; ours (`torch_backend`) puts a finder on
`sys.meta_path`. It does nothing until `lavis` is imported, and registers us as soon as LAVIS is complete.
Standard library only: whatever fails here would make `import torch` fail for the whole environment.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from lavis_itm_plugins import _torchvision

SWITCH = "LAVIS_ITM_AUTOLOAD"
OWN_PREFIX = f"{__name__.partition('.')[0]}."


def torch_backend() -> None:
    """Entry point that torch calls at the end of its import; `LAVIS_ITM_AUTOLOAD=0` switches it off."""
    if os.environ.get(SWITCH, "1") != "0":
        _never_raise("install its import hook", install)


def install() -> None:
    """Register us when LAVIS gets imported, or now if it already is; quiet when called again."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    if _half_executed("torchvision"):
        _repair_torchvision()
    if _half_executed("lavis"):
        _call_when_lavis_ends(_lavis_is_complete)
    elif "lavis" in sys.modules:
        _lavis_is_complete()


class _Finder(MetaPathFinder):
    """Finds nothing itself: it asks the other finders, and adds a step around the execution of two modules."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give, its execution wrapped where we have something to do."""
        wrapper = {"torchvision": _around_torchvision, "lavis": _around_lavis}.get(fullname)
        # busy: another package's finder of this kind asks us back while we ask it
        if wrapper is None or getattr(self._thread, "busy", False):
            return None
        self._thread.busy = True
        try:
            spec = _ask_the_others(self, fullname, path, target)
        finally:
            self._thread.busy = False
        if spec is not None and hasattr(spec.loader, "exec_module"):
            _wrap_execution(spec.loader, fullname, wrapper)
        return spec


def _ask_the_others(asking: MetaPathFinder, *request: Any) -> ModuleSpec | None:
    """The first answer of the finders other than the one that asks."""
    for finder in list(sys.meta_path):
        spec = finder.find_spec(*request) if finder is not asking and hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    return None


def _wrap_execution(loader: Loader, fullname: str, wrapper: Callable[[], Any]) -> None:
    """Run `loader.exec_module` inside a context manager, for one module only."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        # a zipimporter is shared by every module of its archive
        if module.__name__ != fullname:
            return execute(module)
        with wrapper():
            execute(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]


@contextmanager
def _around_torchvision() -> Iterator[None]:
    _repair_torchvision()
    yield


@contextmanager
def _around_lavis() -> Iterator[None]:
    yield
    _lavis_is_complete()


def _half_executed(name: str) -> bool:
    """Whether a module is being imported right now, further up the stack."""
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))


def _call_when_lavis_ends(action: Callable[[], None]) -> None:
    """`import lavis` came before torch, so its loader is out of reach: wait for its last statement instead.

    That statement (lavis/__init__.py:31) is `registry.register("SPLIT_NAMES", ...)`.
    """
    registry_class = importlib.import_module("lavis.common.registry").Registry
    stock = registry_class.__dict__["register"]

    def register(cls: type, name: str, obj: Any) -> None:
        stock.__get__(None, cls)(name, obj)
        if name == "SPLIT_NAMES":
            registry_class.register = stock
            action()

    registry_class.register = classmethod(register)


def _lavis_is_complete() -> None:
    """Register us, but not before every module of ours that is half executed has ended.

    `import lavis_itm_plugins.tasks.retrieval` imports LAVIS from its middle; registration needs its end.
    """
    outermost = next((name for name in list(sys.modules) if name.startswith(OWN_PREFIX) and _half_executed(name)), None)
    if outermost is None:
        _register()
    else:
        sys.modules[outermost].__spec__.__class__ = _SpecThatTells  # type: ignore[union-attr]


class _SpecThatTells(ModuleSpec):
    """The spec of a half executed module; importlib clears `_initializing` when the module has ended."""

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__["_initializing"])

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        if not value:
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            _register()


def _repair_torchvision() -> None:
    _never_raise("repair torchvision's operators", _torchvision.declare_operators)


def _register() -> None:
    def register_all() -> None:
        importlib.import_module("lavis_itm_plugins.registration").register_all()

    _never_raise("register its models, tasks and runners with LAVIS", register_all)


def _never_raise(what: str, action: Callable[[], Any]) -> None:
    """Run an action; a failure becomes a warning, since torch and LAVIS must stay usable without us."""
    try:
        action()
    except Exception as error:
        message = (
            f"lavis-itm-plugins could not {what}: {type(error).__name__}: {error}. LAVIS works without it; "
            f"run `lavis-itm doctor` to see what is wrong, or set {SWITCH}=0 to silence this."
        )
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        except RuntimeWarning:  # python -W error
            print(message, file=sys.stderr)
