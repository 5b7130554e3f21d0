"""The SCAN layout is read as people have it: any number of captions, repeated rows, ids and names of either kind."""

from __future__ import annotations

import numpy as np
import pytest
from data.precomp_files import features_of, numbered, sentence, write

from lavis_itm_plugins.data.builders import PrecompBuilder
from lavis_itm_plugins.data.precomp import read_precomp
from lavis_itm_plugins.errors import ItmError


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


def built(root):
    return PrecompBuilder({"root": str(root), "data_type": "features"})


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


def test_text_files_are_utf8_with_any_line_end(tmp_path):
    root = write(tmp_path, features=features_of(2), captions=numbered(2))
    (root / "train_caps.txt").write_bytes("\ufeffun café\u2028noir\r\nzwei Hunde".encode())
    assert read_precomp(root, "train").captions == ["un café\u2028noir", "zwei Hunde"]
    (root / "train_caps.txt").write_bytes("un café\ndeux chiens\n".encode("latin-1"))
    assert sentence(root) == f"{root}/train_caps.txt is not UTF-8 (byte 6); convert it, e.g. with iconv -f latin1"
