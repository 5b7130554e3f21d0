"""The `lavis-itm` command: what it prints, and how each mistake ends: one sentence, exit code 2, nothing started."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from lavis.common.registry import registry

from lavis_itm_plugins import compat
from lavis_itm_plugins.cli import doctor
from lavis_itm_plugins.cli.main import COMMANDS, main
from lavis_itm_plugins.cli.tables import recall_table, text_table
from lavis_itm_plugins.resources import config_file, shipped_projects
from lavis_itm_plugins.train import run_training

METRICS = {f"{side}_r{k}": float(k) for side in ("txt", "img") for k in (1, 5, 10)} | {"rsum": 32.0}


@pytest.fixture(autouse=True)
def own_configuration():
    """LAVIS keeps one configuration for the whole process."""
    before = dict(registry.mapping["state"])
    yield
    registry.mapping["state"].clear()
    registry.mapping["state"].update(before)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tiny.write_precomp(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def trained(root, tmp_path_factory):
    """The folder of one short run, its metrics, and its configuration."""
    folder = tmp_path_factory.mktemp("trained")
    content = tiny.project(root, folder / "runs")
    runner = run_training(tiny.write_project(folder / "x.yaml", content))
    runner.folder.close()
    return runner.folder.path


@pytest.fixture
def attempt(root, tmp_path, monkeypatch, capsys):
    """`attempt(*options, **{"run.task": value})`: train the tiny project, changed; the error, after its checks."""
    monkeypatch.chdir(tmp_path)

    def run(*options, command=None, content=None, **changes):
        if content is None:
            content = yaml.safe_dump(edited(tiny.project(root, tmp_path / "runs"), changes))
        Path("x.yaml").write_text(content, encoding="utf-8")
        arguments = ["train", "--cfg-path", "x.yaml", *(["--options", *options] if options else [])]
        return failure(capsys, arguments if command is None else command, tmp_path / "runs")

    return run


def edited(content, changes):
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = content
        for name in parents:
            node = node.setdefault(name, {})
        if value is None:
            del node[last]
        else:
            node[last] = value
    return content


def failure(capsys, arguments, runs=None):
    """The sentence that a command ends with; nothing was written, and no traceback is shown."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert code == 2 and last.startswith("error: "), printed.err
    assert "Traceback" not in printed.err and "error: " not in printed.out
    assert runs is None or not runs.exists()
    return last.removeprefix("error: ")


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["train", "--cfg-path", "projects/baseline/train/scene.yaml"],
            "did you mean projects/baseline/train/scenes.yaml",
        ),
        (["train"], "--cfg-path"),
        (["train", "--cfg-path", "x.yaml", "--option"], "argument --options: expected at least one argument"),
        (["trian"], 'unknown command "trian"; did you mean train?'),
        (["list", "modls"], "invalid choice: 'modls' (choose from 'models', "),
        (["evaluate", "nowhere"], "nowhere is no run folder; give one, or a YAML file with --checkpoint"),
        (["evaluate", "."], ". has no config.yaml; give a run folder of itm_runner, or a YAML file"),
        (["evaluate", "no.yaml", "--checkpoint", "c.pth"], "no.yaml: no such file"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_arguments(attempt, arguments, expected):
    assert expected in attempt(command=arguments)


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


def test_the_parser_needs_neither_torch_nor_lavis():
    """`lavis-itm --help` is instant."""
    script = (
        "import sys; from lavis_itm_plugins.cli.main import build_parser; build_parser().format_help();"
        "heavy = {'torch', 'lavis', 'numpy', 'omegaconf', 'yaml', 'PIL'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_a_summary(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: lavis-itm {command}") and COMMANDS[command].__doc__.splitlines()[0][:40] in shown


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.split() == ["lavis-itm", version("lavis-itm-plugins")]


def listed(capsys, *arguments):
    assert main(["list", *arguments]) == 0
    return capsys.readouterr().out


def test_list_shows_what_is_registered(capsys):
    everything = listed(capsys)
    for name in ("itm_retrieval", "itm_runner", "itm_scenes", "itm_precomp", "itm_cosine_lr", *shipped_projects()):
        assert name in everything
    [line] = [line for line in listed(capsys, "models").splitlines() if line.split()[0] == "itm_vse"]
    assert line.split(maxsplit=1)[1] == "pixels_gru, regions_bert, regions_gru, regions_words"
    assert "itm.losses.triplet_loss" in listed(capsys, "losses")
    assert "blip_retrieval" not in listed(capsys, "models") and "blip_retrieval" in listed(capsys, "models", "--all")


def test_doctor_lists_packages_and_repairs(capsys, monkeypatch):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[1]: line for line in printed.splitlines() if line.startswith("ok")}
    assert {"python", "salesforce-lavis", "torch", "autoload", "lavis", "devices"} <= set(rows)
    assert all(repair.name in printed for repair in compat.repairs())
    assert "MEND" not in printed


def test_doctor_says_how_to_mend(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "PINNED", {"numpy": ("2.", "for this test"), "no-such-package": ("1.", "it is needed")})
    assert main(["doctor"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MEND")]
    assert len(lines) == 2 and "expected 2.x: for this test" in lines[0]
    assert "missing: pip install lavis-itm-plugins (it is needed)" in lines[1]


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
