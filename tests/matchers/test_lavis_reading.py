"""What LAVIS's networks read fits or is refused with a sentence: saved weights, pictures, captions, words."""

from __future__ import annotations

import lavis_tiny
import pytest
import torch
from omegaconf import OmegaConf

from lavis_itm_plugins.encoders import tokenizers
from lavis_itm_plugins.encoders.tokenizers import WordPieces
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.registry import registered


def make_unchanged(network, words, **keys):
    return registered("model")[f"itm_{network}"].from_config(
        OmegaConf.create(lavis_tiny.section(network, words, **keys))
    )


def test_weights_that_lavis_saved_are_loaded(words, make, tmp_path):
    """By LAVIS's names, of another picture size, without momentum towers as its runner saves them."""
    for network in ("blip", "albef"):
        source = make(network, objective="itc")
        state = {name: value for name, value in source.network.state_dict().items() if "_m." not in name}
        torch.save({"model": state}, tmp_path / "lavis.pth")
        weights = {"pretrained": str(tmp_path / "lavis.pth"), "load_finetuned": False}
        model = make_unchanged(network, words, objective="itc", vit={"size": 64}, **weights)
        assert torch.equal(model.network.vision_proj_m.weight, source.network.vision_proj.weight)
        grid = model.network.visual_encoder.pos_embed
        assert grid.shape[1] == 17
        assert torch.equal(grid[:, 0], source.network.visual_encoder.pos_embed[:, 0])
    del state["visual_encoder.norm.weight"]
    torch.save({"model": state}, tmp_path / "less.pth")
    with pytest.raises(ItmError, match=r"less.pth does not fit this model: visual_encoder.norm.weight is missing"):
        make_unchanged("albef", words, pretrained=str(tmp_path / "less.pth"), load_finetuned=False)


def test_a_checkpoint_serves_another_objective(words, make, tmp_path):
    plain, full = make("blip"), make("blip", objective="itc_itm")
    for source, objective in ((plain, "itc_itm"), (full, "plain")):
        torch.save({"model": source.state_dict()}, tmp_path / "ours.pth")
        model = make_unchanged("blip", words, objective=objective, finetuned=str(tmp_path / "ours.pth"))
        assert torch.equal(model.network.vision_proj.weight, source.network.vision_proj.weight)
        if objective == "itc_itm":
            assert torch.equal(model.network.vision_proj_m.weight, source.network.vision_proj.weight)


def test_pictures_of_another_kind_are_refused(make):
    model = make("blip")
    with pytest.raises(ItmError, match=r"pictures have \(48, 48\) pixels, itm_blip reads 32; set model.vit.size"):
        model.encode_images({"image": torch.rand(2, 3, 48, 48)})
    with pytest.raises(ItmError, match=r"itm_blip reads pictures .*, the data has \(2, 36, 2048\)"):
        model.encode_images({"image": torch.rand(2, 36, 2048)})


def test_a_cut_caption_keeps_its_end_in_clip(make):
    """CLIP takes a caption's vector at its end, which LAVIS cuts off."""
    tokens = make("clip").tokens(["a red ball", "word " * 40])
    assert tokens.shape == (2, 16)
    assert tokens[1, -1] == tokens[0].max() == 49407


def test_where_the_words_come_from(words, tmp_path, monkeypatch):
    found = WordPieces.find(str(words.parent))
    assert found.words == WordPieces.find(str(words)).words
    monkeypatch.setenv("LAVIS_ITM_BERT_VOCAB", str(words))
    assert WordPieces.find(None).words == found.words
    with pytest.raises(ItmError, match=r"model.tokenizer_path: cannot read .*none \(No such file"):
        WordPieces.find(str(tmp_path / "none"))
    (tmp_path / "short.txt").write_text("[PAD]\na\n")
    with pytest.raises(ItmError, match=r"this one lacks \[UNK\]"):
        WordPieces.find(str(tmp_path / "short.txt"))
    monkeypatch.delenv("LAVIS_ITM_BERT_VOCAB")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(tokenizers, "HUB_NAME", "nobody/no-such-bert")
    with pytest.raises(ItmError, match=r"model.tokenizer_path: .*HF_HUB_OFFLINE.*set it, or LAVIS_ITM_BERT_VOCAB"):
        WordPieces.find(None)
