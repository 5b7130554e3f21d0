"""Checkpoint files: written whole or not at all, read without executing anything."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lavis_itm_plugins.errors import ItmError


def write_checkpoint(path: str | Path, content: Mapping[str, Any], *, keep: str | Path | None = None) -> None:
    """Save under a temporary name, flush to the disk, then rename: a kill at any moment leaves the old file or the new.

    With `keep` the file that was there before stays under that name. Raises ItmError when it cannot be written (full
    disk, no permission); the old file is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ItmError(f"cannot write {path}: {reason}; free some space or set run.output_dir elsewhere") from None


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed process left."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def read_checkpoint(path_or_url: str | Path) -> dict[str, Any]:
    """Load a checkpoint on the CPU with `weights_only=True`.

    Raises ItmError when it is missing, cannot be fetched, is cut short or no checkpoint at all, or holds pickled
    objects (never executed).
    """
    path = _local(path_or_url)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ItmError(f"checkpoint {path} does not exist") from None
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise ItmError(
                f"checkpoint {path} holds more than tensors and plain values; it is not opened, because that could "
                "execute code. Save its state dictionary alone and load that"
            ) from None
        raise _damaged(path, error) from None
    # torch's readers raise many types on bytes that are no checkpoint; none of them is ours to tell apart
    except Exception as error:
        raise _damaged(path, error) from None
    if not isinstance(content, dict):
        raise ItmError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def _local(path_or_url: str | Path) -> Path:
    if str(path_or_url).startswith(("http://", "https://")):
        from lavis.common.dist_utils import download_cached_file

        try:
            return Path(download_cached_file(str(path_or_url), check_hash=False, progress=True))
        except OSError as error:
            raise ItmError(
                f"{path_or_url} cannot be fetched ({error}); where there is no network, give the path of a copy"
            ) from None
    return Path(path_or_url)


def _damaged(path: Path, error: Exception) -> ItmError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return ItmError(f"checkpoint {path} is damaged or no checkpoint ({first}); use another one")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
