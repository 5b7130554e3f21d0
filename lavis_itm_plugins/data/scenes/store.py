"""The generated data set on disk: made once for each configuration, checked, and read back."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lavis_itm_plugins.data.scenes.captions import tokenize, write_captions
from lavis_itm_plugins.data.scenes.claims import Claims
from lavis_itm_plugins.data.scenes.draw import draw_scene
from lavis_itm_plugins.data.scenes.twins import MAX_FAMILY, families
from lavis_itm_plugins.data.scenes.world import Scene
from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.paths import user_path

VERSION = 1  # raise it whenever a change gives other bytes for the same configuration
SPLITS = ("train", "val", "test")
# far below the number of different scenes, so that small scenes keep their share
MAX_IMAGES = 50_000


@dataclass(frozen=True)
class SceneConfig:
    """Which data set: pictures in each split, the random seed, and the pictures' side in pixels.

    >>> SceneConfig(train=2000, val=300).folder_name
    'scenes-v1-seed0-train2000-val300-test500-size64'
    """

    train: int = 2500
    val: int = 250
    test: int = 500
    seed: int = 0
    size: int = 64

    def __post_init__(self) -> None:
        limits = {"train": (1, None), "val": (1, None), "test": (1, None), "seed": (0, None), "size": (32, 512)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least or (most and value > most):
                span = f"from {least} to {most}" if most else f"of at least {least}"
                raise ItmError(f"scenes: {name} is {value!r}; give a whole number {span}")
        if self.n_images > MAX_IMAGES:
            raise ItmError(f"scenes: {self.n_images} pictures are asked for; give at most {MAX_IMAGES} over all splits")

    @property
    def n_images(self) -> int:
        """Pictures over all splits."""
        return self.train + self.val + self.test

    @property
    def folder_name(self) -> str:
        """Name of the cache folder: every setting is in it."""
        counts = "-".join(f"{split}{getattr(self, split)}" for split in SPLITS)
        return f"scenes-v{VERSION}-seed{self.seed}-{counts}-size{self.size}"


@dataclass(frozen=True)
class SceneSplit:
    """One split, in order of image ids. `caption_image` (n_captions,) is a position in `image_paths`, not an id."""

    image_paths: list[Path]
    image_ids: npt.NDArray[np.int64]
    captions: list[str]
    caption_image: npt.NDArray[np.int64]
    scenes: list[Scene]
    claims: list[Claims]


def default_cache_root() -> Path:
    """`$LAVIS_ITM_CACHE`, else `$XDG_CACHE_HOME/lavis-itm`, else `~/.cache/lavis-itm`."""
    if chosen := os.environ.get("LAVIS_ITM_CACHE"):
        return user_path(chosen)
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lavis-itm"


def build_scenes(config: SceneConfig, cache_root: str | Path | None = None, progress: bool = True) -> Path:
    """The folder of the data set, made if it is not there or is damaged.

    Safe against being killed (the folder appears whole or not at all) and against several processes at once (one
    makes it, the others wait). `progress` shows a bar on a terminal. Raises ItmError when the cache is not writable.
    """
    root = default_cache_root() if cache_root is None else user_path(cache_root)
    folder = root / config.folder_name
    if _is_complete(folder, config):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{config.folder_name}.lock"):
            if not _is_complete(folder, config):
                _build(folder, config, progress)
    except OSError as error:
        raise ItmError(
            f"cannot write generated scenes to {root} ({error.strerror}); set LAVIS_ITM_CACHE to a writable folder"
        ) from error
    return folder


def load_scenes(folder: str | Path, split: str) -> SceneSplit:
    """One split ("train", "val" or "test") of a folder that `build_scenes` made."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    folder = Path(folder)
    try:
        images = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["images"]
        graphs = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise ItmError(f"{folder} holds no readable generated scenes ({error}); make it with build_scenes") from error
    images = [image for image in images if image["split"] == split]
    sentences = [(row, sentence) for row, image in enumerate(images) for sentence in image["sentences"]]
    return SceneSplit(
        image_paths=[folder / image["filepath"] / image["filename"] for image in images],
        image_ids=np.array([image["imgid"] for image in images], dtype=np.int64),
        captions=[sentence["raw"] for _, sentence in sentences],
        caption_image=np.array([row for row, _ in sentences], dtype=np.int64),
        scenes=[Scene.from_json(graphs["scenes"][image["imgid"]]) for image in images],
        claims=[Claims.from_json(graphs["claims"][sentence["sentid"]]) for _, sentence in sentences],
    )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system frees it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(folder: Path, config: SceneConfig, progress: bool) -> None:
    """Make the data set beside its place and move it there; the caller holds the lock."""
    prefix = f".{config.folder_name}.part-"
    for left_over in folder.parent.glob(f"{prefix}*"):  # of runs that were killed: we hold the lock, so none is at work
        shutil.rmtree(left_over, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        _write(part, config, progress)
        part.chmod(0o755)  # mkdtemp's folder is private, a cache may be shared
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(folder: Path, config: SceneConfig, progress: bool) -> None:
    rng = random.Random(f"scenes {VERSION} {config.seed}")
    scenes = _sample_splits(config, rng)
    images: list[dict[str, Any]] = []
    claims: list[dict[str, Any]] = []
    # disable=None: a bar on a terminal only
    bar = tqdm(scenes, "scenes", disable=None if progress else True)
    for image_id, (split, scene) in enumerate(bar):
        filename = f"{image_id:06d}.png"
        path = folder / "images" / split / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_scene(scene, config.size, rng).save(path)
        written = write_captions(scene, rng)
        images.append(_entry(image_id, split, filename, [text for text, _ in written], len(claims)))
        claims += [claim.to_json() for _, claim in written]
    _write_json(folder / "dataset.json", {"dataset": "scenes", "images": images})
    _write_json(folder / "scenes.json", {"scenes": [scene.to_json() for _, scene in scenes], "claims": claims})
    _write_json(folder / "manifest.json", _manifest(folder, config))


def _sample_splits(config: SceneConfig, rng: random.Random) -> list[tuple[str, Scene]]:
    """Scenes with their splits, in order of image ids; a family is in one split only."""
    made: list[list[Scene]] = []
    missing = config.n_images + len(SPLITS) * MAX_FAMILY  # the last family of each split may be cut short
    for family in families(rng):
        made.append(family)
        missing -= len(family)
        if missing <= 0:
            break
    # late families are a little less often of one thing, as those are used up first: shuffled, all splits are alike
    rng.shuffle(made)
    remaining = iter(made)
    scenes = []
    for split in SPLITS:
        count = getattr(config, split)
        chosen: list[Scene] = []
        while len(chosen) < count:
            chosen += next(remaining)
        # pictures of a family need not be neighbours
        scenes += [(split, scene) for scene in rng.sample(chosen[:count], count)]
    return scenes


def _entry(image_id: int, split: str, filename: str, captions: list[str], first: int) -> dict[str, Any]:
    """One picture in Karpathy's form; `filepath` is relative to the folder that holds dataset.json."""
    sentence_ids = list(range(first, first + len(captions)))
    return {
        "imgid": image_id,
        "filename": filename,
        "filepath": f"images/{split}",
        "split": split,
        "sentids": sentence_ids,
        "sentences": [
            {"raw": caption, "tokens": tokenize(caption), "imgid": image_id, "sentid": sentence_id}
            for sentence_id, caption in zip(sentence_ids, captions, strict=True)
        ],
    }


def _write_json(path: Path, node: dict[str, Any]) -> None:
    path.write_text(json.dumps(node, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")


def _manifest(folder: Path, config: SceneConfig) -> dict[str, Any]:
    """What a complete folder holds: number and bytes of the pictures in each split, and hashes of the JSON files."""
    sizes = {split: [path.stat().st_size for path in (folder / "images" / split).iterdir()] for split in SPLITS}
    return {
        "version": VERSION,
        "config": asdict(config),
        "images": {split: {"count": len(found), "bytes": sum(found)} for split, found in sizes.items()},
        "sha256": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("dataset.json", "scenes.json")
        },
    }


def _is_complete(folder: Path, config: SceneConfig) -> bool:
    """Whether the folder is as its manifest says, and the manifest is this configuration's."""
    try:
        return bool(json.loads((folder / "manifest.json").read_text(encoding="utf-8")) == _manifest(folder, config))
    except (OSError, ValueError):
        return False
