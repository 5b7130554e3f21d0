"""A short hash of what a training set holds, so that a run is not resumed, nor a cache read, with other data."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def fingerprint(dataset: Any) -> str:
    """Hash of captions, image ids and the number of images; where files lie does not matter."""
    digest = hashlib.sha256(str(len(dataset)).encode())
    split = getattr(dataset, "split", None)
    if split is not None:
        digest.update("\n".join(split.captions).encode("utf-8", "surrogatepass"))
        digest.update(np.ascontiguousarray(split.caption_image, dtype=np.int64).tobytes())
        digest.update(str(len(split.images)).encode())
    for part in getattr(dataset, "parts", getattr(dataset, "datasets", [])):
        digest.update(fingerprint(part).encode())
    for entry in getattr(dataset, "annotation", None) or []:
        digest.update(f"{entry.get('image')}\0{entry.get('caption')}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]
