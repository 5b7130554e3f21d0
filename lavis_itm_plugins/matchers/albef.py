"""`itm_albef`: the network of LAVIS's `albef_retrieval` as a matcher.

Li et al., ALBEF, NeurIPS 2021. The lower layers of its BERT read captions, the upper ones fuse them with images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lavis.models.albef_models.albef_retrieval import AlbefRetrieval
from torch import Tensor, ones

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.lavis_fusion import FusionConfig, FusionMatcher, make_bert, make_vit
from lavis_itm_plugins.registry import register_model


@dataclass(frozen=True)
class AlbefConfig(FusionConfig):
    """The `model` section of `itm_albef`."""

    queue_size: int = setting(65536, low=0, help="momentum vectors of earlier batches")
    max_words: int = setting(30, low=3, high=512, help="longer captions are cut; in word pieces")

    def __post_init__(self) -> None:
        if self.bert.fusion_layer >= self.bert.layers:
            raise ItmError(
                f"bert.fusion_layer is {self.bert.fusion_layer}; give less than bert.layers, {self.bert.layers}"
            )


class AlbefNetwork(AlbefRetrieval):
    """LAVIS's network with a tokeniser that is given."""

    def __init__(self, tokenizer: Any, **parts: Any) -> None:
        self.given = tokenizer
        super().__init__(**parts)

    def init_tokenizer(self) -> Any:
        """The given one."""
        return self.given


@register_model("itm_albef")
class AlbefMatcher(FusionMatcher):
    """Cosine of ViT and the lower half of BERT, its upper half for matching."""

    arch = "itm_albef"
    config_class = AlbefConfig
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "base": "models/itm_albef_base.yaml",
        "coco": "models/itm_albef_coco.yaml",
        "flickr": "models/itm_albef_flickr.yaml",
        "small": "models/itm_albef_small.yaml",
    }

    def make_network(self) -> AlbefNetwork:
        """`albef_retrieval` of the configured sizes."""
        config, bert = self.config, self.config.bert
        return AlbefNetwork(
            self.tokenizer,
            image_encoder=make_vit(config.vit),
            text_encoder=make_bert(bert, len(self.tokenizer), config.vit.width, fusion_layer=bert.fusion_layer),
            queue_size=config.queue_size,
            alpha=config.alpha,
            embed_dim=config.embed_dim,
            momentum=config.momentum,
            max_txt_len=config.max_words,
        )

    def fusing(self) -> tuple[str, ...]:
        """The upper layers."""
        layers = range(self.config.bert.fusion_layer, self.config.bert.layers)
        return tuple(f"text_encoder.encoder.layer.{number}." for number in layers)

    def renamed(self, state: dict[str, Any]) -> dict[str, Any]:
        """The authors' files keep the text encoder below `bert`."""
        return {name.replace("bert.", "") if "bert." in name else name: value for name, value in state.items()}

    def itm_logits(self, image_states: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        """Logits (n, 2) of aligned pairs; `states` of the lower layers are taken where tokens have them."""
        mask = tokens["attention_mask"]
        known = {"encoder_embeds": tokens["states"], "mode": "fusion"} if "states" in tokens else {}
        output = self.network.text_encoder(
            None if known else tokens["input_ids"],
            attention_mask=mask,
            encoder_hidden_states=image_states,
            encoder_attention_mask=ones(image_states.shape[:2], dtype=mask.dtype, device=mask.device),
            return_dict=True,
            **known,
        )
        return self.network.itm_head(output.last_hidden_state[:, 0])
