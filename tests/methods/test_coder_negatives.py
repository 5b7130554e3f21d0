"""Which items and keys itm_coder takes as negatives: those of other images, in the batch and in the dictionary."""

from __future__ import annotations

import torch
from methods.coder_stubs import OFF, batch_of, make_coder
from torch.nn.functional import cross_entropy, normalize

from lavis_itm_plugins.losses import infonce_loss


def test_official_counts_other_captions_of_an_image_as_negatives(monkeypatch) -> None:
    batch = batch_of([0, 1, 2], [5, 5, 6])
    coder = make_coder(monkeypatch, **OFF, official=True)
    scores = coder.encoded(batch).images.pooled @ coder.encoded(batch).captions.pooled.T / 0.05
    labels = torch.arange(3)
    expected = (cross_entropy(scores, labels) + cross_entropy(scores.T, labels)) / 2
    torch.testing.assert_close(coder(batch)["loss"], expected, rtol=1e-10, atol=0)


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
