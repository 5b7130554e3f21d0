"""LAVIS's own networks x every method: training by `lavis-itm train` and by LAVIS's train.py, evaluation, a stopped run
that goes on, two ranks.

The quick suite trains the diagonal, `make test-full` the whole matrix.
"""

from __future__ import annotations

import json
from pathlib import Path

import lavis_tiny
import numpy as np
import pytest
import tiny
import torch
from methods.lavis_matrix import METHODS, OBJECTIVES, STEPS, model_section, project
from omegaconf import OmegaConf
from pictures import write_lavis
from runners.compare import assert_same_runs
from scripts import run_script

from lavis_itm_plugins.evaluating import evaluate_checkpoint
from lavis_itm_plugins.methods.method import build_matcher
from lavis_itm_plugins.registry import registered
from lavis_itm_plugins.resources import find_config

STOCK = Path(__file__).parents[1] / "fixtures" / "stock_train.py"
DIAGONAL = {("clip", "dbl_momentum"), ("blip", "aoq"), ("albef", "bcls"), ("blip2", "coder")}
CASES = [(network, method) for network in lavis_tiny.NETWORKS for method in METHODS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lavis")
    lavis_tiny.write_words(folder)
    return folder


def cases(kept=DIAGONAL):
    for case in CASES:
        yield pytest.param(*case, marks=[] if case in kept else [pytest.mark.full], id="-".join(case))


@pytest.fixture
def train(folder, farm):
    """`train(project, script=, event=, ...)`: the exit code of `lavis-itm train`, or of a script, in a child."""

    def run(content, *arguments, script=None, wanted=0, **stop):
        path = tiny.write_project(folder / "project.yaml", content)
        command = [] if script else ["train"]
        given = [*command, "--cfg-path", path, *arguments]
        code, output = farm.run(given, folder / "log.txt", script=script, LAVIS_ITM_CACHE=str(folder), **stop)
        assert code == wanted, output[-3000:]

    return run


@pytest.fixture
def planned(folder, train):
    """The project of a case; a frozen anchor is trained first."""

    def plan(network, method, objective, name, **run):
        anchor = folder / "runs" / f"{network}_plain_{objective}"
        if method == "dbl_frozen" and not anchor.exists():
            train(plan(network, "plain", objective, anchor.name, test_splits=["test"]))
        return project(folder, name, model_section(network, method, folder, objective, anchor=str(anchor)), **run)

    return plan


@pytest.fixture
def trained(folder, train, planned):
    """`trained(network, method, objective)`: the folder of that run, which is made once."""

    def run(network, method, objective):
        name = f"{network}_{method}_{objective}"
        if not (folder / "runs" / name).exists():
            train(planned(network, method, objective, name, test_splits=["test"]))
        return folder / "runs" / name

    return run


@pytest.mark.parametrize(("network", "method"), cases())
def test_each_network_trains_under_each_method_and_is_scored(network, method, folder, trained, monkeypatch):
    """The checkpoint says all that it takes to score it: the vocabulary file is gone by then."""
    run = trained(network, method, "plain")
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert lines and "NaN" not in "".join(lines)
    monkeypatch.setenv("LAVIS_ITM_CACHE", str(folder))
    monkeypatch.setenv("LAVIS_ITM_BERT_VOCAB", str(folder / "nowhere"))
    found = evaluate_checkpoint(run / "config.yaml", run / "checkpoint_best.pth", split="test")
    assert found.n_captions == 20
    assert np.isfinite(found.metrics["rsum"])
    assert ("itm_rsum" in found.metrics) == (network != "clip")


@pytest.mark.parametrize(("network", "method"), cases())
def test_lavis_train_py_gives_the_same_run(network, method, trained, planned, train):
    """Stock train.py, which names nothing of ours, on the same file: the same checkpoints and metrics, bit for bit."""
    ours = trained(network, method, "plain")
    train(planned(network, method, "plain", f"{ours.name}_stock", test_splits=["test"]), script=str(STOCK))
    assert_same_runs(ours.with_name(f"{ours.name}_stock"), ours)


# what LAVIS's own runner reads and has no default for
LAVIS_RUN = {"weight_decay": 0.05, "min_lr": 0, "num_workers": 0, "world_size": 1, "dist_url": "env://"}


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=[] if n == "albef" else [pytest.mark.full]) for n in OBJECTIVES]
)
def test_a_lavis_project_needs_no_other_line_than_its_model(network, folder, train):
    """LAVIS's data set, task and runner stay; what they cannot do is left to ours."""
    objective = "plain" if network == "clip" else "itm"
    content = project(folder, "unused", model_section(network, "plain", folder, objective))
    size = {"image_size": lavis_tiny.SIZE}
    content["datasets"] = {
        "flickr30k": {
            "vis_processor": {
                "train": {"name": "blip_image_train", **size},
                "eval": {"name": "blip_image_eval", **size},
            },
            "text_processor": {"train": {"name": "blip_caption"}, "eval": {"name": "blip_caption"}},
            "build_info": write_lavis(folder / "lavis"),
        }
    }
    run = {**content["run"], **LAVIS_RUN, "task": "retrieval", "lr_sched": "linear_warmup_cosine_lr"}
    del run["runner"], run["itm"]
    output = folder / "stock" / network
    run |= {"output_dir": str(output), "train_splits": ["train"], "test_splits": ["test"], "batch_size_train": 8}
    content["run"] = {**run, "evaluate": False, "distributed": False}
    train(content, script=str(STOCK))
    [log] = output.glob("*/log.txt")
    assert (log.parent / "checkpoint_best.pth").is_file()
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"')]
    assert [float(line["train_loss"]) > 0 for line in lines if "train_loss" in line] == [True, True]
    # of two validations and the test
    scored = [json.loads(line) for line in (log.parent / "evaluate.txt").read_text().splitlines()]
    assert [line["txt_r10"] > 0 for line in scored] == [True] * 3


def test_shipped_projects_are_of_networks_that_can_be_built(folder):
    """All of them parse; each kind of network is built with its objective at the smallest size."""
    built = set()
    files = [
        find_config(f"projects/{method}/train/{network}_{data}.yaml")
        for method in ("baseline", "dbl", "aoq", "bcls", "coder")
        for network in lavis_tiny.NETWORKS
        for data in ("flickr30k", "coco")
    ]
    for file in files:
        model = OmegaConf.to_container(OmegaConf.load(file).model)
        section = model.get("matcher", model)
        network = section["arch"].removeprefix("itm_")
        kept = {key: section[key] for key in ("objective", "checkpoint") if key in section}
        small = lavis_tiny.section(network, folder / "vocab.txt", **kept)
        given = {**model, "matcher": small} if "matcher" in model else small
        config = registered("model")[model["arch"]].parse_config(OmegaConf.create(given))
        if (network, section["objective"]) not in built:
            build_matcher(getattr(config, "matcher", small))
        built.add((network, section["objective"]))
    assert len(built) == 2 + 3 * 2


@pytest.mark.parametrize(("network", "method"), cases({("blip", "dbl_momentum")}))
def test_a_stopped_run_goes_on_exactly(network, method, trained, planned, train):
    """With LAVIS's own losses: queues, momentum towers, drawn negatives, dropout."""
    whole = trained(network, method, OBJECTIVES[network])
    content = planned(network, method, OBJECTIVES[network], f"{whole.name}_stopped", test_splits=["test"])
    train(content, event="batch", call=STEPS + 3, stop="SIGTERM", wanted=128 + 15)
    train(content, "--resume")
    assert_same_runs(whole.with_name(f"{whole.name}_stopped"), whole)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("which", ["diagonal", *(pytest.param(n, marks=pytest.mark.full) for n in OBJECTIVES)])
def test_two_ranks_equal_one(which, tmp_path):
    """The weights after two epochs, in float64: contrast and methods over the batch of both ranks."""
    lavis_tiny.write_words(tmp_path)
    chosen = [case for case in CASES if case[0] == which and case not in DIAGONAL] or sorted(DIAGONAL)
    names = [f"{network}:{method}" for network, method in chosen]
    run_script("methods/lavis_matrix_ranks.py", tmp_path, *names, timeout=900, LAVIS_ITM_CACHE=str(tmp_path))
    for network, method in chosen:
        one, two = (torch.load(tmp_path / f"{network}_{method}_{size}.pt") for size in (1, 2))
        assert one.keys() == two.keys()
        for name, value in one.items():
            told = f"{network} {method} {name}"
            torch.testing.assert_close(
                two[name], value, rtol=1e-6, atol=1e-8, msg=lambda text, told=told: f"{told}: {text}"
            )
