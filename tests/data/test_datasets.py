"""Items and batches of a split, and the random numbers that belong to an item."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import default_collate

from lavis_itm_plugins.data.datasets import CaptionDataset, CaptionEvalDataset
from lavis_itm_plugins.data.features import FeatureFile
from lavis_itm_plugins.data.fingerprint import fingerprint
from lavis_itm_plugins.data.pictures import DecodedPictures, PictureFiles
from lavis_itm_plugins.data.randomness import keyed_uniform, seeded
from lavis_itm_plugins.data.splits import CaptionSplit
from lavis_itm_plugins.errors import ItmError

CAPTION_IMAGE = [0, 0, 1, 2, 2, 2, 3]


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Four images in other rows of a file, seven captions."""
    path = tmp_path_factory.mktemp("split") / "a.npy"
    np.save(path, np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float16))
    captions = [f"caption {number}" for number in range(7)]
    names = [f"{row}.jpg" for row in range(4)]
    return CaptionSplit("train", FeatureFile(path), np.array([5, 0, 2, 3]), captions, np.array(CAPTION_IMAGE), names)


def same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key], key


def test_an_item_has_its_captions_image(split):
    item = CaptionDataset(split)[4]
    assert torch.equal(item["image"], split.images.fetch(np.array([2]))[0])
    assert (item["text_input"], item["image_id"].item(), item["index"].item()) == ("caption 4", 2, 4)
    assert item["image_id"].dtype == torch.int64 and item["instance_id"] == "4" and "image_mask" not in item


@pytest.mark.parametrize("region_drop", [0.0, 0.5])
def test_a_batch_equals_its_items_stacked(split, region_drop):
    train, evaluation = CaptionDataset(split, region_drop=region_drop), CaptionEvalDataset(split)
    for dataset, rows in ((train, [6, 0, 3, 3]), (evaluation, [3, 0, 1])):
        batch = dataset.__getitems__(rows)
        same(batch, default_collate([dataset[row] for row in rows]))
        same(batch, dataset.collater(dataset.__getitems__(rows)))
        same(batch, dataset.collater([dataset[row] for row in rows]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_same_batches_with_any_number_of_workers(split, workers):
    dataset = CaptionDataset(split, region_drop=0.4, seed=5)
    loader = DataLoader(dataset, batch_size=3, num_workers=workers, collate_fn=dataset.collater)
    for batch, rows in zip(loader, ([0, 1, 2], [3, 4, 5], [6]), strict=True):
        same(batch, dataset.__getitems__(rows))


def test_an_evaluation_set_has_what_lavis_asks_for(split):
    dataset = CaptionEvalDataset(split)
    assert len(dataset) == 4 and dataset.text == split.captions and dataset.image == split.image_names
    assert dataset.txt2img == dict(enumerate(CAPTION_IMAGE))
    assert dataset.img2txt == {0: [0, 1], 1: [2], 2: [3, 4, 5], 3: [6]}
    item = dataset[1]
    assert torch.equal(item["image"], split.images.fetch(np.array([0]))[0]) and item["index"].item() == 1


def test_a_dataset_travels_to_a_worker_without_its_features(split):
    assert len(pickle.dumps(CaptionDataset(split))) < 5000


def masks(split, rows, *, epoch=0, seed=0, drop=0.5):
    dataset = CaptionDataset(split, region_drop=drop, seed=seed)
    dataset.set_epoch(epoch)
    return dataset.__getitems__(rows)["image_mask"]


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.integers(0, 6), min_size=1, max_size=8), epoch=st.integers(0, 50), seed=st.integers(0, 2**40))
def test_which_regions_are_left_out_depends_on_seed_epoch_and_caption_alone(split, rows, epoch, seed):
    together = masks(split, rows, epoch=epoch, seed=seed)
    assert together.shape == (len(rows), 5) and together.dtype == torch.bool
    for row, mask in zip(rows, together, strict=True):
        assert torch.equal(masks(split, [row], epoch=epoch, seed=seed)[0], mask)


def test_another_epoch_seed_or_caption_leaves_out_others(split):
    everything = list(range(7))
    first = masks(split, everything)
    assert not torch.equal(first, masks(split, everything, epoch=1))
    assert not torch.equal(first, masks(split, everything, seed=1))
    assert len({tuple(row.tolist()) for row in first}) > 3


@pytest.mark.parametrize(("drop", "low", "high"), [(0.2, 0.18, 0.22), (0.5, 0.45, 0.5), (0.999, 0.79, 0.8)])
def test_the_share_left_out_and_never_all(split, drop, low, high):
    """Of five regions one always stays, so at most four fifths go."""
    drawn = torch.cat([masks(split, list(range(7)), epoch=epoch, drop=drop) for epoch in range(500)])
    assert drawn.any(dim=1).all()
    assert low <= 1 - drawn.double().mean().item() <= high


def hash_of(images, names=("a", "b")):
    rows = np.arange(len(images))
    return fingerprint(CaptionDataset(CaptionSplit("train", images, rows, ["x"] * len(rows), rows, names)))


def test_a_fingerprint_depends_on_features_and_not_on_where_they_lie(tmp_path):
    array = np.random.default_rng(0).normal(size=(40, 5, 3)).astype(np.float32)
    changed = array.copy()
    changed[-1] += 1
    hashes = []
    for name, content in {
        "a": array,
        "b": array,
        "c": changed,
        "d": array.astype(np.float16),
        "e": array[:, :3],
    }.items():
        np.save(tmp_path / f"{name}.npy", content)
        hashes.append(hash_of(FeatureFile(tmp_path / f"{name}.npy")))
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4


def test_a_fingerprint_depends_on_pictures():
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    assert hash_of(DecodedPictures(pixels)) == hash_of(DecodedPictures(pixels.copy()))
    assert hash_of(DecodedPictures(pixels)) != hash_of(DecodedPictures(pixels + 1))


def test_a_fingerprint_depends_on_names_and_sizes_of_picture_files(tmp_path):
    files = {}
    for folder, size in (("a", 8), ("b", 8), ("c", 9)):
        (tmp_path / folder).mkdir()
        files[folder] = [tmp_path / folder / name for name in ("0.png", "1.png")]
        for file in files[folder]:
            file.write_bytes(bytes(size))
    here, there, larger = (hash_of(PictureFiles(files[folder], str)) for folder in "abc")
    assert here == there != larger
    assert hash_of(PictureFiles(files["a"], str), ("a", "c")) != here


def test_keyed_uniform_is_uniform_and_independent():
    draws = keyed_uniform(3, 1, np.arange(5000), 36)
    assert draws.dtype == np.float64 and draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=64, range=(0, 1))[0]
    expected = draws.size / 64
    # 63 degrees of freedom: 120 is exceeded by chance in 2 of 100,000 cases
    assert ((counts - expected) ** 2 / expected).sum() < 120
    neighbours = [(draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1])]
    neighbours += [(draws, keyed_uniform(seed, epoch, np.arange(5000), 36)) for seed, epoch in ((3, 2), (4, 1))]
    for one, other in neighbours:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


def test_seeded_draws_by_key_and_puts_the_generators_back():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    with seeded(1):
        first, rest = draw(), draw()
    with seeded(1):
        assert draw() == first
        with seeded(2, 0):
            other = draw()
        assert draw() == rest
    assert not set(first) & set(other)


def test_a_split_is_checked_when_it_is_made(split):
    with pytest.raises(ItmError, match="the val split is empty; give at least one image with one caption"):
        CaptionSplit("val", split.images, np.arange(2), [], np.array([]))
    with pytest.raises(ItmError, match="the val split is empty"):
        CaptionSplit("val", split.images, np.arange(0), ["a dog"], np.array([0]))
    with pytest.raises(ItmError, match="val: 2 captions but 1 image ids"):
        CaptionSplit("val", split.images, np.arange(2), ["a dog", "a cat"], np.array([0]))
