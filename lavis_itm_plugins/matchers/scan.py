"""`itm_scan`: each word attends to the regions, or each region to the words (SCAN).

Lee et al., Stacked Cross Attention for Image-Text Matching, ECCV 2018 (github.com/kuanghuei/SCAN).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.matchers.sets import SetConfig, SetMatcher
from lavis_itm_plugins.registry import register_model
from lavis_itm_plugins.scoring import scan_scores
from lavis_itm_plugins.scoring.attention import FEATURE_NORMS
from lavis_itm_plugins.scoring.scan import AGGREGATES, DIRECTIONS


@dataclass(frozen=True)
class ScanConfig(SetConfig):
    """The `model` section of `itm_scan`."""

    direction: str = setting("t2i", choices=DIRECTIONS, help="t2i: words attend to regions")
    aggregate: str = setting("lse", choices=AGGREGATES)
    lambda_softmax: float = setting(9.0, above=0, help="inverse temperature of the attention: 9 for t2i, 4 for i2t")
    lambda_lse: float = setting(6.0, above=0, help="of aggregate: lse")
    feature_norm: str = setting("clipped_l2norm", choices=FEATURE_NORMS)


@register_model("itm_scan")
class ScanMatcher(SetMatcher):
    """Stacked cross attention over regions and words."""

    arch = "itm_scan"
    config_class = ScanConfig
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "f30k": "models/itm_scan_t2i.yaml",
        "f30k_i2t": "models/itm_scan_i2t.yaml",
        "coco": "models/itm_scan_t2i.yaml",
        "coco_i2t": "models/itm_scan_i2t_coco.yaml",
    }

    def set_scores(self, images: Tensor, captions: Tensor, lengths: Tensor, regions: Tensor | None) -> Tensor:
        """`scan_scores`."""
        config = self.config
        return scan_scores(
            images,
            captions,
            lengths,
            direction=config.direction,
            aggregate=config.aggregate,
            lambda_softmax=config.lambda_softmax,
            lambda_lse=config.lambda_lse,
            feature_norm=config.feature_norm,
            regions=regions,
            checkpoint=bool(config.checkpoint),
        )
