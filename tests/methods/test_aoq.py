"""itm_aoq on one batch: what its items hold, and that its losses are those of the functions on items encoded apart."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from lavis.common.registry import registry
from omegaconf import OmegaConf
from runners.ranks import small_matcher
from torch.nn.functional import dropout

from lavis_itm_plugins.config.schema import parse
from lavis_itm_plugins.data.datasets import CaptionDataset
from lavis_itm_plugins.data.precomp import read_precomp
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import (
    infonce_loss,
    offline_hinge_loss,
    offline_infonce_loss,
    quintuplet_loss,
    shared_distillation_loss,
)
from lavis_itm_plugins.methods import candidates
from lavis_itm_plugins.methods.aoq import Aoq
from lavis_itm_plugins.methods.aoq_config import AoqConfig
from lavis_itm_plugins.methods.base import same_image
from lavis_itm_plugins.methods.candidates import (
    CandidateConfig,
    MinedLists,
    mine_training_set,
    model_identity,
)
from lavis_itm_plugins.methods.offline import OfflineCaptionDataset
from lavis_itm_plugins.mining import HardNegatives, MiningSettings, open_candidates
from lavis_itm_plugins.mining.sampling import QuintupleSampler
from lavis_itm_plugins.runners.loaders import EpochBatches, make_loader

ROWS = [0, 3, 17, 18, 61]


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return read_precomp(tiny.write_precomp(tmp_path_factory.mktemp("data")), "train")


@pytest.fixture(scope="module")
def sampler(split):
    """Lists in which both mined items of a caption are often of one image."""
    rng = np.random.default_rng(0)
    owners = np.asarray(split.caption_image)
    captions = np.stack([rng.permutation(np.flatnonzero(owners != image))[:4] for image in range(24)])
    images = np.stack([owners[captions[image]][:3] for image in owners])
    empty = np.zeros((0, 0))
    return QuintupleSampler(HardNegatives(captions, images, empty, empty, empty), owners)


def items(split, sampler, *, pairs=True, region_drop=0.0, epoch=0, draws=1):
    dataset = OfflineCaptionDataset(CaptionDataset(split, region_drop=region_drop, seed=3), pairs=pairs, draws=draws)
    dataset.sampler = sampler
    dataset.set_epoch(epoch)
    return dataset


def features(split, rows):
    return split.images.fetch(split.image_rows[np.asarray(split.caption_image)[rows]])


def test_items_hold_two_true_pairs_of_the_data_set(split, sampler):
    batch = items(split, sampler).__getitems__(ROWS)
    plain = CaptionDataset(split, seed=3).__getitems__(ROWS)
    assert all(
        torch.equal(torch.as_tensor(batch[k]), torch.as_tensor(plain[k])) for k in ("image", "image_id", "index")
    )
    assert batch["text_input"] == plain["text_input"]
    rows = {text: [i for i, other in enumerate(split.captions) if other == text] for text in split.captions}
    third, fourth = batch["offline_text_input"][:5], batch["offline_text_input"][5:]
    for i, row in enumerate(ROWS):
        # I3 is an image of T4, I4 of T3
        for text, image in ((fourth[i], batch["offline_image"][i]), (third[i], batch["offline_image"][5 + i])):
            assert any(torch.equal(features(split, [match])[0], image) for match in rows[text])
        assert all(split.caption_image[match] != split.caption_image[row] for match in rows[third[i]][:1])
        assert not torch.equal(batch["offline_image"][i], batch["image"][i])
        assert bool(batch["apart"][i]) != torch.equal(batch["offline_image"][i], batch["offline_image"][5 + i])
    assert 0 < batch["apart"].sum() < 5


def test_without_pairs_only_the_items_that_are_used_are_loaded(split, sampler):
    whole, part = (items(split, sampler, pairs=pairs).__getitems__(ROWS) for pairs in (True, False))
    assert torch.equal(part["offline_image"], whole["offline_image"][:5])
    assert part["offline_text_input"] == whole["offline_text_input"][:5]


def test_before_the_first_mining_items_are_plain(split):
    batch = items(split, None, region_drop=0.2).__getitems__(ROWS)
    assert batch.keys() == CaptionDataset(split, region_drop=0.2).__getitems__(ROWS).keys()


def test_draws_belong_to_seed_epoch_and_caption(split, sampler):
    """The same from any number of workers and in any batch; others in the next epoch."""

    def drawn(workers, batch_size, epoch):
        dataset = items(split, sampler, region_drop=0.4, epoch=epoch)
        batches = EpochBatches(len(dataset), batch_size, seed=0, drop_last=False)
        found = {}
        for batch in make_loader(dataset, batches, workers=workers, seed=0, pin=False):
            size = len(batch["text_input"])
            for i, row in enumerate(batch["index"].tolist()):
                mask = batch["offline_image_mask"]
                assert len(mask) == 2 * size and mask.any(dim=1).all() and not mask.all()
                found[row] = (batch["offline_text_input"][i], batch["offline_text_input"][size + i], mask[i].tolist())
        return found

    reference = drawn(0, 16, 1)
    assert len(reference) == 120 and drawn(2, 7, 1) == reference
    assert sum(drawn(0, 16, 2)[row][:2] != reference[row][:2] for row in reference) > 90


def method(base_loss=None, official=False, candidates=None, **aoq) -> Aoq:
    settings = {"aoq": aoq, "official": official, "candidates": candidates or {}}
    matcher = small_matcher(**(base_loss or {"name": "triplet"}))
    config = parse(AoqConfig, {**settings, "base_loss": base_loss or {"name": "triplet"}}, "model")
    return Aoq(config, matcher)


def batch_of(split, sampler, pairs=True, epoch=0, draws=1):
    batch = items(split, sampler, pairs=pairs, draws=draws).__getitems__(ROWS)
    batch = {key: value.double() if key.endswith("image") else value for key, value in batch.items()}
    return {**batch, "epoch": epoch}


def mined_scores(model, batch):
    """The scores of items encoded one set at a time."""
    matcher, size = model.matcher, len(ROWS)
    encode = SimpleNamespace(
        images=[batch["image"], batch["offline_image"][:size], batch["offline_image"][size:]],
        captions=[batch["text_input"], batch["offline_text_input"][:size], batch["offline_text_input"][size:]],
    )
    first, third, fourth = (matcher.encode_images({"image": image}) for image in encode.images)
    own, other, partner = (matcher.encode_captions(texts) for texts in encode.captions)
    pairs = {
        "offline_captions": (first, other),
        "offline_images": (third, own),
        "offline_pairs": (third, other),
        "partner_pairs": (fourth, partner),
    }
    return matcher.score(first, own), {name: matcher.score(*pair).diagonal() for name, pair in pairs.items()}


@pytest.mark.parametrize(
    ("aoq", "official", "expected"),
    [
        ({}, False, {}),
        ({"cross_pair": "keep"}, True, {}),
        (
            {"alpha": 0.5, "beta": 2.0, "weight_min": 0.0, "detach_weights": True, "offline_margin": 0.1},
            False,
            {"alpha": 0.5, "beta": 2.0, "weight_min": 0.0, "detach_weights": True, "offline_margin": 0.1},
        ),
        ({"adaptive": False}, False, {"alpha": math.inf, "beta": 1.0}),
    ],
)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_the_quintuplet_loss(split, sampler, aoq, official, expected, reduction):
    model = method({"name": "triplet", "margin": 0.3, "reduction": reduction}, official, **aoq)
    batch = batch_of(split, sampler)
    parts = model.losses(batch)
    loss = sum(value for name, value in parts.items() if name.startswith("loss_"))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    scores, offline = mined_scores(model, batch)
    masks = {} if official else {"positives": same_image(batch["image_id"]), "pair_mask": batch["apart"]}
    reference = quintuplet_loss(scores, **offline, **masks, **expected, online_margin=0.3, reduction=reduction)
    torch.testing.assert_close(loss, reference, rtol=1e-10, atol=1e-12)
    for found, wanted in zip(gradients, torch.autograd.grad(reference, list(model.parameters())), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)
    assert parts["aoq_cross_pairs"].item() == pytest.approx(1 - batch["apart"].float().mean().item())


def test_the_offline_triplet_alone(split, sampler):
    model = method(adaptive=False, pairs=False)
    loss = model(batch_of(split, sampler, pairs=False))["loss"]
    scores, offline = mined_scores(model, batch_of(split, sampler))
    low = {name: torch.full_like(offline[name], -9) for name in ("offline_pairs", "partner_pairs")}
    plain = {"positives": same_image(batch_of(split, sampler)["image_id"]), "alpha": math.inf, "beta": 1.0}
    torch.testing.assert_close(loss, quintuplet_loss(scores, **(offline | low), **plain), rtol=1e-10, atol=1e-12)


def test_other_base_losses_get_offline_terms_beside_them(split, sampler):
    batch = batch_of(split, sampler)
    positives = same_image(batch["image_id"])
    model = method({"name": "infonce", "temperature": 0.1}, offline_weight=0.5)
    scores, offline = mined_scores(model, batch)
    hinges = offline_hinge_loss(scores, **offline, pair_mask=batch["apart"], reduction="mean")
    expected = infonce_loss(scores, temperature=0.1, positives=positives) + 0.5 * hinges
    torch.testing.assert_close(model(batch)["loss"], expected)
    logits = method({"name": "infonce", "temperature": 0.1}, offline="logits")
    masks = {"positives": positives, "pair_mask": batch["apart"]}
    torch.testing.assert_close(logits(batch)["loss"], offline_infonce_loss(scores, **offline, **masks, temperature=0.1))
    # hinges over all negatives have no hardest one to compare with
    parts = method({"name": "triplet", "negatives": "hardest", "warmup_epochs": 1}).losses(batch)
    plain = method({"name": "triplet", "negatives": "all"}).losses(batch)
    torch.testing.assert_close(parts["loss_base"], plain["loss_base"])
    assert parts["loss_offline"] > 0


@pytest.mark.parametrize(("pairs", "draws"), [(True, 1), (False, 1), (True, 3)])
def test_mined_items_are_shared_by_the_whole_batch(split, sampler, pairs, draws):
    """Every mined caption and image is a negative of every pair, unless it is of the pair's own image."""
    model = method({"name": "infonce", "temperature": 0.1}, offline="shared", pairs=pairs, draws=draws)
    batch = batch_of(split, sampler, pairs=pairs, draws=draws)
    assert len(batch["offline_text_input"]) == len(batch["offline_image"]) == 5 * draws * (1 + pairs)
    # what is logged of the four scores is of the first draw, which is the only one without `draws`
    shares = ("aoq_offline_over_online", "aoq_cross_pairs", "aoq_active_pairs")
    once = method({"name": "infonce"}, offline="shared", pairs=pairs).losses(batch_of(split, sampler, pairs=pairs))
    assert all(torch.equal(model.losses(batch)[name], once[name]) for name in shares)
    matcher, ids = model.matcher, batch["image_id"].tolist()
    images, captions = matcher.encode_images({"image": batch["image"]}), matcher.encode_captions(batch["text_input"])
    mined_images = matcher.encode_images({"image": batch["offline_image"]})
    mined_captions = matcher.encode_captions(batch["offline_text_input"])
    # whose a mined item is, by its text or its features
    owners = dict(zip(split.captions, split.caption_image, strict=True))
    caption_ids = [owners[text] for text in batch["offline_text_input"]]
    every_image = split.images.fetch(split.image_rows).double()
    image_ids = [int((every_image == one).flatten(1).all(dim=1).nonzero()) for one in batch["offline_image"]]

    def costs(scores, mined, mined_ids):
        for i, own in enumerate(ids):
            online = [scores[i, j] for j, other in enumerate(ids) if j == i or other != own]
            offline = [mined[i, n] for n, other in enumerate(mined_ids) if other != own]
            yield torch.stack([*online, *offline]).div(0.1).logsumexp(dim=0) - scores[i, i] / 0.1

    scores = matcher.score(images, captions)
    by_image = costs(scores, matcher.score(images, mined_captions), caption_ids)
    by_caption = costs(scores.T, matcher.score(mined_images, captions).T, image_ids)
    expected = torch.stack([*by_image, *by_caption]).mean()
    torch.testing.assert_close(model(batch)["loss"], expected, rtol=1e-10, atol=1e-12)


def test_round_one_is_an_example_of_batch_and_mined_items(split, sampler):
    """The loss is that of the functions; round one gets no gradient, and its scores are those of its own vectors."""
    keys = {"offline": "shared", "pairs": False, "distill": 0.5, "distill_temperature": 0.2}
    model = method({"name": "infonce", "temperature": 0.1}, candidates={"source": "round_one"}, **keys)
    batch, teacher = batch_of(split, sampler, pairs=False), small_matcher()
    with pytest.raises(ItmError, match="round one in a hook that only itm_runner calls"):
        model.losses(batch)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    model.round_one._anchor = SimpleNamespace(matcher=teacher, to=lambda _: SimpleNamespace(matcher=teacher))
    parts = model.losses(batch)
    images = [{"image": batch["image"]}, {"image": batch["offline_image"]}]
    texts = batch["text_input"], batch["offline_text_input"]

    def scores_of(matcher):
        own, mined = (matcher.encode_images(image) for image in images)
        captions, more = (matcher.encode_captions(text) for text in texts)
        return matcher.score(own, captions), matcher.score(own, more), matcher.score(mined, captions)

    scores, mined_captions, mined_images = scores_of(model.matcher)
    anchor = dict(zip(("anchor", "anchor_captions", "anchor_images"), scores_of(teacher), strict=True))
    owners = dict(zip(split.captions, split.caption_image, strict=True))
    mined_ids = torch.tensor([owners[text] for text in texts[1]])
    expected = shared_distillation_loss(
        scores,
        **anchor,
        mined_captions=mined_captions,
        mined_images=mined_images,
        caption_negatives=batch["image_id"][:, None] != mined_ids,
        image_negatives=batch["offline_image_id"][:5, None] != batch["image_id"],
        temperature=0.2,
        positives=same_image(batch["image_id"]),
    )
    torch.testing.assert_close(parts["loss_distill"], 0.5 * expected, rtol=1e-10, atol=1e-12)
    without = method({"name": "infonce", "temperature": 0.1}, offline="shared", pairs=False).losses(batch)
    torch.testing.assert_close(parts["loss_base"], without["loss_base"])
    sum(value for name, value in parts.items() if name.startswith("loss_")).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert deepcopy(model).round_one is model.round_one


def test_round_one_in_half_precision(split, sampler):
    """Under autocast the losses are near those without, and in float32."""
    keys = {"offline": "shared", "distill": 1.0}
    model = method({"name": "infonce"}, candidates={"source": "round_one"}, **keys).float()
    teacher = small_matcher().float()
    model.round_one._anchor = SimpleNamespace(matcher=teacher, to=lambda _: SimpleNamespace(matcher=teacher))
    batch = {key: value.float() if key.endswith("image") else value for key, value in batch_of(split, sampler).items()}
    whole = model.losses(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.losses(batch)
    for name in ("loss_base", "loss_distill"):
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], whole[name], rtol=0.05, atol=0.01)


def test_a_contrast_of_the_networks_own_stays(split, sampler):
    """The offline hinges join it; what would change the base loss is refused."""
    model, batch = method(), batch_of(split, sampler)
    model.matcher.config = SimpleNamespace(contrasts=True, objective="itc")
    model.matcher.matching_losses = lambda *given: {"loss_base": torch.tensor(7.0)}
    parts = model.losses(batch)
    assert parts["loss_base"] == 7 and parts["loss_offline"] > 0
    with pytest.raises(ItmError, match="offline: shared changes base_loss, which itm_vse with objective: itc does not"):
        Aoq(parse(AoqConfig, {"base_loss": {"name": "infonce"}, "aoq": {"offline": "shared"}}, "m"), model.matcher)


def test_plain_until_the_first_mining(split, sampler):
    plain = CaptionDataset(split, seed=3).__getitems__(ROWS)
    plain["image"] = plain["image"].double()
    model = method(candidates={"start_epoch": 2})
    assert model.losses({**plain, "epoch": 1}).keys() == {"loss_base"}
    with pytest.raises(ItmError, match=r"mines in hooks that only itm_runner calls; set run.runner: itm_runner"):
        model.losses({**plain, "epoch": 2})


@pytest.mark.parametrize("rows", [[5], [5, 6, 7]])
def test_batches_of_one_pair_or_one_image(split, sampler, rows):
    model = method()
    batch = items(split, sampler).__getitems__(rows)
    batch = {key: value.double() if key.endswith("image") else value for key, value in batch.items()}
    output = model({**batch, "epoch": 0})
    output["loss"].backward()
    assert output["loss"].isfinite() and all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_only_a_data_set_of_ours_is_taken():
    with pytest.raises(ItmError, match=r"needs one training set of this plugin .* not list"):
        method().wrap_dataset([1, 2])


def test_mining_is_in_evaluation_mode_and_named_by_the_first_rank(split, tmp_path, monkeypatch):
    matcher, dataset = small_matcher().float(), CaptionDataset(split)
    stock, settings = matcher.score, MiningSettings(captions_per_image=4, images_per_caption=3)
    monkeypatch.setattr(matcher, "score", lambda *pair: dropout(stock(*pair), 0.5, matcher.training))
    expected = open_candidates(mine_training_set(tmp_path / "eval", matcher.eval(), dataset, settings))
    copied = []
    monkeypatch.setattr(candidates, "copy_from_first_rank", copied.append)
    monkeypatch.setattr(candidates, "from_first_rank", lambda mine: {**mine, "model": {"weights": "the first one's"}})
    found = open_candidates(mine_training_set(tmp_path / "train", matcher.train(), dataset, settings))
    np.testing.assert_array_equal(found.negatives.caption_scores, expected.negatives.caption_scores)
    assert matcher.training and copied == [matcher]
    assert found.made_from["model"] == {"weights": "the first one's"} and found.fingerprint != expected.fingerprint


def test_another_configuration_is_another_model(split):
    matcher = small_matcher()
    before = model_identity(matcher)
    matcher.config = replace(matcher.config, embed_dim=99)
    assert model_identity(matcher) != before


def test_averaged_weights_share_the_lists():
    lists = MinedLists(CandidateConfig())
    assert deepcopy({"lists": lists})["lists"] is lists


def section(**keys):
    matcher = {**tiny.project("", "")["model"], "vocab_path": "x.json"}
    return OmegaConf.create({"arch": "itm_aoq", "matcher": matcher, **keys})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"aoq": {"alpah": 1}}, "model.aoq.alpah: unknown key; did you mean alpha"),
        ({"aoq": {"alpha": 0}}, "model.aoq.alpha: 0.0 is out of range"),
        ({"aoq": {"cross_pair": "masked"}}, 'model.aoq.cross_pair: unknown choice "masked"; did you mean mask'),
        ({"aoq": {"offline": "logits"}, "base_loss": {"name": "triplet"}}, "logits needs base_loss.name: infonce"),
        ({"aoq": {"draws": 2}}, "model.aoq.draws: 2 needs offline: shared; draw once"),
        ({"aoq": {"distill": 1}}, "model.aoq.distill: 1.0 needs offline: shared; set 0"),
        (
            {"aoq": {"distill": 1, "offline": "shared"}, "base_loss": {"name": "infonce"}},
            "model.aoq.distill: 1.0 needs a run folder or a checkpoint as candidates.source",
        ),
        ({"init": "checkpoint"}, "model.init: checkpoint needs a run folder or a checkpoint as candidates.source"),
        ({"candidates": {"filters": {"relative_margin": 1}}}, "relative_margin: 1.0 is out of range"),
        ({"candidates": {"captions_per_image": 0}}, "captions_per_image: 0 is out of range"),
    ],
)
def test_wrong_settings_are_said_when_they_are_read(keys, message):
    with pytest.raises(ItmError, match=message):
        Aoq.parse_config(section(**keys))


def test_registered_with_both_model_types():
    assert registry.get_model_class("itm_aoq") is Aoq
    for name in Aoq.PRETRAINED_MODEL_CONFIG_DICT:
        config = Aoq.parse_config(OmegaConf.load(Aoq.default_config_path(name)).model)
        assert config.aoq.alpha == 0.3 and config.base_loss.negatives == "hardest"
        assert config.candidates.mining().captions_per_image == 300
