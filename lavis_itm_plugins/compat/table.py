"""The list of repairs: what each mends, whether this machine needs it, whether it is in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lavis_itm_plugins import _torchvision


@dataclass(frozen=True)
class Repair:
    """One repair as `lavis-itm doctor` prints it."""

    name: str
    symptom: str
    needed: bool
    applied: bool
    detail: str


@dataclass(frozen=True)
class _Patch:
    """How one repair is made, and whether this machine can meet its symptom at all."""

    symptom: str
    detail: str
    needed: Callable[[], bool]
    make: Callable[[], None]


_PATCHES: dict[str, _Patch] = {}
_APPLIED: set[str] = set()


def apply() -> None:
    """Make every repair that is needed here, once."""
    for name, patch in _PATCHES.items():
        if name not in _APPLIED and patch.needed():
            patch.make()
            _APPLIED.add(name)


def repairs() -> list[Repair]:
    """Every repair, with whether this machine needs it and whether it is in place."""
    torchvision = Repair(
        "torchvision_operators",
        "RuntimeError: operator torchvision::nms does not exist",
        needed=_torchvision.operators_missing(),
        applied=hasattr(torch.ops.torchvision, "nms"),
        detail="a CPU torch beside a CUDA torchvision: its operators are declared just before torchvision executes",
    )
    ours = [Repair(n, p.symptom, p.needed(), n in _APPLIED, p.detail) for n, p in _PATCHES.items()]
    return [torchvision, *ours]


def _everywhere() -> bool:
    return True


def without_cuda() -> bool:
    """Whether this machine has no GPU that torch can use."""
    return not torch.cuda.is_available()


def repair(
    symptom: str, detail: str, needed: Callable[[], bool] = _everywhere
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Enter a function that replaces a name of LAVIS into the list of repairs, under its own name."""

    def enter(make: Callable[[], None]) -> Callable[[], None]:
        _PATCHES[make.__name__] = _Patch(symptom, detail, needed, make)
        return make

    return enter
