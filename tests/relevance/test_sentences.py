"""Labels from sentence embeddings: golden cosines, a tiny BERT on the disk, an interrupted pass, bad vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import FIXTURES
from transformers import BertConfig, BertModel, BertTokenizer

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.relevance import (
    CaptionLabels,
    SentenceSimilarity,
    cached_sentences,
    sentence_relevance,
    sentences,
)
from lavis_itm_plugins.relevance.safetensors import read_safetensors

GOLDEN = np.load(FIXTURES / "golden_bcls.npz")
CAPTIONS = [
    "a dog",
    "a red dog on grass",
    "the sea",
    "two cats",
    "a cat on a red car",
    "dog",
    "the sea at night",
    "cats",
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in CAPTIONS for word in text.split()})]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    kinds = {torch.float32: "F32", torch.int64: "I64", torch.float16: "F16"}
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        values = tensor.contiguous().numpy().tobytes()
        place = [len(content), len(content) + len(values)]
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        content += values
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + content)


def pooled(encoder: Path, caption: str) -> np.ndarray:
    """One caption at a time, so without padding: the mean of the last states."""
    tokens = BertTokenizer.from_pretrained(str(encoder))(caption, return_tensors="pt")
    with torch.no_grad():
        return BertModel.from_pretrained(str(encoder)).eval()(**tokens).last_hidden_state[0].mean(dim=0).numpy()


@pytest.mark.parametrize("case", "ABCDEFG")
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_golden(case: str, reduce: str) -> None:
    images, captions = GOLDEN[f"{case}.img_sents"], GOLDEN[f"{case}.txt_sents"]
    expected = GOLDEN[f"{case}.Y_{reduce}_raw"]
    ours = sentence_relevance(images, captions, reduce=reduce)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
    single = sentence_relevance(torch.from_numpy(images).float(), torch.from_numpy(captions).float(), reduce=reduce)
    assert isinstance(single, torch.Tensor) and single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, atol=1e-6)


def test_golden_labels_with_the_override() -> None:
    """Labels of the cases whose Y is the plain maximum (B is rounded, C constant)."""
    for case in "ADF":
        own = GOLDEN[f"{case}.img_id"]
        labels = sentence_relevance(GOLDEN[f"{case}.img_sents"], GOLDEN[f"{case}.txt_sents"])
        labels[own[:, None] == own] = 1
        np.testing.assert_allclose(labels, GOLDEN[f"{case}.Y"], atol=1e-12)


def test_masked_captions_do_not_count() -> None:
    images, captions = GOLDEN["A.img_sents"], GOLDEN["A.txt_sents"]
    mask = np.ones(images.shape[:2], dtype=bool)
    mask[2, 1:], mask[5, 0] = False, False
    for reduce in ("max", "mean"):
        ours = sentence_relevance(images, captions, mask=mask, reduce=reduce)
        for row in range(len(images)):
            alone = sentence_relevance(images[row : row + 1, mask[row]], captions, reduce=reduce)[0]
            np.testing.assert_allclose(ours[row], alone, atol=1e-12)


def test_vectors_are_those_of_one_caption_alone(encoder: Path, tmp_path: Path) -> None:
    """Neither padding nor the order by length nor float16 moves a cosine by more than float16 does."""
    similarity = cached_sentences(CAPTIONS, str(encoder), tmp_path)
    assert len(similarity) == len(CAPTIONS) and similarity.vectors.dtype == np.float16
    alone = np.stack([pooled(encoder, caption) for caption in CAPTIONS])
    alone /= np.linalg.norm(alone, axis=1, keepdims=True)
    rows = np.arange(len(CAPTIONS))
    np.testing.assert_allclose(similarity.similarity(rows, rows), np.clip(alone @ alone.T, 0, 1), atol=1e-3)


def test_opposite_captions_have_0() -> None:
    similarity = SentenceSimilarity(np.array([[1.0, 0.0], [-2.0, 0.0], [0.5, 0.5]], dtype=np.float16))
    labels = CaptionLabels(similarity, [0, 1, 2]).labels([0, 1, 2], [0, 1, 2])
    np.testing.assert_allclose(labels, [[1, 0, 0.5**0.5], [0, 1, 0], [0.5**0.5, 0, 1]], atol=1e-6)


def test_an_interrupted_pass_goes_on(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "BATCH", 2)
    monkeypatch.setattr(sentences, "SAVED_EVERY", 1)
    expected = np.array(cached_sentences(CAPTIONS, str(encoder), tmp_path / "whole").vectors)
    stock, seen = sentences.SentenceEncoder.encode, []

    def encode(self, captions):
        seen.append(list(captions))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return stock(self, captions)

    monkeypatch.setattr(sentences.SentenceEncoder, "encode", encode)
    with pytest.raises(KeyboardInterrupt):
        cached_sentences(CAPTIONS, str(encoder), tmp_path / "stopped")
    again = cached_sentences(CAPTIONS, str(encoder), tmp_path / "stopped")
    # four batches of two: two were done, the third was begun twice
    assert len(seen) == 3 + 2
    np.testing.assert_array_equal(again.vectors, expected)
    cached_sentences(CAPTIONS, str(encoder), tmp_path / "stopped")
    assert len(seen) == 5


def test_another_caption_or_encoder_is_another_cache(encoder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(encoder, copy)
    root = tmp_path / "cache"
    for captions, folder in ((CAPTIONS, encoder), (CAPTIONS, copy), ([*CAPTIONS[:-1], "sea"], encoder)):
        cached_sentences(captions, str(folder), root)
    assert len(list(root.glob("sentences-*"))) == 2  # a copy elsewhere is the same encoder
    weights = torch.load(copy / "pytorch_model.bin", weights_only=True)
    torch.save({name: 2 * value for name, value in weights.items()}, copy / "pytorch_model.bin")
    cached_sentences(CAPTIONS, str(copy), root)
    assert len(list(root.glob("sentences-*"))) == 3


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_a_vector_without_direction_is_refused(encoder: Path, tmp_path: Path, monkeypatch, value: float) -> None:
    stock = sentences.SentenceEncoder.encode

    def encode(self, captions):
        vectors = stock(self, captions)
        vectors[[caption == "two cats" for caption in captions]] = value
        return vectors

    monkeypatch.setattr(sentences.SentenceEncoder, "encode", encode)
    with pytest.raises(ItmError, match=r"caption 3 \('two cats'\) has no usable vector"):
        cached_sentences(CAPTIONS, str(encoder), tmp_path)
    assert not list(tmp_path.glob("sentences-*"))


def test_safetensors_need_no_package(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "safe"
    shutil.copytree(encoder, folder)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    write_safetensors(folder / "model.safetensors", weights)
    ours = sentences.SentenceEncoder.load(str(folder)).encode(CAPTIONS)
    assert torch.equal(ours, sentences.SentenceEncoder.load(str(encoder)).encode(CAPTIONS))
    del weights["encoder.layer.1.output.dense.bias"]
    write_safetensors(folder / "model.safetensors", weights)
    with pytest.raises(ItmError, match=r"the weights lack encoder\.layer\.1\.output\.dense\.bias"):
        sentences.SentenceEncoder.load(str(folder))
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}")
    with pytest.raises(ItmError, match="damaged or no safetensors file"):
        sentences.SentenceEncoder.load(str(folder))


def test_safetensors_of_every_kind(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.arange(4), "c": torch.randn(5).half()}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    read = read_safetensors(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:-3])
    with pytest.raises(ItmError, match="damaged"):
        read_safetensors(tmp_path / "x.safetensors")


def test_an_encoder_without_weights_is_refused(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    shutil.copytree(encoder, folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ItmError, match="has no weights"):
        cached_sentences(CAPTIONS, str(folder), tmp_path / "cache")
    with pytest.raises(ItmError, match=r'sentence encoder ".*/nowhere" cannot be read'):
        cached_sentences(CAPTIONS, str(tmp_path / "nowhere"), tmp_path / "cache")


ONE = np.ones((1, 2, 3))


@pytest.mark.parametrize(
    ("images", "captions", "options", "message"),
    [
        (ONE[0], np.ones((1, 3)), {}, r"give \(n, C, E\) and \(m, E\)"),
        (ONE, np.ones((1, 4)), {}, r"shape \(1, 2, 3\), \(1, 4\)"),
        (ONE, np.ones((1, 3)), {"mask": np.ones((1, 3), dtype=bool)}, r"mask is torch\.bool of shape \(1, 3\)"),
        (ONE, np.ones((1, 3)), {"mask": np.zeros((1, 2), dtype=bool)}, "image 0 has no caption"),
        (ONE, np.zeros((1, 3)), {}, "caption_embeds holds a vector that is zero or not finite"),
        (ONE * np.nan, np.ones((1, 3)), {}, "image_embeds holds a vector that is zero or not finite"),
        (ONE, np.ones((1, 3)), {"reduce": "sum"}, 'unknown reduce "sum"'),
    ],
)
def test_bad_input_is_named(images, captions, options, message) -> None:
    with pytest.raises(ItmError, match=message):
        sentence_relevance(images, captions, **options)
