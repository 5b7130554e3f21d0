"""Packages that only some people need, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from lavis_itm_plugins.errors import ItmError


def require(module: str, extra: str, why: str) -> Any:
    """Import a module, or say which extra brings it.

    >>> require("json", "none", "reading").loads("1")
    1
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise ItmError(f'{why} needs {package}; run: pip install "lavis-itm-plugins[{extra}]"') from None
