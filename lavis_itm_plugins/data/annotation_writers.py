"""Annotations written in one of the formats, so that reading them again gives the same."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lavis_itm_plugins.data.annotations import AnnotatedImage, Annotations
from lavis_itm_plugins.data.scenes.captions import tokenize
from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.paths import user_path


def write_annotations(annotations: Annotations, format: str, out: str | Path) -> list[Path]:
    """Write `out` (a folder with a file for each split for "lavis", else one file); gives back what was written.

    Raises ItmError for an unknown format and for a file that exists or cannot be written.
    """
    if format not in WRITERS:
        raise unknown_name("annotation format", format, WRITERS)
    out = user_path(out)
    texts = {out / name if name else out: text for name, text in WRITERS[format](annotations)}
    for path in texts:
        if path.exists():
            raise ItmError(f"{path} exists; remove it, or choose another output")
    for path, text in texts.items():
        _write(path, text)
    return list(texts)


def karpathy(annotations: Annotations) -> Iterator[tuple[str, str]]:
    """One JSON file with tokens, as the released code of the field reads it."""
    images: list[dict[str, Any]] = []
    sentence = 0
    for split, image in _images(annotations):
        ids = list(range(sentence, sentence + len(image.captions)))
        sentence += len(ids)
        folder, filename = os.path.split(image.name)
        images.append(
            {
                **({"filepath": folder} if folder else {}),
                **{"filename": filename, "imgid": len(images), "split": split, **_own_id(image), "sentids": ids},
                "sentences": [
                    {"raw": caption, "tokens": tokenize(caption), "imgid": len(images), "sentid": number}
                    for caption, number in zip(image.captions, ids, strict=True)
                ],
            }
        )
    yield "", json.dumps({"dataset": "itm_pairs", "images": images}, ensure_ascii=False)


def lavis(annotations: Annotations) -> Iterator[tuple[str, str]]:
    """train.json with an entry for each caption; val.json and test.json with one for each image."""
    for split, images in annotations.splits.items():
        if split == "train":
            entries = [
                {"image": image.name, "image_id": image.image_id, "caption": caption}
                for image in images
                for caption in image.captions
            ]
        else:
            entries = [{"image": image.name, "caption": list(image.captions), **_own_id(image)} for image in images]
        yield f"{split}.json", json.dumps(entries, ensure_ascii=False)


def table(annotations: Annotations) -> Iterator[tuple[str, str]]:
    """CSV: image, caption, split, and image_id where an image has another id than its file name."""
    with_id = any(_own_id(image) for _, image in _images(annotations))
    file = io.StringIO(newline="")
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["image", "caption", "split", *(["image_id"] if with_id else [])])
    for split, image in _images(annotations):
        for caption in image.captions:
            rows.writerow([image.name, caption, split, *([image.image_id] if with_id else [])])
    yield "", file.getvalue()


def jsonl(annotations: Annotations) -> Iterator[tuple[str, str]]:
    """A JSON object a line, one for each image."""
    lines = [
        json.dumps(
            {"image": image.name, "captions": list(image.captions), "split": split, **_own_id(image)},
            ensure_ascii=False,
        )
        for split, image in _images(annotations)
    ]
    yield "", "".join(f"{line}\n" for line in lines)


WRITERS: dict[str, Callable[[Annotations], Iterator[tuple[str, str]]]] = {
    "karpathy": karpathy,
    "lavis": lavis,
    "csv": table,
    "jsonl": jsonl,
}


def _images(annotations: Annotations) -> Iterator[tuple[str, AnnotatedImage]]:
    for split, images in annotations.splits.items():
        for image in images:
            yield split, image


def _own_id(image: AnnotatedImage) -> dict[str, str]:
    """The id, where it says more than the file name."""
    return {} if image.image_id == image.name else {"image_id": image.image_id}


def _write(path: Path, text: str) -> None:
    """A whole file or none."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(text.encode("utf-8"))
        os.replace(part, path)
    except OSError as error:
        raise ItmError(f"cannot write {path}: {error.strerror}; choose another output") from None
