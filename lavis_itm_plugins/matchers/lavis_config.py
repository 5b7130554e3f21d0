"""Sizes of LAVIS's networks and how they are trained: keys that the matchers over them share."""

from __future__ import annotations

from dataclasses import dataclass, field

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.methods.base_loss import BaseLoss

OBJECTIVES = ("plain", "itm", "itc", "itc_itm")


@dataclass(frozen=True)
class PatchConfig:
    """Sizes that every vision transformer has."""

    size: int = setting(384, low=8, help="side of the pictures in pixels")
    patch: int = setting(16, low=1, help="side of a patch in pixels")
    width: int = setting(768, low=8)
    layers: int = setting(12, low=1)

    def __post_init__(self) -> None:
        if self.size % self.patch:
            raise ItmError(f"vit.size is {self.size}; give a multiple of vit.patch, {self.patch}")


@dataclass(frozen=True)
class VitConfig(PatchConfig):
    """`model.vit`: sizes of the vision transformer; the defaults are those of ViT-B/16."""

    heads: int = setting(12, low=1)
    mlp_ratio: float = setting(4.0, above=0)
    drop_path: float = setting(0.0, low=0, below=1, help="stochastic depth")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ItmError(f"vit.width is {self.width}; give a multiple of vit.heads, {self.heads}")


@dataclass(frozen=True)
class BertConfig:
    """`model.bert`: sizes of the text transformer; the defaults are those of BERT base."""

    width: int = setting(768, low=8)
    layers: int = setting(12, low=1)
    heads: int = setting(12, low=1)
    hidden: int = setting(3072, low=8, help="units between the two layers of a block's MLP")
    dropout: float = setting(0.1, low=0, below=1)
    fusion_layer: int = setting(6, low=1, help="ALBEF: the first layer that looks at the image")

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ItmError(f"bert.width is {self.width}; give a multiple of bert.heads, {self.heads}")


@dataclass(frozen=True)
class LavisConfig:
    """Keys of the `model` section of every such matcher."""

    embed_dim: int = setting(256, low=1, help="size of the joint space")
    vit: VitConfig = field(default_factory=VitConfig)
    bert: BertConfig = field(default_factory=BertConfig)
    base_loss: BaseLoss = field(default_factory=BaseLoss)
    objective: str = setting(
        "plain", choices=OBJECTIVES, help="itc: LAVIS's contrast, not base_loss; itm: and matching"
    )
    freeze: list[str] = setting([], choices=("image", "text"), help="towers that are not trained")
    layer_decay: float = setting(1.0, above=0, high=1, help="learning-rate factor from each layer to the one below")
    checkpoint: bool = setting(False, help="compute blocks again in the backward pass: slower, less memory")
    encode_chunk: int | None = setting(None, low=1, help="items encoded at a time; again in the backward pass")
    tokenizer_path: str | None = setting(None, help="bert-base-uncased's vocab.txt, or its folder")
    max_words: int = setting(35, low=3, high=512, help="longer captions are cut; in word pieces")

    @property
    def contrasts(self) -> bool:
        """Whether LAVIS's contrastive loss stands in for the base loss."""
        return self.objective in ("itc", "itc_itm")

    @property
    def matches(self) -> bool:
        """Whether the matching head is trained."""
        return self.objective in ("itm", "itc_itm")
