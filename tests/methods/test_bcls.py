"""itm_bcls: the golden total through a matcher, labels of the right rows, ramp, gap, and training that goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from golden import FIXTURES
from lavis.common.registry import registry
from methods.bcls_processes import batch_of, method_of, random_method
from omegaconf import OmegaConf
from runners.compare import assert_same_runs
from scripts import run_script
from torch.nn.functional import normalize

from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.config.schema import parse
from lavis_itm_plugins.data.relevance import LabelConfig, training_labels
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import kendall_loss, triplet_loss
from lavis_itm_plugins.methods.bcls import BCLS, BclsConfig, KendallConfig

FIXTURE = FIXTURES / "golden_bcls.npz"


@pytest.mark.parametrize("source", ["fixture", "shared"])
@pytest.mark.parametrize("case", "ABCDEFG")
def test_golden_total(request: pytest.FixtureRequest, case: str, source: str) -> None:
    """Loss and gradients with respect to the raw vectors, through normalisation, matcher and method."""
    golden = np.load(FIXTURE if source == "fixture" else request.getfixturevalue("shared") / "golden" / "bcls.npz")
    parameters = dict(zip(golden["params.names"].tolist(), golden["params.values"].tolist(), strict=True))
    window, stride = golden[f"{case}.w_stride"].tolist()
    ids = golden[f"{case}.img_id"]
    base = {"name": "triplet", "negatives": "soft", "margin": parameters["alpha"], "reduction": "mean"}
    model = method_of(
        *(golden[f"{case}.{name}"] for name in ("v_raw", "t_raw", "Y")),
        ids,
        base_loss={**base, "temperature": parameters["tau_loose"]},
        kendall={"window": window, "stride": stride, "weight": parameters["lambda"], "margin": parameters["m"]},
    )
    parts = model(batch_of(np.arange(len(ids)), ids))
    parts["loss"].backward()
    assert parts["loss"].item() == pytest.approx(golden[f"{case}.loss.total"].item(), rel=1e-8, abs=1e-12)
    for ours, theirs in ((model.matcher.images, "grad_v"), (model.matcher.captions, "grad_t")):
        np.testing.assert_allclose(ours.grad, golden[f"{case}.{theirs}.total"], rtol=1e-6, atol=1e-8)
    if case in "EG":  # one item, one image
        assert parts["loss"] == 0 and not model.matcher.images.grad.any()


def test_parts_are_the_two_losses_and_labels_go_by_row() -> None:
    model, ids = random_method(kendall={"weight": 0.5, "gap": 0.2, "window": 4, "stride": 2, "split": "all"})
    rows = np.array([7, 3, 0, 5])
    parts = model(batch_of(rows, ids))
    matcher = model.matcher
    scores = normalize(matcher.images[rows], dim=1) @ normalize(matcher.captions[rows], dim=1).T
    positives = torch.from_numpy(ids[rows][:, None] == ids[rows])
    assert positives[1, 2]  # items 3 and 0 show the same image
    expected = triplet_loss(scores, negatives="soft", positives=positives, reduction="mean")
    torch.testing.assert_close(parts["loss_base"], expected.detach())
    labels = torch.from_numpy(model.source.values[np.ix_(rows, rows)])
    kendall = kendall_loss(scores, labels, gap=0.2, window=4, stride=2, split="all").detach()
    torch.testing.assert_close(parts["kendall"], kendall)
    torch.testing.assert_close(parts["loss_kendall"], 0.5 * kendall)
    torch.testing.assert_close(parts["loss"].detach(), parts["loss_base"] + parts["loss_kendall"])
    [(images, captions)] = model.source.asked
    assert images.tolist() == ids[rows].tolist() and captions.tolist() == rows.tolist()


def test_official_makes_other_captions_of_an_image_negatives() -> None:
    losses = {}
    for official in (False, True):
        model, ids = random_method(official=official)
        losses[official] = model(batch_of(np.arange(9), ids))
    scores = normalize(model.matcher.images, dim=1) @ normalize(model.matcher.captions, dim=1).T
    expected = triplet_loss(scores, negatives="soft", reduction="mean").detach()
    torch.testing.assert_close(losses[True]["loss_base"], expected)
    assert losses[False]["loss_base"] < expected and losses[False]["kendall"] == losses[True]["kendall"]


def test_the_weight_rises_over_the_ramp() -> None:
    model, ids = random_method(kendall={"weight": 2.0, "ramp_epochs": 1.5})
    for epoch, step, share in ((0, 0, 0), (0, 5, 1 / 3), (1, 0, 2 / 3), (1, 5, 1), (7, 0, 1)):
        parts = model(batch_of(np.arange(9), ids, epoch=epoch, iters=step, num_iters_per_epoch=10))
        torch.testing.assert_close(parts["loss_kendall"], 2 * share * parts["kendall"])


def test_without_weight_no_labels_are_asked_for() -> None:
    model, ids = random_method(kendall={"weight": 0.0})
    model.source = None
    model.before_training(None)
    assert model(batch_of(np.arange(9), ids)).keys() == {"loss", "loss_base"}


def test_lavis_items_say_their_row_as_text() -> None:
    model, ids = random_method()
    batch = batch_of(np.arange(9), ids)
    expected = model(batch)["loss"]
    del batch["index"]
    batch["instance_id"] = [str(row) for row in range(9)]
    assert torch.equal(model(batch)["loss"], expected)


@pytest.mark.parametrize("change", ["image", "row"])
def test_labels_of_other_data_are_refused(change: str) -> None:
    model, ids = random_method()
    batch = batch_of(np.arange(9), ids)
    batch["image_id" if change == "image" else "index"] = torch.arange(9) + (5 if change == "row" else 0)
    with pytest.raises(ItmError, match="the labels are of 9 captions that are not those of the training items"):
        model(batch)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gap": 0.1, "gap_quantile": 0.2}, r"model\.kendall: gap and gap_quantile both say"),
        ({"gap": "wide"}, r"model\.kendall\.gap: expected a number, got 'wide'"),
        ({"split": "half"}, r'model\.kendall\.split: unknown choice "half"; did you mean halves'),
        ({"weight": -1}, r"model\.kendall\.weight: -1\.0 is out of range"),
        ({"windw": 4}, r"model\.kendall\.windw: unknown key; did you mean window"),
    ],
)
def test_a_wrong_setting_is_named(keys, message) -> None:
    with pytest.raises(ItmError, match=message):
        parse(BclsConfig, {"kendall": keys}, "model")


def test_every_option_of_the_loss_can_be_set() -> None:
    known = set(kendall_loss.__wrapped__.__kwdefaults__)
    assert set(KendallConfig().options(0.5)) == known and KendallConfig().options(0.5)["gap"] == 0.5
    defaults = {**kendall_loss.__wrapped__.__kwdefaults__, "gap": 0.5}
    assert KendallConfig().options(0.5) == defaults


def content_of(root: Path, output: Path, **run):
    """A project with labels from CIDEr on the tiny captions."""
    content = tiny.project(root, output, **run)
    content["model"] = {
        "arch": "itm_bcls",
        "model_type": "cider",
        "matcher": content["model"],
        "labels": {"cache": str(root.parent / "cache")},
        "kendall": {"window": 6, "stride": 3, "gap_quantile": 0.8, "ramp_epochs": 1.5},
    }
    return content


@pytest.fixture
def project(tmp_path: Path):
    """A project that is configured, as a run configures it."""
    root = tiny.write_precomp(tmp_path / "data")
    content = content_of(root, tmp_path / "runs", max_epoch=3, itm={"run_name": "whole"})
    path = tiny.write_project(tmp_path / "project.yaml", content)
    before = registry.get("configuration", no_warning=True)
    yield SimpleNamespace(path=path, content=content, config=ProjectConfig(path), folder=tmp_path / "runs")
    registry.mapping["state"]["configuration"] = before
    torch.use_deterministic_algorithms(False)


def test_labels_are_looked_up_when_no_hook_was_called(project) -> None:
    """Under LAVIS's own runner the first step finds them; a hook before it finds the same."""
    rows = np.array([3, 70, 12, 13])
    source = training_labels(LabelConfig(cache=str(project.path.parent / "cache")))
    batch = {
        "image": torch.randn(4, 3, 8),
        "text_input": ["a red dog"] * 4,
        "image_id": torch.from_numpy(source.caption_image[rows]),
        "instance_id": [str(row) for row in rows],
    }
    for hook in (False, True):
        model = BCLS.from_config(project.config.model_cfg)
        assert model.source is None
        if hook:
            model.before_training(None)
        assert model(batch)["kendall"] > 0 and model.gap > 0
        labels = model.labels(batch["image_id"], torch.from_numpy(rows)).numpy()
        np.testing.assert_array_equal(labels, source.labels(source.caption_image[rows], rows))
        assert (labels[2:, 2:] == 1).all()  # two captions of one image


def test_a_trained_checkpoint_needs_no_labels(project, monkeypatch) -> None:
    model = BCLS.from_config(project.config.model_cfg)
    path = project.path.with_name("bcls.pth")
    torch.save({"model": model.state_dict()}, path)
    monkeypatch.setitem(BCLS.before_training.__globals__, "training_labels", None)
    registry.mapping["state"]["configuration"] = None
    loaded = BCLS.from_pretrained("cider")
    loaded.load_checkpoint(path)
    captions = ["a red dog", "the green cat there"]
    one, other = (part.eval().evaluated().encode_captions(captions).pooled for part in (model, loaded))
    assert torch.equal(one, other)


def train(path: Path, *options: str):
    from lavis_itm_plugins.train import run_training

    return run_training(path, options)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """A folder with what other processes did: two ranks' loss and gradients, a run, and one killed and resumed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    root = tiny.write_precomp(folder / "data")
    content = content_of(root, folder / "runs", max_epoch=3, itm={"save_every_steps": 3})
    tiny.write_project(folder / "project.yaml", content)
    run_script("methods/bcls_processes.py", folder)
    return folder


def test_two_ranks_equal_one(elsewhere: Path) -> None:
    one, two = (torch.load(elsewhere / f"ranks_{size}.pt") for size in (1, 2))
    assert one.keys() == two.keys() and one["loss"] > 0
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-6, atol=1e-12, msg=name)


def test_a_killed_run_goes_on_exactly(elsewhere: Path) -> None:
    """Killed within the ramp, in the middle of the second epoch, after a checkpoint there."""
    assert_same_runs(elsewhere / "runs" / "killed", elsewhere / "runs" / "whole")
    lines = (elsewhere / "runs" / "whole" / "metrics.jsonl").read_text()
    assert "loss_kendall" in lines and '"kendall": 0.0' not in lines


@pytest.mark.parametrize("model_type", ["cider", "scenes"])
def test_shipped_types_build(model_type: str) -> None:
    section = OmegaConf.load(BCLS.default_config_path(model_type)).model
    config = BCLS.parse_config(section)
    assert config.labels.source == model_type and config.base_loss.negatives == "soft"
    assert config.matcher["base_loss"]["negatives"] == "soft"


def test_the_sentence_type_asks_for_an_encoder() -> None:
    section = OmegaConf.load(BCLS.default_config_path("sentence")).model
    with pytest.raises(ItmError, match="source: sentence needs an encoder"):
        BCLS.parse_config(section)
    section.labels.encoder = "models/minilm"
    assert BCLS.parse_config(section).labels.encoder == "models/minilm"
