"""What does not fit, is damaged or is missing in the SCAN layout is refused in one sentence."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
from data.precomp_files import features_of, numbered, sentence, write

from lavis_itm_plugins.data.precomp import read_precomp


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
