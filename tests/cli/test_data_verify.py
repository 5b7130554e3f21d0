"""`lavis-itm data verify` finds everything at once, in pictures, features and the data sets of a project."""

import hashlib
import json

import numpy as np
from cli.data_commands import table
from pictures import pixels_project, write_jsonl, write_lavis
from PIL import Image
from tiny import write_precomp, write_project

from lavis_itm_plugins.data import verify


def test_sound_pictures(data, tmp_path):
    path = write_jsonl(tmp_path)
    code, out, _ = data("verify", path)
    assert code == 0 and out.endswith("usable: nothing found that hinders training\n")
    row = {"images": "12", "captions": "24", "per image": "2/2.00/2", "missing": "0", "undecodable": "0"}
    assert row.items() <= table(out)["train"].items() and table(out)["val"]["images"] == "4"
    assert f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}  {path}" in out
    before = [line for line in out.splitlines() if "images" in line and line.startswith("sha256")]
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "03.png")  # of val
    after = [line for line in data("verify", path)[1].splitlines() if "images" in line and line.startswith("sha256")]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert "sha256" not in data("verify", path, "--no-checksum")[1]


def test_every_fault_of_pictures_is_counted_and_the_first_few_named(data, tmp_path):
    path = write_jsonl(tmp_path)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for number in (0, 1, 2, 5):
        (tmp_path / "images" / f"{number:02}.png").unlink()
    (tmp_path / "images" / "06.png").write_bytes(b"")
    (tmp_path / "images" / "03.png").write_bytes((tmp_path / "images" / "03.png").read_bytes()[:300])
    entries[7]["captions"] = ["same", "Same ", "other"]
    entries[10]["captions"] = ["same", "..."]
    entries[11]["captions"] = ["same"]
    entries.append({**entries[12], "split": "val"})
    path.write_text("\n".join([*map(json.dumps, entries), "junk"]))
    code, out, error = data("verify", path)
    assert code == 2
    assert error == (
        f"error: {path} cannot be used as it is (faulty entries, missing image files, undecodable images); "
        "mend what is named above\n"
    )
    names = "; ".join(str(tmp_path / "images" / f"{number:02}.png") for number in (0, 1, 2))
    assert f"missing image files: 4 ({names}; ...)" in out
    assert "undecodable images: 2 (" in out and "03.png cannot be decoded" in out and "06.png cannot be decoded" in out
    assert "faulty entries: 2 (" in out and "line 11: caption '...' has no words" in out and "line 22 is not" in out
    assert "captions shared by several images: 1 (train: 'same' 2 times)" in out
    assert "images in several splits: 1 (images/12.png)" in out
    found = table(out)
    assert (
        found["train"]["missing"] == "4" and found["train"]["undecodable"] == "1" and found["val"]["undecodable"] == "1"
    )
    assert found["train"]["duplicate"] == "1" and found["train"]["shared"] == "1"


def test_an_unreadable_annotation_file_is_one_sentence(data, tmp_path):
    (tmp_path / "a.json").write_text("{")
    code, _, error = data("verify", tmp_path / "a.json")
    assert code == 2 and error.startswith(f"error: {tmp_path / 'a.json'} is not valid JSON")
    assert data("verify")[2] == "error: give either a data set or --cfg-path\n"
    assert data("verify", "a", "b")[2] == "error: a b: give one path, or each as train=FILE, val=FILE or test=FILE\n"


def test_sound_features(data, tmp_path):
    root = write_precomp(tmp_path / "f")
    code, out, _ = data("verify", root)
    assert code == 0
    row = {"images": "24", "captions": "120", "features": "24 x 3 x 8", "type": "float32", "NaN/inf rows": "0"}
    assert row.items() <= table(out)["train"].items()
    assert "sha256 " + hashlib.sha256((root / "dev_ims.npy").read_bytes()).hexdigest() in out


def test_every_fault_of_features(data, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "BLOCK_BYTES", 200)  # two rows at a time
    root = write_precomp(tmp_path / "f", test=4)
    features = np.load(root / "train_ims.npy")
    features[[3, 4, 23], 1, 2] = np.nan, np.inf, -np.inf
    np.save(root / "train_ims.npy", features)
    captions = (root / "train_caps.txt").read_text().splitlines()
    (root / "train_caps.txt").write_text("\n".join(["", *captions[1:]]))
    (root / "dev_caps.txt").write_text("one\ntwo\nthree")
    np.save(root / "test_ims.npy", np.zeros((4, 3, 9), np.float32))
    code, out, error = data("verify", root)
    assert code == 2
    assert "captions without words, counts that do not fit, feature rows with NaN or infinity, feature sizes" in error
    assert (
        "feature rows with NaN or infinity: 3 (" in out
        and "row 23" in out
        and table(out)["train"]["NaN/inf rows"] == "3"
    )
    assert "counts that do not fit: 1 (" in out and "3 captions for 8 rows" in out
    assert "feature sizes differ: 1 (train 8, val 8, test 9)" in out
    assert "captions without words: 1 (train: '')" in out


def test_features_that_cannot_be_read(data, tmp_path):
    root = write_precomp(tmp_path / "f")
    (root / "dev_ims.npy").write_bytes((root / "dev_ims.npy").read_bytes()[:200])
    (root / "train_ids.txt").write_text("only\ntwo\n")
    (root / "test_caps.txt").write_bytes(b"\xff")
    np.save(root / "test_ims.npy", np.zeros((1, 8), np.float32))
    code, out, _ = data("verify", root, "--no-checksum")
    assert code == 2
    assert (
        "unreadable files: 2 (" in out and "dev_ims.npy cannot be read" in out and "test_caps.txt is not UTF-8" in out
    )
    assert "train_ids.txt has 2 names for 24 images" in out


def test_the_data_sets_of_a_project(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_ITM_CACHE", str(tmp_path / "cache"))
    section = {"build_info": write_lavis(tmp_path / "lavis")}
    datasets = {
        "itm_pairs": {"annotations": str(write_jsonl(tmp_path / "pairs"))},
        "itm_precomp": {"root": str(write_precomp(tmp_path / "precomp"))},
        "itm_scenes": {"train": 3, "val": 1, "test": 1},
        "flickr30k": section,
    }
    path = write_project(tmp_path / "p.yaml", pixels_project(datasets, tmp_path))
    code, out, error = data("verify", "--cfg-path", path, "--no-checksum")
    assert (code, error) == (0, "")
    titles = [part.splitlines()[0] for part in out.split("\n\n") if "split" in part]
    assert len(titles) == 4 or out.count("split ") == 4
    (tmp_path / "lavis" / "images" / "04.png").unlink()
    code, out, _ = data("verify", "--cfg-path", path, "--no-checksum")
    assert code == 2 and f"missing image files: 1 ({tmp_path / 'lavis' / 'images' / '04.png'})" in out
    code, _, error = data("verify", "--cfg-path", path, "--options", "datasets.itm_pairs.images=/nowhere")
    assert code == 2 and "missing image files" in error
