"""Weights as they are published: small files with the names and the packing of LAVIS's, ALBEF's and OpenAI's.

The real ones are not fetched here.
"""

from __future__ import annotations

import functools
import http.server
import threading

import lavis_tiny
import pytest
import torch
from lavis.models.blip2_models.blip2 import LayerNorm
from lavis.models.blip2_models.blip2_qformer import Blip2Qformer
from omegaconf import OmegaConf

from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.blip2 import make_eva
from lavis_itm_plugins.matchers.lavis_config import VitConfig
from lavis_itm_plugins.registry import registered

CAPTIONS = ["a red ball", "two dogs on a box", "a cat"]
TYPES = [
    (network, kind)
    for network in lavis_tiny.NETWORKS
    for kind in registered("model")[f"itm_{network}"].PRETRAINED_MODEL_CONFIG_DICT
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return lavis_tiny.write_words(tmp_path_factory.mktemp("words"))


@pytest.fixture
def make(words):
    """`make(network, ...)` from other random weights each time, unless a file is given."""

    def build(network, **keys):
        section = lavis_tiny.section(network, words, **keys)
        model = registered("model")[f"itm_{network}"].from_config(OmegaConf.create(section)).eval()
        if "pretrained" not in keys and "finetuned" not in keys:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
        return model

    return build


@torch.no_grad()
def scores(model):
    pictures = torch.rand(3, 3, lavis_tiny.SIZE, lavis_tiny.SIZE, generator=torch.Generator().manual_seed(0))
    return model.score(model.encode_images({"image": pictures}), model.encode_captions(CAPTIONS))


@pytest.mark.parametrize(("network", "kind"), TYPES)
def test_the_sections_of_all_model_types_are_valid(network, kind):
    """Without this, `model_type: small` of one network was refused by its own default file."""
    matcher = registered("model")[f"itm_{network}"]
    section = OmegaConf.load(matcher.default_config_path(kind)).model
    config = matcher.parse_config(section)
    assert section.arch == matcher.arch
    told = [section.get(name) for name in ("pretrained", "finetuned") if section.get(name)]
    assert len(told) == (kind != "small")
    if kind == "small":
        assert config.vit.size == 64


def test_blip_of_a_url(words, make, tmp_path, monkeypatch):
    """LAVIS's file has a decoder, momentum towers and queues; it is fetched once, as LAVIS fetches it."""
    source = make("blip", objective="itc_itm", queue_size=8)
    state = {**source.network.state_dict(), "text_decoder.bert.embeddings.LayerNorm.weight": torch.ones(32)}
    (tmp_path / "site").mkdir()
    torch.save({"model": state}, tmp_path / "site" / "model_base_tiny.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    # a proxy knows nothing of this machine's own server
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/model_base_tiny.pth"
        model = make("blip", objective="itc_itm", pretrained=url, load_finetuned=False)
        server.shutdown()
    torch.testing.assert_close(scores(model), scores(source))
    assert torch.equal(model.network.itm_head.weight, source.network.itm_head.weight)
    assert torch.equal(model.network.vision_proj_m.weight, source.network.vision_proj_m.weight)
    assert model.network.image_queue.shape[1] == 40
    # the site is gone
    plain = make("blip", finetuned=url)
    torch.testing.assert_close(scores(plain), scores(source))
    with pytest.raises(ItmError, match=r"none.pth cannot be fetched \(.*refused.*\); where there is no network, give"):
        make("blip", finetuned=url.replace("model_base_tiny", "none"))


def test_albef_as_its_authors_saved_it(make, tmp_path):
    """The text encoder lies below `bert` and has a head for masked words; a configuration stands beside the weights."""
    source = make("albef", objective="itm")
    state = {
        name.replace("text_encoder.", "text_encoder.bert."): value
        for name, value in source.network.state_dict().items()
    }
    state["text_encoder.cls.predictions.bias"] = torch.zeros(5)
    torch.save({"model": state, "config": {"batch_size": 64}, "epoch": 29}, tmp_path / "ALBEF.pth")
    model = make("albef", objective="itm", pretrained=str(tmp_path / "ALBEF.pth"), load_finetuned=False)
    torch.testing.assert_close(scores(model), scores(source))
    assert torch.equal(model.network.itm_head.weight, source.network.itm_head.weight)


def test_the_first_stage_of_blip2_comes_without_its_vit(make, tmp_path, monkeypatch):
    """LAVIS keeps the frozen ViT in a file of its own, which its code fetches while the network is built."""
    source = make("blip2")
    state = source.network.state_dict()
    vit = {name.removeprefix("visual_encoder."): v for name, v in state.items() if name.startswith("visual_encoder.")}
    published = {name: value for name, value in state.items() if not name.startswith("visual_encoder.")}
    torch.save({"model": published}, tmp_path / "blip2_pretrained.pth")

    def fetched(name, size, *others):
        assert (name, size) == ("eva_clip_g", lavis_tiny.SIZE)
        encoder = make_eva(VitConfig(size=size, patch=16, width=64, layers=2, heads=2))
        encoder.load_state_dict(vit)
        return encoder, LayerNorm(encoder.num_features)

    monkeypatch.setattr(Blip2Qformer, "init_vision_encoder", fetched)
    weights = {"pretrained": str(tmp_path / "blip2_pretrained.pth"), "load_finetuned": False}
    model = make("blip2", image_encoder="eva_clip_g", freeze=["image"], **weights)
    torch.testing.assert_close(scores(model), scores(source))
    with pytest.raises(ItmError, match=r"visual_encoder.cls_token is missing"):
        make("blip2", **weights)


class Archive(torch.nn.Module):
    """Parameters by the names of a state dictionary, in half precision, and OpenAI's three numbers beside them."""

    def __init__(self, state):
        super().__init__()
        for name, value in state.items():
            *folders, last = name.split(".")
            module = self
            for folder in folders:
                if not hasattr(module, folder):
                    module.add_module(folder, torch.nn.Module())
                module = getattr(module, folder)
            half = value.half() if last != "logit_scale" else value
            module.register_parameter(last, torch.nn.Parameter(half))
        for name, number in {"input_resolution": 32, "context_length": 16, "vocab_size": 49408}.items():
            self.register_buffer(name, torch.tensor(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture
def openai(make, tmp_path):
    """A network like OpenAI's, with 64 channels a head, and its archive."""
    source = make("clip", quick_gelu=True, text={"width": 64, "heads": 1})
    torch.jit.save(torch.jit.script(Archive(source.network.state_dict())), tmp_path / "ViT-B-32.pt")
    return source, f"openai:{tmp_path / 'ViT-B-32.pt'}"


def test_clip_of_openai_archive(make, openai):
    """A TorchScript archive in half precision; its sizes must be those of the section."""
    source, weights = openai
    sizes = {"quick_gelu": True, "text": {"width": 64, "heads": 1}, "load_finetuned": False}
    model = make("clip", pretrained=weights, **sizes)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    # weights in half precision
    torch.testing.assert_close(scores(model), scores(source), rtol=0, atol=5e-3)
    assert torch.equal(model.network.logit_scale, source.network.logit_scale)
    with pytest.raises(ItmError, match=r"model.quick_gelu: OpenAI's weights need true"):
        make("clip", pretrained=weights, **{**sizes, "quick_gelu": False})
    with pytest.raises(ItmError, match=r"model.pretrained: OpenAI's .*ViT-B-32.pt cannot be loaded"):
        make("clip", pretrained=weights, vit={"size": 64}, **sizes)
