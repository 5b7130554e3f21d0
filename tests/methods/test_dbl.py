"""itm_dbl on one batch: its losses from their parts, who gets a gradient, what is trained, kept, logged and scored."""

from __future__ import annotations

import logging
from copy import deepcopy

import pytest
import tiny
import torch
from lavis.common.registry import registry
from omegaconf import OmegaConf

from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import boosting_loss, contrastive_boosting_loss, distillation_loss, triplet_loss
from lavis_itm_plugins.matchers.vse import VseMatcher
from lavis_itm_plugins.methods.base import same_image
from lavis_itm_plugins.methods.boost import BoostConfig
from lavis_itm_plugins.methods.branches import AveragedBranches, own_stream
from lavis_itm_plugins.methods.dbl import Dbl
from lavis_itm_plugins.methods.method import build_matcher, resolve_matcher
from lavis_itm_plugins.tasks.retrieval import chosen_branch

IDS = [0, 1, 2, 0, 3]
CAPTIONS = ["a red dog", "the green cat there", "a blue ball", "one red dog in the grass", "see the black boat"]
SCENARIOS = ("momentum", "frozen", "peer")


@pytest.fixture(autouse=True)
def configuration(tmp_path):
    before = registry.get("configuration", no_warning=True)
    root = tiny.write_precomp(tmp_path / "data")
    yield ProjectConfig(tiny.write_project(tmp_path / "x.yaml", tiny.project(root, tmp_path)))
    registry.mapping["state"]["configuration"] = before


@pytest.fixture
def anchor(tmp_path):
    """A checkpoint of a plain matcher, and the matcher."""
    torch.manual_seed(5)
    matcher = plain_matcher().eval()
    torch.save({"model": matcher.state_dict()}, tmp_path / "anchor.pth")
    return matcher, str(tmp_path / "anchor.pth")


def matcher_section(**keys):
    return {**tiny.project("", "")["model"], **keys}


def plain_matcher():
    return build_matcher(resolve_matcher(matcher_section(), None, "model"))


def section(scenario="momentum", base_loss=None, official=False, **dbl):
    keys = {"arch": "itm_dbl", "model_type": scenario, "matcher": matcher_section(), "official": official}
    keys["base_loss"] = base_loss or {"name": "triplet"}
    return OmegaConf.create({**keys, "dbl": {"scenario": scenario, **dbl}})


def built(scenario, anchor, **keys):
    """A model whose anchor differs from its target, without dropout."""
    torch.manual_seed(1)
    if scenario == "frozen":
        keys = {"anchor": anchor[1], "from_anchor": False, **keys}
    model = Dbl.from_config(section(scenario, **keys)).eval()
    if scenario == "momentum":
        model.momentum_anchor.module.load_state_dict(anchor[0].state_dict())
    return model


def batch(ids=IDS, **more):
    images = torch.randn(len(ids), 3, 8, generator=torch.Generator().manual_seed(0))
    return {"image": images, "text_input": CAPTIONS[: len(ids)], "image_id": torch.tensor(ids), **more}


def scores_of(matcher, samples):
    with torch.no_grad():
        return matcher.score(matcher.encode_images(samples), matcher.encode_captions(samples["text_input"]))


def target_and_anchors(model, scenario, anchor, samples):
    branches = [scores_of(branch, samples) for branch in model.branches]
    return branches[-1], branches[:-1] if scenario == "peer" else [scores_of(anchor[0], samples)]


LOSSES = {
    "boost": lambda t, a, p, r: boosting_loss(t, a, form="absolute", beta=0.5, gamma=0.3, positives=p, reduction=r),
    "contrastive": lambda t, a, p, r: (
        contrastive_boosting_loss(t, a, temperature=0.2, positives=p) * (len(t) if r == "sum" else 0.5)
    ),
    "distill_ce": lambda t, a, p, r: distillation_loss(t, a, temperature=0.2, positives=p, reduction=r),
    "distill_kl": lambda t, a, p, r: distillation_loss(t, a, form="kl", temperature=0.2, positives=p, reduction=r),
    "distill_reverse_kl": lambda t, a, p, r: distillation_loss(
        t, a, form="reverse_kl", temperature=0.2, positives=p, reduction=r
    ),
    "distill_scores": lambda t, a, p, r: distillation_loss(t, a, form="scores", positives=p, reduction=r),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_loss_is_the_base_loss_and_the_weighted_boost(scenario, loss, anchor):
    settings = {"loss": loss, "form": "absolute", "beta": 0.5, "gamma": 0.3, "temperature": 0.2, "weight": 0.7}
    model = built(scenario, anchor, **settings, **({"branches": 3} if scenario == "peer" else {}))
    parts = model(batch())
    target, anchors = target_and_anchors(model, scenario, anchor, batch())
    positives = same_image(torch.tensor(IDS))
    expected = sum(LOSSES[loss](target, a, positives, "sum") for a in anchors) / len(anchors)
    torch.testing.assert_close(parts["loss_boost"], 0.7 * expected)
    torch.testing.assert_close(parts["loss_base"], triplet_loss(target, positives=positives))
    torch.testing.assert_close(parts["loss"], sum(v for k, v in parts.items() if k.startswith("loss_")))
    if scenario == "peer":
        middle, first = scores_of(model.branches[1], batch()), scores_of(model.branches[0], batch())
        torch.testing.assert_close(parts["loss_boost_1"], 0.7 * LOSSES[loss](middle, first, positives, "sum"))
        assert {"loss_base_0", "loss_base_1", "loss_base"} < parts.keys() and "loss_boost_0" not in parts


@pytest.mark.parametrize(
    ("base_loss", "asked", "reduction"),
    [
        ({"name": "triplet"}, None, "sum"),
        ({"name": "triplet", "reduction": "mean"}, None, "mean"),
        ({"name": "infonce"}, None, "mean"),
        ({"name": "infonce"}, "sum", "sum"),
        ({"name": "triplet", "negatives": "soft"}, None, "sum"),
    ],
)
@pytest.mark.parametrize("loss", ["boost", "contrastive"])
def test_the_boost_is_reduced_as_the_base_loss(loss, base_loss, asked, reduction, anchor):
    settings = {"form": "absolute", "beta": 0.5, "gamma": 0.3, "temperature": 0.2, "reduction": asked}
    model = built("frozen", anchor, base_loss=base_loss, loss=loss, **settings)
    target, anchors = target_and_anchors(model, "frozen", anchor, batch())
    expected = LOSSES[loss](target, anchors[0], same_image(torch.tensor(IDS)), reduction)
    torch.testing.assert_close(model(batch())["loss_boost"], expected)


@pytest.mark.parametrize("scenario", ["frozen", "peer"])
def test_official_counts_an_image_s_other_captions_as_negatives(scenario, anchor):
    ours, official = (
        built(scenario, anchor, official=official, base_loss={"name": "triplet", "negatives": "all"})(batch())
        for official in (False, True)
    )
    assert ours["masked_negatives"] == 2 and official["masked_negatives"] == 0
    assert ours["loss_base"] < official["loss_base"] and ours["loss_boost"] <= official["loss_boost"]


@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("loss", [*LOSSES, "none"])
def test_no_branch_and_no_anchor_gets_another_s_gradient(loss, mutual, anchor):
    """Branch 0's gradients are those of its base loss alone, unless it learns from the others too."""
    model = built("peer", anchor, loss=loss, mutual=mutual)
    model(batch())["loss"].backward()
    parts = [{name: p.grad.clone() for name, p in branch.named_parameters()} for branch in model.branches]
    alone = []
    for branch in model.branches:
        branch.zero_grad()
        samples = batch()
        scores = branch.score(branch.encode_images(samples), branch.encode_captions(samples["text_input"]))
        triplet_loss(scores, positives=same_image(torch.tensor(IDS))).backward()
        alone.append({name: p.grad for name, p in branch.named_parameters()})
    same = [all(torch.equal(own[name], plain[name]) for name in own) for own, plain in zip(parts, alone, strict=True)]
    assert same == [not mutual or loss == "none", loss == "none"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scenario", ["momentum", "frozen"])
def test_an_anchor_gets_no_gradient_and_stays_as_it_is(scenario, loss, anchor):
    model = built(scenario, anchor, loss=loss).train()
    network = model.momentum_anchor.module if scenario == "momentum" else model.frozen.matcher
    assert not any(part.training for part in network.modules())
    before = {name: value.clone() for name, value in network.named_parameters()}
    model(batch())["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert all(p.grad is not None for p in model.matcher.parameters())
    trained = {id(p) for group in model.param_groups() for p in group["params"]}
    assert trained == {id(p) for p in model.matcher.parameters()}
    assert [{id(p) for p in group} for group in model.clip_groups()] == [trained]
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_a_frozen_anchor_is_in_no_state_dictionary(anchor):
    model = built("frozen", anchor)
    assert {name.split(".")[0] for name in model.state_dict()} == {"matcher", "_extra_state"}
    assert model.state_dict()["_extra_state"]["anchor"] == model.frozen.content
    assert sum(1 for _ in model.parameters()) == sum(1 for _ in model.matcher.parameters())


def test_a_frozen_run_starts_from_its_anchor_unless_told_otherwise(anchor, tmp_path):
    model = Dbl.from_config(section("frozen", anchor=anchor[1]))
    assert all(torch.equal(p, q) for p, q in zip(model.matcher.parameters(), anchor[0].parameters(), strict=True))
    # 2 B M at the start: nothing gained yet
    assert model.eval()(batch())["loss_boost"].item() == pytest.approx(2 * len(IDS) * 0.2, rel=1e-5)
    other = plain_matcher()
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    keys = section("frozen", anchor=anchor[1])
    keys.matcher.finetuned = str(tmp_path / "other.pth")
    started = Dbl.from_config(keys)
    assert all(torch.equal(p, q) for p, q in zip(started.matcher.parameters(), other.parameters(), strict=True))


def same_weights(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_the_anchor_wins_over_the_weights_of_a_model_type(anchor, tmp_path, monkeypatch):
    published = plain_matcher()
    torch.save({"model": published.state_dict()}, tmp_path / "published.pth")
    default = OmegaConf.load(VseMatcher.default_config_path("regions_gru"))
    default.model.update({"load_finetuned": False, "pretrained": str(tmp_path / "published.pth")})
    OmegaConf.save(default, tmp_path / "default.yaml")
    path = classmethod(lambda cls, _: str(tmp_path / "default.yaml"))
    monkeypatch.setattr(VseMatcher, "default_config_path", path)
    assert same_weights(Dbl.from_config(section("frozen", anchor=anchor[1])).matcher, anchor[0])
    assert same_weights(Dbl.from_config(section("frozen", anchor=anchor[1], from_anchor=False)).matcher, published)


def test_a_target_does_not_start_from_another_network(anchor):
    state = anchor[0].state_dict()
    torch.save({"model": {**state, "_extra_state": {**state["_extra_state"], "arch": "itm_scan"}}}, anchor[1])
    with pytest.raises(ItmError, match=r"holds a itm_scan, from which .* itm_vse cannot start; set dbl.from_anchor"):
        Dbl.from_config(section("frozen", anchor=anchor[1]))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_matcher_s_checkpoint_reaches_every_branch_and_copy(scenario, anchor):
    keys = {"anchor": anchor[1], "from_anchor": False} if scenario == "frozen" else {}
    model = Dbl.from_config(section(scenario, **keys))
    copies = [*model.branches]
    if scenario == "momentum":
        copies.append(model.momentum_anchor.module)
        model.momentum_anchor.updates += 5
    assert not any(same_weights(copy, anchor[0]) for copy in copies)
    model.load_checkpoint(anchor[1])
    assert all(same_weights(copy, anchor[0]) for copy in copies)
    assert scenario != "momentum" or model.momentum_anchor.updates == 0


def test_peers_start_apart_each_from_its_own_seed(anchor, tmp_path):
    torch.manual_seed(1)
    plain = plain_matcher()
    after = torch.rand(1)
    model = built("peer", anchor, branches=3)
    # the first is the plain matcher of the same seed, and building the others drew nothing
    assert torch.equal(torch.rand(1), after)
    first, second, third = (list(branch.parameters()) for branch in model.branches)
    assert all(torch.equal(p, q) for p, q in zip(first, plain.parameters(), strict=True))
    assert not torch.equal(first[0], second[0]) and not torch.equal(second[0], third[0])
    again = built("peer", anchor, branches=2)
    assert all(torch.equal(p, q) for p, q in zip(again.branches[1].parameters(), second, strict=True))
    same = built("peer", anchor, same_start=True)
    assert all(torch.equal(p, q) for p, q in zip(*(b.parameters() for b in same.branches), strict=True))


@pytest.mark.parametrize("where", ["model", "matcher"])
def test_peers_that_start_from_a_checkpoint_all_do(where, anchor):
    keys = section("peer", branches=3)
    (keys if where == "model" else keys.matcher).finetuned = anchor[1]
    for branch in Dbl.from_config(keys).branches:
        assert all(torch.equal(p, q) for p, q in zip(branch.parameters(), anchor[0].parameters(), strict=True))


def test_other_branches_draw_from_their_own_stream(anchor):
    """Dropout of branch 0 is a plain matcher's; that of the others is a function of seed, branch, epoch and step."""
    model = built("peer", anchor, branches=3).train()
    torch.manual_seed(9)
    plain = VseMatcher.losses(model.branches[0], batch(epoch=0))["loss_base"]
    after = torch.rand(1)
    torch.manual_seed(9)
    first = model(batch(epoch=0, iters=3, num_iters_per_epoch=4))
    assert torch.equal(torch.rand(1), after) and torch.equal(first["loss_base_0"], plain.detach())
    again, later = (model(batch(epoch=0, iters=step, num_iters_per_epoch=4)) for step in (3, 2))
    for name in ("loss_base", "loss_base_1"):
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], later[name])


def test_a_stream_of_its_own_leaves_the_generators_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    drawn = [torch.rand(1)]
    with own_stream(torch.device("cpu"), 1, 2, 3):
        inside = torch.rand(1)
    drawn.append(torch.rand(1))
    assert torch.equal(torch.cat(drawn), expected)
    with own_stream(torch.device("cpu"), 1, 2, 3):
        assert torch.equal(torch.rand(1), inside)


def test_each_peer_is_optimised_and_clipped_as_a_plain_matcher(anchor):
    model = built("peer", anchor, branches=3)
    plain = plain_matcher()
    shapes = [[p.shape for p in group["params"]] for group in plain.param_groups()]
    groups = model.param_groups()
    assert [[p.shape for p in group["params"]] for group in groups] == 3 * shapes
    assert len({id(p) for group in groups for p in group["params"]}) == sum(1 for _ in model.parameters())
    assert [{id(p) for p in g} for g in model.clip_groups()] == [
        {id(p) for p in b.parameters()} for b in model.branches
    ]


def test_the_momentum_anchor_starts_as_the_target_and_follows_after_each_step(configuration):
    configuration.config.run.update(max_epoch=2, accum_grad_iters=2)
    model = Dbl.from_config(section(momentum=0.8))
    target, copy = model.matcher, model.momentum_anchor.module
    assert all(torch.equal(p, q) for p, q in zip(target.parameters(), copy.parameters(), strict=True))
    # three updates in an epoch of five batches
    told = model(batch(epoch=0, iters=0, num_iters_per_epoch=5))
    assert told["momentum"].item() == pytest.approx(0.8)
    start = next(copy.parameters()).clone()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter += 1.0
    model.after_step()
    torch.testing.assert_close(next(copy.parameters()), start + 0.2)
    model(batch(epoch=1, iters=1, num_iters_per_epoch=5))
    for _ in range(2):
        model.after_step()
    halfway = model(batch(epoch=1, iters=1, num_iters_per_epoch=5))["momentum"].item()
    assert halfway == pytest.approx(0.9)
    assert int(model.state_dict()["momentum_anchor.updates"]) == 3


def test_the_weight_grows_over_its_warm_up(anchor):
    model = built("frozen", anchor, weight=2.0, weight_warmup=1.5)
    weights = [
        model(batch(epoch=e, iters=i, num_iters_per_epoch=4))["boost_weight"] for e, i in [(0, 0), (0, 3), (1, 2)]
    ]
    assert [w.item() for w in weights] == pytest.approx([0.0, 1.0, 2.0])
    assert model(batch(epoch=0, iters=0, num_iters_per_epoch=4))["loss_boost"] == 0


def test_an_epoch_ends_with_a_line_on_the_boost(anchor, caplog):
    caplog.set_level(logging.INFO)
    for beta, words in ((0.0, "the boost is asleep (0% of"), (20.0, "the boost is saturated (100% of")):
        model = Dbl.from_config(section("frozen", anchor=anchor[1], beta=beta)).eval()
        caplog.clear()
        for step in range(2):
            model(batch(epoch=0, iters=step, num_iters_per_epoch=2))
        [line] = [record.message for record in caplog.records if record.message.startswith("dbl:")]
        assert words in line and "positives gained" in line


@pytest.mark.parametrize("loss", ["contrastive", "distill_kl", "none"])
def test_losses_without_a_margin_are_told_of_no_beta(loss, anchor, caplog):
    caplog.set_level(logging.INFO)
    model = built("frozen", anchor, loss=loss)
    caplog.clear()
    model(batch(epoch=0, iters=0, num_iters_per_epoch=1))
    lines = [record.message for record in caplog.records if record.message.startswith("dbl:")]
    assert [f"dbl: {loss}: in " in line and "beta" not in line for line in lines] == ([] if loss == "none" else [True])


def test_momentum_settings_that_do_nothing_are_said(caplog):
    BoostConfig().warn_of_own_momentum("itm_blip")
    assert not caplog.records
    BoostConfig(momentum=0.9, momentum_warmup=1.0).warn_of_own_momentum("itm_blip")
    assert "momentum, momentum_warmup is not used, since itm_blip moves its own momentum towers" in caplog.text


def test_a_task_that_never_moves_the_anchor_is_said():
    model = Dbl.from_config(section("momentum")).train()
    model(batch(epoch=0, iters=0, num_iters_per_epoch=2))
    with pytest.raises(ItmError, match=r"did not move in the first epoch, .* set run.task: itm_retrieval"):
        model(batch(epoch=1, iters=0, num_iters_per_epoch=2))
    model.after_step()
    model(batch(epoch=1, iters=0, num_iters_per_epoch=2))


@pytest.mark.parametrize("ids", [[0], [4, 4, 4]])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_batch_without_negatives_is_finite(scenario, ids, anchor):
    model = built(scenario, anchor, form="absolute")
    parts = model(batch(ids))
    parts["loss"].backward()
    assert all(value.isfinite() for value in parts.values())
    assert all(p.grad.isfinite().all() for p in model.matcher.parameters() if p.grad is not None)
    assert parts["loss_base"] == 0 and parts["active_hinges"] <= 1


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_anchor_that_is_not_finite_raises(scenario, anchor):
    model = built(scenario, anchor)
    networks = {
        "momentum": lambda: model.momentum_anchor.module,
        "frozen": lambda: model.frozen.matcher,
        "peer": lambda: model.branches[0],
    }
    with torch.no_grad():
        networks[scenario]().text_encoder.words.embed.weight.fill_(torch.nan)
    with pytest.raises(ItmError, match="values of anchor are not finite"):
        model(batch())


def test_half_precision_moves_the_losses_little(anchor):
    model = built("frozen", anchor)
    whole = model(batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(batch())
    assert half["loss_boost"].dtype == torch.float32
    assert half["loss"].item() == pytest.approx(whole["loss"].item(), rel=0.05)


def test_branches_are_chosen_for_evaluation(anchor):
    peers, momentum, frozen = (built(scenario, anchor) for scenario in ("peer", "momentum", "frozen"))
    assert chosen_branch(peers, "target") is peers.matcher is chosen_branch(peers, 1)
    assert chosen_branch(peers, "anchor") is peers.branches[0] is chosen_branch(peers, "0")
    assert chosen_branch(momentum, "anchor") is momentum.momentum_anchor.module
    assert chosen_branch(frozen, "anchor") is frozen.frozen.matcher
    assert chosen_branch(frozen, "target") is frozen.evaluated() is frozen.matcher
    for model, name in ((peers, "2"), (momentum, "average"), (frozen, 1), (peers, "targt")):
        with pytest.raises(ItmError, match=f'unknown run.itm.eval_branch "{name}"; '):
            chosen_branch(model, name)
    with pytest.raises(ItmError, match=r"run.itm.eval_branch is anchor, but VseMatcher has one branch"):
        chosen_branch(frozen.matcher, "anchor")


def test_the_average_is_the_mean_of_the_branches_scores(anchor):
    model = built("peer", anchor, branches=3)
    averaged, samples = chosen_branch(model, "average"), batch()
    expected = torch.stack([scores_of(branch, samples) for branch in model.branches]).mean(0)
    torch.testing.assert_close(scores_of(averaged, samples), expected)
    images, captions = averaged.encode_images(samples), averaged.encode_captions(samples["text_input"])
    torch.testing.assert_close(averaged.score_pairs(images, captions), expected.diagonal())
    # cut in tiles, as evaluation does
    torch.testing.assert_close(averaged.score(images[1:3], captions[2:]), expected[1:3, 2:])
    assert averaged.bytes_per_pair == 3 * VseMatcher.bytes_per_pair
    assert not averaged.training and model.train().branch("average").training


class Regions(VseMatcher):
    """A matcher that scores sets: the largest product of a region and a word."""

    def encode_images(self, samples):
        return Encoded(regions=samples["image"] * self.text_encoder.words.embed.weight.mean(), mask=samples["mask"])

    def encode_captions(self, captions):
        return Encoded(regions=self.text_encoder.words.embed.weight[: len(captions), None, :].expand(-1, 2, -1))

    def score(self, images, captions):
        products = torch.einsum("ird,jwd->ijrw", images.regions, captions.regions)
        return products.masked_fill(~images.mask[:, None, :, None], -9).amax(dim=(2, 3))


def test_an_average_of_matchers_that_score_sets():
    branches = []
    for seed in range(2):
        torch.manual_seed(seed)
        branches.append(Regions.from_config(OmegaConf.create(resolve_matcher(matcher_section(), None, "model"))))
    samples = {**batch(), "mask": torch.tensor([[True, True, False]] * len(IDS))}
    averaged = AveragedBranches(branches)
    expected = torch.stack([scores_of(branch, samples) for branch in branches]).mean(0)
    torch.testing.assert_close(scores_of(averaged, samples), expected)


@pytest.mark.parametrize(
    ("dbl", "words"),
    [
        ({"form": "relativ"}, 'model.dbl.form: unknown choice "relativ"; did you mean relative'),
        ({"loss": "distil_ce"}, "model.dbl.loss: unknown choice"),
        ({"betta": 1}, "model.dbl.betta: unknown key; did you mean beta"),
        ({"gamma": 1.5}, "model.dbl.gamma: 1.5 is out of range"),
        ({"beta": -1}, "model.dbl.beta: -1.0 is out of range"),
        ({"branches": 1}, "model.dbl.branches: 1 is out of range"),
        ({"momentum": 1.5}, "model.dbl.momentum: 1.5 is out of range"),
        ({"mutual": True}, "model.dbl: mutual is for scenario: peer"),
        ({"cache": "always"}, "model.dbl: cache: always is for scenario: frozen"),
        ({"anchor": "x.pth"}, "model.dbl: anchor is a checkpoint for scenario: frozen, and the scenario is momentum"),
    ],
)
def test_a_mistake_in_the_settings_is_named(dbl, words):
    with pytest.raises(ItmError, match=words.replace(".", r"\.")):
        Dbl.parse_config(section(**dbl))


def test_a_missing_anchor_is_said(tmp_path):
    with pytest.raises(ItmError, match=r"model.dbl.anchor is not set; give the checkpoint or the run folder"):
        Dbl.from_config(section("frozen"))
    with pytest.raises(ItmError, match=r"model.dbl.anchor: .*gone.pth holds no checkpoint; train a plain"):
        Dbl.from_config(section("frozen", anchor=str(tmp_path / "gone.pth")))


def test_a_run_does_not_go_on_with_another_anchor(anchor, tmp_path):
    model = Dbl.from_config(section("frozen", anchor=anchor[1]))
    state = model.state_dict()
    model.load_state_dict(state)
    other = plain_matcher()
    torch.save({"model": other.state_dict()}, anchor[1])
    again = Dbl.from_config(section("frozen", anchor=anchor[1]))
    with pytest.raises(ItmError, match=r"another anchor than .*anchor.pth holds now .*put that checkpoint back"):
        again.load_state_dict(state)
    # a new run may start from those weights and take any anchor
    torch.save({"model": state}, tmp_path / "trained.pth")
    keys = section("frozen", anchor=anchor[1])
    keys.finetuned = str(tmp_path / "trained.pth")
    started = Dbl.from_config(keys)
    started.eval()(batch())
    assert started.frozen.content == again.frozen.content != model.frozen.content
    # and its averaged copy, made before training, knows the new one
    fresh = Dbl.from_config(keys)
    average = deepcopy(fresh)
    fresh.eval()(batch())
    fresh.load_state_dict(average.state_dict())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_checkpoint_loads_without_its_anchor_s_file(scenario, anchor, tmp_path):
    model = built(scenario, anchor)
    torch.save({"model": model.state_dict()}, tmp_path / "trained.pth")
    (tmp_path / "anchor.pth").rename(tmp_path / "gone")
    unbuilt = Dbl.from_pretrained(scenario)
    unbuilt.load_checkpoint(tmp_path / "trained.pth")
    assert torch.equal(scores_of(unbuilt.eval().evaluated(), batch()), scores_of(model.matcher, batch()))
    assert unbuilt.state_dict()["_extra_state"]["anchor"] == model.state_dict()["_extra_state"]["anchor"]
    alone = VseMatcher.from_pretrained("regions_gru")
    alone.load_checkpoint(tmp_path / "trained.pth")
    assert torch.equal(scores_of(alone.eval(), batch()), scores_of(model.matcher, batch()))
