"""The features that `lavis-itm data convert` makes are those asked for: network, size, grid, type, device."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.data_commands import FEATURES
from pictures import write_jsonl

from lavis_itm_plugins.devices import check_device

TINY_CLIP = Path(__file__).resolve().parents[1] / "fixtures" / "tiny_clip" / "__init__.py"


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
    assert [check_device(name, "run.device") for name in ("auto", "cpu", "cuda", "cuda:1")] == [
        "cuda",
        "cpu",
        "cuda",
        "cuda:1",
    ]
