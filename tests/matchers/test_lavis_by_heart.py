"""The whole path from picture files: `lavis-itm train` on them, as shipped, until a small CLIP knows them by heart."""

import json

import pytest
from pictures import write_jsonl

from lavis_itm_plugins.cli.main import main

PROJECT = "projects/baseline/train/clip_small_pairs.yaml"


def recalls(folder, data, *options):
    """Recall at 1 on the training pictures, image to text and text to image."""
    where = [f"run.output_dir={folder}", "run.itm.run_name=by-heart", "run.device=cpu"]
    given = [f"datasets.itm_pairs.{key}={value}" for key, value in data.items()]
    assert main(["train", "--cfg-path", PROJECT, "--options", *given, *where, *options]) == 0
    metrics = folder / "metrics.json"
    assert main(["evaluate", str(folder / "by-heart"), "--split", "train", "--json", str(metrics)]) == 0
    told = json.loads(metrics.read_text())
    return told["txt_r1"], told["img_r1"]


@pytest.mark.full
def test_twelve_pictures_are_learned_by_heart(tmp_path):
    """Noise of four colours: without the pixels and the numbers in the captions a third would be right at most."""
    data = {"annotations": write_jsonl(tmp_path), "image_size": 32}
    small = ["model.vit.size=32", "model.vit.width=64", "model.vit.layers=1", "model.text.layers=1"]
    steps = ["run.batch_size_train=12", "run.max_epoch=80", "model.vit.patch=8"]
    assert recalls(tmp_path, data, *small, *steps) == (100, 100)


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_eighty_photographs_are_learned_by_heart(tmp_path, shared):
    folder = shared / "data" / "coco_mini"
    data = {"annotations": folder / "dataset_coco_mini.json", "images": folder / "images"}
    assert min(recalls(tmp_path, data)) > 90
