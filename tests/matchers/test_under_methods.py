"""Every method trains on every network of regions and words; the shipped projects of these networks are sound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from matchers.sets import SECTIONS, make, section_of

from lavis_itm_plugins.config.check import check_sections
from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.train import run_training

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
METHODS = {
    "dbl": {"arch": "itm_dbl", "model_type": "momentum", "dbl": {"momentum": 0.9}},
    "aoq": {"arch": "itm_aoq", "model_type": "two_rounds"},
    "bcls": {"arch": "itm_bcls", "model_type": "cider"},
    "coder": {"arch": "itm_coder", "model_type": "dictionaries", "dictionary": {"size": 32}},
}
DIAGONAL = {("dbl", "saf"), ("dbl", "vsrn"), ("aoq", "bfan"), ("aoq", "vsrn"), ("bcls", "scan_t2i"), ("coder", "vsrn")}
# CODER's dictionaries hold one vector for each image
PAIRS = [(method, name) for method in METHODS for name in SECTIONS if method != "coder" or name == "vsrn"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write_precomp(tmp_path_factory.mktemp("data"), regions=4)


def trained(root, folder, method, name, **run):
    """The runner after one epoch of a method on a small network."""
    content = tiny.project(root, folder / "runs", **{"batch_size_train": 40, "max_epoch": 1, **run})
    network = SECTIONS[name][0]
    matcher = {"arch": network.arch, "model_type": next(iter(network.PRETRAINED_MODEL_CONFIG_DICT)), **section_of(name)}
    content["model"] = {**METHODS[method], "matcher": matcher}
    if method == "coder":
        content["model"]["base_loss"] = {"name": "infonce"}
    if method == "aoq":
        torch.save({"model": make("vsrn").state_dict()}, folder / "round_one.pth")
        lists = {"captions_per_image": 6, "images_per_caption": 4}
        content["model"]["candidates"] = {"source": str(folder / "round_one.pth"), **lists}
    return run_training(tiny.write_project(folder / "x.yaml", content))


@pytest.mark.parametrize(
    ("method", "name"),
    [pytest.param(*pair, marks=[] if pair in DIAGONAL else [pytest.mark.full]) for pair in PAIRS],
)
def test_a_method_trains_a_network(root, tmp_path, method, name):
    runner = trained(root, tmp_path, method, name)
    lines = [json.loads(line) for line in runner.folder.metric_lines()]
    assert any(line.get("rsum", 0) > 0 for line in lines)
    assert runner.model.evaluated().arch == SECTIONS[name][0].arch


def test_dbl_on_saf_resumes_exactly(root, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    steady = {"lr_sched": "itm_step_lr", "itm": {"run_name": "a", "save_every_steps": 2}}
    whole = trained(root, tmp_path / "one", "dbl", "saf", **steady)
    second = tmp_path / "two"
    trained(root, second, "dbl", "saf", **steady)
    # what was saved within the epoch, as after a kill
    folder = second / "runs" / "a"
    (folder / "checkpoint_previous.pth").replace(folder / "checkpoint_last.pth")
    stored = torch.load(folder / "checkpoint_last.pth", weights_only=True)["train_state"]
    assert (stored["epoch"], stored["step"]) == (0, 2)
    resumed = trained(root, second, "dbl", "saf", resume_ckpt_path="auto", **steady)
    one, other = whole._model.state_dict(), resumed._model.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.items() if torch.is_tensor(value))


SHIPPED = sorted(
    path
    for path in PROJECTS.glob("*/train/*.yaml")
    if any(f"itm_{name}" in path.read_text() for name in ("scan", "bfan", "vsrn", "sgraf"))
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_shipped_project_is_sound(path):
    check_sections(ProjectConfig(path, []).config)
    content = yaml.safe_load(path.read_text())
    data = "coco" if "coco" in path.stem else "f30k"
    matcher = content["model"].get("matcher", content["model"])
    assert matcher["model_type"].startswith(data) and data in content["datasets"]["itm_precomp"]["root"]
    source = content["model"].get("candidates", {}).get("source", data)
    assert data in source and ("COCO" in path.read_text()) == (data == "coco")


def test_each_network_has_a_project_for_both_data_sets():
    names = {path.stem for path in SHIPPED if path.parts[-3] == "baseline"}
    networks = ("scan", "bfan", "vsrn", "sgraf_saf", "sgraf_sgr")
    assert names == {f"{network}_{data}" for network in networks for data in ("f30k", "coco")}
    assert {path.stem for path in SHIPPED if path.parts[-3] == "dbl"} >= {"sgraf_f30k", "sgraf_coco"}
    aoq = {f"{network}_{data}" for network in ("vsrn", "bfan", "scan") for data in ("f30k", "coco")}
    assert {path.stem for path in SHIPPED if path.parts[-3] == "aoq"} >= aoq
