"""`itm_clip`: LAVIS's CLIP as a matcher (Radford et al., ICML 2021), and a way to fine-tune it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from lavis.models.clip_models import model as lavis_clip
from lavis.models.clip_models.model import CLIP
from lavis.models.clip_models.tokenizer import tokenize
from torch import Tensor

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.losses import infonce_loss
from lavis_itm_plugins.matchers.base import starting_weights
from lavis_itm_plugins.matchers.frames import frames_of, mean_over_frames
from lavis_itm_plugins.matchers.lavis_config import PatchConfig
from lavis_itm_plugins.matchers.lavis_network import LavisMatcher, Stack, pooled
from lavis_itm_plugins.matchers.vse import unit
from lavis_itm_plugins.methods.base import EncodedBatch
from lavis_itm_plugins.methods.base_loss import BaseLoss
from lavis_itm_plugins.registry import register_model

OPENAI = "openai"
LARGEST_SCALE = 100.0
_WORDS = 49408


@dataclass(frozen=True)
class ClipVitConfig(PatchConfig):
    """`model.vit`: sizes of CLIP's vision transformer, a head for each 64 channels."""

    size: int = setting(224, low=8, help="side of the pictures in pixels")
    patch: int = setting(32, low=1, help="side of a patch in pixels")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 64:
            raise ItmError(f"vit.width is {self.width}; CLIP's heads have 64 channels, give a multiple")


@dataclass(frozen=True)
class ClipTextConfig:
    """`model.text`: sizes of CLIP's text transformer."""

    width: int = setting(512, low=8)
    layers: int = setting(12, low=1)
    heads: int = setting(8, low=1)
    context: int = setting(77, low=3, help="tokens, with start and end; longer captions are cut")

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ItmError(f"text.width is {self.width}; give a multiple of text.heads, {self.heads}")


@dataclass(frozen=True)
class ClipConfig:
    """The `model` section of `itm_clip`."""

    architecture: str | None = setting(None, help="one of LAVIS's, such as ViT-B-32; instead of embed_dim, vit, text")
    embed_dim: int = setting(512, low=1, help="size of the joint space")
    vit: ClipVitConfig = field(default_factory=ClipVitConfig)
    text: ClipTextConfig = field(default_factory=ClipTextConfig)
    quick_gelu: bool = setting(False, help="true for OpenAI's weights")
    base_loss: BaseLoss = field(default_factory=BaseLoss)
    objective: str = setting(
        "plain", choices=("plain", "itc"), help="plain: base_loss; itc: CLIP's own, temperature too"
    )
    freeze: list[str] = setting([], choices=("image", "text"), help="towers that are not trained")
    layer_decay: float = setting(1.0, above=0, high=1, help="learning-rate factor from each layer to the one below")
    checkpoint: bool = setting(False, help="compute blocks again in the backward pass: slower, less memory")
    encode_chunk: int | None = setting(None, low=1, help="items encoded at a time; again in the backward pass")

    @property
    def contrasts(self) -> bool:
        """Whether CLIP's own contrast stands in for the base loss."""
        return self.objective == "itc"

    def __post_init__(self) -> None:
        if self.architecture is not None and self.architecture not in lavis_clip.list_models():
            raise unknown_name("architecture", self.architecture, lavis_clip.list_models())


@register_model("itm_clip")
class ClipMatcher(LavisMatcher):
    """Cosine of CLIP's two towers; its byte pairs come with LAVIS."""

    arch = "itm_clip"
    config_class = ClipConfig
    reads_videos = True
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "ViT-B-32": "models/itm_clip_vit_b32.yaml",
        "ViT-B-16": "models/itm_clip_vit_b16.yaml",
        "ViT-L-14": "models/itm_clip_vit_l14.yaml",
        "small": "models/itm_clip_small.yaml",
    }
    stacks = (
        Stack(
            "visual.transformer.resblocks",
            ("visual.conv1.", "visual.class_embedding", "visual.positional_embedding", "visual.ln_pre."),
        ),
        Stack("transformer.resblocks", ("token_embedding.", "positional_embedding")),
    )
    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image": ("visual",),
        "text": ("transformer", "token_embedding", "positional_embedding", "ln_final"),
    }

    def make_network(self) -> CLIP:
        """CLIP of a named architecture, or of the configured sizes."""
        return CLIP(**self.sizes(), quick_gelu=self.config.quick_gelu)

    def sizes(self) -> dict[str, Any]:
        """`embed_dim`, `vision_cfg` and `text_cfg` as CLIP takes them."""
        config = self.config
        if config.architecture is not None:
            file = Path(lavis_clip.__file__).parents[2] / "configs" / "models" / "clip" / f"{config.architecture}.json"
            told = json.loads(file.read_text(encoding="utf-8"))
            return {name: told[name] for name in ("embed_dim", "vision_cfg", "text_cfg")}
        vit, text = config.vit, asdict(config.text)
        return {
            "embed_dim": config.embed_dim,
            "vision_cfg": {"image_size": vit.size, "layers": vit.layers, "width": vit.width, "patch_size": vit.patch},
            "text_cfg": {"context_length": text.pop("context"), "vocab_size": _WORDS, **text},
        }

    def unused(self) -> tuple[str, ...]:
        """The temperature, in plain training."""
        return () if self.config.contrasts else ("logit_scale",)

    @property
    def picture_size(self) -> int:
        """Side of the pictures in pixels."""
        return int(self.sizes()["vision_cfg"]["image_size"])

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids (n, context); the end is the largest id, also of a caption that is cut."""
        context = self.network.context_length
        ids = tokenize(list(captions), context_length=context)
        full = ids[:, -1] != 0
        # LAVIS cuts the end off, and CLIP reads a caption's vector there
        ids[full, -1] = _WORDS - 1
        return ids.to(self.device)

    def encode_images(self, samples: Mapping[str, Any]) -> Encoded:
        """Unit vectors (n, embed_dim) of `samples["image"]`; of a video, the direction of its frames' mean."""
        vectors = self.network.encode_image(self.pictures(samples))
        if frames_of(samples) is not None:
            # as CLIP4Clip without parameters of its own (Luo et al., arXiv 2104.08860)
            vectors = mean_over_frames(unit(vectors), samples)
        return pooled(vectors)

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        """Unit vectors (n, embed_dim)."""
        self._check_built()
        return pooled(self.network.encode_text(self.tokens(captions)))

    def matching_losses(self, batch: Mapping[str, Any], encoded: EncodedBatch, scores: Tensor) -> dict[str, Tensor]:
        """The base loss, or InfoNCE at CLIP's learned temperature; captions of the same image are no negatives."""
        if not self.config.contrasts:
            return super().matching_losses(batch, encoded, scores)
        with torch.no_grad():
            self.network.logit_scale.clamp_(max=torch.log(torch.tensor(LARGEST_SCALE)).item())
        temperature = (-self.network.logit_scale).exp()
        return {"loss_base": infonce_loss(scores, temperature=temperature, positives=encoded.positives)}

    @classmethod
    def from_config(cls, cfg: Any) -> ClipMatcher:
        """Build; `pretrained: openai` fetches OpenAI's weights, `openai:PATH` reads a file of theirs."""
        model, weights = cls(cls.parse_config(cfg)), starting_weights(cfg)
        if weights is not None and (weights == OPENAI or weights.startswith(f"{OPENAI}:")):
            model.load_openai(weights.partition(":")[2])
        elif weights is not None:
            model.load_content(read_checkpoint(weights), weights)
        return model

    def load_openai(self, file: str = "") -> None:
        """OpenAI's weights of the configured architecture, or of a file; raises ItmError when they do not fit."""
        if not self.config.quick_gelu:
            raise ItmError("model.quick_gelu: OpenAI's weights need true")
        source = file or str(self.config.architecture)
        try:
            theirs = lavis_clip.load_openai_model(source, device="cpu", jit=False).float()
            self.network.load_state_dict(theirs.state_dict())
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ItmError(f"model.pretrained: OpenAI's {source} cannot be loaded ({reason})") from None
