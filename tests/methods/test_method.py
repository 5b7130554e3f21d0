"""What every method inherits: building around a matcher, checkpoints, and the way back to the matcher alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import tiny
import torch
from omegaconf import OmegaConf

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.vse import VseMatcher
from lavis_itm_plugins.methods.method import Method, MethodConfig

pytestmark = pytest.mark.usefixtures("configuration")
CAPTIONS = ["a red dog", "the green cat there", "a blue ball"]


@dataclass(frozen=True)
class ScaledConfig(MethodConfig):
    factor: float = setting(0.5, above=0)


class Scaled(Method):
    """The plain loss times a learned factor: as small as a method can be."""

    arch = "itm_scaled"
    config_class = ScaledConfig
    PRETRAINED_MODEL_CONFIG_DICT = {"default": "models/itm_vse_regions_gru.yaml"}

    def setup(self, stored):
        self.factor = torch.nn.Parameter(torch.tensor([self.config.factor]))
        self.note = stored.get("note", "fresh")

    def losses(self, batch):
        encoded = self.encoded(batch)
        scores = self.matcher.score(encoded.images, encoded.captions)
        return {
            name: self.factor.sum() * value
            for name, value in self.matcher.matching_losses(batch, encoded, scores).items()
        }

    def get_extra_state(self):
        return {**super().get_extra_state(), "note": "kept"}


def section(**keys):
    matcher = {k: v for k, v in tiny.project("", "")["model"].items()}
    return OmegaConf.create({"arch": "itm_scaled", "model_type": "default", "matcher": matcher, **keys})


def batch(ids=(0, 1, 2)):
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(3, 3, 8, generator=generator),
        "text_input": CAPTIONS,
        "image_id": torch.tensor(ids),
        "epoch": 0,
    }


def saved(model, path):
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if isinstance(ours[k], torch.Tensor))


def test_matcher_gets_the_defaults_of_its_type_and_the_method_s_loss():
    model = Scaled.from_config(section(base_loss={"name": "triplet", "margin": 0.3}))
    assert model.matcher.config.base_loss.margin == 0.3
    assert model.config.matcher["image"]["projection"] == "residual"
    assert model.config.matcher["arch"] == "itm_vse"
    assert model.config.base_loss.name == "triplet"


def test_without_a_loss_of_its_own_the_method_uses_the_matcher_s():
    assert Scaled.from_config(section()).config.base_loss.name == "infonce"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"matcher": {"arch": "itm_vsee"}}, 'model.matcher.arch: unknown matcher "itm_vsee"; did you mean itm_vse'),
        (
            {"matcher": {"arch": "itm_vse", "embed_dimm": 3}},
            "model.matcher.embed_dimm: unknown key; did you mean embed_dim",
        ),
        ({"matcher": {"arch": "itm_vse", "model_type": "region_gru"}}, "model.matcher.model_type"),
        ({"matcher": {"arch": "itm_vse", "text": 3}}, "model.matcher.text: expected a section"),
        ({"matcher": 3}, "model.matcher: expected a section"),
        ({"factr": 3}, "model.factr: unknown key; did you mean factor"),
    ],
)
def test_a_mistake_in_any_section_is_named(keys, words):
    with pytest.raises(ItmError, match=words.replace(".", r"\.")):
        Scaled.parse_config(section(**keys))


def test_resolved_section_gives_the_same_network_again():
    config = Scaled.parse_config(section())
    from dataclasses import asdict

    again = Scaled.parse_config(OmegaConf.create({"arch": "itm_scaled", **asdict(config)}))
    assert again == config


def test_checkpoint_loads_by_name_alone_and_as_the_matcher_alone(tmp_path):
    model = Scaled.from_config(section()).eval()
    with torch.no_grad():
        model.factor.fill_(3.0)
    path = saved(model, tmp_path / "m.pth")

    unbuilt = Scaled.from_pretrained("default")
    unbuilt.load_checkpoint(path)
    same_weights(model, unbuilt.eval())
    assert unbuilt.note == "kept"
    assert torch.equal(unbuilt(batch())["loss"], model(batch())["loss"])

    alone = VseMatcher.from_pretrained("regions_gru")
    alone.load_checkpoint(path)
    same_weights(model.matcher, alone)


def test_finetuned_takes_a_whole_method_or_a_matcher(tmp_path):
    model = Scaled.from_config(section())
    with torch.no_grad():
        model.factor.fill_(3.0)
    whole = Scaled.from_config(section(finetuned=saved(model, tmp_path / "whole.pth")))
    same_weights(model, whole)
    assert whole.note == "kept"
    started = Scaled.from_config(section(finetuned=saved(model.matcher, tmp_path / "part.pth")))
    same_weights(model.matcher, started.matcher)
    assert started.factor.item() == 0.5 and started.note == "fresh"


def test_matcher_s_own_starting_weights_are_used(tmp_path):
    model = Scaled.from_config(section())
    path = saved(model.matcher, tmp_path / "part.pth")
    keys = section()
    keys.matcher.finetuned = path
    same_weights(model.matcher, Scaled.from_config(keys).matcher)


def test_another_method_s_checkpoint_gives_its_matcher(tmp_path):
    model = Scaled.from_config(section())
    state = model.state_dict()
    state["_extra_state"] = {**state["_extra_state"], "arch": "itm_other"}
    torch.save({"model": state}, tmp_path / "other.pth")
    started = Scaled.from_config(section(finetuned=str(tmp_path / "other.pth")))
    same_weights(model.matcher, started.matcher)
    with pytest.raises(ItmError, match="holds no itm_scaled"):
        Scaled(None).load_checkpoint(tmp_path / "other.pth")


def test_official_counts_an_image_s_other_captions_as_negatives():
    ours = Scaled.from_config(section()).eval()
    official = Scaled.from_config(section(official=True)).eval()
    official.load_state_dict(ours.state_dict())
    doubled = batch(ids=(0, 0, 1))
    assert ours(doubled)["loss"] < official(doubled)["loss"]
    torch.testing.assert_close(ours(batch())["loss"], official(batch())["loss"])


def test_every_parameter_is_in_exactly_one_group():
    model = Scaled.from_config(section())
    grouped = [id(p) for group in model.param_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_a_method_that_was_never_built_says_so():
    with pytest.raises(ItmError, match="has no weights yet"):
        Scaled.from_pretrained("default")(batch())
