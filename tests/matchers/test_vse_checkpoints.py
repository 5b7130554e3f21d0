"""A checkpoint of `itm_vse` is the whole network, found by name; one of another network is refused in a sentence."""

from __future__ import annotations

import json

import pytest
import torch
from lavis.models import load_model
from matchers.small_vse import WORDS, batch_of, configured, make

from lavis_itm_plugins.encoders.vocabulary import SPECIAL, Vocabulary
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.vse import VseMatcher


def saved(model, path):
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def test_load_model_builds_from_the_checkpoint_alone(tmp_path):
    model = make()
    path = saved(model, tmp_path / "c.pth")
    loaded = load_model("itm_vse", "regions_gru", is_eval=True, device="cpu", checkpoint=path)
    assert loaded.config == model.config and loaded.vocabulary.words == WORDS and not loaded.training
    pictures, captions = {"image": torch.randn(3, 4, 8)}, ["a red dog", "green"]
    assert torch.equal(loaded.encode_images(pictures).pooled, model.encode_images(pictures).pooled)
    assert torch.equal(loaded.encode_captions(captions).pooled, model.encode_captions(captions).pooled)


def test_an_unbuilt_network_says_so():
    model = load_model("itm_vse", "regions_gru", device="cpu")
    sentence = "this itm_vse has no weights and no vocabulary yet; load a checkpoint"
    for use in (
        lambda: model(batch_of([0, 1])),
        lambda: model.encode_images(batch_of([0, 1])),
        lambda: model.encode_captions(["a dog"]),
    ):
        with pytest.raises(ItmError, match=sentence):
            use()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"words": [*WORDS[:-1], "box"]},
            r"c.pth: the checkpoint's vocabulary \(10 words\) differs from this model's",
        ),
        ({"embed_dim": 10}, r"c.pth does not fit this model: Missing key\(s\) in state_dict: .text_encoder.projection"),
        ({"dim": 9}, r"c.pth does not fit this model: size mismatch for image_encoder"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path, change, sentence):
    path = saved(make(**change), tmp_path / "c.pth")
    with pytest.raises(ItmError, match=sentence) as caught:
        make().load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_arch_or_of_no_network_is_refused(tmp_path):
    state = make().state_dict()
    state["_extra_state"]["arch"] = "itm_scan"
    torch.save({"model": state}, tmp_path / "scan.pth")
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, tmp_path / "bare.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    for name, sentence in {
        "scan": r"scan.pth holds a itm_scan, not a itm_vse",
        "bare": r"bare.pth does not describe its network; build the model from its YAML, then load it",
        "none": r"none.pth holds no weights",
        "nowhere": r"nowhere.pth does not exist",
    }.items():
        with pytest.raises(ItmError, match=sentence):
            load_model("itm_vse", "regions_gru", device="cpu", checkpoint=str(tmp_path / f"{name}.pth"))
    with pytest.raises(ItmError, match=r"bare.pth does not fit this model: "):
        make().load_checkpoint(tmp_path / "bare.pth")


def test_a_checkpoint_opens_without_executing_anything(tmp_path):
    state = torch.load(saved(make(), tmp_path / "c.pth"), weights_only=True)["model"]
    described = state["_extra_state"]
    assert described["arch"] == "itm_vse" and described["vocabulary"] == WORDS
    assert json.loads(json.dumps(described)) == described and described["config"]["embed_dim"] == 12


def test_weights_of_a_method_give_its_matcher(tmp_path):
    model = make()
    torch.save({"model": {f"matcher.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "c.pth")
    loaded = load_model("itm_vse", "regions_gru", device="cpu", checkpoint=str(tmp_path / "c.pth"))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("key", ["pretrained", "finetuned"])
def test_fine_tuning_starts_from_the_weights_and_their_words(root, tmp_path, key):
    Vocabulary([*SPECIAL, "a", "red"]).save(tmp_path / "v.json")
    model = VseMatcher.from_config(configured(root, tmp_path, vocab_path=str(tmp_path / "v.json")).model_cfg)
    path = saved(model, tmp_path / "c.pth")
    tuned = VseMatcher.from_config(configured(root, tmp_path, **{key: path}).model_cfg)
    assert tuned.vocabulary.words == model.vocabulary.words
    state = tuned.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.named_parameters())
    switched_off = configured(root, tmp_path, **{key: path, f"load_{key}": False})
    assert len(VseMatcher.from_config(switched_off.model_cfg).vocabulary) > 6
