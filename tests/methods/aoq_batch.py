"""A small model of itm_aoq, and the batch of five pairs with mined items that its tests compute with."""

from __future__ import annotations

from runners.ranks import small_matcher

from lavis_itm_plugins.config.schema import parse
from lavis_itm_plugins.data.datasets import CaptionDataset
from lavis_itm_plugins.methods.aoq import Aoq
from lavis_itm_plugins.methods.aoq_config import AoqConfig
from lavis_itm_plugins.methods.offline import OfflineCaptionDataset

ROWS = [0, 3, 17, 18, 61]


def items(split, sampler, *, pairs=True, region_drop=0.0, epoch=0, draws=1):
    dataset = OfflineCaptionDataset(CaptionDataset(split, region_drop=region_drop, seed=3), pairs=pairs, draws=draws)
    dataset.sampler = sampler
    dataset.set_epoch(epoch)
    return dataset


def method(base_loss=None, official=False, candidates=None, **aoq) -> Aoq:
    settings = {"aoq": aoq, "official": official, "candidates": candidates or {}}
    matcher = small_matcher(**(base_loss or {"name": "triplet"}))
    config = parse(AoqConfig, {**settings, "base_loss": base_loss or {"name": "triplet"}}, "model")
    return Aoq(config, matcher)


def batch_of(split, sampler, pairs=True, epoch=0, draws=1):
    batch = items(split, sampler, pairs=pairs, draws=draws).__getitems__(ROWS)
    batch = {key: value.double() if key.endswith("image") else value for key, value in batch.items()}
    return {**batch, "epoch": epoch}
