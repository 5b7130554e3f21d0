"""LAVIS's own networks x every method: training on pictures of scenes, evaluation, and a stopped run that goes on.

The quick suite trains the diagonal, `make test-full` the whole matrix.
"""

from __future__ import annotations

import os
import signal

import lavis_tiny
import numpy as np
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from runners.compare import assert_same_runs

from lavis_itm_plugins.evaluating import evaluate_checkpoint
from lavis_itm_plugins.methods.method import build_matcher
from lavis_itm_plugins.registry import registered
from lavis_itm_plugins.resources import find_config
from lavis_itm_plugins.runners import loop
from lavis_itm_plugins.train import run_training

METHODS = ("plain", "dbl_momentum", "dbl_frozen", "dbl_peer", "aoq", "bcls", "coder")
DIAGONAL = {("clip", "dbl_momentum"), ("blip", "aoq"), ("albef", "bcls"), ("blip2", "coder")}
STEPS = 4
# the matching loss and the queues are in the resumed runs
OBJECTIVES = {"clip": "itc", "blip": "itc_itm", "albef": "itc_itm", "blip2": "itc_itm"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lavis")
    lavis_tiny.write_words(folder)
    return folder


@pytest.fixture(autouse=True)
def as_before():
    yield
    torch.use_deterministic_algorithms(False)


def cases(kept=DIAGONAL):
    for network in lavis_tiny.NETWORKS:
        for method in METHODS:
            marks = [] if (network, method) in kept else [pytest.mark.full]
            yield pytest.param(network, method, marks=marks, id=f"{network}-{method}")


def model_section(network, method, folder, objective):
    """`objective`: plain, or the richest that the network has."""
    dropout = {} if network == "clip" else {"bert": {"dropout": 0.1}}
    matcher = lavis_tiny.section(network, folder / "vocab.txt", objective=objective, **dropout)
    name, _, scenario = method.partition("_")
    anchor = {"anchor": str(folder / "runs" / f"{network}_plain_{objective}")} if scenario == "frozen" else {}
    sections = {
        "plain": matcher,
        "dbl": {"arch": "itm_dbl", "model_type": scenario, "matcher": matcher, "dbl": anchor},
        "aoq": {
            "arch": "itm_aoq",
            "model_type": "two_rounds",
            "matcher": matcher,
            "candidates": {"start_epoch": 1, "captions_per_image": 8, "images_per_caption": 4},
        },
        "bcls": {
            "arch": "itm_bcls",
            "model_type": "cider",
            "matcher": matcher,
            "labels": {"cache": str(folder / "labels")},
            "kendall": {"window": 6, "stride": 3},
        },
        "coder": {
            "arch": "itm_coder",
            "model_type": "full",
            "matcher": matcher,
            "dictionary": {"size": 40},
            "concept": {"min_count": 1, "size": 12, "word_dim": 8, "conceptnet": "scenes"},
            "labels": {"prototypes": 6},
        },
    }
    return sections[name]


def project(network, method, folder, name, objective, **run):
    model = model_section(network, method, folder, objective)
    return lavis_tiny.project(model, folder, name, batch_size_train=STEPS * 4, k_test=3, **run)


def train(folder, content, *options):
    return run_training(tiny.write_project(folder / "project.yaml", content), options)


@pytest.fixture
def trained(folder, monkeypatch):
    """Trains a network by a method; gives back the run folder. A frozen anchor is trained first."""
    monkeypatch.setenv("LAVIS_ITM_CACHE", str(folder))

    def run(network, method, objective, **keys):
        name = f"{network}_{method}_{objective}"
        if method == "dbl_frozen" and not (folder / "runs" / f"{network}_plain_{objective}").exists():
            run(network, "plain", objective)
        if not (folder / "runs" / name).exists():
            train(folder, project(network, method, folder, name, objective, **keys))
        return folder / "runs" / name

    return run


@pytest.mark.parametrize(("network", "method"), cases())
def test_each_network_trains_under_each_method_and_is_scored(network, method, folder, trained, monkeypatch):
    """The checkpoint says all that it takes to score it: the vocabulary file is gone by then."""
    run = trained(network, method, "plain", test_splits=["test"])
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert lines and "NaN" not in "".join(lines)
    monkeypatch.setenv("LAVIS_ITM_BERT_VOCAB", str(folder / "nowhere"))
    found = evaluate_checkpoint(run / "config.yaml", run / "checkpoint_best.pth", split="test")
    assert found.n_captions == 20
    assert np.isfinite(found.metrics["rsum"])
    assert ("itm_rsum" in found.metrics) == (network != "clip")


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
def test_a_stopped_run_goes_on_exactly(network, method, folder, trained, monkeypatch):
    """With LAVIS's own losses: queues, momentum towers, drawn negatives, dropout."""
    objective = OBJECTIVES[network]
    whole = trained(network, method, objective)
    stock, calls = loop._Stepper.accumulate, []

    def accumulate(*given):
        calls.append(1)
        if len(calls) == STEPS + 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(*given)

    content = project(network, method, folder, f"{whole.name}_stopped", objective)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop._Stepper, "accumulate", accumulate)
        train(folder, content)
    train(folder, content, "run.resume_ckpt_path=auto")
    assert_same_runs(whole.with_name(f"{whole.name}_stopped"), whole)
