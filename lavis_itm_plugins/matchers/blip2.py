"""`itm_blip2`: the first stage of LAVIS's `blip2` as a matcher (Li et al., BLIP-2, ICML 2023).

An image is 32 vectors, one for each query token; its score with a caption is the largest of their cosines. The
captioning loss of the first stage is left out: it serves no retrieval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from lavis.models import eva_vit
from lavis.models.blip2_models.blip2 import LayerNorm
from lavis.models.blip2_models.blip2_qformer import Blip2Qformer
from lavis.models.blip2_models.Qformer import BertLMHeadModel
from torch import Tensor, nn
from transformers.models.bert.configuration_bert import BertConfig as HubBertConfig

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.matchers.lavis_config import LavisConfig, VitConfig
from lavis_itm_plugins.matchers.lavis_fusion import bert_sizes
from lavis_itm_plugins.matchers.lavis_itm import smoothed_contrast
from lavis_itm_plugins.matchers.lavis_matching import MatchingMatcher
from lavis_itm_plugins.matchers.lavis_network import Stack
from lavis_itm_plugins.matchers.vse import unit
from lavis_itm_plugins.methods.base import EncodedBatch
from lavis_itm_plugins.registry import register_model

SMOOTHING = 0.1


@dataclass(frozen=True)
class Blip2Config(LavisConfig):
    """The `model` section of `itm_blip2`; without LAVIS's ViTs a small one of the sizes in `vit` is made."""

    image_encoder: str = setting("vit", choices=("vit", "eva_clip_g", "clip_L"), help="the last two fetch weights")
    max_words: int = setting(32, low=3, high=512, help="longer captions are cut; in word pieces")
    queries: int = setting(32, low=1, help="query tokens")
    cross_attention_every: int = setting(2, low=1, help="layers of the Q-Former from one look at the image to the next")


class Blip2Network(Blip2Qformer):
    """LAVIS's network of any size, with a tokeniser that is given, and without a fetched BERT."""

    def __init__(self, tokenizer: Any, config: Blip2Config) -> None:
        self.given, self.sizes = tokenizer, config
        super().__init__(
            vit_model=config.image_encoder,
            img_size=config.vit.size,
            drop_path_rate=config.vit.drop_path,
            vit_precision="fp32",
            freeze_vit=False,
            num_query_token=config.queries,
            cross_attention_freq=config.cross_attention_every,
            embed_dim=config.embed_dim,
            max_txt_len=config.max_words,
        )

    def init_tokenizer(self) -> Any:
        """The given one."""
        return self.given

    def init_vision_encoder(self, model_name: str, *sizes: Any) -> tuple[nn.Module, nn.Module]:
        """LAVIS's, or one of the configured sizes from random weights, and the norm after it."""
        if model_name != "vit":
            return Blip2Qformer.init_vision_encoder(model_name, *sizes)
        encoder = make_eva(self.sizes.vit)
        return encoder, LayerNorm(encoder.num_features)

    def init_Qformer(self, queries: int, image_width: int, every: int = 2) -> tuple[nn.Module, nn.Parameter]:
        """The Q-Former of the configured sizes, from random weights, and its query tokens."""
        sizes = bert_sizes(self.sizes.bert, len(self.given), image_width)
        config = HubBertConfig(**sizes, is_decoder=False, cross_attention_freq=every, query_length=queries)
        tokens = torch.empty(1, queries, config.hidden_size).normal_(std=config.initializer_range)
        return BertLMHeadModel(config), nn.Parameter(tokens)


@register_model("itm_blip2")
class Blip2Matcher(MatchingMatcher):
    """The largest cosine of an image's query vectors with a caption.

    Methods that want one vector for an image (CODER) get the mean of the query vectors.
    """

    arch = "itm_blip2"
    config_class = Blip2Config
    added_tokens: ClassVar[Mapping[str, Any]] = {"bos_token": "[DEC]"}
    bytes_per_pair = 256
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "pretrain": "models/itm_blip2_pretrain.yaml",
        "pretrain_vitL": "models/itm_blip2_pretrain_vitl.yaml",
        "coco": "models/itm_blip2_coco.yaml",
        "small": "models/itm_blip2_small.yaml",
    }
    stacks = (
        Stack(
            "visual_encoder.blocks",
            ("visual_encoder.patch_embed.", "visual_encoder.pos_embed", "visual_encoder.cls_token"),
        ),
        Stack("Qformer.bert.encoder.layer", ("Qformer.bert.embeddings.", "query_tokens")),
    )
    # captions and queries pass through the same Q-Former
    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {"image": ("visual_encoder", "ln_vision")}

    def make_network(self) -> Blip2Network:
        """The first stage of the configured sizes."""
        return Blip2Network(self.tokenizer, self.config)

    def unused(self) -> tuple[str, ...]:
        """The captioning head; the matching head without its loss; the temperature without LAVIS's contrast."""
        names = ("Qformer.cls",) if self.config.matches else ("Qformer.cls", "itm_head")
        return names if self.config.contrasts else (*names, "temp")

    def may_lack(self, names: Sequence[str]) -> bool:
        """LAVIS publishes the first stage without its frozen ViT, which has a file of its own."""
        return self.config.image_encoder != "vit" and all(name.startswith("visual_encoder.") for name in names)

    def encode_images(self, samples: Mapping[str, Any]) -> Encoded:
        """Unit query vectors (n, queries, embed_dim) of `samples["image"]`, and the direction of their mean."""
        states = self.image_states(samples)
        output = self.network.Qformer.bert(
            query_embeds=self.network.query_tokens.expand(len(states), -1, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=_ones(states),
            return_dict=True,
        )
        vectors = unit(self.network.vision_proj(output.last_hidden_state))
        encoded = Encoded(pooled=unit(vectors.mean(dim=1)), regions=vectors)
        if self._matches:
            self._local.image_states, self._local.images = states, encoded
        return encoded

    def image_states(self, samples: Mapping[str, Any]) -> Tensor:
        """Normed [CLS] and patches, (n, P, width)."""
        return self.network.ln_vision(self.network.visual_encoder(self.pictures(samples)))

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        """Unit vectors (n, embed_dim)."""
        self._check_built()
        tokens = self.tokens(captions)
        encoded = Encoded(pooled=unit(self.network.text_proj(self.network.forward_text(tokens))))
        if self._matches:
            self._local.tokens, self._local.captions = {**tokens}, encoded
        return encoded

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        """Scores (n_images, n_captions), differentiable; never in half precision."""
        assert images.regions is not None and captions.pooled is not None
        with torch.autocast(self.device.type, enabled=False):
            return largest_cosine(images.regions, captions.pooled)

    def score_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        """Scores (n,) of aligned pairs."""
        assert images.regions is not None and captions.pooled is not None
        return (images.regions * captions.pooled[:, None]).sum(dim=2).amax(dim=1)

    def matching_losses(self, batch: Mapping[str, Any], encoded: EncodedBatch, scores: Tensor) -> dict[str, Tensor]:
        """The base loss, or LAVIS's contrast within the batch; and its matching loss."""
        if self.config.contrasts:
            valid = torch.ones_like(scores, dtype=torch.bool) if encoded.positives is None else ~encoded.positives
            valid = valid | torch.eye(len(scores), dtype=torch.bool, device=scores.device)
            parts = {"loss_base": smoothed_contrast(scores / self.network.temp, valid, SMOOTHING)}
        else:
            parts = super().matching_losses(batch, encoded, scores)
        if self._matches:
            parts["loss_itm"] = self.matching_loss(batch)
        return parts

    def itm_logits(self, image_states: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        """Logits (n, 2) of aligned pairs, the mean over the query tokens."""
        queries = self.network.query_tokens.expand(len(image_states), -1, -1)
        output = self.network.Qformer.bert(
            tokens["input_ids"],
            query_embeds=queries,
            attention_mask=torch.cat([_ones(queries), tokens["attention_mask"]], dim=1),
            encoder_hidden_states=image_states,
            encoder_attention_mask=_ones(image_states),
            return_dict=True,
        )
        return self.network.itm_head(output.last_hidden_state[:, : queries.shape[1]]).mean(dim=1)


def largest_cosine(images: Tensor, captions: Tensor) -> Tensor:
    """Scores (n, m) of unit vectors (n, Q, d) and (m, d)."""
    return (images.flatten(0, 1) @ captions.T).view(*images.shape[:2], len(captions)).amax(dim=1)


def make_eva(config: VitConfig) -> Any:
    """The EVA vision transformer of these sizes, from random weights."""
    return eva_vit.VisionTransformer(
        img_size=config.size,
        patch_size=config.patch,
        use_mean_pooling=False,
        embed_dim=config.width,
        depth=config.layers,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=True,
        drop_path_rate=config.drop_path,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


def _ones(states: Tensor) -> Tensor:
    return torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
