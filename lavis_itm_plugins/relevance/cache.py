"""What was computed of captions once, on the disk: found again by what it was made from, built whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lavis_itm_plugins.errors import ItmError

log = logging.getLogger(__name__)

HEADER = "header.json"


def digest_of(texts: Iterable[str]) -> str:
    """A hash of texts in their order: labels belong to rows, so a moved or changed caption is another set.

    >>> digest_of(["a dog", "a cat"]) == digest_of(["a cat", "a dog"])
    False
    """
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """A hash of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def cached(root: Path, kind: str, made_from: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder `root/KIND-HASH` of what `made_from` describes; built when it is not there or damaged.

    `build` gets a folder to fill. When it is interrupted the folder stays for the next call, which may go on with it.
    Several processes may ask at once: one builds, the others wait. A complete folder is only read. Raises ItmError
    when the folder cannot be written.
    """
    name = f"{kind}-{digest_of([json.dumps(made_from, sort_keys=True)])[:16]}"
    folder = root / name
    if _is_complete(folder, made_from):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f".{name}.lock").open("w") as lock:
            # the system frees it when the process ends, however it ends
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_complete(folder, made_from):
                _build(folder, root / f".{name}.part", made_from, build)
    except OSError as error:
        raise ItmError(f"cannot write {folder} ({error.strerror}); set LAVIS_ITM_CACHE to a writable folder") from error
    return folder


def _build(folder: Path, part: Path, made_from: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    part.mkdir(exist_ok=True)
    build(part)
    sizes = {path.name: path.stat().st_size for path in part.iterdir() if path.name != HEADER}
    (part / HEADER).write_text(json.dumps({"made_from": made_from, "bytes": sizes}, sort_keys=True), encoding="utf-8")
    if folder.exists():
        log.warning("%s was damaged; it was built again", folder)
        shutil.rmtree(folder)
    os.replace(part, folder)


def _is_complete(folder: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether the folder is of `made_from`, and its files are as long as they were."""
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != HEADER}
        return bool(header == {"made_from": dict(made_from), "bytes": sizes})
    except (OSError, ValueError):
        return False
