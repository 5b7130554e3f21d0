"""Scores of `itm_vse` are cosines, whole, in tiles or by pairs, and its loss counts what it should and stays finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matchers.small_vse import batch_of, make
from torch.utils.data import DataLoader

from lavis_itm_plugins.data.builders import PrecompBuilder
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.matchers.vse import unit
from lavis_itm_plugins.methods.base_loss import BaseLoss


def test_the_similarity_matrix_is_the_cosine_in_order(root):
    """Whatever order a loader has, and captions are encoded in another one."""
    builder = PrecompBuilder({"root": str(root), "data_type": "features"})
    dataset, model = builder.build()["val"], make(embed_dim=6)
    batches = [[5, 2], [0, 7, 1], [3], [6, 4]]
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collater)
    model.train()
    scores, transposed = model.compute_sim_matrix(loader, task_cfg=None)
    assert model.training
    model.eval()
    with torch.no_grad():
        images = torch.stack([model.image_encoder(dataset[i]["image"][None])[0] for i in range(len(dataset))])
        captions = torch.cat([model.text_encoder([caption]) for caption in dataset.text])
    expected = torch.nn.functional.cosine_similarity(images[:, None], captions[None], dim=-1)
    assert scores.shape == (8, 40) and np.array_equal(transposed, scores.T)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_pair_scores_are_the_diagonal_and_vectors_have_length_one():
    model, batch = make(), batch_of([0, 1, 2, 3])
    images, captions = model.encode_images(batch), model.encode_captions(batch["text_input"])
    torch.testing.assert_close(model.score_pairs(images, captions), model.score(images, captions).diagonal())
    torch.testing.assert_close(images.pooled.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(captions.pooled.norm(dim=1), torch.ones(4))
    assert model.score(images[:3], captions).shape == (3, 4)


def test_score_of_encoded_tiles_is_the_tile_of_scores():
    model = make()
    images, captions = Encoded(pooled=torch.randn(5, 12)), Encoded(pooled=torch.randn(7, 12))
    torch.testing.assert_close(model.score(images[1:3], captions[2:6]), model.score(images, captions)[1:3, 2:6])


@pytest.mark.parametrize("base_loss", [BaseLoss(name="infonce"), BaseLoss(name="triplet", negatives="all")])
def test_captions_of_one_image_are_never_negatives(base_loss, monkeypatch):
    """The loss does not see the score of an image with another caption of its own."""
    model = make(base_loss=base_loss)

    def loss(own_other, stranger, ids):
        scores = torch.tensor([[0.9, own_other, 0.1], [own_other, 0.8, 0.2], [stranger, 0.3, 0.7]])
        monkeypatch.setattr(model, "score", lambda images, captions: scores)
        return model(batch_of(ids))["loss"].item()

    assert loss(0.0, 0.1, [4, 4, 9]) == loss(0.95, 0.1, [4, 4, 9])
    assert loss(0.0, 0.1, [4, 4, 9]) != loss(0.0, 0.75, [4, 4, 9])
    assert loss(0.0, 0.1, [4, 5, 9]) != loss(0.95, 0.1, [4, 5, 9])


def test_the_loss_is_the_sum_of_its_parts_and_reaches_every_weight():
    model = make().train()
    output = model(batch_of([0, 1, 2, 3]))
    assert torch.equal(output["loss"], output["loss_base"])
    output["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_triplet_warm_up_uses_all_negatives_first():
    model = make(base_loss=BaseLoss(name="triplet", warmup_epochs=2, margin=1.0))
    losses = [model(batch_of([0, 1, 2, 3], epoch=epoch))["loss"].item() for epoch in range(3)]
    assert losses[0] == losses[1] > losses[2]


def test_zero_features_give_no_nan():
    model, batch = make(), batch_of([0, 1, 2])
    batch["image"] = torch.zeros(3, 3, 8, requires_grad=True)
    output = model(batch)
    output["loss"].backward()
    assert output["loss"].isfinite() and batch["image"].grad.isfinite().all()
    zeros = torch.zeros(2, 4, requires_grad=True)
    unit(zeros).sum().backward()
    assert torch.equal(unit(zeros), zeros) and zeros.grad.isfinite().all()


def test_regions_left_out_by_the_data_do_not_count():
    model, batch = make(), batch_of([0, 1])
    mask = torch.tensor([[True, False, True], [True, True, True]])
    masked = model.encode_images({**batch, "image_mask": mask}).pooled
    torch.testing.assert_close(masked[0], model.encode_images({"image": batch["image"][:1, [0, 2]]}).pooled[0])
    torch.testing.assert_close(masked[1], model.encode_images(batch).pooled[1])
