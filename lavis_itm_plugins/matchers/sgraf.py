"""`itm_sgraf`: similarity vectors of words and of the whole pair, reasoned over (SGR) or filtered (SAF).

Diao et al., Similarity Reasoning and Filtration, AAAI 2021 (github.com/Paranioar/SGRAF); with `module: DBL` the smaller
network that DBL's release trains under this name (github.com/Paranioar/DBL).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.data.lookup import configured_builders
from lavis_itm_plugins.encoders.image import ImageConfig, build_trunk
from lavis_itm_plugins.encoders.text import TextConfig
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.matchers.sets import SetConfig, SetMatcher
from lavis_itm_plugins.registry import register_model
from lavis_itm_plugins.scoring import DBLScorer, SGRAFScorer
from lavis_itm_plugins.scoring.sgraf import MODULES


@dataclass(frozen=True)
class SgrafConfig(SetConfig):
    """The `model` section of `itm_sgraf`."""

    text: TextConfig = field(default_factory=lambda: TextConfig(hidden=1024, merge="mean", dropout=0.4))
    module: str = setting("SAF", choices=(*MODULES, "DBL"), help="papers average one SAF and one SGR model")
    sim_dim: int = setting(256, low=1, help="size of a similarity vector")
    steps: int = setting(3, low=1, help="of reasoning (SGR)")
    smooth: float = setting(9.0, above=0, help="inverse temperature of the attention")
    dropout: float = setting(0.4, low=0, below=1, help="in the vectors of whole images and captions (SAF, SGR)")
    normalize: bool = setting(True, help="DBL: false leaves the l2 norm of the mean similarity out")
    regions: int | None = setting(None, low=1, help="regions of an image (SAF, SGR); read from the data when not given")


@register_model("itm_sgraf")
class SgrafMatcher(SetMatcher):
    """Learned similarity of regions and words."""

    arch = "itm_sgraf"
    config_class = SgrafConfig
    scorers = ("scorer",)
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "f30k_saf": "models/itm_sgraf_saf.yaml",
        "f30k_sgr": "models/itm_sgraf_sgr.yaml",
        "f30k_dbl": "models/itm_sgraf_dbl.yaml",
        "coco_saf": "models/itm_sgraf_saf.yaml",
        "coco_sgr": "models/itm_sgraf_sgr.yaml",
        "coco_dbl": "models/itm_sgraf_dbl.yaml",
    }

    def build(self) -> None:
        """Make both encoders and the scorer."""
        super().build()
        config = self.config
        common = {"smooth": config.smooth, "checkpoint": config.checkpoint}
        if config.module == "DBL":
            self.scorer: nn.Module = DBLScorer(config.embed_dim, config.sim_dim, normalize=config.normalize, **common)
        else:
            self.scorer = SGRAFScorer(
                config.embed_dim,
                config.sim_dim,
                module=config.module,
                steps=config.steps,
                regions=config.regions or places_of(config.image),
                dropout=config.dropout,
                **common,
            )

    @classmethod
    def completed(cls, config: Any, stored: Mapping[str, Any] | None) -> Any:
        """With the number of regions, whose places have batch statistics of their own."""
        config = super().completed(config, stored)
        if config.module == "DBL" or config.regions is not None:
            return config
        return replace(config, regions=stored["regions"] if stored else places_of(config.image))

    def set_scores(self, images: Tensor, captions: Tensor, lengths: Tensor, regions: Tensor | None) -> Tensor:
        """`SGRAFScorer` or `DBLScorer`."""
        scores: Tensor = self.scorer(images, captions, lengths, regions)
        return scores


def places_of(image: ImageConfig) -> int:
    """Regions of an image of the configured data, or cells of the grid of pictures of `image.size`.

    Raises ItmError when neither is known.
    """
    if image.kind == "regions":
        own = (getattr(builder, "feature_sample", None) for builder in configured_builders())
        sample = next((found for found in own if found is not None), None)
        if sample is None:
            raise ItmError("the number of regions is not known: set model.regions, or name a data set with features")
        return sample().shape[1]
    trunk, _ = build_trunk(replace(image, pretrained=False))
    assert trunk is not None
    with torch.no_grad():
        return trunk.eval()(torch.zeros(1, 3, image.size, image.size)).shape[1]
