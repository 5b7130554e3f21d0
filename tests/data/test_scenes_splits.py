"""The splits of the generated data set: they share no scene, are alike, and read the same from every file."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lavis_itm_plugins.data.builders import ScenesBuilder
from lavis_itm_plugins.data.pictures import DecodedPictures
from lavis_itm_plugins.data.scenes import Scene, SceneConfig, Thing, load_scenes, store
from lavis_itm_plugins.data.scenes.captions import tokenize


def test_karpathy_json_and_loader_agree(folder: Path) -> None:
    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["dataset"] == "scenes"
    assert [image["imgid"] for image in dataset["images"]] == list(range(48))
    assert [s["sentid"] for image in dataset["images"] for s in image["sentences"]] == list(range(240))
    seen = []
    for split, count in {"train": 30, "val": 6, "test": 12}.items():
        loaded = load_scenes(folder, split)
        images = {image["imgid"]: image for image in dataset["images"] if image["split"] == split}
        assert loaded.image_ids.tolist() == list(images) and len(images) == count
        assert loaded.caption_image.tolist() == [row for row in range(count) for _ in range(5)]
        for caption, row in zip(loaded.captions, loaded.caption_image, strict=True):
            image = images[int(loaded.image_ids[row])]
            sentence = next(s for s in image["sentences"] if s["raw"] == caption)
            assert sentence["imgid"] == image["imgid"] and sentence["sentid"] in image["sentids"]
            assert sentence["tokens"] == tokenize(caption)
            assert loaded.image_paths[row] == folder / image["filepath"] / image["filename"]
        for path in loaded.image_paths:
            with Image.open(path) as picture:
                assert (picture.size, picture.mode) == ((32, 32), "RGB")
        seen += loaded.image_ids.tolist()
    assert len(set(seen)) == 48


def test_splits_are_disjoint() -> None:
    splits: dict[str, list[Scene]] = {"train": [], "val": [], "test": []}
    for split, scene in store._sample_splits(SceneConfig(1000, 1000, 1000), random.Random(0)):
        splits[split].append(scene)
    scenes = [scene for split in splits.values() for scene in split]
    assert len(set(scenes)) == 3000
    in_train, in_val, in_test = ({scene.content for scene in split} for split in splits.values())
    assert not in_train & in_val and not in_train & in_test and not in_val & in_test


def test_splits_are_alike_even_when_the_source_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    def drifting(rng: random.Random) -> Iterator[list[Scene]]:
        for number in range(10_000):
            yield [Scene("day" if number < 600 else "night", (Thing(str(number), "red", "small", "plain"),))]

    monkeypatch.setattr(store, "families", drifting)
    scenes = store._sample_splits(SceneConfig(400, 400, 400), random.Random(0))
    for split in store.SPLITS:
        assert 0.4 < np.mean([scene.background == "day" for name, scene in scenes if name == split]) < 0.6


def test_a_split_has_twins() -> None:
    scenes = [scene for _, scene in store._sample_splits(SceneConfig(400, 1, 1), random.Random(0))]
    looks = Counter(frozenset(thing.looks for thing in scene.things) for scene in scenes if len(scene.groups()) > 1)
    assert sum(count > 1 for count in looks.values()) > 20


def test_the_vocabulary_needs_no_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = {"train": 5, "val": 1, "test": 1, "size": 32, "cache": str(tmp_path), "data_type": "images"}
    builder = ScenesBuilder(wanted)
    captions = load_scenes(builder.folder(), "train").captions
    monkeypatch.setattr(DecodedPictures, "from_files", None)
    assert builder.training_captions() == captions and len(captions) == 25
