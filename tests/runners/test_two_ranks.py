"""Several processes equal one: losses, gradients, training, evaluation, resume; and a start that gives up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from runners.compare import assert_same_runs
from scripts import environment

WORKER = str(Path(__file__).with_name("ranks.py"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What 1, 2 and 3 processes computed: two by torchrun, one and three by the same environment variables."""
    folder = tmp_path_factory.mktemp("ranks")
    for images in (5, 7):
        tiny.write_precomp(folder / f"data_{images}", train=23, val=images)
    started = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in (
            [*TORCHRUN, "--nproc_per_node=2", WORKER, str(folder)],
            [sys.executable, WORKER, str(folder), "1", "3"],
        )
    ]
    for process in started:
        output, _ = process.communicate(timeout=280)
        assert process.returncode == 0, output
    return {size: torch.load(folder / f"ranks_{size}.pt") for size in (1, 2, 3)}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("loss", ["hardest", "all", "infonce"])
def test_loss_and_gradients_are_those_of_one_process(results, loss, size):
    one, several = results[1][loss], results[size][loss]
    assert one.keys() == several.keys() and one["loss"] > 0
    assert any(value.abs().max() > 1e-3 for name, value in one.items() if name != "loss")
    for name in one:
        torch.testing.assert_close(several[name], one[name], rtol=1e-6, atol=1e-12, msg=name)


@pytest.mark.parametrize("size", [2, 3])
def test_training_gives_the_weights_of_one_process(results, size):
    one, several = results[1]["training"], results[size]["training"]
    for name, value in one["weights"].items():
        torch.testing.assert_close(several["weights"][name], value, rtol=1e-6, atol=1e-9, msg=name)
    for lines in zip(several["metrics"], one["metrics"], strict=True):
        metrics, reference = map(json.loads, lines)
        assert metrics.pop("split") == reference.pop("split")
        assert metrics == pytest.approx(reference, rel=1e-6)


@pytest.mark.parametrize("images", [5, 7])
@pytest.mark.parametrize("size", [2, 3])
def test_metrics_are_exactly_those_of_one_process(results, images, size):
    one, several = results[1][f"evaluation_{images}"], results[size][f"evaluation_{images}"]
    assert torch.equal(one["scores"], several["scores"])
    assert several["metrics"] == one["metrics"] and one["metrics"].keys() > {"rsum", "txt_r1", "img_medr"}


def test_a_resumed_run_on_two_ranks_is_exact(results):
    """With three, DDP's first step adds the ranks' gradients in another order than its later ones."""
    folders = results[2]["resumed"]
    assert_same_runs(Path(folders["stopped"]), Path(folders["whole"]))
    stored = torch.load(Path(folders["whole"]) / "checkpoint_last.pth", weights_only=True)
    # each rank's own generators: dropout differs between them
    states = [state["torch"] for state in stored["random"]]
    assert len(states) == 2 and not torch.equal(states[0], states[1])


def test_a_missing_process_ends_the_start_in_a_sentence(farm, project, tmp_path):
    waiting = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    arguments = ["train", "--cfg-path", str(project.write())]
    code, output = farm.run(arguments, tmp_path / "log", **waiting, LAVIS_ITM_START_TIMEOUT="3")
    assert code == 2
    said = output.splitlines()[-1]
    assert said.startswith("error: only 1 of 2 processes have come to 127.0.0.1:0 within 3 s; check that every process")
    assert "Traceback" not in output and not project.folder.exists()


def test_a_wrong_start_timeout_is_said(monkeypatch):
    from lavis_itm_plugins.compat.meeting import start_timeout
    from lavis_itm_plugins.errors import ItmError

    monkeypatch.delenv("LAVIS_ITM_START_TIMEOUT", raising=False)
    assert start_timeout() == 300
    for given in ("soon", "0", "-3", "nan"):
        monkeypatch.setenv("LAVIS_ITM_START_TIMEOUT", given)
        with pytest.raises(ItmError, match=f"LAVIS_ITM_START_TIMEOUT is '{given}'; give a number of seconds above 0"):
            start_timeout()
