"""Looks through a whole data set, pictures or features, and reports everything that is wrong with it at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lavis_itm_plugins.data.annotations import Annotations, read_annotations
from lavis_itm_plugins.data.features import FeatureFile
from lavis_itm_plugins.data.findings import CAPTION_COLUMNS, Findings, Report, caption_cells, sha256
from lavis_itm_plugins.data.pictures import open_picture
from lavis_itm_plugins.data.precomp import FILE_PREFIXES, find_prefix, match_captions, read_names
from lavis_itm_plugins.data.text import read_lines
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path

BLOCK_BYTES = 64 << 20


def verify_pictures(
    source: str | Path | Mapping[str, str],
    *,
    images: str | Path | None = None,
    format: str | None = None,
    checksums: bool = True,
) -> Report:
    """Read every entry and decode every picture of a data set as `itm_pairs` reads it.

    Raises ItmError only when the annotation file cannot be read at all.
    """
    report = Report(str(source), ("split", *CAPTION_COLUMNS, "missing", "undecodable"))
    findings = report.findings
    annotations = read_annotations(
        source, images=images, format=format, report=lambda error: findings.add("faulty entries", str(error))
    )
    if checksums:
        report.add_files(annotations.sources)
    for split in annotations.splits:
        captions = [image.captions for image in annotations.splits[split]]
        cells = caption_cells(captions, split, findings)
        missing, undecodable, digest = _look_at(annotations, split, findings, checksums)
        report.rows.append([split, *cells, str(missing), str(undecodable)])
        if checksums:
            report.checksums.append((f"{split} images", digest))
    for name in annotations.in_several_splits():
        findings.add("images in several splits", name, fatal=False)
    return report


def _look_at(annotations: Annotations, split: str, findings: Findings, checksums: bool) -> tuple[int, int, str]:
    """Numbers of missing and undecodable pictures of a split, and a checksum over all of them in order."""
    files = annotations.files(split)
    counts = {"missing image files": 0, "undecodable images": 0}
    whole = hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = pool.map(lambda file: _look(file, checksums), files)
        for kind, sentence, digest in tqdm(looks, f"{split} images", len(files), disable=None):
            if kind:
                counts[kind] += 1
                findings.add(kind, sentence)
            whole.update(digest.encode())
    return counts["missing image files"], counts["undecodable images"], whole.hexdigest()


def _look(file: Path, checksum: bool) -> tuple[str, str, str]:
    """What is wrong with an image file, as kind and sentence, and its checksum."""
    if not os.path.isfile(file):
        return "missing image files", str(file), ""
    digest = sha256(file) if checksum else ""
    try:
        open_picture(file)
    except ItmError as error:
        return "undecodable images", str(error), digest
    return "", "", digest


def verify_features(root: str | Path, *, checksums: bool = True) -> Report:
    """Look at every caption and every feature of a folder in the SCAN layout; the features are read in blocks."""
    root = user_path(root)
    report = Report(str(root), ("split", *CAPTION_COLUMNS, "features", "type", "NaN/inf rows"))
    dims = {}
    for split in FILE_PREFIXES:
        prefix = find_prefix(root, split)
        if prefix is None:
            continue
        features = _features(root / f"{prefix}_ims.npy", report.findings)
        cells = _captions(root, split, prefix, features, report.findings)
        if features is None:
            report.rows.append([split, *cells, "-", "-", "-"])
        else:
            dims[split] = features.dim
            bad = _non_finite(features, report.findings)
            shape = " x ".join(str(size) for size in features.array.shape)
            report.rows.append([split, *cells, shape, str(features.array.dtype), str(bad)])
        if checksums:
            ends = ("ims.npy", "caps.txt", "ids.txt", "image_ids.txt")
            report.add_files([root / f"{prefix}_{end}" for end in ends])
    if not report.rows:
        raise ItmError(f"{root} holds no features; expected train_ims.npy with train_caps.txt, or val and test")
    if len(set(dims.values())) > 1:
        report.findings.add("feature sizes differ", ", ".join(f"{split} {dim}" for split, dim in dims.items()))
    return report


def _features(path: Path, findings: Findings) -> FeatureFile | None:
    try:
        return FeatureFile(path)
    except ItmError as error:
        findings.add("unreadable files", str(error))
        return None


def _captions(root: Path, split: str, prefix: str, features: FeatureFile | None, findings: Findings) -> list[str]:
    """Cells of the captions; a count that does not fit the features is a finding."""
    try:
        captions = read_lines(root / f"{prefix}_caps.txt")
    except ItmError as error:
        findings.add("unreadable files", str(error))
        return ["-"] * len(CAPTION_COLUMNS)
    by_image: list[list[str]] = []
    if features is not None and len(features) and captions:
        by_image = _by_image(root, prefix, features, captions, findings)
    elif features is not None:
        findings.add("empty splits", f"{split}: {len(features)} features, {len(captions)} captions")
    if by_image:
        return caption_cells(by_image, split, findings)
    caption_cells([captions], split, findings)
    return ["-", str(len(captions)), "-", "-", "-"]


def _by_image(
    root: Path, prefix: str, features: FeatureFile, captions: list[str], findings: Findings
) -> list[list[str]]:
    """Captions of each image; none, and a finding, when the files do not fit together."""
    try:
        image_rows, caption_image = match_captions(root, prefix, features, len(captions))
        read_names(root / f"{prefix}_ids.txt", image_rows, len(features))
    except ItmError as error:
        findings.add("counts that do not fit", str(error))
        return []
    by_image: list[list[str]] = [[] for _ in image_rows]
    for caption, image in zip(captions, caption_image, strict=True):
        by_image[image].append(caption)
    return by_image


def _non_finite(features: FeatureFile, findings: Findings) -> int:
    """How many rows hold NaN or infinity; a block at a time, so that memory stays small."""
    rows = max(1, BLOCK_BYTES // max(1, features.array[:1].nbytes))
    bad = 0
    for start in tqdm(range(0, len(features), rows), features.path.name, disable=None):
        block = features.array[start : start + rows]
        finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        for row in np.flatnonzero(~finite):
            bad += 1
            findings.add("feature rows with NaN or infinity", f"{features.path}: row {start + row}")
    return bad
