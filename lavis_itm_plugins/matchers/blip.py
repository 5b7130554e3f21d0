"""`itm_blip`: the network of LAVIS's `blip_retrieval` as a matcher.

Li et al., BLIP, ICML 2022. Its cosines are what any method trains; with `objective: itc_itm` its own losses are the
base loss, and with `run.k_test` its matching head re-ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lavis.models.blip_models.blip_retrieval import BlipRetrieval
from torch import Tensor, ones

from lavis_itm_plugins.matchers.lavis_fusion import FusionMatcher, make_bert, make_vit
from lavis_itm_plugins.registry import register_model


class BlipNetwork(BlipRetrieval):
    """LAVIS's network with a tokeniser that is given."""

    def __init__(self, tokenizer: Any, **parts: Any) -> None:
        self.given = tokenizer
        super().__init__(**parts)

    def init_tokenizer(self) -> Any:
        """The given one, with LAVIS's name for the token that asks for a match."""
        self.given.enc_token_id = self.given.additional_special_tokens_ids[0]
        return self.given


@register_model("itm_blip")
class BlipMatcher(FusionMatcher):
    """Cosine of ViT and BERT, a BERT with cross-attention for matching."""

    arch = "itm_blip"
    added_tokens: ClassVar[Mapping[str, Any]] = {"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]}
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "base": "models/itm_blip_base.yaml",
        "coco": "models/itm_blip_coco.yaml",
        "flickr": "models/itm_blip_flickr.yaml",
        "small": "models/itm_blip_small.yaml",
    }

    def make_network(self) -> BlipNetwork:
        """`blip_retrieval` of the configured sizes."""
        config = self.config
        return BlipNetwork(
            self.tokenizer,
            image_encoder=make_vit(config.vit),
            text_encoder=make_bert(config.bert, len(self.tokenizer), config.vit.width),
            queue_size=config.queue_size,
            alpha=config.alpha,
            embed_dim=config.embed_dim,
            momentum=config.momentum,
            max_txt_len=config.max_words,
        )

    def itm_logits(self, image_states: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        """Logits (n, 2) of aligned pairs: the caption is read again, with an eye on the image."""
        ids = tokens["input_ids"].clone()
        ids[:, 0] = self.tokenizer.enc_token_id
        output = self.network.text_encoder(
            ids,
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=image_states,
            encoder_attention_mask=ones(image_states.shape[:2], dtype=ids.dtype, device=ids.device),
            return_dict=True,
        )
        return self.network.itm_head(output.last_hidden_state[:, 0])
