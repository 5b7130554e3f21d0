"""The repair that lets a CUDA torchvision import beside a CPU torch; standard library only until it is called.

`pip install torch` from the CPU index and torchvision from PyPI is a common pair. torchvision's compiled operators then
do not load, yet its Python code refers to two of them: `operator torchvision::nms does not exist`. Their schemas are
enough for the import; LAVIS never calls them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def operators_missing() -> bool:
    """Whether torch is a CPU build and torchvision's compiled operators do not load into it."""
    import torch

    if torch.version.cuda is not None:
        return False
    spec = importlib.util.find_spec("torchvision")
    folders = (spec.submodule_search_locations if spec else None) or []
    return bool(folders) and not any(_loads(library) for folder in folders for library in Path(folder).glob("_C*.so"))


def declare_operators() -> bool:
    """Declare the two operators where they are missing; True when the repair was needed.

    Called just before torchvision executes, not at `import torch`: a second, unconditional declaration by a person's
    own work-around, run before torchvision, would then fail with "Tried to register an operator multiple times".
    """
    if not operators_missing():
        return False
    from torch.library import define

    for name, schema in SCHEMAS.items():
        try:
            define(name, schema)
        except RuntimeError as error:
            if "multiple times" not in str(error):
                raise
    return True


def _loads(library: Path) -> bool:
    """Whether torch can load a library; the same call that torchvision itself is about to make."""
    import torch

    try:
        torch.ops.load_library(str(library))
    except OSError:
        return False
    return True
