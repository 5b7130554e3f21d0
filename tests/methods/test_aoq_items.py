"""The items of itm_aoq: a data set's own, two true mined pairs beside each, drawn by seed, epoch and caption."""

from __future__ import annotations

import numpy as np
import torch
from methods.aoq_batch import ROWS, items

from lavis_itm_plugins.data.datasets import CaptionDataset
from lavis_itm_plugins.runners.loaders import EpochBatches, make_loader


def features(split, rows):
    return split.images.fetch(split.image_rows[np.asarray(split.caption_image)[rows]])


def test_items_hold_two_true_pairs_of_the_data_set(split, sampler):
    batch = items(split, sampler).__getitems__(ROWS)
    plain = CaptionDataset(split, seed=3).__getitems__(ROWS)
    assert all(
        torch.equal(torch.as_tensor(batch[k]), torch.as_tensor(plain[k])) for k in ("image", "image_id", "index")
    )
    assert batch["text_input"] == plain["text_input"]
    rows = {text: row for row, text in enumerate(split.captions)}
    third, fourth = batch["offline_text_input"][:5], batch["offline_text_input"][5:]
    for i, row in enumerate(ROWS):
        # I3 is an image of T4, I4 of T3
        for text, image in ((fourth[i], batch["offline_image"][i]), (third[i], batch["offline_image"][5 + i])):
            assert torch.equal(features(split, [rows[text]])[0], image)
            assert split.caption_image[rows[text]] != split.caption_image[row]
        assert not torch.equal(batch["offline_image"][i], batch["image"][i])
        assert bool(batch["apart"][i]) != torch.equal(batch["offline_image"][i], batch["offline_image"][5 + i])
    assert 0 < batch["apart"].sum() < 5


def test_without_pairs_only_the_items_that_are_used_are_loaded(split, sampler):
    whole, part = (items(split, sampler, pairs=pairs).__getitems__(ROWS) for pairs in (True, False))
    assert torch.equal(part["offline_image"], whole["offline_image"][:5])
    assert part["offline_text_input"] == whole["offline_text_input"][:5]


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
