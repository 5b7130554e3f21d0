"""Networks that turn pictures into features: any timm model, or the image encoder of a LAVIS model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lavis.common.registry import registry
from lavis.processors.blip_processors import BlipImageEvalProcessor
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from lavis_itm_plugins.devices import check_device
from lavis_itm_plugins.encoders.image import TimmGrid
from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.registry import names, registered

SEED = 0  # of random weights: a resumed conversion has to go on with the same ones


@dataclass(frozen=True)
class FeatureModel:
    """A network from pictures (n, 3, size, size) to features (n, regions, dim), and the processor it expects."""

    encode: Callable[[Tensor], Tensor]
    processor: Callable[[Any], Tensor]
    device: torch.device

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Features (n, regions, dim), float32, on the CPU."""
        encoded = self.encode(pictures.to(self.device)).float().cpu()
        return encoded if encoded.dim() == 3 else encoded.unsqueeze(1)


def feature_model(name: str, *, pretrained: bool, image_size: int, grid: int | None, device: str) -> FeatureModel:
    """`resnet50` (timm) or `lavis:ARCH:MODEL_TYPE`; random weights are the same at every call.

    With `grid` the regions are averaged to grid x grid. Raises ItmError for an unknown name, for weights that cannot be
    fetched, a device that is not there, and a size that the network does not read.
    """
    place = torch.device(check_device(device, "--device"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        encode, network, normalise = (_lavis if name.startswith("lavis:") else _timm)(name, pretrained)
    network.to(place).eval()
    processor = BlipImageEvalProcessor(image_size=image_size, **normalise)
    model = FeatureModel(encode if grid is None else lambda x: to_grid(encode(x), grid), processor, place)
    try:
        model.features(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ItmError(f"{name} does not read pictures of side {image_size} ({reason}); set --image-size") from None
    return model


def to_grid(regions: Tensor, grid: int) -> Tensor:
    """Regions (n, side * side, dim) averaged to (n, grid * grid, dim); raises ItmError when they are no such grid."""
    count = regions.shape[1] if regions.dim() == 3 else 1
    side = math.isqrt(count)
    if side * side != count or grid > side:
        raise ItmError(f"{count} regions cannot be averaged to {grid} x {grid}; lower --grid, or leave it out")
    square = regions.transpose(1, 2).unflatten(2, (side, side))
    return adaptive_avg_pool2d(square, grid).flatten(2).transpose(1, 2)


Made = tuple[Callable[[Tensor], Tensor], nn.Module, Mapping[str, Any]]


def _timm(name: str, pretrained: bool) -> Made:
    network = TimmGrid(name.removeprefix("timm:"), pretrained=pretrained)
    own = network.model.default_cfg
    # timm only warns, and goes on with random weights
    if pretrained and not own.get("url"):
        raise ItmError(f"timm has no published weights of {name}; give --no-pretrained, or choose another model")
    return network, network, {"mean": own["mean"], "std": own["std"]}


def _lavis(name: str, pretrained: bool) -> Made:
    """The image encoder of a LAVIS model: its `visual_encoder`, or CLIP's `encode_image`."""
    arch, _, model_type = name.removeprefix("lavis:").partition(":")
    if arch not in names("model"):
        raise unknown_name("LAVIS model", arch, names("model"))
    model_class = registered("model")[arch]
    if model_type not in model_class.PRETRAINED_MODEL_CONFIG_DICT:
        raise unknown_name(f"type of {arch}", model_type, model_class.PRETRAINED_MODEL_CONFIG_DICT)
    if pretrained:
        from lavis.models import load_model

        try:
            model = load_model(arch, model_type, is_eval=True)
        except OSError as error:
            raise ItmError(f"the weights of {name} cannot be fetched ({error}); give --no-pretrained") from None
    else:
        section = OmegaConf.load(model_class.default_config_path(model_type)).model
        section.update(pretrained="", load_pretrained=False, load_finetuned=False, model_type=model_type)
        model = registry.get_model_class(arch).from_config(section)
    encode = getattr(model, "visual_encoder", None) or getattr(model, "encode_image", None)
    if encode is None:
        raise ItmError(f"{arch} has no image encoder of its own (visual_encoder or encode_image); choose another model")
    return encode, model, {}
