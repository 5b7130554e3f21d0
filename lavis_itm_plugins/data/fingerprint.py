"""A short hash of what a training set holds, so that a run is not resumed, nor a cache read, with other data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lavis_itm_plugins.data.features import FeatureFile
from lavis_itm_plugins.data.pictures import DecodedPictures, PictureFiles

SAMPLED = 16  # rows of an array that are hashed: all of them may be 20 GB


def fingerprint(dataset: Any) -> str:
    """Hash of captions, image ids and what tells the images apart; where files lie does not matter."""
    digest = hashlib.sha256(str(len(dataset)).encode())
    split = getattr(dataset, "split", None)
    if split is not None:
        digest.update("\n".join(split.captions).encode("utf-8", "surrogatepass"))
        digest.update(np.ascontiguousarray(split.caption_image, dtype=np.int64).tobytes())
        digest.update(np.ascontiguousarray(split.image_rows, dtype=np.int64).tobytes())
        _add_images(digest, split.images, split.image_names)
    for part in getattr(dataset, "parts", getattr(dataset, "datasets", [])):
        digest.update(fingerprint(part).encode())
    for entry in getattr(dataset, "annotation", None) or []:
        told = f"{entry.get('image', entry.get('video'))}\0{entry.get('caption')}\n"
        digest.update(told.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _add_images(digest: Any, images: Any, names: Sequence[str]) -> None:
    """Hash evenly spread rows of an array, or the names and sizes of files."""
    digest.update(str(len(images)).encode())
    if isinstance(images, (FeatureFile, DecodedPictures)):
        array = images.array
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        for row in np.unique(np.linspace(0, len(array) - 1, num=SAMPLED).astype(np.int64)):
            digest.update(np.ascontiguousarray(array[row]).tobytes())
    elif isinstance(images, PictureFiles):
        digest.update("\n".join(names).encode("utf-8", "surrogatepass"))
        digest.update(str([os.path.getsize(file) for file in images.files]).encode())
