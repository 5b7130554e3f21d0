"""`lavis-itm data`: verify finds everything at once; convert keeps everything, and goes on after a kill."""

import errno
import hashlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_itm_plugins.cli.main import main
from lavis_itm_plugins.data import extract, verify
from lavis_itm_plugins.data.annotations import read_annotations
from lavis_itm_plugins.data.feature_models import feature_model
from lavis_itm_plugins.data.pictures import open_picture
from lavis_itm_plugins.data.precomp import read_precomp
from lavis_itm_plugins.devices import check_device
from lavis_itm_plugins.train import run_training
from tests.pictures import captions_of, metrics_of, pixels_project, write_jsonl, write_lavis
from tests.tiny import project, write_precomp, write_project

TINY_CLIP = Path(__file__).resolve().parents[1] / "fixtures" / "tiny_clip" / "__init__.py"


@pytest.fixture
def data(capsys):
    """`data("verify", ...)`: exit code, printed text, and what was printed as an error."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["data", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, "".join(line for line in err.splitlines(True) if line.startswith("error:"))

    return run


def table(out):
    """The printed table: cells by split and column."""
    lines = [line.split("  ") for line in out.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    header = next(row for row in rows if row[:1] == ["split"])
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows if row and row[0] in ("train", "val", "test")}


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


@pytest.mark.parametrize("format", ["karpathy", "lavis", "csv", "jsonl"])
def test_annotations_into_another_form_and_back(format, data, tmp_path):
    path = write_jsonl(tmp_path)
    out = tmp_path / ("lavis" if format == "lavis" else f"out.{'json' if format == 'karpathy' else format}")
    code, printed, _ = data("convert", path, "--to", format, "-o", out)
    assert code == 0 and f"image names are relative to {tmp_path}" in printed
    given = [f"{file.stem}={file}" for file in sorted(out.iterdir())] if format == "lavis" else [out]
    code, _, _ = data("convert", *given, "--images", tmp_path, "--to", "jsonl", "-o", tmp_path / "back.jsonl")
    back = tmp_path / "back.jsonl"
    assert code == 0 and read_annotations(back).splits == read_annotations(path).splits
    assert data("convert", path, "--to", format, "-o", out)[0] == 2  # nothing is written over


FEATURES = ("--to", "precomp", "--model", "resnet18", "--no-pretrained", "--image-size", "32", "--batch-size", "5")


def test_pictures_into_features_that_train(data, tmp_path):
    path = write_jsonl(tmp_path)
    lines = path.read_text().splitlines()
    entry = json.loads(lines[0])
    entry["captions"] += ["one line\r\nand another"]
    path.write_text("\n".join([json.dumps(entry), *lines[1:]]))
    out = tmp_path / "features"
    assert data("convert", path, *FEATURES, "-o", out)[0] == 0
    train = read_precomp(out, "train")
    assert train.captions[:4] == [*captions_of(0), "one line and another", captions_of(1)[0]]
    assert train.caption_image.tolist()[:5] == [0, 0, 0, 1, 1] and train.image_names[1] == "images/01.png"
    assert train.images.array.shape == (12, 1, 512) and train.images.array.dtype == np.float16
    model = feature_model("resnet18", pretrained=False, image_size=32, grid=None, device="cpu")
    pictures = [model.processor(open_picture(tmp_path / name)) for name in train.image_names]
    np.testing.assert_allclose(train.images.array, model.features(torch.stack(pictures)).numpy(), rtol=2e-3, atol=1e-3)
    description = json.loads((out / "features.json").read_text())
    assert description["model"] == "resnet18" and description["rows"] == {"train": 12, "val": 4, "test": 4}
    assert description["versions"]["timm"] == "0.4.12" and not description["pretrained"]
    assert not list(tmp_path.glob("*.part*")) and not list(out.glob("progress*"))
    assert data("verify", out)[0] == 0
    run = write_project(tmp_path / "p.yaml", project(out, tmp_path, max_epoch=1, itm={"run_name": "run"}))
    run_training(run)
    assert [line["split"] for line in metrics_of(tmp_path / "run")] == ["train", "val"]


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """20 pictures and their features, made in one go."""
    folder = tmp_path_factory.mktemp("whole")
    path = write_jsonl(folder)
    assert main(["data", "convert", str(path), *FEATURES, "-o", str(folder / "features")]) == 0
    return path, folder / "features"


full = pytest.mark.full


@pytest.mark.parametrize("saves", [1, pytest.param(2, marks=full), 3, pytest.param(4, marks=full), 5, 6])
def test_a_killed_conversion_goes_on_and_gives_the_same_bytes(saves, whole, data, tmp_path, monkeypatch):
    """12 + 4 + 4 pictures in batches of 5 make 6 saves; the kill falls between a batch's bytes and its save."""
    path, features = whole
    save, saved = extract._Progress.save, []

    def killed(progress):
        saved.append(progress)
        if len(saved) > saves:
            raise KeyboardInterrupt
        save(progress)

    with monkeypatch.context() as patch:
        patch.setattr(extract._Progress, "save", killed)
        stopped = data("convert", path, *FEATURES, "-o", tmp_path / "cut")[0] == 130
    assert stopped == (saves < 6)
    if stopped:
        assert not (tmp_path / "cut").exists() and (tmp_path / "cut.part").is_dir()
        batches = []
        encode = extract.FeatureModel.features
        monkeypatch.setattr(
            extract.FeatureModel, "features", lambda model, batch: batches.append(len(batch)) or encode(model, batch)
        )
        assert data("convert", path, *FEATURES, "-o", tmp_path / "cut")[0] == 0
        todo = [5, 5, 2, 4, 4][saves - 1 :]
        assert [size for size in batches if size > 1] == todo  # what was done is not done again
    assert content(tmp_path / "cut") == content(features)


def test_a_begun_conversion_is_not_mixed_with_another(data, tmp_path, monkeypatch):
    path = write_jsonl(tmp_path)
    (tmp_path / "images" / "04.png").write_bytes(b"")  # of test, the last split
    code, _, error = data("convert", path, *FEATURES, "-o", tmp_path / "out")
    assert code == 2 and "04.png cannot be decoded" in error
    code, _, error = data("convert", path, *FEATURES, "--dtype", "float32", "-o", tmp_path / "out")
    assert error.endswith("out.part was begun with another dtype; remove it, or choose another output\n")
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "04.png")
    assert data("convert", path, *FEATURES, "-o", tmp_path / "out")[0] == 0
    code, _, error = data("convert", path, *FEATURES, "-o", tmp_path / "out")
    assert code == 2 and error.endswith("out exists; remove it, or choose another output\n")


def test_grid_and_float32(data, tmp_path):
    path = write_jsonl(tmp_path, count=5)
    given = (*FEATURES, "--image-size", "64", "--dtype", "float32")
    assert data("convert", path, *given, "-o", tmp_path / "whole")[0] == 0
    assert data("convert", path, *given, "--grid", "1", "-o", tmp_path / "mean")[0] == 0
    whole, mean = (np.load(tmp_path / name / "train_ims.npy") for name in ("whole", "mean"))
    assert whole.shape == (3, 4, 512) and whole.dtype == np.float32
    np.testing.assert_allclose(mean, whole.mean(axis=1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_the_image_encoder_of_a_lavis_model(data, tmp_path):
    spec = importlib.util.spec_from_file_location("tiny_clip", TINY_CLIP)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    path = write_jsonl(tmp_path, count=5)
    given = ("--to", "precomp", "--model", "lavis:clip:itm-tiny", "--no-pretrained")
    assert data("convert", path, *given, "--image-size", "32", "-o", tmp_path / "clip")[0] == 0
    assert np.load(tmp_path / "clip" / "train_ims.npy").shape == (3, 1, 16)
    code, _, error = data("convert", path, *given, "--image-size", "48", "-o", tmp_path / "other")
    assert code == 2 and "lavis:clip:itm-tiny does not read pictures of side 48" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "resnet81"], 'unknown timm model "resnet81"; did you mean'),
        (["--model", "lavis:klip:x"], 'unknown LAVIS model "klip"; did you mean clip'),
        (["--model", "lavis:clip:ViT-B-31"], 'unknown type of clip "ViT-B-31"; did you mean ViT-B-32'),
        (["--batch-size", "0"], "--batch-size is 0; give at least 1"),
        (["--model", "deit_tiny_patch16_224", "--image-size", "100"], "(100, 100) pixels do not fit"),
        (["--device", "foo"], '--device is "foo"; give auto, cpu, cuda, or cuda:1 for the second GPU'),
        (["--grid", "2"], "1 regions cannot be averaged to 2 x 2; lower --grid, or leave it out"),
    ],
)
def test_mistakes_in_the_features_asked_for(options, message, data, tmp_path):
    path = write_jsonl(tmp_path, count=5)
    code, _, error = data("convert", path, *FEATURES, *options, "-o", tmp_path / "out")
    assert code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there_is_refused(data, tmp_path, monkeypatch):
    given = ("convert", write_jsonl(tmp_path, count=5), *FEATURES, "-o", tmp_path / "out", "--device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, error = data(*given, "cuda")
    assert code == 2 and error == "error: --device is cuda, but this machine has no usable GPU; set --device=cpu\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    code, _, error = data(*given, "cuda:2")
    assert code == 2 and error.endswith("is cuda:2, but the last GPU of this machine is cuda:1; set --device=cuda:0\n")
    assert not list(tmp_path.glob("out*"))
    assert [check_device(name, "run.device") for name in ("auto", "cpu", "cuda", "cuda:1")][::3] == ["cuda", "cuda:1"]


@pytest.mark.parametrize("where", ["_write_texts", "_write_features"])
def test_a_full_disk_is_one_sentence_and_the_conversion_goes_on(where, data, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    given = ("convert", write_jsonl(tmp_path, count=5), *FEATURES, "-o", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(extract, where, full_disk)
        code, _, error = data(*given)
    assert code == 2 and error.count("\n") == 1
    assert "out.part (No space left on device); mend that, and the same command goes on there" in error
    assert data(*given)[0] == 0


def test_coco_photographs(data, shared, tmp_path):
    coco = shared / "data" / "coco_mini"
    given = (coco / "dataset_coco_mini.json", "--images", coco / "images")
    code, out, _ = data("verify", *given)
    assert code == 0 and "undecodable images" not in out
    assert (table(out)["train"]["images"], table(out)["test"]["captions"]) == ("80", "795")
    small = ("--to", "precomp", "--model", "resnet18", "--no-pretrained", "--image-size", "32")
    assert data("convert", *given, *small, "-o", tmp_path / "features")[0] == 0
    settings = {"max_epoch": 1, "itm": {"run_name": "run"}, "valid_splits": [], "test_splits": ["test"]}
    run_training(write_project(tmp_path / "p.yaml", project(tmp_path / "features", tmp_path, **settings)))
    train, test = metrics_of(tmp_path / "run")
    assert np.isfinite(train["loss"]) and 0 <= test["txt_r10"] < 60
