"""`itm_bcls`: binary labels by a triplet loss with soft negatives, continuous ones by a Kendall ranking loss.

Li et al., "Image-Text Retrieval with Binary and Continuous Label Supervision", arXiv 2210.11319. Its equations were not
at hand: what is reconstructed, and from what, is told in docs/methods/bcls.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.data.relevance import LabelConfig, training_labels
from lavis_itm_plugins.distributed import gather_rows
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.losses import kendall_loss
from lavis_itm_plugins.losses.kendall import MININGS, SPLITS, SURROGATES
from lavis_itm_plugins.methods.base_loss import BaseLoss
from lavis_itm_plugins.methods.method import Method, MethodConfig
from lavis_itm_plugins.registry import register_model
from lavis_itm_plugins.relevance import RelevanceLabels, gap_quantile, sampled_block

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KendallConfig:
    """`model.kendall`: the continuous branch; everything but the first three keys as in `kendall_loss`."""

    weight: float = setting(1.0, low=0, help="of the continuous branch; 0 switches it off")
    ramp_epochs: float = setting(0.0, low=0, help="the weight rises from 0 over so many epochs")
    gap_quantile: float | None = setting(None, low=0, below=1, help="gap: so many label differences are too small")
    window: int = setting(16, low=1, help="ranks in a window; an eighth of the batch is a good start")
    stride: int = setting(8, low=1, help="ranks from one window to the next")
    split: str = setting("halves", choices=SPLITS, help="which pairs of a window count")
    mining: str = setting("hardest", choices=MININGS)
    surrogate: str = setting("hinge", choices=SURROGATES)
    margin: float = setting(0.0, low=0, help="in units of the scores")
    temperature: float = setting(0.05, above=0, help="softplus and tanh")
    gap: float = setting(0.0, low=0, help="labels must differ by more than this; its units depend on the source")

    def __post_init__(self) -> None:
        if self.gap and self.gap_quantile is not None:
            raise ItmError("gap and gap_quantile both say which labels differ enough; give one of them")

    def weight_at(self, progress: float) -> float:
        """The weight after so many epochs.

        >>> KendallConfig(weight=2.0, ramp_epochs=4).weight_at(1.0)
        0.5
        """
        return self.weight * (min(1.0, progress / self.ramp_epochs) if self.ramp_epochs else 1.0)

    def options(self, gap: float) -> dict[str, Any]:
        """Arguments of `kendall_loss`."""
        own = asdict(self)
        return {key: own[key] for key in own if key not in ("weight", "ramp_epochs", "gap_quantile")} | {"gap": gap}


@dataclass(frozen=True)
class BclsConfig(MethodConfig):
    """The `model` section of `itm_bcls`."""

    base_loss: BaseLoss | None = BaseLoss(name="triplet", negatives="soft", reduction="mean")
    labels: LabelConfig = field(default_factory=LabelConfig)
    kendall: KendallConfig = field(default_factory=KendallConfig)


@register_model("itm_bcls")
class BCLS(Method):
    """Any matcher, trained so that each query's scores also rank its candidates as continuous labels do.

    Labels are formed for each batch from the rows of its captions, so that no matrix over the training set exists.
    They are looked up when training begins; what is trained needs none.
    """

    arch = "itm_bcls"
    config_class = BclsConfig
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {
        "cider": "models/itm_bcls_cider.yaml",
        "sentence": "models/itm_bcls_sentence.yaml",
        "scenes": "models/itm_bcls_scenes.yaml",
    }

    def setup(self, stored: Mapping[str, Any]) -> None:
        """No modules of its own; labels come with the training data."""
        self.source: RelevanceLabels | None = None
        self.gap = self.config.kendall.gap

    def before_training(self, context: Any) -> None:
        """Make the labels' cache now, not in the first step."""
        if self.config.kendall.weight:
            self.use_labels(training_labels(self.config.labels))

    def use_labels(self, source: RelevanceLabels) -> None:
        """Take the training items' labels from `source`; the rows of its captions are the items' `index`."""
        wanted = self.config.kendall
        self.source, self.gap = source, wanted.gap
        if wanted.gap_quantile is not None:
            self.gap = gap_quantile(source, wanted.gap_quantile)
        spread = np.nanquantile(sampled_block(source)[2], (0.1, 0.5, 0.9, 0.99))
        log.info("labels of other images at 10, 50, 90, 99%%: %s; gap %.4g", spread.round(4).tolist(), self.gap)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The base loss on the batch of all ranks, and the weighted Kendall loss on the same scores."""
        encoded = self.encoded(batch)
        scores = self.matcher.score(encoded.images, encoded.captions)
        parts = self.matcher.matching_losses(batch, encoded, scores)
        if self.config.kendall.weight:
            labels = self.labels(encoded.image_ids, gather_rows(caption_rows(batch, scores.device)))
            kendall = kendall_loss(scores, labels, **self.config.kendall.options(self.gap))
            parts |= {"loss_kendall": self.config.kendall.weight_at(_progress(batch)) * kendall, "kendall": kendall}
        return parts

    def labels(self, image_ids: Tensor, rows: Tensor) -> Tensor:
        """Labels (B, B) of the batch of all ranks, without a gradient; raises ItmError when they are of other data."""
        if self.source is None:
            # LAVIS's own runner calls no hook before training
            self.use_labels(training_labels(self.config.labels))
        assert self.source is not None
        images, captions = image_ids.cpu().numpy(), rows.cpu().numpy()
        known = self.source.caption_image
        if captions.max(initial=-1) >= len(known) or not np.array_equal(known[captions], images):
            raise ItmError(
                f"the labels are of {len(known)} captions that are not those of the training items; "
                "train on the data sets of the configuration"
            )
        return torch.from_numpy(self.source.labels(images, captions)).to(rows.device)


def caption_rows(batch: Mapping[str, Any], device: torch.device) -> Tensor:
    """Rows (B,) int64 of the batch's captions in the training set, of our data sets or LAVIS's own."""
    rows = batch["index"] if "index" in batch else [int(name) for name in batch["instance_id"]]
    return torch.as_tensor(rows, device=device).view(-1)


def _progress(batch: Mapping[str, Any]) -> float:
    """Epochs done, with the part of this one that is done; the loop writes its numbers into the batch."""
    return batch.get("epoch", 0) + batch.get("iters", 0) / max(batch.get("num_iters_per_epoch", 1), 1)
