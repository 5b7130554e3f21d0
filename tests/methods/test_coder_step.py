"""A step moves weights by gradient, the key tower by momentum, then the dictionaries; a skipped one moves nothing."""

from __future__ import annotations

import torch
from methods.coder_stubs import batch_of, make_coder

from lavis_itm_plugins.methods.coder_branches import ConceptBranch


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


def test_given_word_vectors_stay_as_they_are() -> None:
    branch = ConceptBranch(torch.eye(3), torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]), 5, hidden=4)
    before = branch.words.clone()
    assert torch.equal(before[0], torch.tensor([0.6, 0.8])) and "words" not in dict(branch.named_parameters())
    branch(torch.randn(2, 5), "image", branch.concepts()).sum().backward()
    torch.optim.SGD(branch.parameters(), lr=1.0).step()
    assert torch.equal(branch.words, before) and torch.equal(branch.adjacency, torch.eye(3))
