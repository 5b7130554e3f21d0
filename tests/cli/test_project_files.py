"""A project file and its options: `--print-config` shows what they come to, and one sentence says what is wrong."""

from __future__ import annotations

import pytest
import tiny
import yaml
from cli.failures import failure

from lavis_itm_plugins.cli.main import main
from lavis_itm_plugins.resources import config_file, shipped_projects


def printed_config(capsys, path, *options):
    assert main(["train", "--cfg-path", str(path), "--print-config", "--options", *options]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_print_config_shows_defaults_file_and_options_and_trains_nothing(root, tmp_path, capsys):
    path = tiny.write_project(tmp_path / "x.yaml", tiny.project(root, tmp_path / "runs"))
    shown = printed_config(capsys, path, "run.seed=7", "model.image.dropout=0.25")
    defaults = yaml.safe_load(config_file("models/itm_vse_regions_gru.yaml").read_text())["model"]
    assert shown["run"]["seed"] == 7 and shown["model"]["image"]["dropout"] == 0.25
    assert shown["model"]["embed_dim"] == 16
    assert shown["model"]["image"]["projection"] == defaults["image"]["projection"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("model_type", ["regions_gru", "regions_bert"])
def test_an_option_chooses_the_default_file(root, tmp_path, capsys, model_type):
    """LAVIS would keep the defaults of the type in the file."""
    content = tiny.project(root, tmp_path / "runs")
    content["model"] = {"arch": "itm_vse", "model_type": "pixels_gru"}
    path = tiny.write_project(tmp_path / "x.yaml", content)
    shown = printed_config(capsys, path, f"model.model_type={model_type}")["model"]
    defaults = yaml.safe_load(config_file(f"models/itm_vse_{model_type}.yaml").read_text())["model"]
    assert shown["model_type"] == model_type
    for key in ("image", "text", "base_loss"):
        assert shown[key].items() >= defaults[key].items()


@pytest.mark.parametrize("project", shipped_projects())
def test_shipped_projects_are_valid(capsys, project):
    assert printed_config(capsys, project, "run.seed=1")["run"]["seed"] == 1


WRONG_KEYS = [
    ({"model.arch": "itm_vs"}, 'x.yaml: model.arch: unknown model "itm_vs"; did you mean itm_vse'),
    ({"model.model_type": "regions_gruu"}, '"regions_gruu"; did you mean regions_gru'),
    ({"model.embed_dims": 3}, "x.yaml: model.embed_dims: unknown key; did you mean embed_dim?"),
    ({"model.image.pool": "max"}, "x.yaml: model.image.pool: unknown key; did you mean pooling?"),
    ({"model.image.pooling": "gpoo"}, 'x.yaml: model.image.pooling: unknown choice "gpoo"; did you mean gpo?'),
    ({"model.embed_dim": "big"}, "x.yaml: model.embed_dim: expected a whole number, got 'big'"),
    ({"model.base_loss": {"margin": -1}}, "x.yaml: model.base_loss.margin: -1.0 is out of range"),
    ({"datasets.itm_precom": {}}, 'x.yaml: datasets: unknown dataset "itm_precom"; did you mean itm_precomp'),
    ({"datasets.itm_precomp.rot": "x"}, "x.yaml: datasets.itm_precomp.rot: unknown key; did you mean root?"),
    ({"datasets.itm_precomp.root": None}, "x.yaml: datasets.itm_precomp.root: missing; set it to the folder with"),
    ({"datasets.itm_precomp.root": "${nothing}"}, "Interpolation key 'nothing' not found"),
    ({"run.task": "itm_retrival"}, 'x.yaml: run.task: unknown task "itm_retrival"; did you mean itm_retrieval'),
    ({"run.runner": "itm_runer"}, 'x.yaml: run.runner: unknown runner "itm_runer"; did you mean itm_runner'),
    ({"run.lr_sched": "itm_cosin"}, 'x.yaml: run.lr_sched: unknown scheduler "itm_cosin"; did you mean itm_cosine_lr'),
    ({"run.max_epochs": 3}, "x.yaml: run.max_epochs: unknown key; did you mean max_epoch?"),
    ({"run.max_epoch": "three"}, "x.yaml: run.max_epoch: expected a whole number, got 'three'"),
    ({"run.valid_splits": "val"}, "x.yaml: run.valid_splits: expected a list, got 'val'"),
    ({"run.itm": {"clip": 1}}, "x.yaml: run.itm.clip: unknown key; did you mean clip_grad?"),
    ({"run.itm": {"amp_dtype": "fp16"}}, 'x.yaml: run.itm.amp_dtype: unknown choice "fp16"; did you mean'),
    ({"runn": {"seed": 1}}, 'x.yaml: unknown section "runn"; did you mean run?'),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG_KEYS, ids=[next(iter(changes)) for changes, _ in WRONG_KEYS])
def test_a_wrong_name_or_value_in_the_yaml(attempt, changes, expected):
    assert expected in attempt(**changes)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("run.seed", '--options: "run.seed" has no "="; write key=value'),
        ("run.seed=one", "x.yaml: run.seed: expected a whole number, got 'one'"),
        ("run.sede=1", "x.yaml: run.sede: unknown key; did you mean seed"),
        ("model.model_type=regions", '"regions"; did you mean regions_gru'),
        ("run.seed=[", "x.yaml: while parsing a flow node"),
        ("=1", 'x.yaml: unknown section ""'),
    ],
)
def test_a_wrong_option(attempt, option, expected):
    assert expected in attempt(option)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: [", "x.yaml: while parsing a flow node"),
        ("model:\n\tarch: itm_vse", "x.yaml: while scanning for the next token"),
        ("", "x.yaml: model: expected a section of keys, got None"),
        ("- a\n- b", "x.yaml: expected the sections model, datasets and run"),
        ("model: {arch: a}\nmodel: {arch: b}", "found duplicate key model"),
    ],
)
def test_a_yaml_file_that_cannot_be_read(attempt, content, expected):
    assert expected in attempt(content=content)


def test_a_yaml_file_that_is_not_utf8(tmp_path, capsys):
    (tmp_path / "x.yaml").write_bytes("model: {arch: caf\xe9}".encode("latin-1"))
    assert "x.yaml: 'utf-8' codec can't decode" in failure(capsys, ["train", "--cfg-path", str(tmp_path / "x.yaml")])
