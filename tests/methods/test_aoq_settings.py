"""The settings, data sets and networks that itm_aoq takes, and one sentence for each that it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from lavis.common.registry import registry
from methods.aoq_batch import batch_of, method
from omegaconf import OmegaConf

from lavis_itm_plugins.config.schema import parse
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods.aoq import Aoq
from lavis_itm_plugins.methods.aoq_config import AoqConfig


def section(**keys):
    matcher = {**tiny.project("", "")["model"], "vocab_path": "x.json"}
    return OmegaConf.create({"arch": "itm_aoq", "matcher": matcher, **keys})


def test_registered_with_both_model_types():
    assert registry.get_model_class("itm_aoq") is Aoq
    for name in Aoq.PRETRAINED_MODEL_CONFIG_DICT:
        config = Aoq.parse_config(OmegaConf.load(Aoq.default_config_path(name)).model)
        assert config.aoq.alpha == 0.3 and config.base_loss.negatives == "hardest"
        assert config.candidates.mining().captions_per_image == 300


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"aoq": {"alpah": 1}}, "model.aoq.alpah: unknown key; did you mean alpha"),
        ({"aoq": {"alpha": 0}}, "model.aoq.alpha: 0.0 is out of range"),
        ({"aoq": {"cross_pair": "masked"}}, 'model.aoq.cross_pair: unknown choice "masked"; did you mean mask'),
        ({"aoq": {"offline": "logits"}, "base_loss": {"name": "triplet"}}, "logits needs base_loss.name: infonce"),
        ({"aoq": {"draws": 2}}, "model.aoq.draws: 2 needs offline: shared; draw once"),
        ({"aoq": {"distill": 1}}, "model.aoq.distill: 1.0 needs offline: shared; set 0"),
        (
            {"aoq": {"distill": 1, "offline": "shared"}, "base_loss": {"name": "infonce"}},
            "model.aoq.distill: 1.0 needs a run folder or a checkpoint as candidates.source",
        ),
        ({"init": "checkpoint"}, "model.init: checkpoint needs a run folder or a checkpoint as candidates.source"),
        ({"candidates": {"filters": {"relative_margin": 1}}}, "relative_margin: 1.0 is out of range"),
        ({"candidates": {"captions_per_image": 0}}, "captions_per_image: 0 is out of range"),
    ],
)
def test_wrong_settings_are_said_when_they_are_read(keys, message):
    with pytest.raises(ItmError, match=message):
        Aoq.parse_config(section(**keys))


def test_a_source_is_looked_for_only_where_its_weights_are_needed():
    """A checkpoint that was trained elsewhere is read where its round one cannot be named."""
    too_long = "run" * 100
    assert Aoq.parse_config(section(candidates={"source": too_long})).candidates.source == too_long


def test_only_a_data_set_of_ours_is_taken():
    with pytest.raises(ItmError, match=r"needs one training set of this plugin .* not list"):
        method().wrap_dataset([1, 2])


def test_a_contrast_of_the_networks_own_stays(split, sampler):
    """The offline hinges join it; what would change the base loss is refused."""
    model, batch = method(), batch_of(split, sampler)
    model.matcher.config = SimpleNamespace(contrasts=True, objective="itc")
    model.matcher.matching_losses = lambda *given: {"loss_base": torch.tensor(7.0)}
    parts = model.losses(batch)
    assert parts["loss_base"] == 7 and parts["loss_offline"] > 0
    with pytest.raises(ItmError, match="offline: shared changes base_loss, which itm_vse with objective: itc does not"):
        Aoq(parse(AoqConfig, {"base_loss": {"name": "infonce"}, "aoq": {"offline": "shared"}}, "m"), model.matcher)
