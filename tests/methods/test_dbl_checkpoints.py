"""What a checkpoint of itm_dbl holds: not a frozen anchor, but which one it was; it loads without the anchor's file."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from methods.dbl_batch import SCENARIOS, batch, built, plain_matcher, scores_of, section

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.vse import VseMatcher
from lavis_itm_plugins.methods.dbl import Dbl

pytestmark = pytest.mark.usefixtures("configuration")


def test_a_frozen_anchor_is_in_no_state_dictionary(anchor):
    model = built("frozen", anchor)
    assert {name.split(".")[0] for name in model.state_dict()} == {"matcher", "_extra_state"}
    assert model.state_dict()["_extra_state"]["anchor"] == model.frozen.content
    assert sum(1 for _ in model.parameters()) == sum(1 for _ in model.matcher.parameters())


def test_a_run_does_not_go_on_with_another_anchor(anchor, tmp_path):
    model = Dbl.from_config(section("frozen", anchor=anchor[1]))
    state = model.state_dict()
    model.load_state_dict(state)
    other = plain_matcher()
    torch.save({"model": other.state_dict()}, anchor[1])
    again = Dbl.from_config(section("frozen", anchor=anchor[1]))
    with pytest.raises(ItmError, match=r"another anchor than .*anchor.pth holds now .*put that checkpoint back"):
        again.load_state_dict(state)
    # a new run may start from those weights and take any anchor
    torch.save({"model": state}, tmp_path / "trained.pth")
    keys = section("frozen", anchor=anchor[1])
    keys.finetuned = str(tmp_path / "trained.pth")
    started = Dbl.from_config(keys)
    started.eval()(batch())
    assert started.frozen.content == again.frozen.content != model.frozen.content
    # and its averaged copy, made before training, knows the new one
    fresh = Dbl.from_config(keys)
    average = deepcopy(fresh)
    fresh.eval()(batch())
    fresh.load_state_dict(average.state_dict())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_checkpoint_loads_without_its_anchor_s_file(scenario, anchor, tmp_path):
    model = built(scenario, anchor)
    torch.save({"model": model.state_dict()}, tmp_path / "trained.pth")
    (tmp_path / "anchor.pth").rename(tmp_path / "gone")
    unbuilt = Dbl.from_pretrained(scenario)
    unbuilt.load_checkpoint(tmp_path / "trained.pth")
    assert torch.equal(scores_of(unbuilt.eval().evaluated(), batch()), scores_of(model.matcher, batch()))
    assert unbuilt.state_dict()["_extra_state"]["anchor"] == model.state_dict()["_extra_state"]["anchor"]
    alone = VseMatcher.from_pretrained("regions_gru")
    alone.load_checkpoint(tmp_path / "trained.pth")
    assert torch.equal(scores_of(alone.eval(), batch()), scores_of(model.matcher, batch()))
