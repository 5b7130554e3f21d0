"""LAVIS dataset builders: `itm_scenes` (generated) and `itm_precomp` (features in the SCAN layout)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
from omegaconf import OmegaConf
from torch import Tensor

from lavis_itm_plugins.config.schema import parse, setting
from lavis_itm_plugins.config.source import run_setting, where
from lavis_itm_plugins.data.datasets import CaptionDataset, CaptionEvalDataset
from lavis_itm_plugins.data.features import FeatureFile
from lavis_itm_plugins.data.pictures import DecodedPictures
from lavis_itm_plugins.data.precomp import find_prefix, read_precomp
from lavis_itm_plugins.data.scenes import SceneConfig, build_scenes, load_scenes
from lavis_itm_plugins.data.splits import CaptionSplit
from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.paths import user_path
from lavis_itm_plugins.registry import register_builder
from lavis_itm_plugins.resources import config_file

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
# Keys of a data set section that LAVIS reads itself.
LAVIS_KEYS = ("type", "data_type", "build_info", "vis_processor", "text_processor")


class ItmBuilder(BaseDatasetBuilder):
    """What our builders share: a checked section, splits, and what a matcher asks before it is built."""

    name: ClassVar[str]
    config_class: ClassVar[type]
    DATASET_CONFIG_DICT: ClassVar[dict[str, str]] = {}

    def __init__(self, cfg: Any = None) -> None:
        if OmegaConf.is_config(cfg) or cfg is None:
            super().__init__(cfg)
        else:
            super().__init__(OmegaConf.create(cfg))
        self.settings = self.parse_config(self.config)

    @classmethod
    def default_config_path(cls, type: str = "default") -> str:
        """Path of the default YAML; raises ItmError for an unknown type."""
        if type not in cls.DATASET_CONFIG_DICT:
            raise unknown_name(f"type of {cls.name}", str(type), cls.DATASET_CONFIG_DICT)
        return str(config_file(cls.DATASET_CONFIG_DICT[type]))

    @classmethod
    def parse_config(cls, cfg: Any) -> Any:
        """The section as `config_class`, checked."""
        return parse(cls.config_class, cfg, where(f"datasets.{cls.name}"), ignore=LAVIS_KEYS)

    def _download_data(self) -> None:
        self.prepare()

    def prepare(self) -> None:
        """Make on the disk what is not there yet; called on one process only."""

    def split(self, name: str) -> CaptionSplit | None:
        """Read a split, or None when the data has no such split."""
        raise NotImplementedError("abstract")

    def build(self) -> dict[str, Any]:
        """LAVIS datasets by split; a val or test split that is not there is left out."""
        datasets: dict[str, Any] = {}
        for name in SPLITS:
            split = self.split(name)
            if split is None:
                log.info("%s has no %s split", self.name, name)
            elif name == "train":
                seed = int(run_setting("seed", 0) or 0)
                datasets[name] = CaptionDataset(split, region_drop=self.region_drop, seed=seed)
            else:
                datasets[name] = CaptionEvalDataset(split)
        return datasets

    @property
    def region_drop(self) -> float:
        """Share of regions left out in training."""
        return 0.0

    def texts(self, name: str) -> tuple[list[str], np.ndarray] | None:
        """Captions of a split and each one's image, in order; None when the data has no such split."""
        split = self.split(name)
        return None if split is None else (list(split.captions), split.caption_image)

    def training_captions(self) -> list[str]:
        """Captions that a vocabulary is built from."""
        texts = self.texts("train")
        return texts[0] if texts else []


@dataclass(frozen=True)
class PrecompConfig:
    """The `datasets.itm_precomp` section."""

    root: str = setting(help="set it to the folder with train_ims.npy and train_caps.txt")
    region_drop: float = setting(0.0, low=0, below=1, help="share of regions left out of a training image")


@register_builder("itm_precomp")
class PrecompBuilder(ItmBuilder):
    """Features in the SCAN layout; a relative `root` is relative to the current folder."""

    name = "itm_precomp"
    config_class = PrecompConfig
    DATASET_CONFIG_DICT: ClassVar[dict[str, str]] = {"default": "datasets/itm_precomp.yaml"}

    @property
    def region_drop(self) -> float:
        """As configured."""
        return self.settings.region_drop

    def split(self, name: str) -> CaptionSplit | None:
        """Read `{split}_ims.npy` and its captions; training data must be there, unless the run only evaluates."""
        root = user_path(self.settings.root)
        optional = name != "train" or bool(run_setting("evaluate"))
        if optional and root.is_dir() and find_prefix(root, name) is None:
            return None
        return read_precomp(root, name)

    def build(self) -> dict[str, Any]:
        """As above; raises ItmError when the splits have features of different size."""
        datasets = super().build()
        sizes = {name: dataset.split.images.dim for name, dataset in datasets.items()}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{size} in {name}" for name, size in sizes.items())
            raise ItmError(
                f"the features in {self.settings.root} have different sizes: {told}; take them from one network"
            )
        return datasets

    def feature_size(self) -> int:
        """Size of a region feature; where a run only evaluates there may be no training file."""
        root = user_path(self.settings.root)
        prefix = next((found for name in SPLITS if (found := find_prefix(root, name))), "train")
        return FeatureFile(root / f"{prefix}_ims.npy").dim

    def feature_sample(self) -> Tensor:
        """Features of at most 2,000 training images, evenly spread."""
        features = FeatureFile(user_path(self.settings.root) / "train_ims.npy")
        return features.fetch(np.unique(np.linspace(0, len(features) - 1, num=2000).astype(np.int64)))


@dataclass(frozen=True)
class ScenesConfig:
    """The `datasets.itm_scenes` section."""

    train: int = setting(2500, low=1, help="number of training pictures")
    val: int = setting(250, low=1)
    test: int = setting(500, low=1)
    seed: int = setting(0, low=0)
    size: int = setting(64, low=32, high=512, help="side of a picture in pixels")
    cache: str | None = setting(None, help="folder of generated data; default LAVIS_ITM_CACHE or ~/.cache/lavis-itm")


@register_builder("itm_scenes")
class ScenesBuilder(ItmBuilder):
    """Generated pictures of simple scenes with five captions each; nothing to download."""

    name = "itm_scenes"
    config_class = ScenesConfig
    DATASET_CONFIG_DICT: ClassVar[dict[str, str]] = {"default": "datasets/itm_scenes.yaml"}

    def prepare(self) -> None:
        """Draw the pictures unless the cache holds them."""
        self.folder()

    def folder(self) -> Path:
        """Where the generated data lies; made when it is not there."""
        wanted = self.settings
        scenes = SceneConfig(train=wanted.train, val=wanted.val, test=wanted.test, seed=wanted.seed, size=wanted.size)
        return build_scenes(scenes, wanted.cache)

    def split(self, name: str) -> CaptionSplit | None:
        """Decode a split's pictures into memory."""
        scenes = load_scenes(self.folder(), name)
        pictures = DecodedPictures.from_files(scenes.image_paths)
        names = [path.name for path in scenes.image_paths]
        return CaptionSplit(name, pictures, np.arange(len(pictures)), scenes.captions, scenes.caption_image, names)

    def texts(self, name: str) -> tuple[list[str], np.ndarray]:
        """As above; decodes no picture."""
        scenes = load_scenes(self.folder(), name)
        return scenes.captions, scenes.caption_image
