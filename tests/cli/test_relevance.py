"""`lavis-itm relevance` and `evaluate --graded`: what they print, what they keep, how mistakes end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny

from lavis_itm_plugins.cli.main import main
from lavis_itm_plugins.cli.tables import graded_table, recall_table
from lavis_itm_plugins.train import run_training

RECALLS = {f"{side}_r{k}": float(k) for side in ("txt", "img") for k in (1, 5, 10)} | {"rsum": 32.0}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tiny.write_precomp(tmp_path / "data")
    return tiny.write_project(tmp_path / "x.yaml", tiny.project(root, tmp_path / "runs", max_epoch=1))


@pytest.fixture
def relevance(project: Path, tmp_path: Path, capsys):
    """`relevance("build", ...)`: exit code, printed text, errors."""

    def run(action, *arguments):
        capsys.readouterr()
        code = main(["relevance", action, "--cfg-path", str(project), "--cache", str(tmp_path / "c"), *arguments])
        out, err = capsys.readouterr()
        return code, out, "".join(line for line in err.splitlines(True) if line.startswith("error:"))

    return run


def test_build_keeps_and_finds_again(relevance, tmp_path: Path) -> None:
    code, out, err = relevance("build")
    assert (code, err) == (0, "") and "labels from cider of 24 images and 120 captions" in out
    [folder] = (tmp_path / "c" / "relevance").glob("cider-*")
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert relevance("build")[0] == 0
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert relevance("build", "--reduce", "mean")[0] == 0  # of the same cache
    assert len(list((tmp_path / "c" / "relevance").glob("cider-*"))) == 1


def test_show_prints_quantiles_and_pairs_of_other_images(relevance) -> None:
    code, out, err = relevance("show", "--examples", "3")
    assert (code, err) == (0, "")
    shares = [line.split() for line in out.splitlines() if re.match(r"[\d.]+%", line)]
    assert [row[0] for row in shares] == ["1%", "10%", "25%", "50%", "75%", "90%", "99%", "99.9%"]
    for column in (1, 2):
        values = [float(row[column]) for row in shares]
        assert values == sorted(values) and 0 <= values[0] <= values[-1] <= 1
    pairs = re.findall(r"(\d\.\d+)  image (\d+): (.*)\n +caption of image (\d+): (.*)", out)
    assert len(pairs) == 3 and all(image != other for _, image, _, other, _ in pairs)
    # of 24 pictures no two are the same thing of the same colour: the closest captions differ in one word
    label, _, one, _, another = pairs[0]
    assert 0.2 < float(label) < 1 and one != another and len(set(one.split()) ^ set(another.split())) <= 2


def test_the_labels_of_the_project_are_taken(relevance, project: Path) -> None:
    assert relevance("show", "--options", "model.arch=itm_vse", "--source", "scenes")[2].startswith(
        "error: labels.source: scenes needs itm_scenes as the only data set"
    )
    content = tiny.project(project.parent / "data", project.parent)
    matcher = content["model"]
    labels = {"source": "sentence", "encoder": str(project.parent / "nowhere")}
    content["model"] = {"arch": "itm_bcls", "model_type": "cider", "matcher": matcher, "labels": labels}
    tiny.write_project(project, content)
    code, _, err = relevance("build")
    assert code == 2 and re.match(r'error: sentence encoder ".*nowhere" cannot be read', err)
    assert relevance("build", "--source", "cider")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "--sample", "0"], "--sample is 0; give at least 1"),
        (["show", "--examples", "-1"], "--examples is -1; give at least 0"),
        (["build", "--source", "sentence"], "source: sentence needs an encoder"),
        (["build", "--source", "sentence", "--encoder", "x", "--device", "gpu"], '--device is "gpu"; give auto, cpu'),
    ],
)
def test_mistakes_end_in_a_sentence(relevance, arguments, message) -> None:
    code, _, err = relevance(*arguments)
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_table_has_a_tau_column_where_it_is_known() -> None:
    table = recall_table({"plain": RECALLS, "bcls": RECALLS | {"tau": 0.25}}).splitlines()
    assert table[0].endswith("rsum    tau") and table[1].endswith("32.0      -") and table[2].endswith("32.0  0.250")
    assert "tau" not in recall_table({"plain": RECALLS})


def test_evaluate_graded(project: Path, capsys) -> None:
    runner = run_training(project)
    runner.folder.close()
    capsys.readouterr()
    assert main(["evaluate", str(runner.folder.path), "--split", "val", "--graded", "cider"]) == 0
    out = capsys.readouterr().out
    assert "mAP@R  no tau" in out and out.splitlines()[0].split()[-2:] == ["rsum", "tau"]
    assert main(["evaluate", str(runner.folder.path), "--split", "val"]) == 0
    assert "tau" not in capsys.readouterr().out
    assert main(["evaluate", str(runner.folder.path), "--split", "val", "--graded", "scenes"]) == 2
    assert "scenes needs itm_scenes" in capsys.readouterr().err


def test_the_graded_table_names_both_directions() -> None:
    names = ("tau", "tau10", "tau50", "ndcg", "ncs1", "ncs10", "rprecision", "map_r", "tau_undefined")
    metrics = {f"{side}_{name}": number for side, number in (("txt", 0.5), ("img", 0.25)) for name in names}
    lines = graded_table(metrics).splitlines()
    assert "-" in graded_table({"txt_tau_undefined": 3, "img_tau_undefined": 3}).splitlines()[1]
    assert lines[1].split() == ["i2t", *["0.500"] * 8, "0"] and lines[2].split() == ["t2i", *["0.250"] * 8, "0"]
