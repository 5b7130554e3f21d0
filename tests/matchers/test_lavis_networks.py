"""The matchers over LAVIS's networks against LAVIS's own code: scores, losses, re-ranking, weights, what is trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lavis_tiny
import numpy as np
import pytest
import torch
from lavis.models.albef_models import compute_sim_matrix as albef_matrix
from lavis.models.base_model import MomentumDistilationMixin
from lavis.models.blip2_models.blip2 import compute_sim_matrix as blip2_matrix
from omegaconf import OmegaConf
from torch.nn.functional import normalize

from lavis_itm_plugins.encoders import tokenizers
from lavis_itm_plugins.encoders.tokenizers import WordPieces
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.evaluation import retrieval_metrics
from lavis_itm_plugins.matchers import lavis_rerank
from lavis_itm_plugins.matchers.base import Matcher
from lavis_itm_plugins.matchers.lavis_itm import Keys, draw, enqueue
from lavis_itm_plugins.methods import base
from lavis_itm_plugins.methods.coder_config import DictionaryConfig
from lavis_itm_plugins.methods.coder_keys import KeyTower
from lavis_itm_plugins.methods.dbl import Dbl, DblConfig
from lavis_itm_plugins.momentum import OwnCopy
from lavis_itm_plugins.registry import registered

CAPTIONS = [
    "a red ball",
    "two dogs on a box",
    "a cat",
    "a blue box on the left",
    "the red circle",
    "a tiny star",
    "a dog",
]
OWNERS = [0, 1, 2, 3, 3, 4, 1]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return lavis_tiny.write_words(tmp_path_factory.mktemp("words"))


@pytest.fixture
def make(words):
    def build(network, seed=0, **keys):
        torch.manual_seed(seed)
        model = registered("model")[f"itm_{network}"].from_config(
            OmegaConf.create(lavis_tiny.section(network, words, **keys))
        )
        with torch.no_grad():
            # LAVIS starts biases at 0 and norms at 1, behind which mistakes hide
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
            if hasattr(model.network, "temp"):
                model.network.temp.fill_(0.07)
            if hasattr(model.network, "visual_encoder_m"):
                for name in ("visual_encoder", "text_encoder", "vision_proj", "text_proj"):
                    own, copy = getattr(model.network, name), getattr(model.network, f"{name}_m")
                    for ours, theirs in zip(own.parameters(), copy.parameters(), strict=True):
                        theirs.copy_(ours)
        return model

    return build


def a_batch(count=7, seed=1):
    torch.manual_seed(seed)
    ids = torch.tensor(OWNERS[:count])
    pictures = torch.rand(5, 3, lavis_tiny.SIZE, lavis_tiny.SIZE)[ids]
    steps = {"epoch": 0, "iters": 3, "num_iters_per_epoch": 4}
    return {"image": pictures, "text_input": CAPTIONS[:count], "image_id": ids, **steps}


class Loader(list):
    """A split of five pictures in batches of two, as LAVIS's loaders give it."""

    def __init__(self):
        torch.manual_seed(5)
        pictures = torch.rand(5, 3, lavis_tiny.SIZE, lavis_tiny.SIZE)
        super().__init__(
            {"image": pictures[i : i + 2], "index": torch.arange(i, min(i + 2, 5))} for i in range(0, 5, 2)
        )
        self.dataset = SimpleNamespace(text=CAPTIONS, image=list(range(5)), txt2img=dict(enumerate(OWNERS)))


class Items(Loader):
    """Its length is that of its data."""

    def __init__(self):
        super().__init__()

        class Data(SimpleNamespace):
            def __len__(self):
                return 5

        self.dataset = Data(**vars(self.dataset))


def test_clip_scores_are_those_of_lavis(make):
    model, loader = make("clip").eval(), Items()
    with torch.no_grad():
        # LAVIS reads 77 tokens whatever the network has
        model.network.tokenizer = lambda texts: model.tokens(texts).cpu()
        theirs = model.network.compute_sim_matrix(loader)
    for ours, other in zip(model.compute_sim_matrix(loader), theirs, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "stock"), [("blip", albef_matrix), ("albef", albef_matrix), ("blip2", blip2_matrix)]
)
@pytest.mark.parametrize("k_test", [5, 2])
def test_reranked_scores_are_those_of_lavis(network, stock, k_test, make, monkeypatch):
    """With all pairs, and with fewer; LAVIS fails for a `k_test` above the images or captions, ours is clamped."""
    monkeypatch.setattr(lavis_rerank, "PAIRS_AT_ONCE", 4)
    model, loader = make(network).eval(), Items()
    with torch.no_grad():
        theirs = stock(model=model.network, data_loader=loader, k_test=k_test)
        asked = {"k_test": 128 if k_test == 5 else k_test}
        ours = model.compute_sim_matrix(loader, asked)
    # with k_test = 5, LAVIS leaves captions 6 and 7 of an image out; ours takes them all
    for mine, other, clamp in zip(ours, theirs, (7, 5), strict=True):
        seen = other > -100
        assert (seen.sum(axis=1) == k_test).all()
        np.testing.assert_allclose(mine[seen], other[seen], atol=1e-5)
        wanted = np.ones_like(seen) if k_test == 5 else seen
        assert ((mine > -50) == wanted).all() and wanted.sum(axis=1).max() == min(asked["k_test"], clamp)


def test_cosines_without_k_test_are_the_ones_that_lavis_reranks_by(make):
    for network in ("blip", "albef"):
        model, loader = make(network).eval(), Items()
        with torch.no_grad():
            pictures = torch.cat([batch["image"] for batch in loader])
            states = model.network.visual_encoder.forward_features(pictures)
            tokens = model.tokenizer(CAPTIONS, padding="max_length", max_length=35, return_tensors="pt")
            text = model.network.text_encoder.forward_text(tokens).last_hidden_state
            images = normalize(model.network.vision_proj(states[:, 0]), dim=-1)
            expected = images @ normalize(model.network.text_proj(text[:, 0]), dim=-1).T
        np.testing.assert_allclose(model.compute_sim_matrix(loader)[0], expected, atol=1e-5)


def the_likeliest(weights, count):
    return weights.argmax(dim=-1, keepdim=True)


@pytest.mark.parametrize("network", ["blip", "albef"])
def test_losses_and_gradients_are_those_of_lavis(network, make, monkeypatch):
    """Contrast with queues and the matching loss over two steps; the likeliest negatives instead of drawn ones."""
    monkeypatch.setattr(torch, "multinomial", the_likeliest)
    # a queue must hold a whole number of LAVIS's batches
    ours, theirs = (make(network, objective="itc_itm", queue_size=14) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    ours.train(), theirs.train()
    for step in range(2):
        batch = {**a_batch(seed=step), "epoch": step}
        parts, expected = ours(batch), theirs.network(batch)
        ours.zero_grad(), theirs.zero_grad()
        parts["loss"].backward(), expected.loss.backward()
        torch.testing.assert_close(parts["loss_base"], expected.loss_itc.detach(), rtol=1e-5, atol=1e-5)
        if network == "albef" and step == 1:
            # its negatives are drawn by cosines with momentum vectors, which have moved; ours by those of the step
            break
        torch.testing.assert_close(parts["loss_itm"], expected.loss_itm.detach(), rtol=1e-4, atol=1e-5)
        for (name, mine), other in zip(ours.network.named_parameters(), theirs.network.parameters(), strict=True):
            if mine.requires_grad:
                torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
        with torch.no_grad():
            for model in (ours, theirs):
                for parameter in model.network.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
        ours.after_step()
        # LAVIS moves its copies before the next batch, ours after the step
        expected_queue = theirs.network.image_queue
        torch.testing.assert_close(ours.network.image_queue, expected_queue, rtol=1e-4, atol=1e-5)
        assert torch.equal(ours.network.idx_queue, theirs.network.idx_queue)


def test_blip2_losses_are_those_of_lavis(make, monkeypatch):
    monkeypatch.setattr(torch, "multinomial", the_likeliest)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("lavis.models.blip2_models.blip2_qformer.all_gather_with_grad", lambda rows: rows)
    model = make("blip2", objective="itc_itm").train()
    # LAVIS counts another caption of the same image as a negative; here there is none
    batch = a_batch(count=4)
    parts, expected = model(batch), model.network(batch)
    torch.testing.assert_close(parts["loss_base"], expected.loss_itc.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts["loss_itm"], expected.loss_itm.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", lavis_tiny.NETWORKS)
@pytest.mark.parametrize("objective", ["plain", "itm", "itc", "itc_itm"])
def test_what_is_trained_gets_a_gradient(network, objective, make):
    """DDP waits for ever for a parameter without one."""
    if network == "clip" and "itm" in objective:
        pytest.skip("CLIP has no matching head")
    for freeze in ([], ["image"]):
        model = make(network, objective=objective, freeze=freeze).train()
        model(a_batch())["loss"].backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without
    assert not any(p.requires_grad for p in model.network.get_submodule(model.towers["image"][0]).parameters())
    assert not model.network.get_submodule(model.towers["image"][0]).training


@pytest.mark.parametrize("network", lavis_tiny.NETWORKS)
def test_recomputing_blocks_changes_no_gradient(network, make):
    gradients = []
    for recompute in (False, True):
        keys = {} if network == "clip" else {"bert": {"dropout": 0.1}}
        model = make(network, checkpoint=recompute, **keys).train()
        torch.manual_seed(3)
        model(a_batch())["loss"].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("network", lavis_tiny.NETWORKS)
def test_lower_layers_learn_more_slowly(network, make):
    model = make(network, layer_decay=0.5, objective="plain" if network == "clip" else "itm")
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in model.param_groups() for p in group["params"]}
    assert len(scales) == sum(p.requires_grad for p in model.parameters())
    for stack in model.stacks:
        assert {s for n, s in scales.items() if n.startswith(f"network.{stack.blocks}.1.")} == {1.0}
        assert {s for n, s in scales.items() if n.startswith(f"network.{stack.blocks}.0.")} == {0.5}
        assert {s for n, s in scales.items() if n.removeprefix("network.").startswith(stack.below)} == {0.25}


def test_albef_without_matching_has_fewer_layers(make):
    """Its upper layers fuse; the rate of those that read is not lowered for them."""
    model = make("albef", layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in model.param_groups() for p in group["params"]}
    assert {s for n, s in scales.items() if "text_encoder.encoder.layer." in n} == {1.0}
    assert {s for n, s in scales.items() if "text_encoder.embeddings." in n} == {0.5}


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


def make_unchanged(network, words, **keys):
    return registered("model")[f"itm_{network}"].from_config(
        OmegaConf.create(lavis_tiny.section(network, words, **keys))
    )


def test_a_checkpoint_serves_another_objective(words, make, tmp_path):
    plain, full = make("blip"), make("blip", objective="itc_itm")
    for source, objective in ((plain, "itc_itm"), (full, "plain")):
        torch.save({"model": source.state_dict()}, tmp_path / "ours.pth")
        model = make_unchanged("blip", words, objective=objective, finetuned=str(tmp_path / "ours.pth"))
        assert torch.equal(model.network.vision_proj.weight, source.network.vision_proj.weight)
        if objective == "itc_itm":
            assert torch.equal(model.network.vision_proj_m.weight, source.network.vision_proj.weight)


def test_a_batch_of_one_image_has_only_pairs_to_match(make):
    """LAVIS fails there: it has nothing to draw from."""
    for network in ("blip", "albef", "blip2"):
        model = make(network, objective="itc_itm").train()
        batch = {**a_batch(count=3), "image_id": torch.tensor([4, 4, 4])}
        loss = model(batch)["loss"]
        loss.backward()
        assert torch.isfinite(loss)


def test_negatives_are_drawn_by_likelihood_and_never_of_the_same_image():
    torch.manual_seed(0)
    ids = torch.tensor([0, 0, 1, 2])
    same = ids[:, None] == ids
    scores = torch.tensor([[9.0, 9, 0, 2]] * 4)
    drawn = torch.stack([draw(scores, same) for _ in range(400)])
    assert not same[torch.arange(4), drawn].any()
    # of row 0, columns 2 and 3 with shares of about exp(0) and exp(2), plus the floor
    share = (drawn[:, 0] == 3).float().mean()
    assert 0.75 < share < 0.95


def test_a_queue_takes_batches_of_any_size():
    queue = torch.zeros(1, 5)
    network = SimpleNamespace(
        image_queue=queue.clone(),
        text_queue=queue.clone(),
        idx_queue=torch.full((1, 5), -100),
        queue_ptr=torch.zeros(1, dtype=torch.long),
    )
    for first, count in ((0, 3), (3, 4), (7, 8)):
        rows = torch.arange(first, first + count)
        enqueue(network, Keys(rows[:, None].float(), -rows[:, None].float(), rows))
    # by item % 5, the newest of each slot
    assert network.idx_queue[0].tolist() == [10, 11, 12, 13, 14]
    assert torch.equal(network.image_queue, network.idx_queue.float())
    assert torch.equal(network.text_queue, -network.idx_queue.float())
    assert int(network.queue_ptr) == 0


def test_a_skipped_step_leaves_momentum_towers_and_queues(make):
    model = make("blip", objective="itc").train()
    before = {name: value.clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}
    model(a_batch())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name in before)
    model(a_batch())
    model.after_step()
    assert int(model.network.queue_ptr) == 7


def test_a_loop_that_tells_of_no_step_is_refused(make, monkeypatch):
    """LAVIS's own task does not; momentum towers and queues would stand still, and nobody would see it."""
    monkeypatch.setattr(base, "UNHEARD", 2)
    model = make("albef", objective="itc").train()
    for step in range(4):
        model({**a_batch(count=2), "iters": step})
        model.after_step()
    for step in range(2):
        model({**a_batch(count=2), "iters": step})
    with pytest.raises(ItmError, match=r"itm_albef was told of none of 2 steps, .*; set run.runner: itm_runner"):
        model({**a_batch(count=2), "iters": 2})


def test_reranking_ends_where_the_cosines_end(make):
    """Pairs that the head did not see come after those it saw, in the order of their cosines."""
    model, loader = make("blip").eval(), Items()
    cosines = Matcher.compute_sim_matrix(model, loader)[0]
    by_image, _ = lavis_rerank.rerank(model, loader, 1)
    np.testing.assert_allclose(np.sort(by_image)[:, :-1], np.sort(cosines)[:, :-1] - 100, atol=1e-4)
    told = lavis_rerank.reranked_metrics(model, loader, 1, lavis_rerank.encode_split(model, loader)[:2])
    assert told["itm_txt_r10"] == retrieval_metrics(cosines, np.array(OWNERS))["txt_r10"]
    assert set(told) > {"itm_txt_r1", "itm_img_r1", "itm_rsum"}


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


def test_momentum_towers_rest(make):
    model = make("blip", objective="itc", bert={"dropout": 0.5}).train()
    assert model.network.text_encoder.training
    assert not model.network.text_encoder_m.training
    assert issubclass(type(model.network), MomentumDistilationMixin)
    twin = model.momentum_twin()
    assert torch.equal(*(twin.encode_captions(CAPTIONS).pooled for _ in range(2)))
    assert make("blip").momentum_twin() is None


def test_dbl_and_coder_use_the_momentum_towers_that_are_there(make):
    """No second copy: the anchor and the key tower are the network's own, which it moves."""
    model = make("blip", objective="itc").train()
    dbl = Dbl(DblConfig(base_loss=model.config.base_loss), model)
    size = sum(p.numel() for p in dbl.parameters())
    assert size == sum(p.numel() for p in model.parameters())
    assert isinstance(KeyTower(model, None, DictionaryConfig(size=8), 16, copies=True).matcher, OwnCopy)
    batch = a_batch()
    anchor = dbl.momentum_anchor.scores(batch)
    dbl(batch)["loss"].backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-2 * torch.randn_like(parameter) if parameter.requires_grad else 0
    dbl.after_step()
    assert int(dbl.momentum_anchor.updates) == 1
    moved = dbl.momentum_anchor.scores(batch)
    assert not torch.equal(anchor, moved)
    assert (anchor - moved).abs().max() < 0.05
    assert not moved.requires_grad


@pytest.fixture(scope="module")
def ranks(words):
    """What one process, and two, computed, by name: losses, gradients, buffers, scores."""
    folder = words.parent
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("lavis_ranks.py")), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"ranks_{size}.pt") for size in (1, 2)]


def test_two_ranks_equal_one(ranks):
    """Contrast, queues, momentum towers and re-ranking, in float64."""
    one, two = ranks
    assert one.keys() == two.keys()
    for name, value in one.items():
        if ".scores.lavis" in name:
            continue
        # scores leave the network in single precision
        single = "reranked" in name or ".scores." in name
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if single else {"rtol": 1e-6, "atol": 1e-10}
        torch.testing.assert_close(two[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("network", ["clip", "blip", "albef"])
def test_on_two_ranks_lavis_own_scores_are_wrong_by_default_and_ours_are_not(network, ranks):
    """From the very loader that LAVIS's runner makes: a rank's share of the pictures stands in for all of them."""
    (ours, default, whole), (ours_on_two, default_on_two, whole_on_two) = (
        [found[f"{network}.scores.{who}"] for who in ("ours", "lavis_default", "lavis_whole")] for found in ranks
    )
    seen = default > -50
    torch.testing.assert_close(ours[seen], default[seen], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours_on_two, ours, rtol=0, atol=1e-5)
    assert torch.equal(whole, default)
    if network == "clip":
        assert (len(default), len(default_on_two)) == (5, 3)
        torch.testing.assert_close(whole_on_two, whole, rtol=0, atol=1e-5)
        return
    # with use_dist_eval_sampler: false each rank embeds everything; the ranks' -100 of pairs not seen are summed
    torch.testing.assert_close(whole_on_two + 100, whole, rtol=0, atol=1e-4)
    # by default two of the five pictures get no score at all, and the others those of another
    assert (default_on_two > -150).any(dim=1).tolist() == [True, True, True, False, False]
    assert not torch.allclose(default_on_two[1] + 100, default[1], rtol=0, atol=1e-4)
