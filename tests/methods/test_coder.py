"""itm_coder against the reference step, against plain InfoNCE, and each part and edge case on its own."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from methods.coder_stubs import OFF, batch_of, make_coder
from torch.nn.functional import cross_entropy, normalize

from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import infonce_loss
from lavis_itm_plugins.losses.diversity_checks import KINDS
from lavis_itm_plugins.matchers.base import Matcher
from lavis_itm_plugins.methods.candidates import model_identity
from lavis_itm_plugins.methods.coder_branches import ConceptBranch, FusedMatcher, fuse
from lavis_itm_plugins.methods.coder_labels import used
from lavis_itm_plugins.methods.coder_selection import mean_cosine

FIXTURE = Path(__file__).parents[1] / "fixtures" / "golden_coder.npz"
EXACT = {"rtol": 1e-9, "atol": 1e-12}


class Golden:
    def __init__(self) -> None:
        self.archive = np.load(FIXTURE)

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.archive[name])


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def fill_branch(branch: ConceptBranch, golden: Golden) -> None:
    """The reference's graph and weights."""
    values = {
        "adjacency": "graph_ahat", "first": "gcn_w1", "second": "gcn_w2",
        "query.image.weight": "query_wq_v", "query.caption.weight": "query_wq_t", "key.weight": "query_wk",
    }  # fmt: skip
    if "words" in branch.state_dict():
        values["words"] = "gcn_e0"
    branch.load_state_dict({name: golden[value] for name, value in values.items()})


def golden_branch(golden: Golden, query: str = "dot") -> ConceptBranch:
    branch = ConceptBranch(torch.eye(9), None, 8, hidden=6, word_dim=7, query=query).double()
    if query == "dot":
        fill_branch(branch, golden)
    return branch


def test_golden_convolution_and_query(golden) -> None:
    branch = golden_branch(golden)
    concepts = branch.concepts()
    torch.testing.assert_close(concepts, golden["gcn_z"], **EXACT)
    for side, name in (("image", "v"), ("caption", "t")):
        vectors = golden[f"query_x_{name}"]
        torch.testing.assert_close(branch.attention(vectors, side, concepts), golden[f"query_att_{name}"], **EXACT)
        torch.testing.assert_close(branch(vectors, side, concepts), golden[f"query_c_{name}"], **EXACT)


def test_golden_query_by_products(golden) -> None:
    branch = golden_branch(golden, "mul")
    values = {"wx": branch.query["image"].weight, "bx": branch.query["image"].bias, "wz": branch.key.weight}
    values |= {"bz": branch.key.bias, "v": branch.mix.weight, "bv": branch.mix.bias}
    for name, parameter in values.items():
        parameter.data.copy_(golden[f"querymul_{name}"])
    vectors, concepts = golden["query_x_v"], golden["gcn_z"]
    torch.testing.assert_close(branch.attention(vectors, "image", concepts), golden["querymul_att"], **EXACT)
    torch.testing.assert_close(branch(vectors, "image", concepts), golden["querymul_c"], **EXACT)


def test_the_key_tower_starts_again_from_a_matcher_s_checkpoint(monkeypatch, tmp_path) -> None:
    coder, other = make_coder(monkeypatch, dictionary={"size": 13}), make_coder(monkeypatch, seed=1)
    coder(batch_of(list(range(6))))
    coder.after_step()
    assert coder.keys.filled > 0
    torch.save({"model": other.matcher.state_dict()}, tmp_path / "plain.pth")
    coder.load_checkpoint(tmp_path / "plain.pth")
    expected = list(other.matcher.parameters())
    for tower in (coder.matcher, coder.keys.matcher.module):
        assert all(torch.equal(p, q) for p, q in zip(tower.parameters(), expected, strict=True))
    assert coder.keys.filled == 0 and coder.keys.steps_taken == 0


def test_golden_fusion(golden) -> None:
    vectors = [(normalize(golden[f"query_x_{name}"], dim=1), golden[f"query_c_{name}"]) for name in ("v", "t")]
    images, captions = (fuse(x, c, float(golden["fuse_omega"])) for x, c in vectors)
    torch.testing.assert_close(images @ captions.T, golden["fuse_s"], **EXACT)


@pytest.mark.parametrize("case", ["step", "step_beta0_lamp0"])
def test_golden_step(golden, monkeypatch, case) -> None:
    """Loss and every gradient of a whole step: both branches, dictionaries, weights and labels."""
    full = case == "step"
    coder = make_coder(
        monkeypatch,
        dcl={"temperature": 0.07, "beta": 0.5 if full else 0.0},
        dictionary={"size": 13},
        concept={"hidden": 6, "word_dim": 7},
        labels={"prototypes": 5, "warmup_epochs": 0, "weight": 0.2 if full else 0.0},
    )
    coder.matcher.images.data.copy_(golden["step_xv"])
    coder.matcher.captions.data.copy_(golden["step_xt"])
    fill_branch(coder.concept, golden)
    coder.labels.load_state_dict({"prototypes": golden["proto"], "classifier": golden["label_wcls"]})
    names = {"image": "v", "caption": "t"}
    for key, dictionary in coder.keys.dictionaries.items():
        side, branch = key.split("_")
        dictionary.keys.copy_(golden[f"step_queue_{names[side]}_{branch[:4].replace('conc', 'con')}"])
        dictionary.image_ids.copy_(golden["step_gid_neg"][6:])
    keys = {
        branch: {side: golden[f"step_k_{name}_{short}"] for side, name in names.items()}
        for branch, short in (("instance", "inst"), ("concept", "con"))
    }
    monkeypatch.setattr(coder, "key_vectors", lambda _batch: keys)
    parts = coder(batch_of(list(range(6)), golden["dcl_gid"].tolist()))
    parts["loss"].backward()
    torch.testing.assert_close(parts["loss"].detach(), golden[f"{case}_total"], **EXACT)
    if full:
        found = torch.stack([parts["loss_instance"], parts["loss_concept"], parts["loss_labels"] / 0.2])
        torch.testing.assert_close(found, golden["step_parts_inst_con_label"], **EXACT)
    parameters = {
        "xv": coder.matcher.images, "xt": coder.matcher.captions, "e0": coder.concept.words,
        "w1": coder.concept.first, "w2": coder.concept.second, "wqv": coder.concept.query["image"].weight,
        "wqt": coder.concept.query["caption"].weight, "wk": coder.concept.key.weight, "wcls": coder.labels.classifier,
    }  # fmt: skip
    for name, parameter in parameters.items():
        if full or name != "wcls":
            torch.testing.assert_close(parameter.grad, golden[f"{case}_grad_{name}"], **EXACT, msg=name)


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_all_switched_off_is_plain_infonce(monkeypatch, temperature) -> None:
    base = {"name": "infonce", "temperature": temperature}
    coder = make_coder(monkeypatch, **{**OFF, "base_loss": base})
    batch = batch_of([0, 1, 2, 3, 4], [7, 8, 7, 9, 0])
    coder(batch)["loss"].backward()
    found = {name: parameter.grad.clone() for name, parameter in coder.named_parameters()}
    assert set(found) == {"matcher.images", "matcher.captions"}
    coder.zero_grad()
    plain = coder.matcher(batch)
    plain["loss"].backward()
    torch.testing.assert_close(coder(batch)["loss"], plain["loss"], rtol=1e-12, atol=1e-14)
    for name, parameter in coder.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-11, atol=1e-14)
    assert list(coder.losses(batch)) == ["loss_instance", "cosine_image_instance", "cosine_caption_instance"]
    assert coder.evaluated() is coder.matcher


def test_official_counts_other_captions_of_an_image_as_negatives(monkeypatch) -> None:
    batch = batch_of([0, 1, 2], [5, 5, 6])
    coder = make_coder(monkeypatch, **OFF, official=True)
    scores = coder.encoded(batch).images.pooled @ coder.encoded(batch).captions.pooled.T / 0.05
    labels = torch.arange(3)
    expected = (cross_entropy(scores, labels) + cross_entropy(scores.T, labels)) / 2
    torch.testing.assert_close(coder(batch)["loss"], expected, rtol=1e-10, atol=0)


# from plain InfoNCE to the whole method, one key at a time
PATH = [
    ({"dictionary": {"size": 8}}, {"loss_instance"}),
    ({"dcl": {"beta": 0.5, "keys": "online"}}, {"loss_instance"}),
    ({"dcl": {"beta": 0.5, "keys": "momentum"}}, {"loss_instance"}),
    ({"concept": True}, {"loss_instance", "loss_concept"}),
    ({"labels": {"prototypes": 4}}, {"loss_instance", "loss_concept", "loss_labels"}),
    (
        {"dcl": {"intra_weight": 0.1, "base_weight": 2.0}},
        {"loss_instance", "loss_concept", "loss_labels", "loss_base", "loss_intra_image", "loss_intra_caption"},
    ),
]


def test_each_part_is_a_key(monkeypatch) -> None:
    sections, before = {**OFF, "dim": 4}, None
    for keys, expected in PATH:
        sections |= keys
        coder = make_coder(monkeypatch, **sections)
        # the second batch has other images, so the first one's keys are negatives for it
        for rows in ([0, 1, 2, 3], [0, 1, 4, 5]):
            parts = coder(batch_of(rows))
            parts["loss"].backward()
            coder.matcher.images.data -= 0.1 * coder.matcher.images.grad
            coder.after_step()
        assert {name for name in parts if name.startswith("loss_")} == expected
        assert all(parameter.grad is not None for parameter in coder.parameters() if parameter.requires_grad)
        loss = float(parts["loss"].detach())
        assert loss != before
        before = loss


def test_concept_false_takes_the_labels_with_it(monkeypatch) -> None:
    coder = make_coder(monkeypatch, concept=False, dictionary={"size": 4})
    assert coder.labels is None and coder.concept is None
    assert set(coder.keys.dictionaries) == {"image_instance", "caption_instance"}


def test_keys_and_dictionaries_get_no_gradient_and_move_by_momentum_alone(monkeypatch) -> None:
    coder = make_coder(monkeypatch, dictionary={"size": 5, "momentum": 0.9}, labels={"prototypes": 4})
    before = {name: value.clone() for name, value in coder.state_dict().items() if torch.is_tensor(value)}
    optimizer = torch.optim.SGD([parameter for parameter in coder.parameters() if parameter.requires_grad], lr=0.1)
    parts = coder(batch_of([0, 1, 2]))
    assert torch.equal(coder.labels.prototypes, before["labels.prototypes"])
    parts["loss"].backward()
    optimizer.step()
    # nothing but the weights has moved before the step is known to be taken
    for name, value in coder.state_dict().items():
        if name.startswith(("keys.", "labels.prototypes")) and torch.is_tensor(value):
            assert torch.equal(value, before[name]), name
    coder.after_step()
    for name in ("matcher.images", "concept.first"):
        owner, _, rest = name.partition(".")
        key = f"keys.{owner}.module.{rest}"
        expected = 0.9 * before[name] + 0.1 * coder.state_dict()[name]
        assert not torch.equal(before[name], coder.state_dict()[name])
        torch.testing.assert_close(coder.state_dict()[key], expected)
    assert torch.equal(coder.concept.adjacency, before["concept.adjacency"])
    assert not torch.equal(coder.labels.prototypes, before["labels.prototypes"])
    for name, dictionary in coder.keys.dictionaries.items():
        assert dictionary.image_ids.tolist() == [0, 1, 2, -1, -1] and dictionary.items.tolist()[:3] == [0, 1, 2], name


def test_the_dictionary_holds_keys_of_before_the_momentum_update(monkeypatch) -> None:
    """The momentum moves after the optimiser's step; the keys that are stored were made before."""
    coder = make_coder(monkeypatch, dictionary={"size": 3, "momentum": 0.0}, concept=False)
    keys = coder.key_vectors(batch_of([0, 1, 2]))["instance"]["image"]
    coder(batch_of([0, 1, 2]))["loss"].backward()
    coder.matcher.images.data.mul_(-1)
    coder.after_step()
    assert torch.equal(coder.keys.dictionaries["image_instance"].keys, keys)
    assert torch.equal(coder.keys.matcher.module.images, coder.matcher.images)


def test_ramped_momentum(monkeypatch) -> None:
    coder = make_coder(monkeypatch, dictionary={"momentum": 0.5, "ramp": True, "size": 2}, concept=False)
    for expected in (1 / 10, 2 / 11):
        before, target = coder.keys.matcher.module.images.clone(), coder.matcher.images.detach()
        target.add_(1)
        coder.after_step()
        torch.testing.assert_close(coder.keys.matcher.module.images, expected * before + (1 - expected) * target)
    coder.keys.steps_taken.fill_(1000)
    before = coder.keys.matcher.module.images.clone()
    coder.matcher.images.data.add_(1)
    coder.after_step()
    torch.testing.assert_close(coder.keys.matcher.module.images, (before + coder.matcher.images.detach()) / 2)


def test_a_skipped_step_leaves_no_trace(monkeypatch) -> None:
    coder = make_coder(monkeypatch, dictionary={"size": 4}, labels={"prototypes": 4})
    before = {name: value.clone() for name, value in coder.state_dict().items() if torch.is_tensor(value)}
    coder(batch_of([0, 1, 2], iters=0))
    for name, value in before.items():
        assert torch.equal(coder.state_dict()[name], value), name
    coder(batch_of([3, 4], iters=1))
    coder.after_step()
    assert coder.keys.dictionaries["caption_concept"].image_ids.tolist() == [3, 4, -1, -1]


def test_batches_of_one_step_are_all_stored(monkeypatch) -> None:
    from lavis_itm_plugins.methods import coder as module

    monkeypatch.setattr(module, "run_setting", lambda name, default: 2)
    coder = make_coder(monkeypatch, dictionary={"size": 6})
    # the first group is skipped, the second taken
    for iteration, rows in enumerate([[0, 1], [2], [3, 4], [5]]):
        coder(batch_of(rows, iters=iteration))
    coder.after_step()
    assert coder.keys.dictionaries["image_instance"].image_ids.tolist() == [3, 4, 5, -1, -1, -1]


def test_same_images_in_the_dictionary_are_no_negatives(monkeypatch) -> None:
    coder = make_coder(monkeypatch, dictionary={"size": 4}, concept=False)
    coder(batch_of([0, 1], [3, 3]))
    coder.after_step()
    assert coder(batch_of([2, 4], [3, 3]))["loss"] == 0
    assert coder(batch_of([2, 4], [5, 5]))["loss"] > 0
    official = make_coder(monkeypatch, dictionary={"size": 4}, concept=False, official=True)
    official(batch_of([0], [3]))
    official.after_step()
    assert official(batch_of([0], [3]))["loss"] > 0


def test_images_with_any_number_of_captions_and_captions_of_two_images(monkeypatch) -> None:
    """Six captions of one image, two of another, one of a third, whose text is also the first's."""
    rows, owners = [0, 1, 2, 3, 4, 5, 6, 7, 0], [4] * 6 + [0] * 2 + [9]
    coder = make_coder(monkeypatch, **{**OFF, "items": 8, "dictionary": {"size": 4}})
    coder(batch_of([1, 6], [4, 0]))
    coder.after_step()
    batch = batch_of(rows, owners)
    encoded, losses = coder.encoded(batch), []
    for side, others in (("image", "captions"), ("caption", "images")):
        queries, keys = getattr(encoded, f"{side}s").pooled, getattr(encoded, others).pooled
        ring = coder.keys.dictionaries[f"{others[:-1]}_instance"]
        for i, owner in enumerate(owners):
            negatives = [keys[j] for j, other in enumerate(owners) if other != owner]
            negatives += [*ring.keys[(ring.image_ids != owner) & (ring.image_ids >= 0)]]
            logits = torch.stack([keys[i], *negatives]) @ queries[i] / 0.05
            losses.append(-logits.log_softmax(dim=0)[0])
    torch.testing.assert_close(coder(batch)["loss"], torch.stack(losses).mean(), rtol=1e-10, atol=1e-12)


def test_given_word_vectors_stay_as_they_are() -> None:
    branch = ConceptBranch(torch.eye(3), torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]), 5, hidden=4)
    before = branch.words.clone()
    assert torch.equal(before[0], torch.tensor([0.6, 0.8])) and "words" not in dict(branch.named_parameters())
    branch(torch.randn(2, 5), "image", branch.concepts()).sum().backward()
    torch.optim.SGD(branch.parameters(), lr=1.0).step()
    assert torch.equal(branch.words, before) and torch.equal(branch.adjacency, torch.eye(3))


@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
def test_without_a_valid_negative(monkeypatch, rows) -> None:
    """A batch of one, and a batch of one image, on an empty dictionary."""
    coder = make_coder(monkeypatch, dictionary={"size": 4}, labels=False)
    parts = coder(batch_of(rows, [0] * len(rows)))
    parts["loss"].backward()
    assert parts["loss"] == 0
    for parameter in coder.parameters():
        assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_identical_and_zero_vectors(monkeypatch, kind) -> None:
    coder = make_coder(
        monkeypatch, dcl={"weighting": kind, "temperature": 1e-3}, dictionary={"size": 4}, labels={"prototypes": 3}
    )
    for value in (1.0, 0.0):
        coder.matcher.images.data.fill_(value)
        coder.matcher.captions.data.fill_(value)
        parts = coder(batch_of([0, 1, 2]))
        parts["loss"].backward()
        coder.after_step()
        assert parts["loss"].isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in coder.parameters() if parameter.grad is not None)


def test_swapping_the_modalities_swaps_the_directions(monkeypatch) -> None:
    coder = make_coder(monkeypatch, **{**OFF, "dcl": {"beta": 0.5, "keys": "online"}, "dictionary": {"size": 0}})
    batch = batch_of([0, 1, 2, 3])
    before = coder(batch)["loss"].detach()
    images = coder.matcher.images.data.clone()
    coder.matcher.images.data.copy_(coder.matcher.captions.data)
    coder.matcher.captions.data.copy_(images)
    torch.testing.assert_close(coder(batch)["loss"].detach(), before, rtol=1e-12, atol=1e-14)


def test_order_of_the_batch_does_not_matter(monkeypatch) -> None:
    losses = []
    for rows in ([0, 1, 2, 3], [2, 0, 3, 1]):
        coder = make_coder(monkeypatch, dictionary={"size": 6}, labels={"prototypes": 4})
        coder(batch_of([4, 5]))
        coder.after_step()
        losses.append(coder(batch_of(rows))["loss"].detach())
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)


def test_autocast_changes_the_loss_by_little(monkeypatch) -> None:
    coder = make_coder(monkeypatch, dictionary={"size": 4}, labels={"prototypes": 4}).float()
    batch = batch_of([0, 1, 2, 3])
    plain = coder(batch)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = coder(batch)["loss"]
    torch.testing.assert_close(mixed, plain, rtol=1e-3, atol=1e-3)


def test_labels_are_never_made_in_half_precision(monkeypatch) -> None:
    labels = make_coder(monkeypatch, labels={"prototypes": 4}).float().labels
    rows = normalize(torch.randn(6, 8), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = labels.codes(rows)
    assert torch.equal(mixed, labels.codes(rows))


def test_label_weight_rises(monkeypatch) -> None:
    coder = make_coder(monkeypatch, labels={"prototypes": 4, "warmup_epochs": 2, "weight": 0.4}, dictionary={"size": 2})
    steps = [{"epoch": epoch, "iters": done, "num_iters_per_epoch": 10} for epoch, done in ((0, 0), (0, 5), (5, 0))]
    weights = [coder.labels.weight(step) for step in steps]
    assert weights == pytest.approx([0.0, 0.1, 0.4])
    assert coder(batch_of([0, 1, 2], epoch=0, iters=0, num_iters_per_epoch=10))["loss_labels"] == 0


@pytest.mark.parametrize("pairing", ["self", "swap", "mean"])
def test_pairing_and_hard_targets(monkeypatch, pairing) -> None:
    labels = {"prototypes": 4, "pairing": pairing, "targets": "hard", "extra_rows": 3}
    coder = make_coder(monkeypatch, labels=labels, dictionary={"size": 4})
    concepts = {side: normalize(torch.randn(2, 8, dtype=torch.float64), dim=1) for side in ("image", "caption")}
    # the largest of each row: 0, 1, 2, 3
    codes = torch.full((4, 4), 0.1, dtype=torch.float64) + 0.6 * torch.eye(4, dtype=torch.float64)
    wanted = {"self": ([0, 1], [2, 3]), "swap": ([2, 3], [0, 1]), "mean": ([2, 1], [2, 1])}
    images, captions = wanted[pairing]
    # the means of an image's and its caption's codes are largest at 2 and 1
    codes[2, 2] += 0.1
    codes[1, 1] += 0.1
    classes = normalize(coder.labels.classifier, dim=1).T / 0.1
    expected = sum(
        cross_entropy(concepts[side] @ classes, torch.tensor(target))
        for side, target in (("image", images), ("caption", captions))
    )
    torch.testing.assert_close(coder.labels(concepts, codes), expected / 2)
    coder(batch_of([0, 1]))
    coder.after_step()
    assert coder(batch_of([2, 3]))["loss"].isfinite()


def test_fused_scores_are_the_weighted_sum_of_the_branches(monkeypatch) -> None:
    coder = make_coder(monkeypatch, labels=False, dictionary={"size": 2})
    batch = batch_of([0, 1, 2, 3])
    vectors = coder.vectors(coder.encoded(batch), coder.concept)
    for weight in (0.0, 0.3, 1.0):
        coder.fusion_weight.fill_(weight)
        matcher = coder.evaluated()
        images, captions = matcher.encode_images(batch), matcher.encode_captions(batch["text_input"])
        assert isinstance(images, Encoded) and images.pooled.shape == (4, 16)
        parts = [vectors[name]["image"] @ vectors[name]["caption"].T for name in ("instance", "concept")]
        expected = float(coder.fusion_weight) * parts[0] + (1 - float(coder.fusion_weight)) * parts[1]
        torch.testing.assert_close(matcher.score(images, captions), expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(matcher.score_pairs(images, captions), expected.diagonal(), rtol=1e-10, atol=1e-12)


def test_the_scored_tower(monkeypatch) -> None:
    for scored, towers in (("online", "online"), ("momentum", "momentum"), ("best", "online")):
        coder = make_coder(monkeypatch, scored=scored, dictionary={"size": 2}, fusion_weight=0.5)
        assert coder.evaluated().matcher is coder.tower(towers)[0] and coder.evaluated().weight == 0.5
    coder.key_tower_scored.fill_(True)
    matcher = coder.evaluated()
    assert matcher.matcher is coder.keys.matcher.module and matcher.branch is coder.keys.concept.module
    # the key tower never leaves evaluation mode, as an evaluation puts its matcher back
    assert not matcher.training
    off = make_coder(monkeypatch, **OFF)
    with pytest.raises(ItmError, match="has no key tower"):
        off.tower("momentum")


def test_top_concepts_explain_a_vector(monkeypatch) -> None:
    coder = make_coder(monkeypatch, dictionary={"size": 2})
    batch = batch_of([0, 1])
    vectors = coder.encoded(batch).images.pooled
    shares = coder.concept.attention(vectors, "image", coder.concept.concepts())
    for row, found in enumerate(coder.top_concepts(vectors, "image", 9)):
        assert [share for _, share in found] == sorted(shares[row].tolist(), reverse=True)
        assert sorted(word for word, _ in found) == [f"c{number}" for number in range(9)]
    with pytest.raises(ItmError, match="no concept branch"):
        make_coder(monkeypatch, **OFF).top_concepts(vectors, "image")


def test_the_scored_tower_explains(monkeypatch) -> None:
    coder = make_coder(monkeypatch, scored="momentum", dictionary={"size": 2})
    vectors = coder.encoded(batch_of([0, 1])).images.pooled
    before = coder.top_concepts(vectors, "image")
    coder.concept.first.data.neg_()
    assert coder.top_concepts(vectors, "image") == before


def test_what_is_deployed_says_what_it_is(monkeypatch) -> None:
    """Mining, encoding and re-ranking ask a matcher for these."""
    coder = make_coder(monkeypatch, fusion_weight=0.5)
    coder.matcher.reranks, coder.matcher.tokens = True, lambda captions: [len(caption) for caption in captions]
    fused = coder.evaluated()
    assert fused.reranks and fused.tokens(["ab"]) == [2]
    identity = model_identity(fused)
    assert identity["arch"] == "itm_coder" and identity != model_identity(FusedMatcher(coder.matcher, coder.concept, 1))


def test_a_fresh_run_starts_with_empty_dictionaries(monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    coder = make_coder(monkeypatch, dictionary={"size": 4})
    coder(batch_of([0, 1]))
    coder.after_step()
    coder.before_training(SimpleNamespace(state=SimpleNamespace(epoch=0, step=3)))
    assert coder.keys.filled == 0.5
    coder._stored_concepts = True
    coder.before_training(SimpleNamespace(state=SimpleNamespace(epoch=0, step=0)))
    assert coder.keys.filled == 0 and coder.keys.steps_taken == 0
    assert "the concepts are the checkpoint's" in caplog.text


def test_a_runner_that_tells_of_no_step_is_refused(monkeypatch) -> None:
    coder = make_coder(monkeypatch, dictionary={"size": 2}, concept=False)
    batches = [batch_of([0, 1], iters=step) for step in range(51)]
    for batch in batches[:-1]:
        coder(batch)
    with pytest.raises(ItmError, match=r"told of none of 50 steps.*set run.runner: itm_runner"):
        coder(batches[-1])


def test_a_network_with_momentum_towers_of_its_own(monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(Matcher, "momentum_twin", lambda self: self)
    make_coder(monkeypatch)
    assert caplog.text.count("dictionary.momentum and ramp are of the concepts alone") == 1


def test_a_matcher_without_single_vectors_is_refused(monkeypatch) -> None:
    from methods.coder_stubs import Table

    monkeypatch.setattr(Table, "encode_captions", lambda self, captions: Encoded(regions=torch.zeros(1, 2, 3)))
    with pytest.raises(ItmError, match=r"itm_coder needs a matcher with one vector.*itm_table has none"):
        make_coder(monkeypatch)


def test_health_numbers() -> None:
    vectors = normalize(torch.randn(7, 5, dtype=torch.float64), dim=1)
    cosines = vectors @ vectors.T
    expected = (cosines.sum() - cosines.diagonal().sum()) / (7 * 6)
    torch.testing.assert_close(mean_cosine(vectors), expected)
    assert mean_cosine(vectors[:1]).abs() < 1e-12
    assert used(torch.eye(4)) == 1 and used(torch.eye(4)[[0, 0]]) == pytest.approx(0.25)


@pytest.mark.parametrize("kind", ["std", *[pytest.param(kind, marks=pytest.mark.full) for kind in KINDS[1:]]])
def test_learns_pairs(monkeypatch, kind) -> None:
    """64 pairs through a key tower, a dictionary and all parts: nearly every caption finds its image."""
    sections = {"dcl": {"weighting": kind}, "dictionary": {"size": 96, "momentum": 0.9}, "labels": {"prototypes": 8}}
    coder = make_coder(monkeypatch, items=64, dim=16, **sections).float()
    parameters = [parameter for parameter in coder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(60):
        rows = torch.randperm(64, generator=generator)[:32].tolist()
        parts = coder(batch_of(rows, iters=step))
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        coder.after_step()
    matcher, batch = coder.evaluated(), batch_of(list(range(64)))
    with torch.no_grad():
        scores = matcher.score(matcher.encode_images(batch), matcher.encode_captions(batch["text_input"]))
    assert (scores.argmax(dim=1) == torch.arange(64)).float().mean() > 0.9
    assert float(parts["loss_labels"]) / 0.2 < math.log(8)


def test_infonce_of_a_dictionary_equals_that_of_a_larger_batch(monkeypatch) -> None:
    """With beta 0 a dictionary's keys count as further items of the batch do, one direction each."""
    coder = make_coder(monkeypatch, **{**OFF, "dictionary": {"size": 3}})
    for dictionary in coder.keys.dictionaries.values():
        dictionary.enqueue(normalize(torch.randn(3, 8, dtype=torch.float64), dim=1), torch.tensor([10, 11, 12]))
    batch = batch_of([0, 1, 2])
    encoded = coder.encoded(batch)
    rows = torch.cat([encoded.captions.pooled, coder.keys.dictionaries["caption_instance"].keys])
    one = cross_entropy(encoded.images.pooled @ rows.T / 0.05, torch.arange(3))
    rows = torch.cat([encoded.images.pooled, coder.keys.dictionaries["image_instance"].keys])
    other = cross_entropy(encoded.captions.pooled @ rows.T / 0.05, torch.arange(3))
    torch.testing.assert_close(coder(batch)["loss"], (one + other) / 2, rtol=1e-10, atol=1e-12)
    assert coder(batch)["loss"] > infonce_loss(encoded.images.pooled @ encoded.captions.pooled.T)
