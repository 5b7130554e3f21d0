"""Training items with mined negatives: what AOQ adds to each batch, and how that is encoded and shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_itm_plugins.data.datasets import CaptionDataset
from lavis_itm_plugins.data.randomness import keyed_uniform
from lavis_itm_plugins.distributed import gather_encoded, gather_rows
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods.base import EncodedBatch
from lavis_itm_plugins.methods.chunks import encode_captions, encode_images
from lavis_itm_plugins.mining.sampling import DRAWS, QuintupleSampler

# Apart from the draws of dropped regions, which have the same (seed, epoch, caption).
_STREAM = 2**40


class OfflineCaptionDataset(CaptionDataset):
    """A training set whose batches also hold mined negatives, once `sampler` is set.

    `offline_image` (2 n, ...) are I3 and I4, or I3 alone without `pairs`; `offline_text_input` T3 and T4, or T3;
    `offline_image_mask` where regions are dropped; `offline_image_id` (2 n,) of I3, then of I4; `apart` (n,) is False
    where I3 is I4. With `draws` above 1 the items of the first draw are followed by those of the others, so that I3,
    I4, T3 and T4 are draws x n long; `apart` is the first's. Draws are a function of (seed, epoch, caption).
    """

    def __init__(self, base: CaptionDataset, *, pairs: bool = True, draws: int = 1) -> None:
        super().__init__(base.split, region_drop=base.region_drop, seed=base.seed)
        self.pairs, self.draws = pairs, draws
        self.sampler: QuintupleSampler | None = None

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        if self.sampler is None:
            return super().__getitems__(indices)
        rows = np.asarray(indices)
        uniforms = keyed_uniform(self.seed + _STREAM, self.epoch, rows, DRAWS * self.draws)
        drawn = [self.sampler.draw(rows, part) for part in np.split(uniforms, self.draws, axis=1)]
        offline = np.concatenate([draw.offline_captions for draw in drawn])
        partners = np.concatenate([draw.partner_captions for draw in drawn])
        # one call for all images; I3 is the image of T4, and I4 of T3
        whole = super().__getitems__(np.concatenate([rows, partners, offline] if self.pairs else [rows, partners]))
        batch = {key: value[: len(rows)] for key, value in whole.items()}
        batch |= {f"offline_{key}": whole[key][len(rows) :] for key in ("image", "image_mask") if key in whole}
        texts = np.concatenate([offline, partners]) if self.pairs else offline
        batch["offline_text_input"] = [self.split.captions[row] for row in texts]
        batch["offline_image_id"] = torch.from_numpy(self.image_ids[np.concatenate([partners, offline])])
        batch["apart"] = torch.from_numpy(drawn[0].apart)
        return batch


def encode_with_mined(matcher: Any, batch: Mapping[str, Any], chunk: int | None = None) -> tuple[Encoded, Encoded]:
    """Images and captions of this process's pairs, each followed by the mined ones, through a matcher in one pass."""
    keys = [key for key in ("image", "image_mask") if key in batch]
    joined = {key: torch.cat([batch[key], batch[f"offline_{key}"]]) for key in keys}
    images = encode_images(matcher, {**batch, **joined}, chunk)
    return images, encode_captions(matcher, [*batch["text_input"], *batch["offline_text_input"]], chunk)


@dataclass(frozen=True)
class MinedItems:
    """Mined images and captions of all ranks, encoded, with the id of the image that each is or belongs to."""

    images: Encoded
    captions: Encoded
    image_ids: Tensor
    caption_ids: Tensor

    @classmethod
    def gathered(cls, images: Encoded, captions: Encoded, ids: Tensor, *, pairs: bool) -> MinedItems:
        """I3 and T3 of all ranks, and with `pairs` I4 and T4; ids (2 n,) of I3, which T4 belongs to, then of T3's."""
        third, fourth = ids.chunk(2)
        used = [(third, fourth), (fourth, third)] if pairs else [(third, fourth)]
        owners = (gather_rows(torch.cat(column)) for column in zip(*used, strict=True))
        return cls(gather_encoded(images), gather_encoded(captions), *owners)

    def scored(self, matcher: Any, encoded: EncodedBatch) -> dict[str, Any]:
        """What `shared_infonce_loss` wants beside the batch's scores: those with the mined items, and masks."""
        own = encoded.image_ids
        return {
            "mined_captions": matcher.score(encoded.images, self.captions),
            "mined_images": matcher.score(self.images, encoded.captions),
            "caption_negatives": own[:, None] != self.caption_ids[None],
            "image_negatives": self.image_ids[:, None] != own[None],
            "positives": encoded.positives,
        }


def check_trainable(dataset: Any) -> CaptionDataset:
    """The training set, if mined negatives can be added to it; else ItmError."""
    if not isinstance(dataset, CaptionDataset):
        raise ItmError(
            "itm_aoq needs one training set of this plugin (itm_pairs, itm_precomp or itm_scenes), not "
            f"{type(dataset).__name__}"
        )
    return dataset
