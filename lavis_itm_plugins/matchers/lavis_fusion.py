"""What BLIP and ALBEF share: two towers, a fusion encoder for matching, momentum towers and queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from lavis.models.med import XBertEncoder
from lavis.models.vit import VisionTransformerEncoder
from torch import Tensor, nn
from transformers.models.bert.configuration_bert import BertConfig as HubBertConfig

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.config.source import run_setting
from lavis_itm_plugins.distributed import gather_rows
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.matchers.base import Matcher
from lavis_itm_plugins.matchers.frames import mean_over_frames, states_in_a_row
from lavis_itm_plugins.matchers.lavis_config import BertConfig, LavisConfig, VitConfig
from lavis_itm_plugins.matchers.lavis_itm import Keys, enqueue, queue_loss
from lavis_itm_plugins.matchers.lavis_matching import MatchingMatcher
from lavis_itm_plugins.matchers.lavis_network import Stack, pooled
from lavis_itm_plugins.methods.base import EncodedBatch, check_heard
from lavis_itm_plugins.methods.chunks import encode_captions, encode_images

_MOMENTUM = ("visual_encoder_m", "text_encoder_m", "vision_proj_m", "text_proj_m")
_QUEUES = ("image_queue", "text_queue", "idx_queue", "queue_ptr")


@dataclass(frozen=True)
class FusionConfig(LavisConfig):
    """The `model` section of `itm_blip` and `itm_albef`; the last three keys serve itc and itc_itm."""

    queue_size: int = setting(57600, low=0, help="momentum vectors of earlier batches")
    momentum: float = setting(0.995, low=0, high=1, help="of the momentum towers")
    alpha: float = setting(0.4, low=0, high=1, help="share of the momentum towers' opinion in the targets")


class FusionMatcher(MatchingMatcher):
    """Cosine of the projected [CLS] states. A subclass writes `make_network` and `itm_logits`.

    Of a video, the mean of its frames' projections, and their states in a row, as BLIP's authors evaluate it.
    """

    config_class = FusionConfig
    reads_videos = True
    stacks = (
        Stack(
            "visual_encoder.blocks",
            ("visual_encoder.patch_embed.", "visual_encoder.pos_embed", "visual_encoder.cls_token"),
        ),
        Stack("text_encoder.encoder.layer", ("text_encoder.embeddings.",)),
    )
    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image": ("visual_encoder",),
        "text": ("text_encoder",),
    }

    def build(self) -> None:
        """Make the network; the momentum towers only for an objective that uses them."""
        super().build()
        self._keys: list[Keys] = []
        self._unheard = 0
        if not self.config.contrasts:
            for name in (*_MOMENTUM, *_QUEUES):
                delattr(self.network, name)
            self.network.model_pairs = []

    def unused(self) -> tuple[str, ...]:
        """The head and what fuses, without the matching loss; the temperature, without LAVIS's contrast."""
        names = () if self.config.matches else ("itm_head", *self.fusing())
        return names if self.config.contrasts else (*names, "temp")

    def fusing(self) -> tuple[str, ...]:
        """Names of what looks at image and caption together."""
        return (".crossattention.",)

    def resting(self) -> tuple[str, ...]:
        """Frozen towers, and momentum towers: no dropout in a target."""
        return (*super().resting(), *_MOMENTUM)

    def encode_images(self, samples: Mapping[str, Any]) -> Encoded:
        """Unit vectors (n, embed_dim) of `samples["image"]`."""
        states = self.network.visual_encoder.forward_features(self.pictures(samples))
        encoded = pooled(mean_over_frames(self.network.vision_proj(states[:, 0]), samples))
        if self._matches:
            self._local.image_states, self._local.images = states_in_a_row(states, samples), encoded
        return encoded

    def image_states(self, samples: Mapping[str, Any]) -> Tensor:
        """[CLS] and patches, (n, P, width)."""
        return states_in_a_row(self.network.visual_encoder.forward_features(self.pictures(samples)), samples)

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        """Unit vectors (n, embed_dim)."""
        self._check_built()
        tokens = self.tokens(captions)
        states = self.network.text_encoder.forward_text(tokens).last_hidden_state
        encoded = pooled(self.network.text_proj(states[:, 0]))
        if self._matches:
            self._local.tokens, self._local.captions = {**tokens, "states": states}, encoded
        return encoded

    def matching_losses(self, batch: Mapping[str, Any], encoded: EncodedBatch, scores: Tensor) -> dict[str, Tensor]:
        """The base loss, or LAVIS's contrast with momentum queues; and its matching loss."""
        if self.config.contrasts:
            parts = {"loss_base": self._contrast(batch, encoded)}
        else:
            parts = super().matching_losses(batch, encoded, scores)
        if self._matches:
            parts["loss_itm"] = self.matching_loss(batch)
        return parts

    def _contrast(self, batch: Mapping[str, Any], encoded: EncodedBatch) -> Tensor:
        """Of the batch of all ranks, whose momentum vectors enter the queues after the step."""
        with torch.no_grad():
            self.network.temp.clamp_(0.001, 0.5)
        keys = self._momentum_keys(batch, encoded.image_ids)
        if self.training:
            self._remember(batch, keys)
        images, captions = encoded.images.pooled, encoded.captions.pooled
        assert images is not None and captions is not None
        # a cosine in half precision, over a temperature of 0.07, is off by 0.05
        with torch.autocast(self.device.type, enabled=False):
            return queue_loss(self.network, images, captions, keys, alpha=self._alpha(batch))

    @torch.no_grad()
    def _momentum_keys(self, batch: Mapping[str, Any], image_ids: Tensor) -> Keys:
        """The momentum towers' vectors of the batch of all ranks."""
        twin = MomentumTwin(self)
        images, captions = encode_images(twin, batch).pooled, encode_captions(twin, batch["text_input"]).pooled
        assert images is not None and captions is not None
        return Keys(gather_rows(images), gather_rows(captions), image_ids)

    def momentum_twin(self) -> MomentumTwin | None:
        """The momentum towers, with an objective that has them."""
        return MomentumTwin(self) if self.config.contrasts else None

    def momentum_images(self, samples: Mapping[str, Any]) -> Encoded:
        """`encode_images` of the momentum towers."""
        states = self.network.visual_encoder_m(self.pictures(samples))
        return pooled(mean_over_frames(self.network.vision_proj_m(states[:, 0]), samples))

    def momentum_captions(self, captions: Sequence[str]) -> Encoded:
        """`encode_captions` of the momentum towers."""
        words = self.network.text_encoder_m.forward_text(self.tokens(captions)).last_hidden_state
        return pooled(self.network.text_proj_m(words[:, 0]))

    def _alpha(self, batch: Mapping[str, Any]) -> float:
        """Rises over the first two epochs, as in LAVIS."""
        steps = max(int(batch.get("num_iters_per_epoch", 1)), 1)
        done = int(batch.get("epoch", 0)) * steps + int(batch.get("iters", 0))
        return self.config.alpha * min(1.0, done / (2 * steps))

    def _remember(self, batch: Mapping[str, Any], keys: Keys) -> None:
        """Keep the keys for `after_step`; those of a group of batches that was skipped are forgotten."""
        together = int(run_setting("accum_grad_iters", 1))
        if batch.get("iters", 0) % together == 0:
            self._keys.clear()
        self._keys.append(keys)
        self._unheard += 1
        check_heard(self.arch, self._unheard / together, "its momentum towers and queues stay as they are")

    def after_step(self) -> None:
        """Move the momentum towers and fill the queues: LAVIS does so in `forward`, also on steps that AMP skips."""
        if self.config.contrasts:
            self._unheard = 0
            self.network._momentum_update()
            for keys in self._keys:
                enqueue(self.network, keys)
            self._keys.clear()


class MomentumTwin(nn.Module):
    """The momentum towers of a matcher as a matcher of their own; its owner holds the weights and moves them."""

    compute_sim_matrix = Matcher.compute_sim_matrix
    score, score_pairs = Matcher.score, Matcher.score_pairs
    bytes_per_pair = Matcher.bytes_per_pair

    def __init__(self, owner: FusionMatcher) -> None:
        super().__init__()
        self._owner = (owner,)
        self.momentum, self.encode_chunk = owner.config.momentum, owner.encode_chunk

    @property
    def device(self) -> torch.device:
        """Where the owner is."""
        return self._owner[0].device

    def encode_images(self, samples: Mapping[str, Any]) -> Encoded:
        """Unit vectors (n, embed_dim), without a gradient."""
        with torch.no_grad():
            return self._owner[0].momentum_images(samples)

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        """Unit vectors (n, embed_dim), without a gradient."""
        with torch.no_grad():
            return self._owner[0].momentum_captions(captions)

    def evaluated(self) -> MomentumTwin:
        """Itself."""
        return self


def make_vit(config: VitConfig) -> Any:
    """LAVIS's vision transformer of these sizes."""
    encoder = VisionTransformerEncoder(
        img_size=config.size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.layers,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    encoder.vision_width = config.width
    return encoder


def make_bert(config: BertConfig, vocabulary: int, image_width: int, **more: Any) -> Any:
    """LAVIS's text encoder of these sizes."""
    hub = HubBertConfig(**bert_sizes(config, vocabulary, image_width), add_type_embeddings=False, **more)
    return XBertEncoder(config=hub, add_pooling_layer=False)


def bert_sizes(config: BertConfig, vocabulary: int, image_width: int) -> dict[str, Any]:
    """What LAVIS's BERTs read of their configuration."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "encoder_width": image_width,
        "add_cross_attention": True,
    }
