"""Encoding in chunks: the loss and gradient of the plain batch, with less held between forward and backward."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import lavis_tiny
import pytest
import tiny
import torch
from matchers import sets
from omegaconf import OmegaConf
from runners.ranks import small_matcher

from lavis_itm_plugins.config.schema import parse
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.lavis_matching import LocalPass
from lavis_itm_plugins.methods import chunks
from lavis_itm_plugins.methods.aoq import Aoq
from lavis_itm_plugins.methods.aoq_config import AoqConfig
from lavis_itm_plugins.methods.coder import Coder
from lavis_itm_plugins.methods.coder_config import CoderConfig
from lavis_itm_plugins.methods.dbl import Dbl, DblConfig
from lavis_itm_plugins.methods.frozen import FrozenAnchor
from lavis_itm_plugins.registry import registered
from lavis_itm_plugins.train import run_training

IMAGE_IDS = torch.tensor([0, 1, 2, 3, 3, 4, 1])
CAPTIONS = ["a red ball", "two dogs on a box", "a cat", "a blue box on the left", "the red circle", "a star", "a dog"]
NETWORKS = {"clip": "itc", "blip": "itc_itm", "albef": "itm", "blip2": "itc_itm"}
METHODS = ("plain", "dbl", "aoq", "coder")
DIAGONAL = {("vse", "aoq"), ("scan", "plain"), ("clip", "coder"), ("blip", "dbl"), ("blip2", "plain")}
# CODER's dictionaries hold one vector for each image
LEFT_OUT = {("scan", "coder")}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return lavis_tiny.write_words(tmp_path_factory.mktemp("words"))


@pytest.fixture
def make(words):
    def build(network, method="plain", *, chunk=None, dropout=0.0, recompute=False, dtype=torch.float64):
        torch.manual_seed(0)
        if network == "vse":
            matcher = small_matcher(name="infonce")
            matcher.text_encoder.dropout.p = dropout
        elif network == "scan":
            matcher = sets.make("scan_t2i")
        else:
            random = {} if network == "clip" else {"bert": {"dropout": dropout}, "vit": {"drop_path": dropout}}
            section = lavis_tiny.section(network, words, objective=NETWORKS[network], checkpoint=recompute, **random)
            matcher = registered("model")[f"itm_{network}"].from_config(OmegaConf.create(section))
            if network == "blip2":
                # BLIP-2's own norm always computes in single precision
                matcher.network.ln_vision.__class__ = torch.nn.LayerNorm
        matcher.config = replace(matcher.config, encode_chunk=chunk)
        return wrapped(method, matcher).to(dtype).train()

    return build


def wrapped(method, matcher):
    loss = matcher.config.base_loss
    if method == "dbl":
        return Dbl(DblConfig(base_loss=loss), matcher)
    if method == "aoq":
        return Aoq(parse(AoqConfig, {"base_loss": {"name": "triplet"}}, "model"), matcher)
    if method == "coder":
        off = {"dictionary": {"size": 8}, "concept": False, "labels": False}
        return Coder(parse(CoderConfig, {"base_loss": {}, **off, "dcl": {"base_weight": 1.0}}, "model"), matcher)
    return matcher


def a_batch(network, dtype=torch.float64):
    """Seven pairs of five images, and AOQ's mined items."""
    torch.manual_seed(1)
    count, size = len(IMAGE_IDS), lavis_tiny.SIZE
    shape = {"vse": (3, 8), "scan": (4, 8)}.get(network, (3, size, size))
    image, mined = torch.rand(5, *shape, dtype=dtype)[IMAGE_IDS], torch.rand(2 * count, *shape, dtype=dtype)
    batch = {"image": image, "text_input": CAPTIONS, "image_id": IMAGE_IDS, "index": torch.arange(count)}
    if network in ("vse", "scan"):
        batch["image_mask"] = torch.ones(count, shape[0], dtype=torch.bool)
        batch["image_mask"][::2, -1] = False
        batch["offline_image_mask"] = batch["image_mask"].repeat(2, 1)
    others = [f"{first} and {second}" for first, second in permutations(CAPTIONS, 2)][: 2 * count]
    offline = {"offline_image": mined, "offline_text_input": others}
    steps = {"epoch": 0, "iters": 3, "num_iters_per_epoch": 4}
    return {**batch, **offline, "apart": torch.ones(count, dtype=torch.bool), **steps}


def step(model, batch, seed=3, amp=None):
    """Loss parts and gradients of one step, the second: dictionaries, queues and anchors hold something by then."""
    for number in range(2):
        model.zero_grad()
        torch.manual_seed(seed + number)
        with torch.autocast("cpu", dtype=amp or torch.bfloat16, enabled=amp is not None):
            parts = model(batch)
        parts["loss"].backward()
        if not number:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.05 * parameter.grad
            model.after_step()
    return parts, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(found, expected, **tolerance):
    for mine, other in zip(found, expected, strict=True):
        assert mine.keys() == other.keys()
        for name, value in other.items():
            torch.testing.assert_close(mine[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def cases():
    for network in ("vse", "scan", *NETWORKS):
        for method in METHODS:
            if (network, method) not in LEFT_OUT:
                marks = [] if (network, method) in DIAGONAL else [pytest.mark.full]
                yield pytest.param(network, method, marks=marks, id=f"{network}-{method}")


@pytest.mark.parametrize(("network", "method"), cases())
def test_loss_and_gradient_are_those_of_the_plain_batch(network, method, make):
    """Also with a chunk that does not divide the batch; captions of a chunk are padded to another length."""
    batch = a_batch(network)
    expected = step(make(network, method), batch)
    for chunk in (3, 1):
        found = step(make(network, method, chunk=chunk), batch)
        assert_same_step(found, expected, rtol=1e-9, atol=1e-10)


def test_in_single_precision_to_1e_5(make):
    """With blocks that are recomputed within each chunk."""
    batch, single = a_batch("clip", torch.float32), {"dtype": torch.float32}
    models = make("clip", "coder", chunk=2, recompute=True, **single), make("clip", "coder", **single)
    assert_same_step(*(step(model, batch) for model in models), rtol=1e-5, atol=1e-5)


def in_one_pass(function, *args, use_reentrant):
    """In place of `checkpoint`: nothing is dropped. Without a tensor torch would not replay a GPU's random numbers."""
    assert any(isinstance(value, torch.Tensor) for value in args)
    return function(*args)


@pytest.mark.parametrize(
    ("network", "method", "amp"),
    [
        ("vse", "aoq", None),
        ("blip", "plain", torch.bfloat16),
        *(pytest.param("albef", "plain", amp, marks=pytest.mark.full) for amp in (None, torch.bfloat16)),
    ],
)
def test_the_second_pass_draws_what_the_first_drew(network, method, amp, make, monkeypatch):
    """With dropout and stochastic depth, against the same chunks whose activations are kept."""
    batch, dtype = a_batch(network, torch.float32), torch.float32
    found = step(make(network, method, chunk=3, dropout=0.3, dtype=dtype), batch, amp=amp)
    other = step(make(network, method, chunk=3, dropout=0.3, dtype=dtype), batch, seed=9, amp=amp)
    assert not torch.equal(found[0]["loss"], other[0]["loss"])
    monkeypatch.setattr(chunks, "checkpoint", in_one_pass)
    expected = step(make(network, method, chunk=3, dropout=0.3, dtype=dtype), batch, amp=amp)
    assert_same_step(found, expected, rtol=1e-5, atol=1e-7)


def bytes_held(model, batch):
    """What a forward pass keeps for the backward pass."""
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    return sum(held.values())


@pytest.mark.parametrize("network", ["clip", "blip"])
def test_activations_are_not_held(network, make):
    batch = a_batch(network)
    plain, chunked = (bytes_held(make(network, chunk=chunk), batch) for chunk in (None, 2))
    assert chunked < plain / 4


def test_nothing_is_left_behind_by_the_second_pass(make):
    model = make("blip", chunk=2)
    step(model, a_batch("blip"))
    assert model._local == LocalPass()


def test_a_frozen_anchor_follows_the_target(make, tmp_path):
    torch.save({"model": make("vse").float().state_dict()}, tmp_path / "anchor.pth")
    batch, sizes = a_batch("vse", torch.float32), []
    whole, chunked = (FrozenAnchor(tmp_path / "anchor.pth", chunk) for chunk in (None, 3))
    encode = chunked.matcher.encode_images
    chunked.matcher.encode_images = lambda samples: sizes.append(len(samples["image"])) or encode(samples)
    torch.testing.assert_close(chunked.scores(batch), whole.scores(batch))
    assert sizes == [3, 3, 1]


def test_batch_statistics_are_refused(make):
    image = {"projection": "residual", "dim": 8, "norm": "batch"}
    network = sets.make("scan_t2i", image=image, encode_chunk=2).train()
    with pytest.raises(ItmError, match=r"encode_chunk: itm_scan has batch statistics \(image_encoder.*norm: layer"):
        network(sets.batch_of([0, 1, 2]))
    # in evaluation mode they are those of the training set
    network.eval()
    network(sets.batch_of([0, 1, 2]))
    # those of SAF are of the scores, which are of the whole batch
    sets.make("saf", encode_chunk=2).train()(sets.batch_of([0, 1, 2]))


def test_a_run_in_chunks_is_the_plain_run(tmp_path):
    root = tiny.write_precomp(tmp_path / "data")
    weights = []
    for name, options in (("plain", []), ("chunks", ["model.encode_chunk=5"])):
        content = tiny.project(root, tmp_path / "runs", itm={"run_name": name})
        content["model"]["image"]["dropout"] = 0.0
        content["model"]["text"].update(dropout=0.0, output_dropout=0.0)
        runner = run_training(tiny.write_project(tmp_path / "x.yaml", content), options)
        weights.append({name: value for name, value in runner._model.state_dict().items() if torch.is_tensor(value)})
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5, msg=name)
