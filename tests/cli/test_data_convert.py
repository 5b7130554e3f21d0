"""`lavis-itm data convert` keeps everything, and what it writes trains."""

import json

import numpy as np
import pytest
import torch
from cli.data_commands import FEATURES, table
from pictures import captions_of, metrics_of, write_jsonl
from tiny import project, write_project

from lavis_itm_plugins.data.annotations import read_annotations
from lavis_itm_plugins.data.feature_models import feature_model
from lavis_itm_plugins.data.pictures import open_picture
from lavis_itm_plugins.data.precomp import read_precomp
from lavis_itm_plugins.train import run_training


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
