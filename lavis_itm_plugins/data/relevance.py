"""Relevance labels of the configured data: which source a YAML names, for the training split and for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.data.lookup import configured_builders, training_texts
from lavis_itm_plugins.data.scenes import SceneSplit, default_cache_root, load_scenes, relevance_matrix
from lavis_itm_plugins.devices import check_device
from lavis_itm_plugins.errors import ItmError
from lavis_itm_plugins.paths import user_path
from lavis_itm_plugins.relevance import (
    CaptionLabels,
    CiderSimilarity,
    DocumentFrequency,
    RelevanceLabels,
    SentenceSimilarity,
    cached_cider,
    cached_sentences,
)
from lavis_itm_plugins.relevance.cider import cider_similarity
from lavis_itm_plugins.relevance.labels import REDUCTIONS, rows_within

log = logging.getLogger(__name__)

SOURCES = ("cider", "sentence", "scenes")


@dataclass(frozen=True)
class LabelConfig:
    """Where relevance labels come from: `model.labels` of `itm_bcls`, `run.itm.graded.labels`."""

    source: str = setting("cider", choices=SOURCES, help="scenes: the known truth of generated pictures")
    reduce: str = setting("max", choices=REDUCTIONS, help="over an image's captions (cider, sentence)")
    encoder: str | None = setting(None, help="folder or hub name of a BERT-type sentence encoder (sentence)")
    cache: str | None = setting(None, help="folder of computed labels; default LAVIS_ITM_CACHE or ~/.cache/lavis-itm")

    def __post_init__(self) -> None:
        if self.source == "sentence" and not self.encoder:
            raise ItmError("source: sentence needs an encoder; give the folder or hub name of a sentence encoder")

    @property
    def root(self) -> Path:
        """Where labels are kept."""
        return (user_path(self.cache) if self.cache else default_cache_root()) / "relevance"


class SceneLabels:
    """The known relevance of captions for generated pictures, graded from what each caption says."""

    def __init__(self, scenes: SceneSplit) -> None:
        self._scenes, self._claims = scenes.scenes, scenes.claims
        self.caption_image, self.n_images = scenes.caption_image, len(scenes.scenes)

    def labels(self, image_rows: npt.ArrayLike, caption_rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Labels (n, m) of pictures (n,) and captions (m,), any rows in any order; same image = 1."""
        images = rows_within(image_rows, self.n_images, "image")
        captions = rows_within(caption_rows, len(self.caption_image), "caption")
        # its own captions are true of a picture, so they have 1 already
        return relevance_matrix([self._scenes[row] for row in images], [self._claims[row] for row in captions])


def training_labels(config: LabelConfig, *, device: str = "auto") -> RelevanceLabels:
    """Labels of the training items of all configured data sets; computed and kept on the disk where they are not yet.

    `device` is where a sentence encoder runs: `auto` takes a GPU where there is one. Rows are those of the training
    items (`index`) and their image ids. Raises ItmError for a source that the data do not have.
    """
    if config.source == "scenes":
        return SceneLabels(_scenes("train"))
    captions, caption_image = training_texts()
    if config.source == "sentence":
        similarity: Any = _sentences(config, captions, device)
    else:
        similarity = cached_cider(captions, caption_image, config.root)
    return CaptionLabels(similarity, caption_image, reduce=config.reduce)


def split_labels(
    config: LabelConfig, split: str | None, captions: Sequence[str], caption_image: npt.ArrayLike
) -> RelevanceLabels:
    """Labels of an evaluation split from its captions; CIDEr's document frequencies are the training captions'.

    `split` is its name where it is one of our data sets' (the truth of scenes needs it). Raises ItmError for a source
    that the data do not have.
    """
    if config.source == "scenes":
        if split is None:
            raise ItmError("labels.source: scenes knows only the splits of itm_scenes; choose cider or sentence")
        return SceneLabels(_scenes(split))
    if config.source == "sentence":
        similarity: Any = _sentences(config, captions, "auto")
    else:
        similarity = _cider_of_split(captions)
    return CaptionLabels(similarity, caption_image, reduce=config.reduce)


def _sentences(config: LabelConfig, captions: Sequence[str], device: str) -> SentenceSimilarity:
    device = check_device(device, "--device")
    return cached_sentences(captions, str(config.encoder), config.root, device=device)


def _cider_of_split(captions: Sequence[str]) -> CiderSimilarity:
    return cider_similarity(captions, DocumentFrequency.of(*training_texts()))


def _scenes(split: str) -> SceneSplit:
    """The scenes of a split; ItmError unless generated scenes are the only data set."""
    builders = configured_builders()
    if [getattr(builder, "name", None) for builder in builders] != ["itm_scenes"]:
        raise ItmError("labels.source: scenes needs itm_scenes as the only data set; choose cider or sentence")
    return load_scenes(builders[0].folder(), split)
