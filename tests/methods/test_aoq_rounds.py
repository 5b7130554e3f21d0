"""Round two of itm_aoq trains with the lists that it was told to, mined or made before, or says what is missing."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from lavis.common.registry import registry
from methods.aoq_runs import SHARED, aoq_project, epochs, lists_of
from methods.runs import train

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluating import evaluate_checkpoint
from lavis_itm_plugins.mining import open_candidates

pytestmark = pytest.mark.usefixtures("as_before")


def stores_of(folder):
    return [path for path in (folder / "candidates").iterdir() if path.is_dir()]


def test_two_rounds(folder, caplog):
    """The lists are those of round one's weights; the run is evaluated without them."""
    caplog.set_level(logging.INFO)
    train(folder, aoq_project(folder, "two", model={"init": "checkpoint"}))
    run = folder / "two"
    [store] = stores_of(run)
    assert lists_of(run) == {"history": [store.name], "epoch": 0}
    mined = open_candidates(store)
    assert mined.negatives.captions.shape == (24, 9) and mined.negatives.images.shape == (120, 5)
    assert f"candidate lists {store}: " in caplog.text and "short_images 0" in caplog.text
    assert {"loss_offline", "aoq_weight", "aoq_offline_over_online", "aoq_cross_pairs"} <= epochs(run)[0].keys()
    shutil.rmtree(run / "candidates")
    result = evaluate_checkpoint(run / "config.yaml", run / "checkpoint_best.pth")
    assert result.split == "test" and result.metrics["rsum"] > 0


def test_a_cross_attention_matcher_takes_the_lists_of_another_network(folder):
    """As the paper does: one model's lists for all."""
    matcher = {
        "arch": "itm_scan",
        "model_type": "f30k",
        "embed_dim": 16,
        "min_count": 1,
        "text": {"word_dim": 8, "hidden": 16},
    }
    train(folder, aoq_project(folder, "scan", model={"matcher": matcher}, max_epoch=1))
    train(folder, aoq_project(folder, "vse", max_epoch=1))
    assert lists_of(folder / "scan") == lists_of(folder / "vse")
    assert epochs(folder / "scan")[0]["loss_offline"] > 0


def test_init_says_where_round_two_starts(folder):
    """One step at a rate of nothing leaves the weights as they were."""
    plain = read_checkpoint(folder / "plain" / "checkpoint_best.pth")["model"]
    for init, same in (("checkpoint", True), ("scratch", False)):
        name = f"init_{init}"
        train(folder, aoq_project(folder, name, model={"init": init}, max_epoch=1, init_lr=1e-30))
        state = read_checkpoint(folder / name / "checkpoint_last.pth")["model"]
        words = state["matcher.text_encoder.words.embed.weight"]
        assert torch.equal(words, plain["text_encoder.words.embed.weight"]) is same


def test_lists_are_refreshed_and_old_ones_deleted(folder, caplog):
    """Plain until the third epoch; then every epoch has lists of the weights it begins with."""
    caplog.set_level(logging.INFO)
    plan = {"start_epoch": 1, "refresh_every": 1}
    train(folder, aoq_project(folder, "refresh", source=None, candidates=plan, max_epoch=6))
    run = folder / "refresh"
    state = lists_of(run)
    assert len(set(state["history"])) == 3 and state["epoch"] == 5
    assert {path.name for path in stores_of(run)} == set(state["history"])
    assert caplog.text.count("beside the lists before: overlap_captions ") == 4
    assert "loss_offline" not in epochs(run)[0] and "loss_offline" in epochs(run)[1]
    every_two = aoq_project(folder, "every_two", candidates={"refresh_every": 2}, max_epoch=4)
    train(folder, every_two)
    assert lists_of(folder / "every_two")["epoch"] == 2


def test_lists_made_before_are_used_where_they_are(folder):
    train(folder, aoq_project(folder, "first", max_epoch=1))
    [store] = stores_of(folder / "first")
    content = aoq_project(folder, "second", source=store.relative_to(folder), max_epoch=1)
    train(folder, content)
    assert not (folder / "second" / "candidates").exists()
    train(folder, content, "run.resume_ckpt_path=auto", "run.max_epoch=2")
    assert lists_of(folder / "second") == {"history": [store.name], "epoch": 0}
    assert epochs(folder / "second")[0] == epochs(folder / "first")[0]


def test_a_new_run_from_an_aoq_checkpoint_mines_anew(folder):
    train(folder, aoq_project(folder, "before", max_epoch=1))
    start = {"finetuned": str(folder / "before" / "checkpoint_best.pth"), "load_finetuned": True}
    train(folder, aoq_project(folder, "after", source=None, model=start, max_epoch=1))
    assert lists_of(folder / "after")["history"] != lists_of(folder / "before")["history"]
    assert len(stores_of(folder / "after")) == 1


def test_a_run_whose_lists_are_gone_or_of_other_data_is_not_resumed(folder):
    content = aoq_project(folder, "gone", max_epoch=1)
    train(folder, content)
    [store] = stores_of(folder / "gone")
    store.rename(folder / "elsewhere")
    with pytest.raises(ItmError, match="do not exist; make them with lavis-itm mine"):
        train(folder, content, "run.resume_ckpt_path=auto", "run.max_epoch=2")
    meta = (folder / "elsewhere" / "meta.json").read_text()
    (folder / "elsewhere" / "meta.json").write_text(meta.replace('"n_captions": 120', '"n_captions": 121'))
    with pytest.raises(ItmError, match="mined from other data: n_captions is 121 there and 120 here"):
        train(folder, aoq_project(folder, "other", source="elsewhere"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": None}, "nothing to mine with: set model.candidates.source to a run folder of round one"),
        ({"source": "nowhere"}, "model.candidates.source: .*nowhere does not exist; give a run folder"),
        (
            {"source": "nowhere", "model": SHARED},
            "model.candidates.source: .*nowhere does not exist; give a run folder",
        ),
        ({"model": {"aoq": {"draw_captions": 99}}}, "draws from 99 captions are asked for, but the lists hold 9"),
        ({"candidates": {"filters": {"max_score": -2.0}}}, "have no mined captions, the first is caption 0; loosen"),
    ],
)
def test_what_cannot_be_trained_is_said(folder, keys, message, tmp_path):
    content = aoq_project(folder, "refused", **keys)
    content["run"]["output_dir"] = str(tmp_path)
    with pytest.raises(ItmError, match=message):
        train(tmp_path, content)


def test_lavis_s_own_runner_ends_in_a_sentence(folder, monkeypatch):
    for name in ("result_dir", "output_dir"):
        monkeypatch.delitem(registry.mapping["paths"], name, raising=False)
    content = aoq_project(folder, "stock")
    content["run"].update(runner="runner_base", lr_sched="linear_warmup_cosine_lr", min_lr=0, warmup_lr=0.01)
    content["run"].update(test_splits=[], train_splits=["train"], num_workers=0, weight_decay=0.0)
    content["run"]["output_dir"] = str(folder / "stock")
    with pytest.raises(ItmError, match=r"set run.runner: itm_runner"):
        train(folder, content)
