"""Each part of itm_coder is a key: without any it is plain InfoNCE, with all of them it learns pairs."""

from __future__ import annotations

import math

import pytest
import torch
from methods.coder_stubs import OFF, batch_of, make_coder

from lavis_itm_plugins.losses.diversity_checks import KINDS


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


# from plain InfoNCE to the whole method, one key at a time
PATH = [
    ({}, {"loss_instance"}),
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
