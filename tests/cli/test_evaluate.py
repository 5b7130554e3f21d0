"""`lavis-itm evaluate` prints the metrics that training saw, of any split and checkpoint, in a table."""

from __future__ import annotations

import json

import pytest
import tiny
from cli.failures import failure

from lavis_itm_plugins.cli.main import main
from lavis_itm_plugins.cli.tables import recall_table, text_table
from lavis_itm_plugins.train import run_training

METRICS = {f"{side}_r{k}": float(k) for side in ("txt", "img") for k in (1, 5, 10)} | {"rsum": 32.0}


@pytest.fixture(scope="session")
def trained(root, tmp_path_factory):
    """The folder of one short run, its metrics, and its configuration."""
    folder = tmp_path_factory.mktemp("trained")
    content = tiny.project(root, folder / "runs")
    runner = run_training(tiny.write_project(folder / "x.yaml", content))
    runner.folder.close()
    return runner.folder.path


def test_evaluate_prints_the_metrics_of_the_best_checkpoint(trained, tmp_path, capsys):
    assert main(["evaluate", str(trained), "--json", str(tmp_path / "m.json")]) == 0
    printed = capsys.readouterr().out.splitlines()
    metrics = json.loads((tmp_path / "m.json").read_text())
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in lines if line["split"] == "val"), key=lambda line: line["rsum"])
    assert {key: best[key] for key in metrics} == pytest.approx(metrics)
    [row] = [line for line in printed if line.startswith("val")]
    keys = ("txt_r1", "txt_r5", "txt_r10", "img_r1", "img_r5", "img_r10", "rsum")
    assert row.split()[1:] == [f"{metrics[key]:.1f}" for key in keys]
    assert any(line.startswith("8 images, 40 captions") for line in printed)


def test_evaluate_other_splits_folds_and_checkpoints(trained, capsys):
    last = str(trained / "checkpoint_last.pth")
    options = ["--options", "run.itm.coco_1k_folds=2"]
    assert main(["evaluate", str(trained), "--split", "train", "--checkpoint", last, *options]) == 0
    printed = capsys.readouterr().out
    assert "24 images, 120 captions" in printed and "train, mean of folds" in printed
    config = str(trained / "config.yaml")
    assert main(["evaluate", config, "--checkpoint", last, "--split", "val"]) == 0
    assert "8 images, 40 captions" in capsys.readouterr().out


def test_evaluate_mistakes(trained, tmp_path, capsys):
    (tmp_path / "cut.pth").write_bytes((trained / "checkpoint_best.pth").read_bytes()[:500])
    for arguments, expected in (
        (["--split", "test"], "itm_precomp: no test split; choose another --split"),
        (["--split", "dev"], "argument --split: invalid choice: 'dev'"),
        (["--checkpoint", "no.pth"], "checkpoint no.pth does not exist"),
        (["--checkpoint", str(tmp_path / "cut.pth")], "cut.pth is damaged or no checkpoint"),
        (["--json", "/no/such/folder/m.json"], "cannot write /no/such/folder/m.json: No such file"),
        (["--options", "model.embed_dim=10"], "does not fit this model: "),
    ):
        assert expected in failure(capsys, ["evaluate", str(trained), *arguments])


def test_a_table_has_one_row_for_each_name_and_rounds():
    lines = recall_table({"untrained": METRICS, "trained": {**METRICS, "rsum": 299.96}}).splitlines()
    assert lines[0].split() == ["i2t", "R@1", "R@5", "R@10", "t2i", "R@1", "R@5", "R@10", "rsum"]
    assert lines[1].split() == ["untrained", "1.0", "5.0", "10.0", "1.0", "5.0", "10.0", "32.0"]
    assert lines[2].endswith("300.0") and len({len(line) for line in lines}) == 1
    different = dict(zip(METRICS, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 21.0), strict=True))
    assert recall_table({"x": different}).split()[-7:] == ["1.0", "2.0", "3.0", "4.0", "5.0", "6.0", "21.0"]
    assert text_table(["", "n"], []) == "  n"
