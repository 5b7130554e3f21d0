"""itm_coder through the runner: killed and resumed, on two ranks, evaluated without its files, and its keys in YAML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from concepts.conceptnet_lines import assertions
from runners.compare import assert_same_runs
from scripts import run_script

from lavis_itm_plugins.errors import ItmError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the processes of `coder_runs.py` left."""
    target = tmp_path_factory.mktemp("coder")
    tiny.write_precomp(target / "data", train=23, val=7)
    run_script("methods/coder_runs.py", target, LAVIS_ITM_CACHE=str(target / "cache"))
    return target


def test_a_killed_run_goes_on_bit_for_bit(folder) -> None:
    """Key tower, dictionaries, prototypes, fusion weight: all of the state is in the checkpoint."""
    assert_same_runs(folder / "runs" / "stopped_1", folder / "runs" / "whole_1")
    stored = torch.load(folder / "runs" / "whole_1" / "checkpoint_last.pth", weights_only=True)["model"]
    expected = {
        "keys.matcher.module.",
        "keys.concept.module.",
        "keys.dictionaries.caption_concept.keys",
        "labels.prototypes",
    }
    assert all(any(name.startswith(start) for name in stored) for start in expected)
    assert int(stored["keys.dictionaries.image_instance.filled"]) == 40 and int(stored["keys.steps_taken"]) == 14


def test_two_ranks_equal_one(folder) -> None:
    one, *two = (torch.load(folder / f"float64_{part}.pt") for part in ("1_0", "2_0", "2_1"))
    for name, value in one["state"].items():
        torch.testing.assert_close(two[0]["state"][name], value, rtol=1e-6, atol=1e-8, msg=name)
    for name, value in two[0]["state"].items():
        # to the last bit: a dictionary that drifts apart would feed each rank other negatives
        assert torch.equal(two[1]["state"][name], value), name
    for lines in zip(two[0]["metrics"], one["metrics"], strict=True):
        metrics, reference = map(json.loads, lines)
        assert metrics.pop("split") == reference.pop("split")
        assert metrics == pytest.approx(reference, rel=1e-6)


@pytest.fixture
def project(tmp_path, monkeypatch) -> dict:
    monkeypatch.setenv("LAVIS_ITM_CACHE", str(tmp_path / "cache"))
    content = tiny.project(tiny.write_precomp(tmp_path / "data"), tmp_path / "runs", max_epoch=1)
    matcher = {key: content["model"][key] for key in ("arch", "model_type", "embed_dim", "min_count", "image", "text")}
    small = {"dictionary": {"size": 20}, "concept": {"min_count": 1, "word_dim": 8}, "labels": {"prototypes": 4}}
    content["model"] = {"arch": "itm_coder", "model_type": "full", "matcher": matcher, **small}
    return content


def trained(project: dict, tmp_path: Path, *options: str):
    from lavis_itm_plugins.train import run_training

    try:
        return run_training(tiny.write_project(tmp_path / "project.yaml", project), options)
    finally:
        torch.use_deterministic_algorithms(False)


def test_evaluation_needs_no_conceptnet_file(project, tmp_path, caplog) -> None:
    from lavis_itm_plugins.evaluating import evaluate_checkpoint

    caplog.set_level("INFO")
    path = tmp_path / "assertions.csv"
    path.write_bytes(assertions("dog AtLocation house 2.0, red RelatedTo ball 1.0, cat RelatedTo dog 1.0"))
    project["model"]["concept"]["conceptnet"] = str(path)
    runner = trained(project, tmp_path)
    metrics = json.loads(runner.folder.metric_lines()[-1])
    assert "chosen on validation: online tower, fusion weight" in caplog.text
    assert "dictionaries: 20 keys, mean cosine" in caplog.text and "by age in pairs" in caplog.text
    # it holds what is derived from ConceptNet
    assert (runner.folder.path / "CONCEPTNET_LICENSE.txt").exists()
    path.unlink()
    again = evaluate_checkpoint(runner.folder.config, runner.folder.best, split="val")
    assert again.metrics["rsum"] == metrics["rsum"]
    with pytest.raises(ItmError, match=r"cannot read .*assertions.csv"):
        trained(project, tmp_path, "run.itm.run_name=other")


def test_the_matcher_alone_loads_from_a_checkpoint_and_starts_one(project, tmp_path) -> None:
    from lavis.models import load_model

    runner = trained(project, tmp_path)
    alone = load_model("itm_vse", "regions_gru", checkpoint=str(runner.folder.best))
    whole = load_model("itm_coder", "full", checkpoint=str(runner.folder.best))
    for name, value in alone.state_dict().items():
        if torch.is_tensor(value):
            assert torch.equal(value, whole.matcher.state_dict()[name])
    assert whole.about_concepts["words"] == runner._model.about_concepts["words"]
    assert len(whole.top_concepts(torch.zeros(1, 16), "caption", 3)[0]) == 3


def test_other_concepts_are_refused(project, tmp_path) -> None:
    runner = trained(project, tmp_path)
    model = runner._model
    model.about_concepts = {**model.about_concepts, "words": model.about_concepts["words"][::-1]}
    with pytest.raises(ItmError, match=r"the checkpoint has other concepts \(\d+\) than this model"):
        model.load_checkpoint(runner.folder.best)


def test_parts_are_switched_by_options(project, tmp_path) -> None:
    """From the whole method to its first branch, over sections that the YAML has."""
    runner = trained(project, tmp_path, "model.concept=false", "model.dictionary.size=0", "model.scored=momentum")
    assert runner._model.concept is None and runner._model.labels is None
    assert runner.resolved_config["model"]["labels"] is False
    assert {name for name, _ in runner._model.named_children()} == {"matcher", "keys"}


def test_a_section_over_a_type_without_it(project, tmp_path) -> None:
    """`dictionaries` has no concept branch by default; a project may give it one."""
    from lavis_itm_plugins.config.load import ProjectConfig

    project["model"]["model_type"] = "dictionaries"
    config = ProjectConfig(tiny.write_project(tmp_path / "x.yaml", project)).model_cfg
    assert config.concept.word_dim == 8 and config.labels.prototypes == 4
    del project["model"]["concept"], project["model"]["labels"]
    config = ProjectConfig(tiny.write_project(tmp_path / "y.yaml", project)).model_cfg
    assert config.concept is False and config.labels is False


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.dcl.weightng=std", r"model.dcl.weightng: unknown key; did you mean weighting"),
        ("model.dcl.weighting=stt", r'model.dcl.weighting: unknown choice "stt"; did you mean std'),
        ("model.dictionary.size=-1", "model.dictionary.size: -1 is out of range"),
        ("model.concept=yes_please", "model.concept: expected a section of keys, got 'yes_please'"),
        ("model.concept.k=0", "model.concept.k: 0 is out of range"),
        ("model.concept.source=both", "source both needs ConceptNet"),
        ("model.concept.graph=nowhere", r"nowhere holds no concepts.json"),
        ("model.scored=first", 'model.scored: unknown choice "first"'),
    ],
)
def test_mistakes_are_one_sentence(project, tmp_path, option, message) -> None:
    with pytest.raises(ItmError, match=message):
        trained(project, tmp_path, option)
