"""Candidate lists on the disk: plain arrays and JSON, memory-mapped by every process that trains with them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis_itm_plugins.distributed import rank
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.mining.negatives import HardNegatives
from lavis_itm_plugins.paths import user_path

SCHEMA = 2
META = "meta.json"
# names as in the official code: i2t lists hold captions of an image, t2i lists images of a caption
ARRAYS = {
    "captions": ("i2t_idx.npy", np.int32),
    "images": ("t2i_idx.npy", np.int32),
    "caption_scores": ("i2t_score.npy", np.float16),
    "image_scores": ("t2i_score.npy", np.float16),
    "positive_scores": ("pos_score.npy", np.float32),
}
RANKS = "pos_rank_i2t.npy", "pos_rank_t2i.npy"


@dataclass(frozen=True)
class Candidates:
    """An opened store: the lists as memory maps, and what they were made from (`data`, `model`, `settings`)."""

    folder: Path
    negatives: HardNegatives
    made_from: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """What a checkpoint keeps to find the same lists again."""
        return fingerprint_of(self.made_from)


def data_identity(
    captions: Sequence[str], caption_image: NDArray[Any], n_images: int, images: str, split: str = "train"
) -> dict[str, Any]:
    """What lists belong to: the captions in their order, whose they are, and `images`, a hash of the pictures."""
    return {
        "split": split,
        "n_images": n_images,
        "n_captions": len(captions),
        "captions": text_digest(captions),
        "caption_image": array_digest(np.asarray(caption_image, dtype=np.int64)),
        "images": images,
    }


def text_digest(texts: Sequence[str]) -> str:
    """A hash of texts in their order.

    >>> text_digest(["a dog", "a cat"]) == text_digest(["a cat", "a dog"])
    False
    """
    return _digest("\n".join(texts).encode("utf-8", "surrogatepass"))


def array_digest(array: NDArray[Any]) -> str:
    """A hash of an array: its type, its shape and every value; a part at a time, since it may be a memory map."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    for start in range(0, len(array), 65536):
        digest.update(np.ascontiguousarray(array[start : start + 65536]).data)
    return digest.hexdigest()[:16]


def fingerprint_of(made_from: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of what lists are made from; the name of their folder."""
    return _digest(json.dumps({"schema": SCHEMA, **made_from}, sort_keys=True).encode())


def write_candidates(folder: Path, mined: HardNegatives, caption_image: NDArray[Any], made_from: Any) -> None:
    """Write the files of a store into an existing folder; `meta.json` comes last."""
    files = {name: np.asarray(getattr(mined, key), dtype) for key, (name, dtype) in ARRAYS.items()}
    files |= dict(zip(RANKS, positive_ranks(mined, caption_image), strict=True))
    for name, array in files.items():
        with open(folder / name, "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
    digests = {name: array_digest(array) for name, array in files.items()}
    meta = {"schema": SCHEMA, "made_from": made_from, "report": mined.report, "digests": digests}
    write_json(folder / META, meta)


def positive_ranks(mined: HardNegatives, caption_image: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """How many listed candidates beat each caption (M,) in its image's list, and each caption's image in its own.

    A rank as long as the list means that at least so many do.
    """
    own = mined.positive_scores[:, None]
    by_image, by_caption = np.empty((2, len(own)), dtype=np.int32)
    for start in range(0, len(own), 65536):
        rows = slice(start, start + 65536)
        by_image[rows] = (mined.caption_scores[caption_image[rows]] > own[rows]).sum(axis=1)
        by_caption[rows] = (mined.image_scores[rows] > own[rows]).sum(axis=1)
    return by_image, by_caption


def is_complete(folder: Path) -> bool:
    """Whether the folder holds a whole store: every array with the values it was written with."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        digests = meta["digests"].items()
        return all(array_digest(np.load(folder / name, mmap_mode="r")) == digest for name, digest in digests)
    except (OSError, ValueError, KeyError, EOFError):
        return False


def open_candidates(folder: str | Path, data: Mapping[str, Any] | None = None) -> Candidates:
    """Open a store by memory map.

    Raises ItmError when it is missing or damaged, or when it was mined from other `data`; the field that differs is
    named. Lists of another model fit: they are only less hard. The first rank reads every value, the others none.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise ItmError(f"candidate lists {folder} do not exist; make them with lavis-itm mine")
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        meta = {}
    if meta.get("schema", SCHEMA) != SCHEMA:
        raise ItmError(f"candidate lists {folder} are of format {meta['schema']}, not {SCHEMA}; mine again")
    if not meta or (rank() == 0 and not is_complete(folder)):
        raise ItmError(f"candidate lists {folder} are damaged or not whole; delete the folder and mine again")
    known = meta["made_from"]["data"]
    for key, value in (data or {}).items():
        # lists of foreign embeddings may not know all of it
        if known.get(key, value) != value:
            raise ItmError(
                f"candidate lists {folder} were mined from other data: {key} is {known[key]} there and {value} here; "
                "mine again"
            )
    arrays = {key: np.load(folder / name, mmap_mode="r") for key, (name, _) in ARRAYS.items()}
    return Candidates(folder, HardNegatives(**arrays, report=meta["report"]), meta["made_from"])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
