"""What the training loop asks of a model: losses, and hooks around epochs and steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from lavis.models.base_model import BaseModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from lavis_itm_plugins.distributed import gather_encoded, gather_rows
from lavis_itm_plugins.encoders.encoded import Encoded
from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.matchers.frames import need_image
from lavis_itm_plugins.methods.chunks import encode_captions, encode_images
from lavis_itm_plugins.resources import config_file

UNHEARD = 50  # steps in a row; a scaler that looks for its scale leaves out a few


def check_heard(arch: str, steps: float, still: str) -> None:
    """Raise ItmError when so many steps in a row told the model nothing: no queue would fill, no copy move."""
    if steps > UNHEARD:
        raise ItmError(f"{arch} was told of none of {UNHEARD} steps, so {still}; set run.runner: itm_runner")


class Trainable(BaseModel):
    """A LAVIS model with the hooks of our loop; a method overrides what it needs and leaves the rest."""

    arch: ClassVar[str]
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = {}

    @classmethod
    def default_config_path(cls, model_type: str) -> str:
        """Path of a model type's default YAML; raises ItmError with the nearest names."""
        if model_type not in cls.PRETRAINED_MODEL_CONFIG_DICT:
            raise unknown_name(f"model_type of {cls.arch}", str(model_type), cls.PRETRAINED_MODEL_CONFIG_DICT)
        return str(config_file(cls.PRETRAINED_MODEL_CONFIG_DICT[model_type]))

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Named scalars of one batch; every `loss_*` is summed into `loss`, the others are logged."""
        raise NotImplementedError("abstract")

    def forward(self, samples: Mapping[str, Any]) -> dict[str, Tensor]:
        """`losses` and their sum `loss`, as LAVIS's tasks expect."""
        need_image(samples)
        parts = self.losses(samples)
        total = sum(value for name, value in parts.items() if name.startswith("loss_"))
        return {"loss": total, **{name: value.detach() for name, value in parts.items()}}

    def before_training(self, context: Any) -> None:
        """Called once before the first epoch."""

    def before_epoch(self, epoch: int, context: Any) -> None:
        """Called before each epoch, on every rank."""

    def before_validation(self, context: Any) -> None:
        """Called after each epoch's steps, before the validation splits are scored, on every rank."""

    def after_step(self) -> None:
        """Called after each optimiser step that was taken."""

    def wrap_dataset(self, dataset: Dataset) -> Dataset:
        """The training data with what the method adds to each item; the length stays."""
        return dataset

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups; `lr_scale` multiplies the scheduled rate, `decay` says whether weight decay applies."""
        return parameter_groups(self, {})

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """Parameters whose gradients are clipped together."""
        return [[parameter for parameter in self.parameters() if parameter.requires_grad]]

    def evaluated(self) -> Any:
        """The matcher that is scored and deployed."""
        return self

    def write_assets(self, folder: Path) -> None:
        """Put what a person needs beside the checkpoint, such as the vocabulary, into the run folder."""


def parameter_groups(
    model: nn.Module, lr_scales: Mapping[str, float], *, leave_out: Collection[int] = ()
) -> list[dict[str, Any]]:
    """Trainable parameters by learning-rate factor and weight decay; vectors and biases are not decayed.

    `lr_scales` gives factors by prefix of the parameter's name, `leave_out` the `id` of parameters in other groups.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in leave_out:
            scale = next((value for prefix, value in lr_scales.items() if name.startswith(prefix)), 1.0)
            groups.setdefault((scale, parameter.ndim >= 2), []).append(parameter)
    return [{"params": params, "lr_scale": scale, "decay": decay} for (scale, decay), params in groups.items()]


def same_image(image_ids: Tensor) -> Tensor:
    """Positives (B, B) bool: True where two items carry the same image id.

    >>> same_image(torch.tensor([4, 7, 4])).int()
    tensor([[1, 0, 1],
            [0, 1, 0],
            [1, 0, 1]], dtype=torch.int32)
    """
    return image_ids[:, None] == image_ids[None, :]


def batch_image_ids(batch: Mapping[str, Any], device: torch.device) -> Tensor:
    """Image ids (B,) int64 of a batch, whatever collater made it."""
    return torch.as_tensor(batch["image_id"], device=device).view(-1)


@dataclass(frozen=True)
class EncodedBatch:
    """The batch of all ranks, encoded; `positives` (B, B) is None when every other item shall count as a negative."""

    images: Encoded
    captions: Encoded
    image_ids: Tensor
    positives: Tensor | None


def encode_batch(matcher: Any, batch: Mapping[str, Any], chunk: int | None = None) -> EncodedBatch:
    """Encode this rank's part with a matcher and gather the others'; `chunk` as in `encode_images`."""
    images = gather_encoded(encode_images(matcher, batch, chunk))
    captions = gather_encoded(encode_captions(matcher, batch["text_input"], chunk))
    image_ids = gather_rows(batch_image_ids(batch, matcher.device))
    return EncodedBatch(images, captions, image_ids, same_image(image_ids))
