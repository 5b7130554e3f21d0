"""The device that a person names, checked before anything is put there."""

from __future__ import annotations

import re

import torch

from lavis_itm_plugins.errors import ItmError


def check_device(name: str, key: str) -> str:
    """The device with `auto` decided; `key` says in errors what to change.

    Raises ItmError for a name that is none, and for a GPU that is not there.

    >>> check_device("gpu", "run.device")
    Traceback (most recent call last):
    ...
    lavis_itm_plugins.errors.ItmError: run.device is "gpu"; give auto, cpu, cuda, or cuda:1 for the second GPU
    """
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name):
        raise ItmError(f'{key} is "{name}"; give auto, cpu, cuda, or cuda:1 for the second GPU')
    usable = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if usable else "cpu"
    if name.startswith("cuda") and not usable:
        raise ItmError(f"{key} is {name}, but this machine has no usable GPU; set {key}=cpu")
    if name.startswith("cuda:") and int(name[5:]) >= (count := torch.cuda.device_count()):
        raise ItmError(f"{key} is {name}, but the last GPU of this machine is cuda:{count - 1}; set {key}=cuda:0")
    return name
