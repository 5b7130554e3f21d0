"""`itm_vse` gets its words and sizes from the data or from a file, and says what is missing."""

from __future__ import annotations

import json

import pytest
import tiny
from matchers.small_vse import WORDS, configured, make

from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.encoders.image import ImageConfig
from lavis_itm_plugins.encoders.text import TextConfig
from lavis_itm_plugins.encoders.vocabulary import Vocabulary
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.vse import VseConfig, VseMatcher


def test_words_and_feature_size_come_from_the_configured_data(root, tmp_path):
    model = VseMatcher.from_config(configured(root, tmp_path).model_cfg)
    assert {"red", *tiny.THINGS, "photo", "grass"} <= set(model.vocabulary.words)
    assert model.config.image.dim == 8 and model.config.embed_dim == 16
    rare = VseMatcher.from_config(configured(root, tmp_path, min_count=25).model_cfg).vocabulary
    assert 4 < len(rare) < len(model.vocabulary) and rare.words[4] == "a"


def test_a_vocabulary_file_is_used_instead(root, tmp_path):
    Vocabulary(WORDS).save(tmp_path / "v.json")
    model = VseMatcher.from_config(configured(root, tmp_path, vocab_path=str(tmp_path / "v.json")).model_cfg)
    assert model.vocabulary.words == WORDS
    with pytest.raises(ItmError, match=r"cannot read the vocabulary .*nothing.json"):
        VseMatcher.from_config(configured(root, tmp_path, vocab_path=str(tmp_path / "nothing.json")).model_cfg)


def test_with_neither_one_sentence_says_so(tmp_path):
    with pytest.raises(ItmError, match=r"^no vocabulary: set model.vocab_path to a JSON vocabulary, or name a data"):
        VseMatcher.from_config({"arch": "itm_vse"})
    (tmp_path / "v.json").write_text(json.dumps(WORDS))
    with pytest.raises(ItmError, match=r"^the size of a region feature is not known: set model.image.dim"):
        VseMatcher.from_config({"vocab_path": str(tmp_path / "v.json")})
    model = VseMatcher.from_config({"vocab_path": str(tmp_path / "v.json"), "image": {"dim": 5}})
    assert model.vocabulary.words == WORDS and model.config.image.dim == 5


def test_features_for_a_data_set_of_pictures_are_a_mistake(tmp_path):
    content = tiny.project(tmp_path, tmp_path)
    content["datasets"] = {"itm_scenes": {"train": 4, "val": 1, "test": 1, "size": 32, "cache": str(tmp_path)}}
    config = ProjectConfig(tiny.write_project(tmp_path / "x.yaml", content))
    with pytest.raises(ItmError, match="the size of a region feature is not known"):
        VseMatcher.from_config(config.model_cfg)


def test_learning_rate_factors_of_the_encoders_and_no_decay_of_biases():
    model = make()
    config = VseConfig(image=ImageConfig(dim=8), text=TextConfig(word_dim=6, hidden=5, lr_scale=0.1), embed_dim=12)
    groups = VseMatcher(config, model.vocabulary).param_groups()
    found = {(group["lr_scale"], group["decay"]): len(group["params"]) for group in groups}
    assert set(found) == {(0.1, True), (0.1, False), (1.0, True), (1.0, False)}
    assert sum(found.values()) == len(list(model.parameters()))
    assert all((p.ndim >= 2) == group["decay"] for group in groups for p in group["params"])


def test_the_vocabulary_goes_to_the_run_folder(tmp_path):
    make().write_assets(tmp_path)
    assert Vocabulary.load(tmp_path / "vocabulary.json").words == WORDS
