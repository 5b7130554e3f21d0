"""Names and overrides of a YAML file, checked before anything heavy starts."""

from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from lavis.common.registry import registry

from lavis_itm_plugins import registration
from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.config.names import check_names
from lavis_itm_plugins.errors import ItmError

GOOD = {
    "model": {"arch": "clip", "model_type": "base"},
    "datasets": {"flickr30k": {"type": "default"}},
    "run": {"task": "retrieval", "runner": "runner_iter", "lr_sched": "linear_warmup_step_lr"},
}


@pytest.fixture(autouse=True)
def only_lavis(monkeypatch):
    monkeypatch.setattr(registration, "MODULES", ())
    registration.register_all()


def edited(path, value):
    """GOOD with one key set, or removed where the value is None."""
    config = deepcopy(GOOD)
    *parents, last = path.split(".")
    node = config
    for name in parents:
        node = node[name]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return config


def test_stock_names_pass():
    check_names(GOOD, "x.yaml")
    check_names(edited("run.runner", None), "x.yaml")
    check_names(edited("datasets.flickr30k", {}), "x.yaml")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("model.arch", "clpi", 'x.yaml: model.arch: unknown model "clpi"; did you mean clip'),
        ("model.arch", None, "x.yaml: model.arch: missing; choose from: albef_"),
        ("model.model_type", "ViT-B-23", 'x.yaml: model.model_type: unknown type "ViT-B-23"; did you mean ViT-B-'),
        ("model.model_type", None, "x.yaml: model.model_type: missing; choose from: "),
        ("datasets.flickr30", {}, 'x.yaml: datasets: unknown dataset "flickr30"; did you mean flickr30k'),
        ("datasets", {}, "x.yaml: datasets: none given; choose from: "),
        ("datasets.flickr30k", "here", "x.yaml: datasets.flickr30k: expected a section of keys, got 'here'"),
        ("datasets.flickr30k.type", "defalt", 'x.yaml: datasets.flickr30k.type: unknown type "defalt"; did you mean'),
        ("run.task", "retreival", 'x.yaml: run.task: unknown task "retreival"; did you mean retrieval'),
        ("run.task", None, "x.yaml: run.task: missing; choose from: "),
        ("run.runner", "runner_bas", 'x.yaml: run.runner: unknown runner "runner_bas"; did you mean runner_base'),
        ("run.lr_sched", "linear", 'x.yaml: run.lr_sched: unknown scheduler "linear"; '),
        ("run", None, "x.yaml: run: expected a section of keys, got None"),
        ("runn", {"seed": 1}, 'x.yaml: unknown section "runn"; did you mean run?'),
    ],
)
def test_a_wrong_name_is_one_sentence_with_file_and_key(key, value, sentence):
    with pytest.raises(ItmError) as caught:
        check_names(edited(key, value), "x.yaml")
    assert str(caught.value).startswith(sentence)


@pytest.fixture
def project(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    return path


def test_overrides_choose_the_default_files(project):
    options = ["model.arch=blip_retrieval", "model.model_type=flickr", "datasets.coco_retrieval.type=default"]
    config = ProjectConfig(project, [*options, "run.seed=7"])
    assert "flickr" in config.model_cfg.finetuned  # LAVIS would keep the file of the type in the YAML
    assert "storage" in config.datasets_cfg.coco_retrieval.build_info.images  # and give no defaults here
    assert config.run_cfg.seed == 7 and config.run_cfg.evaluate is False and config.run_cfg.distributed is False
    assert registry.get("configuration") is config and config.args.cfg_path == str(project)


def test_an_override_is_checked_too(project):
    with pytest.raises(ItmError, match=r'x\.yaml: run\.runner: unknown runner "fast"'):
        ProjectConfig(project, ["run.runner=fast"])


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        ("a: [", [], "while parsing a flow node"),
        ("- a\n- b", [], "expected the sections model, datasets and run"),
        (None, ["run.seed", "1"], '--options: "run.seed" has no "="; write key=value'),
    ],
)
def test_a_file_or_override_that_cannot_be_read(project, content, options, sentence):
    if content is not None:
        Path(project).write_text(content)
    with pytest.raises(ItmError, match=sentence) as caught:
        ProjectConfig(project, options)
    assert "\n" not in str(caught.value)
