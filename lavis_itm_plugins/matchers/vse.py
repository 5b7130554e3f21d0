"""`itm_vse`: one vector for each image and caption, cosine score (VSE++ and VSE-infinity).

Faghri et al., BMVC 2018 (github.com/fartashf/vsepp); Chen et al., CVPR 2021 (github.com/woodfrog/vse_infty).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.data.lookup import feature_sample, feature_size, known_feature_size, training_captions
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.encoders.image import ImageConfig, ImageEncoder
from lavis_itm_plugins.encoders.text import CaptionEncoder, TextConfig
from lavis_itm_plugins.encoders.vocabulary import Vocabulary
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.base import DESCRIPTION, Matcher, matcher_state, starting_weights
from lavis_itm_plugins.methods.base import parameter_groups
from lavis_itm_plugins.methods.base_loss import BaseLoss
from lavis_itm_plugins.registry import register_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VseConfig:
    """The `model` section of `itm_vse`."""

    embed_dim: int = setting(1024, low=1, help="size of the joint space")
    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    base_loss: BaseLoss = field(default_factory=BaseLoss)
    encode_chunk: int | None = setting(None, low=1, help="items encoded at a time; again in the backward pass")
    vocab_path: str | None = setting(None, help="JSON vocabulary; built from the training captions when not given")
    min_count: int = setting(4, low=1, help="how often a word must occur to enter a built vocabulary")


@register_model("itm_vse")
class VseMatcher(Matcher):
    """Region features or pixels against captions through a bi-GRU, a BERT, or a bag of words.

    Built by `from_config`; `load_model("itm_vse", "regions_gru", checkpoint=...)` loads a trained one.
    """

    arch = "itm_vse"
    config_class = VseConfig
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "regions_gru": "models/itm_vse_regions_gru.yaml",
        "regions_bert": "models/itm_vse_regions_bert.yaml",
        "regions_words": "models/itm_vse_regions_words.yaml",
        "pixels_gru": "models/itm_vse_pixels_gru.yaml",
    }

    def build(self) -> None:
        """Make both encoders."""
        self.image_encoder = ImageEncoder(self.config.image, self.config.embed_dim)
        self.text_encoder = CaptionEncoder(self.config.text, self.config.embed_dim, self.vocabulary)

    @classmethod
    def from_config(cls, cfg: Any) -> VseMatcher:
        """Build and, when `finetuned` or `pretrained` names a checkpoint, load it."""
        config = cls.parse_config(cfg)
        weights = starting_weights(cfg)
        stored = matcher_state(read_checkpoint(weights), weights).get(DESCRIPTION) if weights else None
        vocabulary = None
        if config.text.kind != "bert":
            vocabulary = _vocabulary(config, stored)
        config = cls.completed(config, stored["config"] if stored else None)
        if weights:
            # published weights would be fetched only to be overwritten
            config = replace(config, image=replace(config.image, pretrained=False))
        _check_features(config.image)
        model = cls(config, vocabulary)
        if model.image_encoder.input_norm is not None and not weights:
            model.image_encoder.input_norm.fit(feature_sample())
        model.load_checkpoint_from_config(cfg)
        return model

    @classmethod
    def completed(cls, config: Any, stored: Mapping[str, Any] | None) -> Any:
        """The configuration with what only the data know, or the configuration `stored` in a checkpoint."""
        if config.image.kind == "regions" and config.image.dim is None:
            dim = stored["image"]["dim"] if stored else feature_size()
            config = replace(config, image=replace(config.image, dim=dim))
        return config

    def encode_images(self, samples: Mapping[str, Any]) -> Encoded:
        """Unit vectors (n, embed_dim) of `samples["image"]`; `image_mask` leaves regions out."""
        self._check_built()
        mask = samples.get("image_mask")
        image = samples["image"].to(self.device)
        return Encoded(pooled=unit(self.image_encoder(image, None if mask is None else mask.to(self.device))))

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        """Unit vectors (n, embed_dim)."""
        self._check_built()
        return Encoded(pooled=unit(self.text_encoder(captions)))

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups with the encoders' own learning-rate factors."""
        scales = {"image_encoder.trunk": self.config.image.lr_scale, "text_encoder.words": self.config.text.lr_scale}
        return parameter_groups(self, scales)


def unit(vectors: Tensor) -> Tensor:
    """Rows of length 1, at least in float32; a zero row stays zero instead of becoming NaN."""
    return normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1, eps=1e-8)


def _check_features(image: ImageConfig) -> None:
    """Say before training starts what the first batch would end with."""
    size = known_feature_size()
    if size is None:
        return
    if image.kind != "regions":
        raise ItmError(
            f"model.image.kind is {image.kind}, which reads pictures, but the data has features; set regions"
        )
    if image.dim != size:
        raise ItmError(
            f"model.image.dim is {image.dim}, but the features of the data have size {size}; use fitting data"
        )


def _vocabulary(config: VseConfig, stored: Mapping[str, Any] | None) -> Vocabulary:
    """The checkpoint's words first: the rows of its embedding mean nothing else."""
    if stored and stored["vocabulary"]:
        if config.vocab_path:
            log.warning("model.vocab_path is not used: the checkpoint brings its own vocabulary")
        return Vocabulary(stored["vocabulary"])
    if config.vocab_path:
        return Vocabulary.load(config.vocab_path)
    return Vocabulary.from_captions(training_captions(), min_count=config.min_count)
