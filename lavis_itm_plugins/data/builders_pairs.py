"""LAVIS dataset builder `itm_pairs`: your own pictures with captions, from any of the annotation formats."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.config.source import where
from lavis_itm_plugins.data.annotation_formats import READERS
from lavis_itm_plugins.data.annotations import SPLITS, Annotations, read_annotations
from lavis_itm_plugins.data.builders import ItmBuilder
from lavis_itm_plugins.data.pictures import PictureFiles
from lavis_itm_plugins.data.splits import CaptionSplit
from lavis_itm_plugins.errors import ItmError, did_you_mean, unknown_name
from lavis_itm_plugins.registry import register_builder, registered

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairsConfig:
    """The `datasets.itm_pairs` section, beside LAVIS's `vis_processor` and `text_processor`."""

    annotations: dict | str = setting(help="set it to an annotation file, or to train, val and test with a file each")
    images: str | None = setting(None, help="folder that image names are relative to; default: the annotation file's")
    format: str | None = setting(None, choices=tuple(READERS), help="default: from the file")
    image_size: int = setting(224, low=16, help="side in pixels that the default processors give")

    def __post_init__(self) -> None:
        if isinstance(self.annotations, dict):
            for split, file in self.annotations.items():
                if split not in SPLITS:
                    raise ItmError(f"annotations: {unknown_name('split', str(split), SPLITS)}")
                if not isinstance(file, str):
                    raise ItmError(f"annotations.{split} is {file!r}; give a file")


@register_builder("itm_pairs")
class PairsBuilder(ItmBuilder):
    """Pictures and captions of your own; relative paths are relative to the current folder."""

    name = "itm_pairs"
    config_class = PairsConfig
    DATASET_CONFIG_DICT: ClassVar[dict[str, str]] = {"default": "datasets/itm_pairs.yaml"}

    @classmethod
    def parse_config(cls, cfg: Any) -> PairsConfig:
        """The section, checked, with the names of its processors."""
        for kind in ("vis_processor", "text_processor"):
            place = f"{where('datasets.itm_pairs')}.{kind}"
            for stage, section in _mapping({} if cfg.get(kind) is None else cfg.get(kind), place).items():
                _check_processor(f"{place}.{stage}", stage, section)
        if (cfg.get("vis_processor") or {}).get("eval") is None:
            raise ItmError(f"{where('datasets.itm_pairs')}.vis_processor.eval: missing; name a processor")
        return super().parse_config(cfg)

    @cached_property
    def annotations(self) -> Annotations:
        """What the annotation files say; read once."""
        wanted = self.settings
        found = read_annotations(wanted.annotations, images=wanted.images, format=wanted.format)
        if shared := found.in_several_splits():
            log.warning("%d images are in more than one split, first %s", len(shared), shared[0])
        return found

    def split(self, name: str) -> CaptionSplit | None:
        """A split's captions and image files, all of which must exist."""
        if name not in self.annotations.splits:
            return None
        files = self.annotations.files(name)
        # a file that is missing in the last batch of the epoch is better said now
        missing = [file for file in files if not os.path.isfile(file)]
        if missing:
            raise ItmError(
                f"{len(missing)} of {len(files)} {name} images do not exist, first {missing[0]}; "
                f"set datasets.itm_pairs.images to the folder that image names are relative to"
            )
        images = self.annotations.splits[name]
        self.build_processors()
        augment = self.vis_processors["train"] if name == "train" else None
        return CaptionSplit(
            name,
            PictureFiles(files, self.vis_processors["eval"], augment),
            np.arange(len(files)),
            self.captions(name),
            np.repeat(np.arange(len(images)), [len(image.captions) for image in images]),
            [image.name for image in images],
        )

    def captions(self, name: str) -> list[str]:
        """A split's captions through the text processor."""
        self.build_processors()
        process = self.text_processors["train" if name == "train" else "eval"] or str
        return [process(text) for image in self.annotations.splits.get(name, []) for text in image.captions]

    def training_captions(self) -> list[str]:
        """Captions that a vocabulary is built from; looks at no image."""
        return self.captions("train")


def _check_processor(place: str, stage: str, section: Any) -> None:
    """Raise ItmError for a stage that LAVIS does not read, or a processor that it does not know."""
    if stage not in ("train", "eval"):
        raise ItmError(f"{place}: {unknown_name('stage', str(stage), ('train', 'eval'))}")
    if section is None:
        return
    name = _mapping(section, place).get("name")
    if name is None:
        raise ItmError(f"{place}.name: missing; choose from: {', '.join(registered('processor'))}")
    # also a list or a section, which no dictionary could look up
    if not isinstance(name, str) or name not in registered("processor"):
        raise ItmError(f"{place}.name: {unknown_name('processor', str(name), registered('processor'))}")
    taken = _taken_keys(registered("processor")[name])
    for key in section:
        if taken is not None and key not in ("name", *taken):
            raise ItmError(f"{place}.{key}: unknown key of {name}; {did_you_mean(str(key), taken)}")


def _taken_keys(processor: type) -> set[str] | None:
    """Keys that a processor reads, from its constructor and the texts in its `from_config`; None when it takes any."""
    parameters = list(inspect.signature(processor.__init__).parameters.values())[1:]  # type: ignore[misc]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    code = getattr(processor.from_config, "__code__", None)  # type: ignore[attr-defined]
    texts = {text for text in code.co_consts if isinstance(text, str) and text.isidentifier()} if code else set()
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL} | texts


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ItmError(f"{place}: expected a section of keys, got {value!r}")
    return value
