"""What the matchers that keep regions and words apart share: unit vectors of each, and a score of the two sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.encoders.image import ImageConfig, ImageEncoder
from lavis_itm_plugins.encoders.text import CaptionEncoder, TextConfig
from lavis_itm_plugins.matchers.vse import VseConfig, VseMatcher
from lavis_itm_plugins.methods.base_loss import BaseLoss
from lavis_itm_plugins.scoring.sets import l2_normalized

# Pairs are scored as the diagonals of tiles so small that little is computed beside them.
_PAIRS_AT_ONCE = 8


@dataclass(frozen=True)
class SetConfig(VseConfig):
    """Keys of the `model` section of every such matcher; `pooling` of image and text is not used."""

    image: ImageConfig = field(default_factory=lambda: ImageConfig(projection="linear"))
    text: TextConfig = field(default_factory=lambda: TextConfig(hidden=1024, merge="mean"))
    base_loss: BaseLoss = field(default_factory=lambda: BaseLoss(name="triplet"))
    checkpoint: bool | None = setting(
        None,
        help="compute attention again in the backward pass: less memory, slower but where few scores have a gradient; "
        "not given: itm_sgraf does so, except for SAF",
    )


class SetMatcher(VseMatcher):
    """Regions and words as sets of unit vectors; a subclass writes `set_scores`."""

    config_class = SetConfig
    # beside its own small tiles, which a scorer cuts by itself
    bytes_per_pair = 1024

    def build(self) -> None:
        """Make both encoders, without a pooling."""
        config = self.config
        self.image_encoder = ImageEncoder(replace(config.image, pooling="mean"), config.embed_dim)
        self.text_encoder = CaptionEncoder(replace(config.text, pooling="mean"), config.embed_dim, self.vocabulary)

    def encode_images(self, samples: Mapping[str, Any]) -> Encoded:
        """Unit vectors (n, R, embed_dim) of regions or grid cells; `image_mask` leaves some out."""
        self._check_built()
        mask = samples.get("image_mask")
        mask = None if mask is None else mask.to(self.device)
        return Encoded(regions=_unit(self.image_encoder.regions(samples["image"].to(self.device), mask)), mask=mask)

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        """Unit vectors (n, T, embed_dim) of words, and their mask."""
        self._check_built()
        states, mask = self.text_encoder.words(captions)
        return Encoded(regions=_unit(self.text_encoder.projection(states)), mask=mask)

    def set_scores(self, images: Tensor, captions: Tensor, lengths: Tensor, regions: Tensor | None) -> Tensor:
        """Scores (I, C) of regions (I, R, D), masked by `regions` (I, R), and words (C, T, D) of these lengths (C,)."""
        raise NotImplementedError("abstract")

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        """Scores (n_images, n_captions), differentiable."""
        assert images.regions is not None and captions.regions is not None
        return self.set_scores(images.regions, captions.regions, captions.lengths, images.mask)

    def score_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        """Scores (n,) of aligned pairs."""
        starts = range(0, len(images), _PAIRS_AT_ONCE)
        tiles = [slice(start, start + _PAIRS_AT_ONCE) for start in starts]
        diagonals = [self.score(images[tile], captions[tile]).diagonal() for tile in tiles]
        return torch.cat(diagonals) if diagonals else self.score(images, captions).flatten()


def _unit(items: Tensor) -> Tensor:
    """Items at length 1, at least in float32."""
    return l2_normalized(items.to(torch.promote_types(items.dtype, torch.float32)))
