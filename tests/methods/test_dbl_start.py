"""The weights that each branch, copy and anchor of itm_dbl starts from."""

from __future__ import annotations

import pytest
import torch
from methods.dbl_batch import IDS, SCENARIOS, batch, plain_matcher, section
from omegaconf import OmegaConf

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.vse import VseMatcher
from lavis_itm_plugins.methods.dbl import Dbl

pytestmark = pytest.mark.usefixtures("configuration")


def same_weights(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_a_frozen_run_starts_from_its_anchor_unless_told_otherwise(anchor, tmp_path):
    model = Dbl.from_config(section("frozen", anchor=anchor[1]))
    assert all(torch.equal(p, q) for p, q in zip(model.matcher.parameters(), anchor[0].parameters(), strict=True))
    # 2 B M at the start: nothing gained yet
    assert model.eval()(batch())["loss_boost"].item() == pytest.approx(2 * len(IDS) * 0.2, rel=1e-5)
    other = plain_matcher()
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    keys = section("frozen", anchor=anchor[1])
    keys.matcher.finetuned = str(tmp_path / "other.pth")
    started = Dbl.from_config(keys)
    assert all(torch.equal(p, q) for p, q in zip(started.matcher.parameters(), other.parameters(), strict=True))


def test_the_anchor_wins_over_the_weights_of_a_model_type(anchor, tmp_path, monkeypatch):
    published = plain_matcher()
    torch.save({"model": published.state_dict()}, tmp_path / "published.pth")
    default = OmegaConf.load(VseMatcher.default_config_path("regions_gru"))
    default.model.update({"load_finetuned": False, "pretrained": str(tmp_path / "published.pth")})
    OmegaConf.save(default, tmp_path / "default.yaml")
    path = classmethod(lambda cls, _: str(tmp_path / "default.yaml"))
    monkeypatch.setattr(VseMatcher, "default_config_path", path)
    assert same_weights(Dbl.from_config(section("frozen", anchor=anchor[1])).matcher, anchor[0])
    assert same_weights(Dbl.from_config(section("frozen", anchor=anchor[1], from_anchor=False)).matcher, published)


def test_a_target_does_not_start_from_another_network(anchor):
    state = anchor[0].state_dict()
    torch.save({"model": {**state, "_extra_state": {**state["_extra_state"], "arch": "itm_scan"}}}, anchor[1])
    with pytest.raises(ItmError, match=r"holds a itm_scan, from which .* itm_vse cannot start; set dbl.from_anchor"):
        Dbl.from_config(section("frozen", anchor=anchor[1]))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_matcher_s_checkpoint_reaches_every_branch_and_copy(scenario, anchor):
    keys = {"anchor": anchor[1], "from_anchor": False} if scenario == "frozen" else {}
    model = Dbl.from_config(section(scenario, **keys))
    copies = [*model.branches]
    if scenario == "momentum":
        copies.append(model.momentum_anchor.module)
        model.momentum_anchor.updates += 5
    assert not any(same_weights(copy, anchor[0]) for copy in copies)
    model.load_checkpoint(anchor[1])
    assert all(same_weights(copy, anchor[0]) for copy in copies)
    assert scenario != "momentum" or model.momentum_anchor.updates == 0
