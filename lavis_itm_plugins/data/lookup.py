"""What a matcher must know of the data before it is built: words and feature size, from the active configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lavis.common.registry import registry
from lavis.common.utils import get_cache_path
from torch import Tensor

from lavis_itm_plugins.config.source import active_configuration
from lavis_itm_plugins.errors import ItmError


def training_captions() -> list[str]:
    """Captions of the train splits of all configured data sets; raises ItmError when none is configured."""
    captions: list[str] = []
    for builder in _builders():
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
    for builder in _builders():
        own = getattr(builder, "feature_size", None)
        if own is not None:
            return own()
    return None


def feature_sample() -> Tensor:
    """Region features (n, R, dim) of some training images, spread over the set; raises ItmError without any."""
    for builder in _builders():
        own = getattr(builder, "feature_sample", None)
        if own is not None:
            return own()
    raise ItmError("model.image.input_norm: center needs features to take the mean of; name a data set with features")


def _builders() -> list[Any]:
    configuration = active_configuration()
    if configuration is None:
        return []
    sections = configuration.datasets_cfg
    return [registry.get_builder_class(name)(sections[name]) for name in sections]


def _lavis_captions(builder: Any) -> list[str]:
    """Training captions of one of LAVIS's own builders, from its annotation files."""
    builder._download_ann()
    storage = builder.config.build_info.annotations.train.storage
    paths = [storage] if isinstance(storage, str) else list(storage)
    captions = []
    for path in paths:
        content = json.loads(Path(get_cache_path(path)).read_text(encoding="utf-8"))
        captions.extend(item["caption"] for item in content)
    return captions
