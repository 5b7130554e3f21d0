"""Mistakes with itm_dbl are said in a sentence: wrong settings, a missing or broken anchor, a task that moves none."""

from __future__ import annotations

import pytest
import torch
from methods.dbl_batch import SCENARIOS, batch, built, section

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods.boost import BoostConfig
from lavis_itm_plugins.methods.dbl import Dbl

pytestmark = pytest.mark.usefixtures("configuration")


@pytest.mark.parametrize(
    ("dbl", "words"),
    [
        ({"form": "relativ"}, 'model.dbl.form: unknown choice "relativ"; did you mean relative'),
        ({"loss": "distil_ce"}, "model.dbl.loss: unknown choice"),
        ({"betta": 1}, "model.dbl.betta: unknown key; did you mean beta"),
        ({"gamma": 1.5}, "model.dbl.gamma: 1.5 is out of range"),
        ({"beta": -1}, "model.dbl.beta: -1.0 is out of range"),
        ({"branches": 1}, "model.dbl.branches: 1 is out of range"),
        ({"momentum": 1.5}, "model.dbl.momentum: 1.5 is out of range"),
        ({"mutual": True}, "model.dbl: mutual is for scenario: peer"),
        ({"cache": "always"}, "model.dbl: cache: always is for scenario: frozen"),
        ({"anchor": "x.pth"}, "model.dbl: anchor is a checkpoint for scenario: frozen, and the scenario is momentum"),
    ],
)
def test_a_mistake_in_the_settings_is_named(dbl, words):
    with pytest.raises(ItmError, match=words.replace(".", r"\.")):
        Dbl.parse_config(section(**dbl))


def test_momentum_settings_that_do_nothing_are_said(caplog):
    BoostConfig().warn_of_own_momentum("itm_blip")
    assert not caplog.records
    BoostConfig(momentum=0.9, momentum_warmup=1.0).warn_of_own_momentum("itm_blip")
    assert "momentum, momentum_warmup is not used, since itm_blip moves its own momentum towers" in caplog.text


def test_a_missing_anchor_is_said(tmp_path):
    with pytest.raises(ItmError, match=r"model.dbl.anchor is not set; give the checkpoint or the run folder"):
        Dbl.from_config(section("frozen"))
    with pytest.raises(ItmError, match=r"model.dbl.anchor: .*gone.pth holds no checkpoint; train a plain"):
        Dbl.from_config(section("frozen", anchor=str(tmp_path / "gone.pth")))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_anchor_that_is_not_finite_raises(scenario, anchor):
    model = built(scenario, anchor)
    networks = {
        "momentum": lambda: model.momentum_anchor.module,
        "frozen": lambda: model.frozen.matcher,
        "peer": lambda: model.branches[0],
    }
    with torch.no_grad():
        networks[scenario]().text_encoder.words.embed.weight.fill_(torch.nan)
    with pytest.raises(ItmError, match="values of anchor are not finite"):
        model(batch())


def test_a_task_that_never_moves_the_anchor_is_said():
    model = Dbl.from_config(section("momentum")).train()
    model(batch(epoch=0, iters=0, num_iters_per_epoch=2))
    with pytest.raises(ItmError, match=r"did not move in the first epoch, .* set run.task: itm_retrieval"):
        model(batch(epoch=1, iters=0, num_iters_per_epoch=2))
    model.after_step()
    model(batch(epoch=1, iters=0, num_iters_per_epoch=2))
