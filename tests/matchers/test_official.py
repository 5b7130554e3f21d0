"""Released checkpoints: read without executing anything, their weights in place, evaluated from the command line."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from encoders.test_reasoning import FILE, golden, prefixed
from matchers.sets import WORDS, make

from lavis_itm_plugins.cli.main import main
from lavis_itm_plugins.encoders.vocabulary import Vocabulary
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.official import IMAGE_NAMES, OTHER_NAMES, TEXT_NAMES, official_matcher, renamed
from lavis_itm_plugins.matchers.official_file import OfficialCheckpoint
from lavis_itm_plugins.matchers.vse import VseMatcher, unit
from lavis_itm_plugins.scoring.sets import l2_normalized

EXACT = {"rtol": 1e-9, "atol": 1e-12}
# our small network: which released one has its weights, and the options of that release
KINDS = {
    "scan_t2i": ("scan", {"cross_attn": "t2i", "agg_func": "LogSumExp", "lambda_softmax": 9.0, "lambda_lse": 6.0}),
    "scan_i2t": ("scan", {"cross_attn": "i2t", "agg_func": "Mean", "lambda_softmax": 4.0, "lambda_lse": 6.0}),
    "bfan": ("bfan", {"focal_type": "equal", "lambda_softmax": 20.0}),
    "saf": ("sgraf", {"module_name": "SAF"}),
    "sgr": ("sgraf", {"module_name": "SGR"}),
    "dbl": ("dbl", {"no_simnorm": False}),
    "vsrn": ("vsrn", {"data_name": "f30k_precomp"}),
}


def officially_named(model):
    """State dictionaries as a release saves them: image, text, and the rest."""
    state = {key: value for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    parts = []
    for names in (IMAGE_NAMES, TEXT_NAMES, OTHER_NAMES):
        part = {}
        for theirs, ours in names.items():
            if ours and not (theirs == "cap_rnn." and "rnn.weight_ih_l0" in part):
                part |= {theirs + key.removeprefix(ours): value for key, value in state.items() if key.startswith(ours)}
        parts.append(part)
    assert sum(map(len, parts)) == len(state)
    return [part for part in parts if part]


def save(matcher, path, network, options, **more):
    parts = officially_named(matcher)
    if network == "dbl":
        prefixes = ("img_enc.", "txt_enc.", "sim_enc.")
        content = {p + key: value for p, part in zip(prefixes, parts, strict=True) for key, value in part.items()}
    else:
        content = parts
    option = argparse.Namespace(embed_size=10, learning_rate=2e-4, **options)
    best = {"epoch": 3, "best_rsum": np.float64(400.5), "Eiters": 12, "opt": option}
    torch.save({"model": content, **best} | more, path)
    return str(path)


@pytest.fixture
def vocabulary(tmp_path):
    Vocabulary(WORDS).save(tmp_path / "vocab.json")
    return str(tmp_path / "vocab.json")


@pytest.mark.parametrize("name", KINDS)
def test_a_released_file_gives_the_network_that_was_saved(name, tmp_path):
    network, options = KINDS[name]
    model = make(name).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    file = OfficialCheckpoint.read(save(model, tmp_path / "c.pth.tar", network, options))
    assert file.network() == network
    loaded = official_matcher(file, Vocabulary(WORDS))
    pictures, texts = {"image": torch.randn(3, 4, 8)}, ["a red dog", "ball", "the cat"]
    scores, expected = (m.score(m.encode_images(pictures), m.encode_captions(texts)) for m in (loaded, model))
    torch.testing.assert_close(scores, expected)
    ignored = {"text", "checkpoint", "dropout", "captioning"} | ({"regions"} if name == "dbl" else set())
    for key in vars(model.config).keys() - ignored:
        assert getattr(loaded.config, key) == getattr(model.config, key) or key in ("image", "min_count"), key


@pytest.mark.parametrize("name", ["vsepp_text", "gru_text_encoder", "vsrn_text"])
def test_text_weights_of_the_official_code_give_its_states(name):
    check_text(name, FILE)


def test_those_of_dbl_too(shared):
    check_text("dbl_text", shared / "golden" / "matchers.npz")


def check_text(name, path):
    case = golden(name, path)
    weights = prefixed(case, "w/")
    dim = weights[next(key for key in weights if key.endswith("weight_hh_l0"))].shape[1]
    image = {"fc.weight": torch.zeros(dim, 3), "fc.bias": torch.zeros(dim)}
    options = {"cross_attn": "t2i"} if name == "gru_text_encoder" else {}
    other = {"sim_tran_w.weight": torch.zeros(4, dim), "sim_tran_w.bias": torch.zeros(4)}
    other |= {"sim_eval_w.weight": torch.zeros(1, 4), "sim_eval_w.bias": torch.zeros(1)}
    file = OfficialCheckpoint(Path("x"), image, weights, other if name == "dbl_text" else {}, options)
    words = Vocabulary(["<pad>", "<start>", "<end>", "<unk>", *map(str, range(len(weights["embed.weight"]) - 4))])
    encoder = official_matcher(file, words).double().text_encoder
    ids, lengths = case["in/ids"], case["in/lengths"]
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    encoder.words.ids = lambda captions: (ids, mask, lengths)
    states, mask = encoder.words([""] * len(ids))
    pooled = case["out/emb"].dim() == 2
    found = encoder([""] * len(ids)) if pooled else states
    found = unit(found) if pooled else l2_normalized(found)
    torch.testing.assert_close(found, case["out/emb"][:, : found.shape[1]] if not pooled else case["out/emb"], **EXACT)


@pytest.mark.parametrize("name", ["vsepp_image", "scan_image"])
def test_image_weights_of_the_official_code_give_its_vectors(name):
    case = golden(name, FILE)
    state = renamed(prefixed(case, "w/"), IMAGE_NAMES)
    fc = torch.nn.Linear(*reversed(case["w/fc.weight"].shape)).double()
    fc.load_state_dict(prefixed(state, "image_encoder.projection.fc."))
    found = (l2_normalized if name == "scan_image" else unit)(fc(case["in/images"]))
    torch.testing.assert_close(found, case["out/emb"], **EXACT)


def test_vse_infinity_with_its_unused_norm_and_the_prefix_of_several_gpus(tmp_path):
    from lavis_itm_plugins.config.schema import parse
    from lavis_itm_plugins.matchers.vse import VseConfig

    sections = {
        "image": {"dim": 8, "projection": "residual", "norm": "batch", "pooling": "gpo"},
        "text": {"word_dim": 6, "hidden": 10, "merge": "mean", "pooling": "gpo"},
    }
    model = VseMatcher(parse(VseConfig, {"embed_dim": 10, **sections}, "model"), Vocabulary(WORDS)).eval()
    image, text = officially_named(model)
    image |= {f"mlp.bns.1.{key}": torch.zeros(10) for key in ("weight", "bias", "running_mean", "running_var")}
    torch.save({"model": [{f"module.{k}": v for k, v in image.items()}, text]}, tmp_path / "c.pth")
    file = OfficialCheckpoint.read(tmp_path / "c.pth")
    assert file.network() == "vse_infty"
    loaded = official_matcher(file, Vocabulary(WORDS))
    pictures = {"image": torch.randn(3, 4, 8)}
    torch.testing.assert_close(loaded.encode_images(pictures).pooled, model.encode_images(pictures).pooled)
    torch.testing.assert_close(loaded.encode_captions(["a dog"]).pooled, model.encode_captions(["a dog"]).pooled)


def test_a_weight_norm_is_multiplied_out(tmp_path):
    model = make("scan_t2i").eval()
    image, text = officially_named(model)
    weight = image.pop("fc.weight")
    image |= {"fc.weight_g": weight.norm(), "fc.weight_v": 3 * weight}
    torch.save({"model": [image, text], "opt": argparse.Namespace(cross_attn="t2i")}, tmp_path / "c.pth")
    loaded = official_matcher(OfficialCheckpoint.read(tmp_path / "c.pth"), Vocabulary(WORDS))
    torch.testing.assert_close(loaded.image_encoder.projection.fc.weight, model.image_encoder.projection.fc.weight)


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"model": [{}], "opt": Harmful()}, tmp_path / "c.pth")
    with pytest.raises(ItmError, match=r"holds more than weights and options .*print.*it is not opened"):
        OfficialCheckpoint.read(tmp_path / "c.pth")
    assert "executed" not in capsys.readouterr().out
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ItmError, match=r"bare.pth"):
        OfficialCheckpoint.read(tmp_path / "bare.pth")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"model": [{"fc.weight": torch.zeros(1)}]},
            "is no checkpoint of a released network: expected `model`, a list",
        ),
        ({"opt": argparse.Namespace()}, "does not say whether it is SCAN's or BFAN's; say it with --network"),
        ({"opt": argparse.Namespace(cross_attn="t2i", no_imgnorm=True)}, "was trained with no_imgnorm = True"),
        ({"opt": argparse.Namespace(cross_attn="t2t")}, 'direction: unknown choice "t2t"'),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(change, sentence, tmp_path):
    path = save(make("scan_t2i"), tmp_path / "c.pth", "scan", {}, **change)
    with pytest.raises(ItmError, match=sentence):
        official_matcher(OfficialCheckpoint.read(path), Vocabulary(WORDS))


def test_another_vocabulary_or_network_is_said_in_a_sentence(tmp_path):
    file = OfficialCheckpoint.read(save(make("scan_t2i"), tmp_path / "c.pth", *KINDS["scan_t2i"]))
    with pytest.raises(ItmError, match="has 12 words, the vocabulary 11; give the one it was trained with"):
        official_matcher(file, Vocabulary(WORDS[:-1]))
    with pytest.raises(ItmError, match="give its JSON file with --vocab"):
        official_matcher(file, None)
    with pytest.raises(ItmError, match='unknown network "scam"; did you mean scan'):
        official_matcher(file, Vocabulary(WORDS), network="scam")
    with pytest.raises(ItmError, match="does not fit this model: Missing key"):
        official_matcher(file, Vocabulary(WORDS), network="vsrn")


def test_import_and_evaluate_from_the_command_line(tmp_path, vocabulary, capsys):
    root = tiny.write_precomp(tmp_path / "data", test=6, regions=4)
    path = save(make("saf"), tmp_path / "c.pth", *KINDS["saf"])
    run = tmp_path / "runs" / "saf"
    arguments = ["import-official", path, "--vocab", vocabulary, "--data", str(root), "-o", str(run)]
    assert main(arguments) == 0
    assert "itm_sgraf" in capsys.readouterr().out
    assert Vocabulary.load(run / "vocabulary.json").words == WORDS
    assert main(["evaluate", str(run), "--json", str(tmp_path / "m.json")]) == 0
    assert "6 images, 30 captions" in capsys.readouterr().out
    assert 0 < json.loads((tmp_path / "m.json").read_text())["rsum"] <= 600
    assert main(arguments) == 2
    assert "holds a run already; choose another folder" in capsys.readouterr().err
