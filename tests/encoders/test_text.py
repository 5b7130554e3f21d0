"""Captions to vectors: bi-GRU, bag of words, and a BERT that the test makes itself; no hub is asked."""

from __future__ import annotations

import json
import time

import pytest
import requests
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vse_golden import GPO_TOLERANCE, golden, weights

from lavis_itm_plugins.encoders import text
from lavis_itm_plugins.encoders.pooling import POOLINGS
from lavis_itm_plugins.encoders.text import CaptionEncoder, TextConfig
from lavis_itm_plugins.encoders.vocabulary import SPECIAL, Vocabulary
from lavis_itm_plugins.errors import ItmError

WORDS = ["a", "red", "dog", "runs", "on", "grass", "two", "cats"]
VOCABULARY = Vocabulary([*SPECIAL, *WORDS])
CAPTIONS = st.lists(st.sampled_from([*WORDS, "zebra"]), min_size=1, max_size=12).map(" ".join)
BERT = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def encoder(embed_dim=10, **config):
    torch.manual_seed(0)
    return CaptionEncoder(TextConfig(**{"word_dim": 6, "hidden": 5, **config}), embed_dim, VOCABULARY).eval().double()


def write_bert(folder, *, words=True, config=True):
    """A BERT of 13 words without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    if words:
        lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
        (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if config:
        (folder / "config.json").write_text(json.dumps({"model_type": "bert", **BERT}), encoding="utf-8")
    return str(folder)


@pytest.fixture(params=["gru", "bert"])
def either(request, tmp_path):
    """A GRU and a BERT encoder of the same vocabulary."""
    return encoder(kind=request.param, bert=write_bert(tmp_path / "bert") if request.param == "bert" else "")


@settings(deadline=None, max_examples=20)
@given(captions=st.lists(CAPTIONS, min_size=1, max_size=5), pooling=st.sampled_from(POOLINGS), seed=st.integers(0, 9))
def test_a_vector_depends_on_its_caption_alone(captions, pooling, seed):
    model = encoder(pooling=pooling)
    together = model(captions)
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(model([captions[i] for i in order]), together[order])
    torch.testing.assert_close(model(captions[:1]), together[:1])


def test_so_does_a_bert_vector(either):
    captions = ["a dog", "two cats runs on a red grass"]
    together = either(captions)
    assert together.shape == (2, 10)
    torch.testing.assert_close(either(captions[::-1]), together.flip(0))
    torch.testing.assert_close(either(captions[:1]), together[:1])


def test_captions_of_one_word_and_of_ten_thousand(either):
    assert either(["dog"]).isfinite().all()
    long = "dog " * 10_000
    torch.testing.assert_close(either([long]), either([long + "cats"]))
    states, mask = either.words([long, "dog"])
    # 64 words and <start>, <end>; [CLS] and [SEP] count among BERT's
    assert mask.sum(dim=1).tolist() in ([66, 3], [64, 3]) and states.shape[:2] == mask.shape


def test_case_and_punctuation_do_not_matter(either):
    torch.testing.assert_close(either(["A red dog"]), either(["a RED dog"]))
    torch.testing.assert_close(encoder()(["a red dog!"]), encoder()(["a red dog"]))
    assert not torch.allclose(either(["a red dog"]), either(["a dog red"]))


def test_two_directions_are_joined_or_averaged():
    joined, averaged = encoder(merge="concat"), encoder(merge="mean")
    averaged.words.load_state_dict(joined.words.state_dict())
    states, _ = joined.words(["a red dog", "a dog"])
    mean, mask = averaged.words(["a red dog", "a dog"])
    assert states.shape == (2, 5, 10) and mask.sum(dim=1).tolist() == [5, 4]
    torch.testing.assert_close(mean, (states[..., :5] + states[..., 5:]) / 2)


def test_widths_that_differ_are_projected():
    assert isinstance(encoder(embed_dim=10).projection, torch.nn.Identity)
    assert encoder(embed_dim=7)(["a dog"]).shape == (1, 7)


def test_a_gru_needs_a_vocabulary():
    with pytest.raises(ItmError, match=r"needs a vocabulary; set model.vocab_path or name a data set"):
        CaptionEncoder(TextConfig(), 8, None)


@settings(deadline=None, max_examples=20)
@given(captions=st.lists(CAPTIONS, min_size=1, max_size=5), pooling=st.sampled_from(("mean", "max", "mean_max")))
def test_a_bag_of_words_knows_no_order_and_no_padding(captions, pooling):
    model = encoder(kind="words", pooling=pooling, embed_dim=6)
    together = model(captions)
    turned = [" ".join(caption.split()[::-1]) for caption in captions]
    torch.testing.assert_close(model(turned), together)
    torch.testing.assert_close(model(captions[:1]), together[:1])


def test_a_bag_of_words_is_the_mean_of_its_embeddings():
    model = encoder(kind="words", pooling="mean", embed_dim=6)
    rows = model.words.embed.weight[VOCABULARY.encode("a red dog")]
    torch.testing.assert_close(model(["a red dog"]), rows.mean(dim=0, keepdim=True))


class Ids:
    """A vocabulary whose captions are rows of ids already."""

    def __len__(self):
        return 17

    def batch(self, captions, *, max_words):
        return captions


def test_equals_the_official_vse_infinity_gru():
    case = golden("vse_infty_bigru_text")
    config = TextConfig(word_dim=6, hidden=24, merge="mean", pooling="gpo")
    model = CaptionEncoder(config, 24, Ids()).double()
    model.load_state_dict(weights(case, {"embed.": "words.embed.", "rnn.": "words.rnn.", "gpool.": "pooling.gpo."}))
    vectors = torch.nn.functional.normalize(model((case["in/ids"], case["in/lengths"])), dim=-1)
    torch.testing.assert_close(vectors, case["out/emb"], **GPO_TOLERANCE)


def test_a_bert_folder_with_weights_gives_them(tmp_path):
    folder = write_bert(tmp_path / "bert")
    first = encoder(kind="bert", bert=folder)
    first.words.bert.float().save_pretrained(folder)
    torch.manual_seed(1)
    again, other = text.load_bert(folder)[1], text.load_bert(write_bert(tmp_path / "none"))[1]
    state = first.words.bert.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert not torch.equal(other.embeddings.word_embeddings.weight, state["embeddings.word_embeddings.weight"])


def test_the_vocabulary_may_come_from_the_environment(tmp_path, monkeypatch):
    whole, bare = write_bert(tmp_path / "whole"), write_bert(tmp_path / "bare", words=False)
    with pytest.raises(ItmError, match=r"bare/vocab.txt does not exist; .* or set LAVIS_ITM_BERT_VOCAB"):
        text.load_bert(bare)
    monkeypatch.setenv("LAVIS_ITM_BERT_VOCAB", f"{whole}/vocab.txt")
    tokens = [text.load_bert(folder)[0]("A red zebra")["input_ids"] for folder in (whole, bare)]
    assert tokens == [[2, 5, 6, 1, 3]] * 2
    monkeypatch.setenv("LAVIS_ITM_BERT_VOCAB", str(tmp_path / "nowhere.txt"))
    with pytest.raises(ItmError, match=r"nowhere.txt does not exist"):
        text.load_bert(bare)


def test_files_that_are_missing_or_do_not_fit(tmp_path):
    with pytest.raises(ItmError, match=r"has no config.json; give a BERT folder or a hub name"):
        text.load_bert(write_bert(tmp_path / "a", config=False))
    with pytest.raises(ItmError, match=r"folder .*/nowhere does not exist"):
        text.load_bert(str(tmp_path / "nowhere"))
    folder = write_bert(tmp_path / "b")
    (tmp_path / "b" / "vocab.txt").write_text("\n".join(f"word{i}" for i in range(20)))
    with pytest.raises(ItmError, match=r"vocab.txt has \d+ words, .*b only knows 13"):
        text.load_bert(folder)
    (tmp_path / "b" / "config.json").write_text("{")
    with pytest.raises(ItmError, match="cannot be read as a BERT"):
        text.load_bert(folder)
    write_bert(tmp_path / "b")
    (tmp_path / "b" / "pytorch_model.bin").write_bytes(b"cut")
    with pytest.raises(ItmError, match="cannot be read as a BERT"):
        text.load_bert(folder)


@pytest.mark.parametrize("answer", [requests.ConnectionError("no network"), 404])
def test_a_name_that_the_hub_does_not_give_fails_at_once(answer, monkeypatch):
    """The hub's own client would repeat the question for two minutes."""
    asked = []

    def head(url, *, timeout, **_):
        asked.append((url, timeout))
        if isinstance(answer, Exception):
            raise answer
        made = requests.Response()
        made.status_code = answer
        return made

    monkeypatch.setattr(requests, "head", head)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    started = time.monotonic()
    with pytest.raises(ItmError, match=r'"bert-tiny-nonsense" is no local folder, .* the hub does not give it'):
        text.load_bert("bert-tiny-nonsense")
    assert time.monotonic() - started < 5
    assert len(asked) == 1 and asked[0][1] <= 10 and "bert-tiny-nonsense" in asked[0][0]


def test_a_cached_name_needs_no_network(tmp_path, monkeypatch):
    """A hub cache as its client writes it."""
    from transformers.utils import hub

    snapshot = tmp_path / "models--bert-tiny-cached" / "snapshots" / ("0" * 40)
    write_bert(snapshot)
    encoder(kind="bert", bert=str(snapshot)).words.bert.float().save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(hub, "TRANSFORMERS_CACHE", str(tmp_path))
    monkeypatch.setattr(text, "ask_hub", lambda name: pytest.fail("the hub was asked"))
    assert len(text.load_bert("bert-tiny-cached")[0]) == 13


def test_offline_is_said(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ItmError, match="HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"):
        text.load_bert("bert-tiny-nonsense")
