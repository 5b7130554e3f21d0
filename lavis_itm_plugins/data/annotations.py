"""Images with captions by split, from any format: read, grouped by image, and checked for contradictions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lavis_itm_plugins.data.annotation_formats import READERS, Record, Report, find_format
from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.paths import user_path

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class AnnotatedImage:
    """An image: its file below the image root, its id (the same text unless the file gives another) and captions."""

    name: str
    image_id: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Annotations:
    """A data set: the image root, and the images of each split that it has, in order of first appearance."""

    root: Path
    splits: dict[str, list[AnnotatedImage]]
    sources: list[Path] = field(default_factory=list)

    def files(self, split: str) -> list[Path]:
        """Paths of a split's images."""
        return [self.root / image.name for image in self.splits[split]]

    def in_several_splits(self) -> list[str]:
        """Images that are in more than one split: a test on them says little."""
        seen: dict[str, set[str]] = {}
        for split, images in self.splits.items():
            for image in images:
                seen.setdefault(image.name, set()).add(split)
        return [name for name, splits in seen.items() if len(splits) > 1]


def raise_error(error: ItmError) -> None:
    """The strict `report`: the first faulty entry ends the reading."""
    raise error


def read_annotations(
    source: str | Path | Mapping[str, str | Path],
    *,
    images: str | Path | None = None,
    format: str | None = None,
    report: Report = raise_error,
) -> Annotations:
    """Read one file (or folder) that names splits, or one for each split.

    `images` is the folder that image names are relative to; by default the annotation file's. A file without splits is
    all training data. Entries that cannot be used go to `report`, which raises ItmError unless another one is given;
    a file that cannot be read at all raises it in any case.
    """
    if format is not None and format not in READERS:
        raise unknown_name("annotation format", str(format), READERS)
    by_split = {str(key): user_path(file) for key, file in source.items()} if isinstance(source, Mapping) else None
    if by_split is None:
        file = user_path(source)  # type: ignore[arg-type]
        files = [file]
        records = _with_splits(list(_read(file, format, report)), file)
    else:
        files = list(by_split.values())
        records = [record for key, file in by_split.items() for record in _part(key, file, format, report)]
    return Annotations(_root(images, files), _group(records, report), files)


def _read(file: Path, format: str | None, report: Report) -> Iterable[Record]:
    return READERS[format or find_format(file)](file, report)


def _root(images: str | Path | None, files: list[Path]) -> Path:
    """The folder that image names are relative to."""
    if images is not None:
        return user_path(images)
    roots = {file if file.is_dir() else file.parent for file in files}
    if len(roots) > 1:
        raise ItmError(f"the annotation files lie in {len(roots)} folders; set images to the folder of the images")
    return roots.pop()


def _with_splits(records: list[Record], file: Path) -> list[Record]:
    """Records of one file, each with its split; all of them train when none has one."""
    if not records:
        raise ItmError(f"{file} has no usable entry; give at least one image with one caption")
    without = [record for record in records if record.split is None]
    if without and len(without) < len(records):
        raise ItmError(f"{without[0].where}: no split, though other entries name one; give each entry one")
    if without:
        log.info("%s names no splits: all of it is training data", file)
    return [replace(record, split=record.split or "train") for record in records]


def _part(split: str, file: Path, format: str | None, report: Report) -> list[Record]:
    """Records of a file that was given for one split; entries that name another split are left out."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    records = list(_read(file, format, report))
    kept = [replace(record, split=split) for record in records if record.split in (None, split)]
    if not kept:
        raise ItmError(f"the {split} split is empty: {file} has no entry for it; give at least one image")
    if len(kept) < len(records):
        log.info("%s: %d entries of other splits left out of %s", file, len(records) - len(kept), split)
    return kept


def _group(records: list[Record], report: Report) -> dict[str, list[AnnotatedImage]]:
    """Images of each split, captions of one image together; an id and a file belong to each other alone."""
    ids, names = _Pairing("image id"), _Pairing("image file")
    found: dict[str, dict[str, AnnotatedImage]] = {split: {} for split in SPLITS}
    for record in records:
        image_id = record.image_id or names.first(record.image) or record.image
        try:
            ids.pair(image_id, record.image, record.where)
            names.pair(record.image, image_id, record.where)
        except ItmError as error:
            report(error)
            continue
        images = found[record.split or "train"]
        known = images.get(image_id)
        captions = (known.captions if known else ()) + record.captions
        images[image_id] = AnnotatedImage(record.image, image_id, captions)
    return {split: list(images.values()) for split, images in found.items() if images}


class _Pairing:
    """Remembers what each key was first seen with."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.seen: dict[str, tuple[str, str]] = {}

    def first(self, key: str) -> str | None:
        """What the key came with, if it was seen."""
        return self.seen[key][0] if key in self.seen else None

    def pair(self, key: str, value: str, where: str) -> None:
        """Raises ItmError when the key came with another value before: matching would be by the wrong images."""
        first, place = self.seen.setdefault(key, (value, where))
        if first != value:
            raise ItmError(
                f"{where}: {self.kind} {key} goes with {value}, but with {first} in {place}; "
                "give each image file one id of its own, or leave image_id out"
            )
