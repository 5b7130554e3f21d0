"""Data that cannot be used, and a network that does not fit it, are said before training."""

from __future__ import annotations

import numpy as np
import pytest
import tiny


def data_mistakes():
    """What is done to a good data folder, and what is said."""

    def remove(name):
        return lambda root: (root / name).unlink()

    def captions(name, text):
        return lambda root: (root / name).write_text(text)

    def cut(root):
        (root / "dev_ims.npy").write_bytes((root / "dev_ims.npy").read_bytes()[:-5])

    def other_size(root):
        np.save(root / "dev_ims.npy", np.zeros((8, 3, 9), np.float32))

    return {
        "missing features": (remove("train_ims.npy"), "train_ims.npy does not exist; check `root`"),
        "missing dev features": (remove("dev_ims.npy"), "dev_ims.npy does not exist"),
        "missing captions": (remove("train_caps.txt"), "train_caps.txt does not exist"),
        "wrong number": (captions("train_caps.txt", "a dog\n" * 7), "train_caps.txt has 7 captions for 24 rows"),
        "empty": (captions("train_caps.txt", ""), "is empty; give at least one image with one caption"),
        "empty dev": (captions("dev_caps.txt", ""), "the val split in"),
        "no words": (captions("dev_caps.txt", "a dog\n" * 7 + "...\n"), "dev_caps.txt: caption 8 ('...') has no words"),
        "cut short": (cut, "dev_ims.npy cannot be read as a .npy array"),
        "other size": (other_size, "have different sizes: 8 in train, 9 in val"),
    }


@pytest.mark.parametrize("mistake", data_mistakes())
def test_data_that_cannot_be_used_is_said_before_training(attempt, tmp_path, mistake):
    damage, expected = data_mistakes()[mistake]
    damage(tiny.write_precomp(tmp_path / "damaged"))
    assert expected in attempt(**{"datasets.itm_precomp.root": "damaged"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model.image.dim": 9}, "model.image.dim is 9, but the features of the data have size 8"),
        (
            {"model.model_type": "pixels_gru", "model.image.kind": "conv"},
            "reads pictures, but the data has features",
        ),
        ({"model.finetuned": "no.pth"}, "checkpoint no.pth does not exist"),
        ({"model.vocab_path": "no.json"}, "cannot read the vocabulary no.json"),
        ({"model.min_count": 999}, "no word occurs 999 times in the training captions; lower min_count"),
        ({"datasets.itm_precomp.root": "nowhere"}, "data folder nowhere does not exist; set `root` to the folder with"),
    ],
)
def test_a_network_that_does_not_fit_is_said_before_training(attempt, changes, expected):
    assert expected in attempt(**changes)
