"""Pictures to vectors: region features with a residual projection, or pixels through a network that keeps its grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from lavis_itm_plugins.config.schema import setting
from lavis_itm_plugins.encoders.pooling import POOLINGS, Pooling
from lavis_itm_plugins.errors import ItmError, unknown_name


@dataclass(frozen=True)
class ImageConfig:
    """`model.image`: which image encoder, and its sizes."""

    kind: str = setting("regions", choices=("regions", "conv", "timm", "vit"))
    dim: int | None = setting(None, low=1, help="size of a region feature; read from the data when not given")
    projection: str = setting("residual", choices=("linear", "residual"))
    pooling: str = setting("mean_max", choices=POOLINGS)
    input_norm: str = setting("none", choices=("none", "center"), help="centre and scale unit-length features")
    dropout: float = setting(0.0, low=0, below=1, help="on the input features")
    output_dropout: float = setting(0.0, low=0, below=1, help="on the pooled vector")
    norm: str = setting("layer", choices=("layer", "batch"), help="in the residual MLP; batch for official weights")
    width: int = setting(32, low=8, help="channels of the first convolution (conv), or of every layer (vit)")
    size: int = setting(64, low=16, help="side of the pictures in pixels (conv, vit)")
    timm_name: str = setting("resnet18", help="name of a timm model (timm)")
    pretrained: bool = setting(False, help="load timm's published weights")
    lr_scale: float = setting(1.0, low=0, help="learning-rate factor of the pixel network")

    def __post_init__(self) -> None:
        if self.kind == "conv" and self.width % 8:
            raise ItmError(f"width is {self.width}; give a multiple of 8 for kind: conv")
        if self.kind == "vit" and self.size % 16:
            raise ItmError(f"size is {self.size}; give a multiple of 16 for kind: vit")
        if self.kind == "vit" and self.width % vit_heads(self.width):
            raise ItmError(f"width is {self.width}; give a multiple of 64 for kind: vit")


class RegionProjection(nn.Module):
    """Linear projection plus, when `residual`, a two-layer MLP beside it (VSE-infinity, Chen et al., CVPR 2021).

    The hidden layer is normalised with LayerNorm, so that neither other images nor padding change an image's vector.
    """

    def __init__(self, dim: int, embed_dim: int, kind: str, norm: str) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, embed_dim)
        limit = math.sqrt(6.0 / (dim + embed_dim))
        nn.init.uniform_(self.fc.weight, -limit, limit)
        nn.init.zeros_(self.fc.bias)
        self.mlp = ResidualMLP(dim, embed_dim // 2, embed_dim, norm) if kind == "residual" else None

    def forward(self, regions: Tensor, mask: Tensor | None) -> Tensor:
        """(n, R, dim) -> (n, R, embed_dim)."""
        projected = self.fc(regions)
        return projected if self.mlp is None else projected + self.mlp(regions, mask)


class ResidualMLP(nn.Module):
    """Linear, norm, ReLU, Linear; batch statistics see real regions only."""

    def __init__(self, dim: int, hidden: int, embed_dim: int, norm: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, embed_dim)
        self.norm = nn.LayerNorm(hidden) if norm == "layer" else nn.BatchNorm1d(hidden)

    def forward(self, regions: Tensor, mask: Tensor | None) -> Tensor:
        """(n, R, dim) -> (n, R, embed_dim)."""
        hidden = self.first(regions)
        if isinstance(self.norm, nn.LayerNorm):
            hidden = self.norm(hidden)
        else:
            real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask
            normed = torch.zeros_like(hidden)
            normed[real] = self.norm(hidden[real])
            hidden = normed
        return self.second(hidden.relu())


class CenteredFeatures(nn.Module):
    """Region features at unit length, minus their mean over the training set, over their root mean square.

    Features of a pretrained network share a large common part, which a cosine would otherwise see first.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, regions: Tensor) -> Tensor:
        """(n, R, dim) -> (n, R, dim)."""
        return (normalize(regions, dim=-1, eps=1e-8) - self.mean) / self.scale

    def fit(self, regions: Tensor) -> None:
        """Take mean and scale from a sample (n, R, dim) of the training features."""
        unit = normalize(regions.float(), dim=-1, eps=1e-8)
        # one damaged feature must not spoil every image; the loss still says where it is
        unit = unit[unit.isfinite().all(dim=-1)]
        self.mean.copy_(unit.mean(dim=0))
        self.scale.copy_((unit - self.mean).square().mean().sqrt().clamp(min=1e-8))


class ImageEncoder(nn.Module):
    """Trunk (none for region features), projection of each region or grid cell, pooling over them."""

    def __init__(self, config: ImageConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.trunk, dim = build_trunk(config)
        self.input_norm = CenteredFeatures(dim) if config.input_norm == "center" else None
        self.dropout = nn.Dropout(config.dropout)
        self.projection = RegionProjection(dim, embed_dim, config.projection, config.norm)
        self.pooling = Pooling(config.pooling)
        self.output_dropout = nn.Dropout(config.output_dropout)

    def regions(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Projected regions (n, R, embed_dim) of features (n, R, dim) or pictures (n, 3, height, width)."""
        if self.trunk is not None:
            if image.dim() != 4:
                raise ItmError(
                    f"this model reads pictures (n, 3, height, width), the data has features {tuple(image.shape)}; "
                    "choose model.image.kind: regions"
                )
            image = self.trunk(image)
        elif image.dim() == 2:
            image = image.unsqueeze(1)
        if image.shape[-1] != self.projection.fc.in_features:
            raise ItmError(
                f"image features have size {image.shape[-1]}, this model reads {self.projection.fc.in_features}; "
                "use the data it was made for"
            )
        if self.input_norm is not None:
            image = self.input_norm(image)
        return self.projection(self.dropout(image), mask)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """One vector for each image, (n, embed_dim), not normalised."""
        return self.output_dropout(self.pooling(self.regions(image, mask), mask))


def build_trunk(config: ImageConfig) -> tuple[nn.Module | None, int]:
    """The network before the projection, and the size of a region that comes out of it."""
    if config.kind == "regions":
        if config.dim is None:
            raise ItmError("the size of a region feature is not known; set model.image.dim or name a data set")
        return None, config.dim
    if config.kind == "conv":
        trunk = ConvGrid(config.width, config.size)
        return trunk, trunk.dim
    if config.kind == "timm":
        grid = TimmGrid(config.timm_name, pretrained=config.pretrained)
        return grid, grid.dim
    vit = VitGrid(config.size, config.width)
    return vit, vit.dim


class ConvGrid(nn.Module):
    """A small convolutional network for small pictures: (n, 3, H, W) in [0, 1] -> a grid (n, H/16 * W/16, dim).

    Each cell is told where it lies by a learned position, so that "left of" can be learned.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        self.dim = channels[-1]
        blocks = []
        for before, after in pairwise(channels):
            blocks += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
        self.blocks = nn.Sequential(*blocks)
        cells = -(-size // 16)
        self.position = nn.Parameter(0.02 * torch.randn(1, self.dim, cells, cells))

    def forward(self, pictures: Tensor) -> Tensor:
        """Grid cells in raster order; positions are stretched to pictures of another size."""
        grid = self.blocks(pictures * 2 - 1)
        position = self.position
        if grid.shape[2:] != position.shape[2:]:
            position = interpolate(position, size=grid.shape[2:], mode="bilinear", align_corners=False)
        return (grid + position).flatten(2).transpose(1, 2)


class TimmGrid(nn.Module):
    """Any timm model that gives a feature map (n, dim, h, w) or tokens (n, R, dim)."""

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__()
        import timm

        if name not in timm.list_models():
            raise unknown_name("timm model", name, timm.list_models())
        try:
            self.model = timm.create_model(name, pretrained=pretrained, num_classes=0)
        except (OSError, RuntimeError) as error:
            raise ItmError(
                f"model.image.timm_name: {name} cannot be made ({' '.join(str(error).split())}); "
                "set model.image.pretrained: false where the network cannot be reached"
            ) from None
        self.dim = self.model.num_features

    def forward(self, pictures: Tensor) -> Tensor:
        """Grid cells in raster order, or the model's tokens."""
        try:
            features = self.model.forward_features(pictures)
        except AssertionError as error:  # timm's transformers check the size so
            raise ItmError(f"{tuple(pictures.shape[2:])} pixels do not fit this timm model: {error}") from None
        if features.dim() == 4:
            return features.flatten(2).transpose(1, 2)
        return features if features.dim() == 3 else features.unsqueeze(1)


def vit_heads(width: int) -> int:
    """Attention heads of 64 channels."""
    return max(1, width // 64)


class VitGrid(nn.Module):
    """LAVIS's vision transformer at a size of its own, from random weights: 16-pixel patches, six layers."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        from lavis.models.vit import VisionTransformer

        self.model = VisionTransformer(
            img_size=size, patch_size=16, embed_dim=width, depth=6, num_heads=vit_heads(width)
        )
        self.size, self.dim = size, width

    def forward(self, pictures: Tensor) -> Tensor:
        """Patch tokens, the class token first; raises ItmError for pictures of another size."""
        if pictures.shape[2:] != (self.size, self.size):
            raise ItmError(f"pictures have {tuple(pictures.shape[2:])} pixels; set model.image.size to that")
        return self.model(pictures)
