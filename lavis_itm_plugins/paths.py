"""How a person's paths are read."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path, with a leading `~` as the home folder; where there is no such user it stays, and names no file.

    >>> user_path("data/f30k").as_posix()
    'data/f30k'
    """
    return Path(os.path.expanduser(path))
