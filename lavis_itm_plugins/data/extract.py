"""Pictures into memory-mapped features in the SCAN layout; can be stopped at any moment and goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lavis_itm_plugins.data.annotations import AnnotatedImage, Annotations
from lavis_itm_plugins.data.feature_models import FeatureModel, feature_model
from lavis_itm_plugins.data.pictures import open_picture
from lavis_itm_plugins.devices import check_device
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path

log = logging.getLogger(__name__)

PROGRESS = "progress.json"
DESCRIPTION = "features.json"
PACKAGES = ("lavis-itm-plugins", "salesforce-lavis", "torch", "timm", "numpy", "pillow")


@dataclass(frozen=True)
class Recipe:
    """What decides the bytes of the features, beside the pictures."""

    model: str = "resnet50"
    pretrained: bool = True
    image_size: int = 224
    grid: int | None = None
    dtype: str = "float16"
    batch_size: int = 32


def extract_features(
    annotations: Annotations, out: str | Path, recipe: Recipe, *, device: str = "auto", workers: int = 0
) -> Path:
    """Make the folder `out` with `{split}_ims.npy`, `_caps.txt`, `_ids.txt`, `_image_ids.txt` and features.json.

    The work is done in `out.part` and renamed when whole. After a kill, the same call goes on in that folder and
    gives the same bytes. Raises ItmError when `out` exists, or was begun with another recipe or other data.
    """
    out = user_path(out).absolute()
    if out.exists():
        raise ItmError(f"{out} exists; remove it, or choose another output")
    device = check_device(device, "--device")
    folder = out.with_name(f"{out.name}.part")
    with _writing(folder):
        progress = _Progress(folder, _description(annotations, recipe))
    encoder = feature_model(
        recipe.model, pretrained=recipe.pretrained, image_size=recipe.image_size, grid=recipe.grid, device=device
    )
    with _writing(folder):
        for split, images in annotations.splits.items():
            _write_texts(folder, split, images)
            _write_features(progress, split, annotations.files(split), encoder, recipe, workers)
        progress.finish(out)
    return out


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in one sentence what the system has against writing there, such as a full disk."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ItmError(f"cannot write to {folder} ({reason}); mend that, and the same command goes on there") from error


class _Progress:
    """The folder of unfinished work, and how many rows of each split are safely in it."""

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder, self.description = folder, description
        self.rows: dict[str, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ItmError(f"cannot make {folder}: {error.strerror}; choose another output") from None
        if (folder / PROGRESS).exists():
            self._go_on()
        else:
            self.save()

    def _go_on(self) -> None:
        content = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))
        before = content["description"]
        different = [key for key in self.description if before.get(key) != self.description[key]]
        if different:
            raise ItmError(
                f"{self.folder} was begun with another {' and '.join(different)}; remove it, or choose another output"
            )
        self.rows = content["rows"]
        log.info("going on in %s: %s rows are done", self.folder, sum(self.rows.values()))

    def save(self) -> None:
        """Write the numbers of rows, in one piece."""
        part = self.folder / f".{PROGRESS}"
        part.write_text(json.dumps({"description": self.description, "rows": self.rows}), encoding="utf-8")
        os.replace(part, self.folder / PROGRESS)

    def finish(self, out: Path) -> None:
        """Describe the whole and put it in its place."""
        text = json.dumps({**self.description, "rows": self.rows}, indent=2) + "\n"
        (self.folder / DESCRIPTION).write_text(text, encoding="utf-8")
        (self.folder / PROGRESS).unlink()
        self.folder.rename(out)


class _Pictures(Dataset):
    """Processed pictures by position."""

    def __init__(self, files: Sequence[Path], processor: Any, start: int) -> None:
        self.files, self.processor, self.start = files, processor, start

    def __len__(self) -> int:
        return len(self.files) - self.start

    def __getitem__(self, position: int) -> Any:
        return self.processor(open_picture(self.files[self.start + position]))


def _write_features(
    progress: _Progress, split: str, files: Sequence[Path], encoder: FeatureModel, recipe: Recipe, workers: int
) -> None:
    """Encode batch by batch; a row counts as done once its bytes are flushed."""
    path = progress.folder / f"{split}_ims.npy"
    done = progress.rows.get(split, 0)
    if done == len(files):
        return
    pictures = _Pictures(files, encoder.processor, done)
    array = open_memmap(path, mode="r+") if done else _new_array(path, len(files), encoder, recipe)
    bar = tqdm(total=len(files), initial=done, desc=f"{split} features", disable=None)
    for batch in DataLoader(pictures, batch_size=recipe.batch_size, num_workers=workers):
        features = encoder.features(batch).numpy()
        array[done : done + len(features)] = _finite(features.astype(recipe.dtype), files[done])
        array.flush()
        done += len(features)
        progress.rows[split] = done
        progress.save()
        bar.update(len(features))
    bar.close()


def _new_array(path: Path, rows: int, encoder: FeatureModel, recipe: Recipe) -> np.ndarray:
    """The whole file, mapped; its space is taken now, since a full disk would later kill the process."""
    blank = torch.zeros(1, 3, recipe.image_size, recipe.image_size)
    array = open_memmap(path, mode="w+", dtype=recipe.dtype, shape=(rows, *encoder.features(blank).shape[1:]))
    try:
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise ItmError(f"{path} needs {path.stat().st_size / 1e9:.1f} GB ({error.strerror}); free some space") from None
    return array


def _finite(features: np.ndarray, first: Path) -> np.ndarray:
    if not np.isfinite(features).all():
        raise ItmError(f"features from {first} on overflow {features.dtype}; give --dtype float32")
    return features


def _write_texts(folder: Path, split: str, images: Sequence[AnnotatedImage]) -> None:
    """Captions in image order, names of images, and each caption's row."""
    captions = [(row, caption) for row, image in enumerate(images) for caption in image.captions]
    lines = {
        "caps": [caption for _, caption in captions],
        "ids": [image.name for image in images],
        "image_ids": [str(row) for row, _ in captions],
    }
    for kind, texts in lines.items():
        # a line break within a caption would shift every caption after it to another image
        content = "".join(re.sub(r"[\r\n]+", " ", text) + "\n" for text in texts)
        (folder / f"{split}_{kind}.txt").write_text(content, encoding="utf-8", newline="\n")


def _description(annotations: Annotations, recipe: Recipe) -> dict[str, Any]:
    """What features.json says: the recipe, the data's fingerprint, and versions."""
    data = [[split, image.name, image.captions] for split, images in annotations.splits.items() for image in images]
    return {
        **asdict(recipe),
        "data_sha256": hashlib.sha256(json.dumps(data).encode()).hexdigest(),
        "versions": {name: version(name) for name in PACKAGES},
    }
