"""`itm_bfan`: attention in both directions that drops what is not relevant (BFAN).

Liu et al., Focus Your Attention: A Bidirectional Focal Attention Network for Image-Text Matching, ACM MM 2019
(github.com/CrossmodalGroup/BFAN).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.matchers.sets import SetConfig, SetMatcher
from lavis_itm_plugins.registry import register_model
from lavis_itm_plugins.scoring import bfan_scores
from lavis_itm_plugins.scoring.bfan import FOCALS


@dataclass(frozen=True)
class BfanConfig(SetConfig):
    """The `model` section of `itm_bfan`."""

    focal: str = setting("equal", choices=FOCALS, help="what a weight must exceed; papers average one model of each")
    lambda_softmax: float = setting(20.0, above=0, help="inverse temperature of the attention")


@register_model("itm_bfan")
class BfanMatcher(SetMatcher):
    """Bidirectional focal attention over regions and words."""

    arch = "itm_bfan"
    config_class = BfanConfig
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "f30k": "models/itm_bfan.yaml",
        "coco": "models/itm_bfan.yaml",
    }

    def set_scores(self, images: Tensor, captions: Tensor, lengths: Tensor, regions: Tensor | None) -> Tensor:
        """`bfan_scores`."""
        config = self.config
        return bfan_scores(
            images,
            captions,
            lengths,
            focal=config.focal,
            lambda_softmax=config.lambda_softmax,
            regions=regions,
            checkpoint=bool(config.checkpoint),
        )
