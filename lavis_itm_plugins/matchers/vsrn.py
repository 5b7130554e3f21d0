"""`itm_vsrn`: regions related by graph convolutions and read by a GRU; cosine score; captions told as a second task.

Li et al., Visual Semantic Reasoning for Image-Text Matching, ICCV 2019 (github.com/KunpengLi1994/VSRN).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.distributed import gather_rows, rank, row_counts, world_size
from lavis_itm_plugins.encoders.captioning import Captioner
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.encoders.image import ImageConfig, ImageEncoder
from lavis_itm_plugins.encoders.reasoning import FORMS, RegionReasoning
from lavis_itm_plugins.encoders.text import CaptionEncoder, TextConfig
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.vse import VseConfig, VseMatcher, unit
from lavis_itm_plugins.methods.base import EncodedBatch
from lavis_itm_plugins.methods.base_loss import BaseLoss
from lavis_itm_plugins.registry import register_model


@dataclass(frozen=True)
class CaptioningConfig:
    """`model.captioning`: the second task; weight 0 leaves it out."""

    weight: float = setting(0.0, low=0, help="of its loss; the paper has 1")
    hidden: int = setting(512, low=1)
    word_dim: int = setting(300, low=1)
    dropout: float = setting(0.2, low=0, below=1)
    max_words: int = setting(58, low=1, help="longer captions are cut, for this task alone")


@dataclass(frozen=True)
class VsrnConfig(VseConfig):
    """The `model` section of `itm_vsrn`."""

    embed_dim: int = setting(2048, low=1, help="size of the joint space")
    form: str = setting("f30k", choices=FORMS, help="which data set's form of the official network")
    image: ImageConfig = field(default_factory=lambda: ImageConfig(projection="linear"))
    text: TextConfig = field(default_factory=lambda: TextConfig(hidden=2048, bidirectional=False, pooling="last"))
    base_loss: BaseLoss = field(default_factory=lambda: BaseLoss(name="triplet"))
    captioning: CaptioningConfig = field(default_factory=CaptioningConfig)


@register_model("itm_vsrn")
class VsrnMatcher(VseMatcher):
    """One vector for each image, from regions that were reasoned over."""

    arch = "itm_vsrn"
    config_class = VsrnConfig
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "f30k": "models/itm_vsrn_f30k.yaml",
        "coco": "models/itm_vsrn_coco.yaml",
    }

    def build(self) -> None:
        """Make both encoders, and the captioner when it has a weight; raises ItmError when that has no vocabulary."""
        config = self.config
        self.image_encoder = ImageEncoder(replace(config.image, pooling="mean"), config.embed_dim)
        self.reasoning = RegionReasoning(config.embed_dim, config.form)
        self.text_encoder = CaptionEncoder(config.text, config.embed_dim, self.vocabulary)
        self.captioner = None
        task = config.captioning
        if task.weight:
            if self.vocabulary is None:
                raise ItmError("model.captioning needs words to tell; set its weight to 0 with text.kind: bert")
            sizes = {"hidden": task.hidden, "word_dim": task.word_dim, "dropout": task.dropout}
            self.captioner = Captioner(config.embed_dim, len(self.vocabulary), **sizes)

    def encode_images(self, samples: Mapping[str, Any]) -> Encoded:
        """Unit vectors (n, embed_dim); in training with captions to tell also the regions they come from."""
        self._check_built()
        mask = samples.get("image_mask")
        mask = None if mask is None else mask.to(self.device)
        regions = self.image_encoder.regions(samples["image"].to(self.device), mask)
        images, regions, real = self.reasoning(regions, mask)
        if self.training and self.captioner is not None:
            return Encoded(unit(images), regions, real)
        return Encoded(unit(images))

    def matching_losses(self, batch: Mapping[str, Any], encoded: EncodedBatch, scores: Tensor) -> dict[str, Tensor]:
        """The base loss, and that of telling the captions: a mean over the batch of all ranks."""
        losses = super().matching_losses(batch, encoded, scores)
        if encoded.images.regions is None or self.captioner is None:
            return losses
        captions, task = batch["text_input"], self.config.captioning
        start = 0
        if world_size() > 1:
            start = sum(row_counts(torch.empty(len(captions), device=self.device))[: rank()])
        own = encoded.images[slice(start, start + len(captions))]
        ids, lengths = self.vocabulary.batch(captions, max_words=task.max_words)
        told = self.captioner(own.regions, own.mask, ids.to(self.device), lengths)
        return {**losses, "loss_captioning": task.weight * gather_rows(told).mean()}
