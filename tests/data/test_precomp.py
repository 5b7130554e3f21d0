"""The SCAN layout as people have it: what is accepted and how it is read, and one sentence for the rest."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis_itm_plugins.data.builders import PrecompBuilder
from lavis_itm_plugins.data.features import FeatureFile
from lavis_itm_plugins.data.precomp import read_precomp
from lavis_itm_plugins.errors import ItmError


def features_of(images, *, regions=2, dim=3, dtype=np.float32):
    """Each row's values say which image it is."""
    return (np.arange(images)[:, None, None] + np.zeros((1, regions, dim))).astype(dtype)


def write(root: Path, prefix="train", *, features, captions, ids=None, names=None) -> Path:
    root.mkdir(exist_ok=True)
    np.save(root / f"{prefix}_ims.npy", features)
    for name, lines in (("caps", captions), ("image_ids", ids), ("ids", names)):
        if lines is not None:
            text = "".join(f"{line}\n" for line in lines)
            (root / f"{prefix}_{name}.txt").write_text(text, encoding="utf-8")
    return root


def numbered(count):
    return [f"caption {number}" for number in range(count)]


def sentence(root, split="train"):
    with pytest.raises(ItmError) as caught:
        read_precomp(root, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def built(root):
    return PrecompBuilder({"root": str(root), "data_type": "features"})


def test_five_captions_for_each_row(tmp_path):
    split = read_precomp(write(tmp_path, features=features_of(4), captions=numbered(20)), "train")
    assert split.n_images == 4 and split.caption_image.tolist() == [row for row in range(4) for _ in range(5)]
    assert split.image_rows.tolist() == [0, 1, 2, 3] and split.captions[7] == "caption 7"
    assert split.image_names == ["0", "1", "2", "3"]


def test_an_images_row_may_be_repeated_for_its_five_captions(tmp_path):
    repeated = features_of(3).repeat(5, axis=0)
    split = read_precomp(write(tmp_path, features=repeated, captions=numbered(15)), "train")
    assert split.n_images == 3 and split.image_rows.tolist() == [0, 5, 10]
    assert split.caption_image.tolist() == [row for row in range(3) for _ in range(5)]


@pytest.mark.parametrize("per_image", [1, 2, 3, 7])
def test_any_whole_number_of_captions(tmp_path, per_image):
    """With one for each of ten images there are as many rows as captions, and the rows differ."""
    split = read_precomp(write(tmp_path, features=features_of(10), captions=numbered(10 * per_image)), "train")
    assert split.n_images == 10
    assert split.caption_image.tolist() == [row for row in range(10) for _ in range(per_image)]


def test_rows_that_differ_in_one_value_are_images_of_their_own(tmp_path):
    features = features_of(2).repeat(5, axis=0)
    features[9, -1, -1] += 1
    split = read_precomp(write(tmp_path, features=features, captions=numbered(10)), "train")
    assert split.n_images == 10


def test_equal_rows_are_one_image_only_where_each_caption_has_a_row(tmp_path):
    root = write(tmp_path, features=features_of(2).repeat(5, axis=0), captions=numbered(20))
    assert read_precomp(root, "train").n_images == 10


def test_rows_of_one_vector(tmp_path):
    split = read_precomp(write(tmp_path, features=features_of(4)[:, 0], captions=numbered(20)), "train")
    assert split.images.fetch(np.array([3, 1])).tolist() == [[[3.0] * 3], [[1.0] * 3]]


IDS = {
    "row numbers": (3, [2, 0, 2, 1, 0], [0, 1, 2], [2, 0, 2, 1, 0]),
    "rows without a caption": (4, [3, 0, 3], [0, 3], [1, 0, 1]),
    "any numbers, rows by first appearance": (3, [70, 5, 70, 9], [0, 1, 2], [0, 1, 0, 2]),
    "a row for each caption": (4, [70, 5, 70, 9], [0, 1, 3], [0, 1, 0, 2]),
    "negative": (2, [-4, -4, 8], [0, 1], [0, 0, 1]),
}


@pytest.mark.parametrize(("rows", "ids", "image_rows", "caption_image"), IDS.values(), ids=IDS)
def test_image_ids_in_each_meaning(tmp_path, rows, ids, image_rows, caption_image):
    root = write(tmp_path, features=features_of(rows), captions=numbered(len(ids)), ids=ids)
    split = read_precomp(root, "train")
    assert split.image_rows.tolist() == image_rows
    assert split.caption_image.tolist() == caption_image


def test_names_of_images_or_of_rows(tmp_path):
    root = write(tmp_path, features=features_of(2), captions=numbered(4), names=["a.jpg", "b.jpg"])
    assert read_precomp(root, "train").image_names == ["a.jpg", "b.jpg"]
    names = [f"{image}.jpg" for image in "aaaaabbbbb"]
    write(root, features=features_of(2).repeat(5, axis=0), captions=numbered(10), names=names)
    assert read_precomp(root, "train").image_names == ["a.jpg", "b.jpg"]
    write(root, features=features_of(2), captions=numbered(4), names=["a.jpg", "b.jpg", "c.jpg"])
    assert "train_ids.txt has 3 names for 2 images" in sentence(root)


def test_val_is_read_from_val_or_else_from_dev(tmp_path):
    root = write(tmp_path, "dev", features=features_of(2), captions=["dev a", "dev b"])
    assert read_precomp(root, "val").captions == ["dev a", "dev b"]
    write(root, "val", features=features_of(2), captions=["val a", "val b"])
    assert read_precomp(root, "val").captions == ["val a", "val b"]


def test_a_split_that_is_not_there_is_left_out(tmp_path):
    builder = built(write(tmp_path, features=features_of(2), captions=numbered(4)))
    assert set(builder.build()) == {"train"} and builder.feature_size() == 3
    write(tmp_path, "dev", features=features_of(2), captions=numbered(4))
    write(tmp_path, "test", features=features_of(2), captions=numbered(4))
    assert set(builder.build()) == {"train", "val", "test"}
    (tmp_path / "test_ims.npy").unlink()
    with pytest.raises(ItmError, match=r"test_ims.npy does not exist"):
        builder.build()
    (tmp_path / "train_ims.npy").unlink()
    (tmp_path / "train_caps.txt").unlink()
    with pytest.raises(ItmError, match=r"train_ims.npy does not exist"):
        builder.build()


def test_root_is_relative_to_the_current_folder_or_to_home(tmp_path, monkeypatch):
    write(tmp_path / "data", features=features_of(2), captions=numbered(4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in ("data", "~/data"):
        builder = built(root)
        assert builder.feature_size() == 3 and len(builder.training_captions()) == 4
    assert sentence("nowhere") == "data folder nowhere does not exist; set `root` to the folder with train_ims.npy"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"captions": numbered(7)}, "7 captions for 3 rows in train_ims.npy, which is no whole number for each image"),
        ({"captions": numbered(2)}, "2 captions for 3 rows"),
        ({"captions": []}, "the train split in {root} is empty; give at least one image with one caption"),
        ({"features": features_of(0)}, "the train split in {root} is empty"),
        ({"captions": ["a dog", " ... ", "a cat"]}, "train_caps.txt: caption 2 (' ... ') has no words"),
        ({"captions": ["a dog", "", "a cat"]}, "train_caps.txt: caption 2 ('') has no words"),
        ({"captions": numbered(3), "ids": [0, 1]}, "train_image_ids.txt has 2 lines for 3 captions"),
        ({"captions": numbered(3), "ids": [0, "one", 1]}, "train_image_ids.txt, line 2: 'one' is no whole number"),
        ({"captions": numbered(2), "ids": [0, "--1"]}, "line 2: '--1' is no whole number"),
        ({"captions": numbered(2), "ids": [0, 10**30]}, "is no whole number"),
        ({"captions": numbered(4), "ids": [0, 1, 2, 3]}, "names 4 images (ids 0 to 3) but the feature file has 3 rows"),
        ({"captions": numbered(2), "ids": [7, 9]}, "names 2 images (ids 7 to 9) but the feature file has 3 rows"),
    ],
)
def test_counts_that_do_not_fit_are_said(tmp_path, given, expected):
    root = write(tmp_path, **{"features": features_of(3), "captions": numbered(3), **given})
    assert expected.format(root=root) in sentence(root)


def test_a_ragged_caption_file_says_how_to_describe_it(tmp_path):
    root = write(tmp_path, features=features_of(3), captions=numbered(7))
    assert sentence(root).endswith("add train_image_ids.txt with each caption's image id")
    write(root, features=features_of(3), captions=numbered(7), ids=[0, 0, 0, 1, 2, 2, 2])
    assert read_precomp(root, "train").caption_image.tolist() == [0, 0, 0, 1, 2, 2, 2]


def test_a_missing_caption_file(tmp_path):
    root = write(tmp_path, features=features_of(3), captions=None)
    assert sentence(root) == f"{root}/train_caps.txt does not exist; check `root`"


def test_text_files_are_utf8_with_any_line_end(tmp_path):
    root = write(tmp_path, features=features_of(2), captions=numbered(2))
    (root / "train_caps.txt").write_bytes("\ufeffun café\u2028noir\r\nzwei Hunde".encode())
    assert read_precomp(root, "train").captions == ["un café\u2028noir", "zwei Hunde"]
    (root / "train_caps.txt").write_bytes("un café\ndeux chiens\n".encode("latin-1"))
    assert sentence(root) == f"{root}/train_caps.txt is not UTF-8 (byte 6); convert it, e.g. with iconv -f latin1"


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", b"")


DAMAGED = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "header only": lambda path: path.write_bytes(path.read_bytes()[:128]),
    "half a header": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "broken header": lambda path: path.write_bytes(path.read_bytes().replace(b"'shape'", b"(shape'")),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "text": lambda path: path.write_text("hello, this is no array"),
    "npz": archive,
    "pickle": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "objects": lambda path: np.save(path, np.array([{}, {}]), allow_pickle=True),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_feature_file_is_one_sentence(tmp_path, damage):
    root = write(tmp_path, features=features_of(3), captions=numbered(3))
    damage(root / "train_ims.npy")
    assert sentence(root).startswith(f"feature file {root}/train_ims.npy cannot be read as a .npy array (")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (features_of(3, dtype=np.float64), "holds float64; convert it to float16 or float32"),
        (features_of(3, dtype=np.int32), "holds int32; convert it"),
        (features_of(3, dtype=">f4"), "holds >f4; convert it"),
        (np.zeros(3, np.float32), "has shape (3,); expected (images, regions, dim) or (images, dim)"),
        (np.zeros((3, 0, 4), np.float32), "has shape (3, 0, 4); expected"),
        (np.zeros((3, 2, 2, 2), np.float32), "has shape (3, 2, 2, 2); expected"),
    ],
)
def test_another_type_or_shape_is_refused(tmp_path, array, expected):
    assert expected in sentence(write(tmp_path, features=array, captions=numbered(3)))


def test_a_missing_feature_file(tmp_path):
    (tmp_path / "train_caps.txt").write_text("a dog\n")
    expected = f"feature file {tmp_path}/train_ims.npy does not exist; check `root`, or download the features"
    assert sentence(tmp_path) == expected


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4)),
    dtype=st.sampled_from([np.float16, np.float32]),
    order=st.sampled_from("CF"),
    data=st.data(),
)
def test_fetched_rows_are_the_files_rows_in_float32(tmp_path_factory, shape, dtype, order, data):
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    path = tmp_path_factory.mktemp("features") / "a.npy"
    np.save(path, np.asarray(array, order=order))
    rows = np.array(data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=9)), dtype=np.int64)
    fetched = FeatureFile(path).fetch(rows)
    assert fetched.dtype == torch.float32 and fetched.shape == (len(rows), *shape[1:])
    assert torch.equal(fetched, torch.from_numpy(array[rows].astype(np.float32)))


def test_every_float16_value_is_widened_exactly(tmp_path):
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    np.save(tmp_path / "a.npy", values.reshape(2, -1))
    fetched = FeatureFile(tmp_path / "a.npy").fetch(np.array([0, 1])).numpy().ravel()
    np.testing.assert_array_equal(fetched, values.astype(np.float32))


def test_a_batch_keeps_its_values_while_anyone_holds_it(tmp_path):
    """Memory of batches is used again, but only when nothing refers to it: no tensor, view or array."""
    np.save(tmp_path / "a.npy", features_of(40))
    file, held = FeatureFile(tmp_path / "a.npy"), []
    for first in range(0, 38):
        batch = file.fetch(np.array([first, first + 1]))
        held.append((batch, batch[1:, 0], batch.numpy()[0])[first % 3])
        del batch
    for first, kept in enumerate(held):
        expected = ([[[first] * 3] * 2, [[first + 1] * 3] * 2], [[first + 1] * 3], [[first] * 3] * 2)[first % 3]
        assert kept.tolist() == expected


def test_memory_is_used_again_once_a_batch_is_gone(tmp_path):
    np.save(tmp_path / "a.npy", features_of(4))
    file, rows = FeatureFile(tmp_path / "a.npy"), np.array([0, 1])
    first, second = file.fetch(rows), file.fetch(rows)
    address = first.data_ptr()
    assert second.data_ptr() != address
    del first
    assert file.fetch(rows).data_ptr() == address


def test_a_file_is_mapped_and_not_read(tmp_path):
    """Opening it and sending it to a worker cost nothing at any size; this one is half a gigabyte of holes."""
    path = tmp_path / "big.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1_700, 36, 2048))
    array[1_699] = 2.0
    del array
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = FeatureFile(path)
    sent = pickle.dumps(file)
    assert len(sent) < 1000
    assert pickle.loads(sent).fetch(np.array([1_699])).mean() == 2.0


def test_nothing_can_be_written_to_the_file(tmp_path):
    np.save(tmp_path / "a.npy", features_of(2))
    before = (tmp_path / "a.npy").read_bytes()
    file = FeatureFile(tmp_path / "a.npy")
    file.fetch(np.array([0, 1])).fill_(9.0)
    with pytest.raises(ValueError, match="read-only"):
        file.array[0] = 9.0
    assert (tmp_path / "a.npy").read_bytes() == before
