"""The SCAN layout of precomputed features: `{split}_ims.npy`, `{split}_caps.txt` and two optional text files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from lavis_itm_plugins.data.features import FeatureFile
from lavis_itm_plugins.data.splits import CaptionSplit, check_captions
from lavis_itm_plugins.data.text import read_lines
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path

# SCAN's data sets name the validation split "dev"
FILE_PREFIXES = {"train": ("train",), "val": ("val", "dev"), "test": ("test",)}
CAPTIONS_PER_IMAGE = 5
COMPARED_VALUES = 4096
# at most 18 digits: a 64-bit integer holds it
WHOLE_NUMBER = re.compile(r"\s*-?\d{1,18}\s*", re.ASCII)


def find_prefix(root: Path, split: str) -> str | None:
    """The file prefix that the split has in `root`, or None when it has no file at all."""
    for prefix in FILE_PREFIXES[split]:
        if (root / f"{prefix}_ims.npy").exists() or (root / f"{prefix}_caps.txt").exists():
            return prefix
    return None


def read_precomp(root: str | Path, split: str) -> CaptionSplit:
    """Read and check one split.

    Rows of the feature file are images (any whole number of captions each, in image order) or captions (an image's
    row repeated for each of its captions). `{split}_image_ids.txt`, an integer for each caption, says it for any
    other order or ragged number; `{split}_ids.txt` gives the images' names.

    Raises ItmError with the file and the numbers that do not fit.
    """
    root = user_path(root)
    if not root.is_dir():
        raise ItmError(f"data folder {root} does not exist; set `root` to the folder with train_ims.npy")
    prefix = find_prefix(root, split) or FILE_PREFIXES[split][0]
    caption_path = root / f"{prefix}_caps.txt"
    features = FeatureFile(root / f"{prefix}_ims.npy")
    captions = read_lines(caption_path, missing="check `root`")
    if not captions or not len(features):
        raise ItmError(f"the {split} split in {root} is empty; give at least one image with one caption")
    check_captions(captions, caption_path)
    image_rows, caption_image = match_captions(root, prefix, features, len(captions))
    names = read_names(root / f"{prefix}_ids.txt", image_rows, len(features))
    return CaptionSplit(split, features, image_rows, captions, caption_image, names)


def match_captions(root: Path, prefix: str, features: FeatureFile, n_captions: int) -> tuple[np.ndarray, np.ndarray]:
    """Row of each image in the feature file, and each caption's image; raises ItmError when the counts do not fit."""
    ids_path = root / f"{prefix}_image_ids.txt"
    if ids_path.exists():
        return _explicit(_read_ids(ids_path, n_captions), len(features), ids_path)
    return _regular(features, n_captions, root / f"{prefix}_caps.txt")


def _regular(features: FeatureFile, n_captions: int, where: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image rows and each caption's image when captions follow image order in equal groups."""
    rows = len(features)
    group = _repeats(features) if rows == n_captions else 1
    image_rows = np.arange(0, rows, group)
    if n_captions % len(image_rows):
        raise ItmError(
            f"{where} has {n_captions} captions for {rows} rows in {features.path.name}, which is no whole number "
            f"for each image; add {where.name.replace('_caps', '_image_ids')} with each caption's image id"
        )
    return image_rows, np.arange(n_captions) // (n_captions // len(image_rows))


def _repeats(features: FeatureFile) -> int:
    """5 when every five rows are one image's, repeated for its captions; otherwise 1.

    A row's first values decide: comparing all of them would read the whole file, 43 GB for Flickr30K.
    """
    rows = len(features)
    if rows % CAPTIONS_PER_IMAGE:
        return 1
    for start in range(0, rows, CAPTIONS_PER_IMAGE):
        block = features.array[start : start + CAPTIONS_PER_IMAGE].reshape(CAPTIONS_PER_IMAGE, -1)[:, :COMPARED_VALUES]
        if not (block == block[:1]).all():
            return 1
    return CAPTIONS_PER_IMAGE


def _read_ids(path: Path, n_captions: int) -> np.ndarray:
    lines = read_lines(path)
    if len(lines) != n_captions:
        raise ItmError(f"{path} has {len(lines)} lines for {n_captions} captions; give one image id for each caption")
    for number, line in enumerate(lines, start=1):
        if not WHOLE_NUMBER.fullmatch(line):
            raise ItmError(f"{path}, line {number}: {line!r} is no whole number; give each caption's image id")
    return np.array([int(line) for line in lines], dtype=np.int64)


def _explicit(ids: np.ndarray, rows: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image rows and each caption's image from its id.

    One row for each caption: an image's first row is used. Else an id is a row number when all are within the file,
    and otherwise ids stand for rows in order of first appearance.
    """
    distinct, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    if rows == len(ids):
        return first[order], position[inverse]
    if distinct[0] >= 0 and distinct[-1] < rows:
        return distinct, inverse
    if len(distinct) == rows:
        return np.arange(rows), position[inverse]
    raise ItmError(
        f"{path} names {len(distinct)} images (ids {distinct[0]} to {distinct[-1]}) but the feature file has {rows} "
        f"rows; ids must be row numbers 0 to {rows - 1}, or there must be one row for each image"
    )


def read_names(path: Path, image_rows: np.ndarray, rows: int) -> list[str]:
    """Names of the images; numbers where there is no file of names."""
    if not path.exists():
        return [str(row) for row in image_rows]
    names = read_lines(path)
    if len(names) == rows:
        return [names[row] for row in image_rows]
    if len(names) == len(image_rows):
        return names
    raise ItmError(f"{path} has {len(names)} names for {len(image_rows)} images; give one name for each image")
