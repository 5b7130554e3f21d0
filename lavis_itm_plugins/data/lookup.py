"""What a matcher must know of the data before it is built: words and feature size, from the active configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from lavis.common.registry import registry
from lavis.common.utils import get_cache_path
from torch import Tensor

from lavis_itm_plugins.config.source import active_configuration
from lavis_itm_plugins.errors import ItmError


def training_captions() -> list[str]:
    """Captions of the train splits of all configured data sets; raises ItmError when none is configured."""
    captions: list[str] = []
    for builder in configured_builders():
        own = getattr(builder, "training_captions", None)
        captions.extend(own() if own else _lavis_captions(builder))
    if not captions:
        raise ItmError(
            "no vocabulary: set model.vocab_path to a JSON vocabulary, or name a data set with training captions"
        )
    return captions


def feature_size() -> int:
    """Size of a region feature of the first configured data set that has features; raises ItmError without one."""
    size = known_feature_size()
    if size is None:
        raise ItmError(
            "the size of a region feature is not known: set model.image.dim, or name a data set with features"
        )
    return size


def known_feature_size() -> int | None:
    """As `feature_size`; None where no data set with features is configured."""
    for builder in configured_builders():
        own = getattr(builder, "feature_size", None)
        if own is not None:
            return own()
    return None


def feature_sample() -> Tensor:
    """Region features (n, R, dim) of some training images, spread over the set; raises ItmError without any."""
    for builder in configured_builders():
        own = getattr(builder, "feature_sample", None)
        if own is not None:
            return own()
    raise ItmError("model.image.input_norm: center needs features to take the mean of; name a data set with features")


def training_texts() -> tuple[list[str], np.ndarray]:
    """Training captions of all configured data sets and each one's image, in the order of the training items.

    Raises ItmError when there are none.
    """
    captions: list[str] = []
    images: list[np.ndarray] = []
    for builder in configured_builders():
        own = getattr(builder, "texts", None)
        texts = own("train") if own else _lavis_texts(builder)
        if texts is not None:
            captions.extend(texts[0])
            # ids of a later set begin after those before it, as in `JoinedDataset`
            images.append(np.asarray(texts[1]) + (images[-1].max() + 1 if images else 0))
    if not captions:
        raise ItmError("relevance labels need training captions, and no data set with a training split is configured")
    return captions, np.concatenate(images)


def configured_builders() -> list[Any]:
    """A builder of each data set in the active configuration."""
    configuration = active_configuration()
    if configuration is None:
        return []
    sections = configuration.datasets_cfg
    return [registry.get_builder_class(name)(sections[name]) for name in sections]


def _lavis_captions(builder: Any) -> list[str]:
    """Training captions of one of LAVIS's own builders."""
    return [entry["caption"] for entry in _lavis_annotations(builder)]


def _lavis_texts(builder: Any) -> tuple[list[str], np.ndarray]:
    """Training captions of one of LAVIS's own builders, and the image ids that its data set gives them."""
    entries = _lavis_annotations(builder)
    rows: dict[Any, int] = {}
    return [entry["caption"] for entry in entries], np.array(
        [rows.setdefault(entry["video"] if "video" in entry else entry["image_id"], len(rows)) for entry in entries],
        dtype=np.int64,
    )


def _lavis_annotations(builder: Any) -> list[dict[str, Any]]:
    builder._download_ann()
    storage = builder.config.build_info.annotations.train.storage
    paths = [storage] if isinstance(storage, str) else list(storage)
    return [entry for path in paths for entry in json.loads(Path(get_cache_path(path)).read_text(encoding="utf-8"))]
