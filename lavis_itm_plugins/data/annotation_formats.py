"""The file formats of image captions; each is one function from a path to records, with the standard library only."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_itm_plugins.data.text import has_words, read_lines, read_text
from lavis_itm_plugins.errors import ItmError, unknown_name

# Karpathy's "restval" is the part of COCO's validation images that everybody trains on.
SPLIT_NAMES = {
    "train": "train",
    "restval": "train",
    "val": "val",
    "dev": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
QUOTE = "'"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

Report = Callable[[ItmError], None]


@dataclass(frozen=True)
class Record:
    """What one entry of a file says: captions of an image file. `where` names the entry in errors."""

    where: str
    image: str
    captions: tuple[str, ...]
    split: str | None = None
    image_id: str | None = None


def make_record(where: str, image: Any, captions: Any, split: Any = None, image_id: Any = None) -> Record:
    """A record from values as a file holds them; raises ItmError for one that cannot be used."""
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        raise ItmError(f"{where}: image is {_shown(image)}; give the name of the image file")
    texts = captions if isinstance(captions, list) else [captions]
    if not texts:
        raise ItmError(f"{where}: {image} has no captions; give at least one, or remove the entry")
    for text in texts:
        _check_caption(text, where)
    if split is not None and split not in ("", *SPLIT_NAMES):
        raise ItmError(f"{where}: {unknown_name('split', ascii(split)[:40].strip(QUOTE), ('train', 'val', 'test'))}")
    if isinstance(image_id, bool) or not isinstance(image_id, (int, str, type(None))):
        raise ItmError(f"{where}: image_id is {_shown(image_id)}; give text or a whole number, or leave it out")
    name = os.path.normpath(image.strip())
    # 0 is an id like any other
    given = None if image_id is None else str(image_id) or None
    return Record(where, name, tuple(texts), SPLIT_NAMES[split] if split else None, given)


def read_karpathy(path: Path, report: Report) -> Iterator[Record]:
    """`{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}`."""
    content = _json(read_text(path), str(path))
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise ItmError(f'{path} is not in Karpathy\'s form; expected {{"images": [...]}}')
    for number, image in enumerate(images):
        with _reporting(report):
            yield _karpathy_record(f"{path}: images[{number}]", image)


def read_lavis(path: Path, report: Report) -> Iterator[Record]:
    """`[{"image", "image_id", "caption"}]`; `caption` is text, or a list as in LAVIS's val and test files."""
    entries = _json(read_text(path), str(path))
    if not isinstance(entries, list):
        raise ItmError(f'{path} is not in LAVIS\'s form; expected a list of {{"image", "caption"}}')
    for number, entry in enumerate(entries):
        with _reporting(report):
            yield _entry_record(f"{path}: entry {number}", entry)


def read_jsonl(path: Path, report: Report) -> Iterator[Record]:
    """One `{"image", "caption" or "captions"}` a line, with `split` and `image_id` as one likes."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            with _reporting(report):
                where = f"{path}, line {number}"
                yield _entry_record(where, _json(line, where))


def read_csv(path: Path, report: Report, *, delimiter: str = ",") -> Iterator[Record]:
    """Columns `image,caption[,split][,image_id]` under a header, in any order; other columns are left alone."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        for name in ("image", "caption"):
            if header.count(name) != 1:
                raise ItmError(f"{path}: the header {header[:8]} has no one column {name!r}; its first line names them")
        for row in rows:
            if row:
                with _reporting(report):
                    yield _row_record(f"{path}, line {rows.line_num}", header, row)
    except csv.Error as error:
        raise ItmError(f"{path}, line {rows.line_num}: {error}; mend the quotes there") from None


def read_tsv(path: Path, report: Report) -> Iterator[Record]:
    """As `read_csv`, with tabs."""
    return read_csv(path, report, delimiter="\t")


def read_folder(path: Path, report: Report) -> Iterator[Record]:
    """Images with text files of the same name, a caption a line; folders train, val, test at the top are splits."""
    if not path.is_dir():
        raise ItmError(f"{path} is no folder; give the folder with the images and their .txt files")
    files = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    described = {image.with_suffix(".txt") for image in images}
    for text in (file for file in files if file.suffix == ".txt" and file not in described):
        report(ItmError(f"{path / text} has no image of the same name; remove it, or add the image"))
    by_split = all(len(image.parts) > 1 and image.parts[0] in SPLIT_NAMES for image in images)
    for image in images:
        with _reporting(report):
            text = path / image.with_suffix(".txt")
            lines = read_lines(text, missing=f"write the captions of {image.name} there, one a line")
            captions = [line for line in lines if line.strip()]
            yield make_record(str(text), image.as_posix(), captions, image.parts[0] if by_split else None)


READERS: dict[str, Callable[[Path, Report], Iterator[Record]]] = {
    "karpathy": read_karpathy,
    "lavis": read_lavis,
    "csv": read_csv,
    "tsv": read_tsv,
    "jsonl": read_jsonl,
    "folder": read_folder,
}


def find_format(path: Path) -> str:
    """The format of a file or folder by its ending, and for .json by its first character."""
    if path.is_dir():
        return "folder"
    by_suffix = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    suffix = path.suffix.lower()
    if suffix == ".json":
        return "lavis" if read_text(path).lstrip()[:1] == "[" else "karpathy"
    if not path.exists():
        raise ItmError(f"{path} does not exist; check its path")
    if suffix not in by_suffix:
        raise ItmError(f"{path}: its format cannot be told from its name; set format to one of {', '.join(READERS)}")
    return by_suffix[suffix]


@contextmanager
def _reporting(report: Report) -> Iterator[None]:
    """Hand a faulty entry to `report`, which raises it or notes it and lets the reader go on."""
    try:
        yield
    except ItmError as error:
        report(error)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ItmError(f"{where} is not valid JSON ({error}); mend it there, or set format") from None


def _entry_record(where: str, entry: Any) -> Record:
    if not isinstance(entry, dict):
        raise ItmError(f'{where}: expected {{"image", "caption"}}, got {_shown(entry)}')
    captions = entry.get("caption", entry.get("captions"))
    if "image" not in entry or captions is None:
        raise ItmError(f"{where}: image and caption are needed, its keys are {_shown(list(entry))}")
    return make_record(where, entry.get("image"), captions, entry.get("split"), entry.get("image_id"))


def _karpathy_record(where: str, image: Any) -> Record:
    if not isinstance(image, dict):
        raise ItmError(f"{where}: expected an image's entry, got {_shown(image)}")
    sentences, folder = image.get("sentences"), image.get("filepath") or ""
    if not isinstance(sentences, list) or not all(isinstance(sentence, dict) for sentence in sentences):
        raise ItmError(f'{where}: sentences is {_shown(sentences)}; expected a list of {{"raw": caption}}')
    if not isinstance(folder, str) or not isinstance(image.get("filename"), str):
        raise ItmError(f"{where}: filepath {_shown(folder)}, filename {_shown(image.get('filename'))}; give text")
    captions = [sentence.get("raw") for sentence in sentences]
    return make_record(
        where, os.path.join(folder, image["filename"]), captions, image.get("split"), image.get("image_id")
    )


def _row_record(where: str, header: list[str], row: list[str]) -> Record:
    if len(row) != len(header):
        raise ItmError(f"{where}: {len(row)} values for {len(header)} columns; put captions with commas in quotes")
    cells = dict(zip(header, row, strict=True))
    return make_record(where, cells["image"], cells["caption"], cells.get("split", "").strip(), cells.get("image_id"))


def _check_caption(caption: Any, where: str) -> None:
    if not isinstance(caption, str):
        raise ItmError(f"{where}: a caption is {_shown(caption)}; give text")
    if not has_words(caption):
        raise ItmError(f"{where}: caption {_shown(caption)} has no words; remove or mend it")
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError:
        raise ItmError(f"{where}: caption {_shown(caption)} holds half a character; mend its \\u escapes") from None


def _shown(value: Any) -> str:
    """A value in an error: short, and on one line."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
