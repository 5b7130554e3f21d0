"""`lavis-itm` by itself: its help, its version, what it lists, what it finds amiss, and arguments it does not know."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from lavis_itm_plugins import compat
from lavis_itm_plugins.cli import doctor
from lavis_itm_plugins.cli.main import COMMANDS, main
from lavis_itm_plugins.resources import shipped_projects


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["train", "--cfg-path", "projects/baseline/train/scene.yaml"],
            "did you mean projects/baseline/train/scenes.yaml",
        ),
        (["train"], "--cfg-path is missing; give a YAML file, or --resume with a run folder"),
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


def test_doctor_lists_packages_and_repairs(capsys):
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
