"""Anchors: the official momentum and learning-rate schedules, the moving average, and a frozen anchor's cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from golden import FIXTURES
from lavis.common.registry import registry

from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.data.datasets import CaptionDataset
from lavis_itm_plugins.data.precomp import read_precomp
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods.frozen import FrozenAnchor, content_of, varies
from lavis_itm_plugins.methods.method import build_matcher, resolve_matcher
from lavis_itm_plugins.methods.moving import MomentumSchedule
from lavis_itm_plugins.momentum import MomentumCopy
from lavis_itm_plugins.runners.schedulers import StepSchedule

FIXTURE = FIXTURES / "golden_boosting.npz"


@pytest.fixture(scope="module")
def golden():
    return np.load(FIXTURE)


def test_golden_momentum_schedules(golden):
    small = MomentumSchedule(golden["sched/momentum/small"][0], 21)
    np.testing.assert_allclose([small.at(i) for i in range(21)], golden["sched/momentum/small"], rtol=1e-12)
    warmed = MomentumSchedule(0.9995, 21, warmup=7, warmup_from=0.9)
    np.testing.assert_allclose([warmed.at(i) for i in range(21)], golden["sched/momentum/small_warmup"], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "start", "steps"),
    [("f30k", 0.99995, 40 * 1133), ("coco", 0.99995, 20 * 4426), ("f30k_default", 0.9995, 40 * 1133)],
)
def test_golden_momentum_of_the_papers_runs(golden, name, start, steps):
    schedule = MomentumSchedule(start, steps)
    index, values = golden[f"sched/momentum/{name}/idx"], golden[f"sched/momentum/{name}/val"]
    np.testing.assert_allclose([schedule.at(int(i)) for i in index], values, rtol=1e-12)
    np.testing.assert_allclose(schedule.left()[-1], golden[f"sched/momentum/{name}/prod"], rtol=1e-8)


def test_golden_moving_average(golden):
    """k[t + 1] = m_t k[t] + (1 - m_t) q[t + 1], with the small schedule."""
    q, k = (torch.from_numpy(golden[f"ema/{name}"]) for name in "qk")
    source = torch.nn.Linear(q.shape[1], 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        source.weight.copy_(q[:1])
    copy, momentum = MomentumCopy(source), golden["sched/momentum/small"]
    for step in range(len(momentum)):
        with torch.no_grad():
            source.weight.copy_(q[step + 1 : step + 2])
        copy.update(float(momentum[step]))
        torch.testing.assert_close(copy.module.weight.detach()[0], k[step + 1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "milestone"), [("f30k_MSS", 30), ("coco_MSS", 10), ("f30k_OSS", 30), ("coco_OSS", 10)]
)
def test_golden_learning_rates(golden, name, milestone, monkeypatch):
    """Ours in projects/dbl: `itm_step_lr` with one milestone."""
    monkeypatch.setattr("lavis_itm_plugins.runners.schedulers.run_setting", lambda _: {"milestones": [milestone]})
    expected = golden[f"sched/lr/{name}"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = StepSchedule(optimizer, max_epoch=len(expected), min_lr=0.0, init_lr=2e-4)
    rates = []
    for epoch in range(len(expected)):
        schedule.step(cur_epoch=epoch, cur_step=0)
        rates.append(optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (MomentumSchedule(0.5, 10, "constant"), "momentum 0.5: half of it is new after 1 updates (0.2 epochs), 0% of"),
        (MomentumSchedule(1.0, 10), "momentum 1 to 1: half of it is new never in this run, 100% of its start is left"),
        (MomentumSchedule(0.9, 0), "half of it is new never in this run, nothing is trained"),
    ],
)
def test_a_schedule_says_how_fast_the_anchor_follows(schedule, words):
    assert words in schedule.described(steps_per_epoch=5)


def test_a_constant_momentum_and_a_run_that_goes_on_past_its_plan():
    assert {MomentumSchedule(0.7, 9, "constant").at(step) for step in range(12)} == {0.7}
    assert MomentumSchedule(0.7, 9).at(50) == 1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_precomp(tmp_path_factory.mktemp("data"))


@pytest.fixture
def anchor(data, tmp_path):
    """A frozen anchor, from a run folder with a method's checkpoint of one."""
    before = registry.get("configuration", no_warning=True)
    ProjectConfig(tiny.write_project(tmp_path / "x.yaml", tiny.project(data, tmp_path)))
    torch.manual_seed(0)
    matcher = build_matcher(resolve_matcher(tiny.project("", "")["model"], None, "model"))
    registry.mapping["state"]["configuration"] = before
    state = {f"matcher.{name}": value for name, value in matcher.state_dict().items()}
    torch.save({"model": {**state, "_extra_state": {"arch": "itm_other"}}}, tmp_path / "checkpoint_best.pth")
    return FrozenAnchor(tmp_path)


def items(dataset, rows):
    batch = dataset.__getitems__(rows)
    return {**batch, "image_id": torch.as_tensor(batch["image_id"])}


def test_cached_scores_are_those_of_the_network(data, anchor, caplog):
    caplog.set_level("INFO")
    dataset = CaptionDataset(read_precomp(data, "train"))
    batches = [items(dataset, rows) for rows in ([5, 119, 0, 7], [7, 6], [60])]
    live = [anchor.scores(batch) for batch in batches]
    assert anchor.can_cache(dataset) and not varies(dataset)
    anchor.fill_cache(dataset, batch_size=5)
    assert "the anchor's vectors of 24 images and 120 captions are kept" in caplog.text
    # the network is not asked again, nor what the batch holds beside the caption's row
    anchor.matcher.encode_images = anchor.matcher.encode_captions = None
    for batch, expected in zip(batches, live, strict=True):
        cached = anchor.scores({"index": batch["index"]})
        assert not cached.requires_grad
        torch.testing.assert_close(cached, expected, rtol=1e-5, atol=1e-6)


class Augmenting:
    """Pictures in random variants."""

    def __len__(self):
        return 24

    def fetch(self, rows):
        raise AssertionError("not looked at")

    def fetch_augmented(self, rows, keys):
        raise AssertionError("not looked at")


def test_what_varies_from_epoch_to_epoch(data, tmp_path):
    split = read_precomp(data, "train")
    assert not varies(CaptionDataset(split)) and varies(CaptionDataset(split, region_drop=0.2))
    single = tiny.write_precomp(tmp_path / "single", regions=1)
    # there is no region to leave out but the only one
    assert not varies(CaptionDataset(read_precomp(single, "train"), region_drop=0.2))
    assert varies(CaptionDataset(replace(split, images=Augmenting())))


def test_only_one_vector_an_image_can_be_kept(data, anchor):
    dataset = CaptionDataset(read_precomp(data, "train"))
    assert not anchor.can_cache(torch.utils.data.TensorDataset(torch.zeros(3)))
    anchor.matcher.__class__ = type("Regions", (type(anchor.matcher),), {"score": lambda self, images, captions: None})
    assert not anchor.can_cache(dataset)


def test_content_changes_with_any_weight(anchor):
    again = FrozenAnchor(anchor.path)
    assert content_of(again.matcher) == anchor.content == again.content and len(anchor.content) == 16
    with torch.no_grad():
        next(again.matcher.parameters()).view(-1)[0] += 1e-3
    assert content_of(again.matcher) != anchor.content


def test_a_file_that_is_no_anchor_is_said(tmp_path):
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "weights.pth")
    with pytest.raises(ItmError, match=r"weights.pth does not say what network it is"):
        FrozenAnchor(tmp_path / "weights.pth")
    with pytest.raises(ItmError, match=r"checkpoint .*gone.pth does not exist"):
        FrozenAnchor(tmp_path / "gone.pth")
