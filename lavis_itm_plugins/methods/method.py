"""What every training method is: a LAVIS model that holds a matcher, trains it its own way, and gives it back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from lavis_itm_plugins.checkpoints import read_checkpoint
from lavis_itm_plugins.config.schema import parse, setting
from lavis_itm_plugins.config.source import merged, where
from lavis_itm_plugins.errors import ItmError, unknown_name
from lavis_itm_plugins.matchers.base import DESCRIPTION, LAVIS_KEYS, Matcher, load_strictly, starting_weights
from lavis_itm_plugins.methods.base import EncodedBatch, Trainable, encode_batch, parameter_groups
from lavis_itm_plugins.methods.base_loss import BaseLoss
from lavis_itm_plugins.registry import registered

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MethodConfig:
    """Keys of the `model` section that every method has."""

    matcher: dict[str, Any] = setting({}, help="the matcher's section: arch, model_type and its own keys")
    base_loss: BaseLoss | None = setting(None, help="the plain matching loss; the matcher's own when not given")
    official: bool = setting(False, help="as the paper's code: other captions of an image count as negatives")


class Method(Trainable):
    """One published training method over any matcher; its deployed part is `evaluated()`.

    A subclass sets `arch`, `config_class` and `PRETRAINED_MODEL_CONFIG_DICT`, and writes `setup` and `losses`. The
    state dictionary describes itself, as a matcher's does: the entries below `matcher.` load as the matcher alone.
    """

    config_class: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: Any, matcher: Matcher | None = None, stored: Mapping[str, Any] | None = None) -> None:
        """With `config` None it is built by the first checkpoint that is loaded; `stored` is its extra state."""
        super().__init__()
        self.config = config
        if config is not None:
            self._hold(matcher, stored or {})

    def _hold(self, matcher: Matcher | None, stored: Mapping[str, Any]) -> None:
        self.matcher = matcher
        self.setup(stored)

    def setup(self, stored: Mapping[str, Any]) -> None:
        """Make the method's own modules from `self.config` and `self.matcher`.

        `stored` is the extra state of the checkpoint that will be loaded, or empty on a fresh start.
        """

    def renew_copies(self) -> None:
        """Called when the matcher alone got a checkpoint's weights: renew what was copied from it."""

    def encoded(self, batch: Mapping[str, Any]) -> EncodedBatch:
        """The batch of all ranks through the matcher; no positives are marked under `official`."""
        encoded = encode_batch(self.matcher, batch)
        return replace(encoded, positives=None) if self.config.official else encoded

    def after_step(self) -> None:
        """Pass the hook on to the matcher."""
        self.matcher.after_step()

    def param_groups(self) -> list[dict[str, Any]]:
        """The matcher's groups, with its learning-rate factors, and the method's other parameters."""
        groups = self.matcher.param_groups()
        known = {id(parameter) for group in groups for parameter in group["params"]}
        return groups + parameter_groups(self, {}, leave_out=known)

    def evaluated(self) -> Any:
        """The trained matcher."""
        return self.matcher.evaluated()

    def write_assets(self, folder: Path) -> None:
        """Write the matcher's assets into the run folder."""
        self.matcher.write_assets(folder)

    @torch.no_grad()
    def compute_sim_matrix(self, data_loader: Any, task_cfg: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """LAVIS's contract, for what is evaluated: scores (n_images, n_captions) and their transpose."""
        return self.evaluated().compute_sim_matrix(data_loader, task_cfg)

    @property
    def device(self) -> torch.device:
        """Where the matcher is; the CPU before it is built."""
        return self.matcher.device if self.config is not None else torch.device("cpu")

    @classmethod
    def parse_config(cls, cfg: Any, section: str = "model") -> Any:
        """The section as `config_class`, its matcher with every default; raises ItmError for what does not fit."""
        config = parse(cls.config_class, cfg, where(section), ignore=LAVIS_KEYS)
        matcher = resolve_matcher(config.matcher, config.base_loss, f"{section}.matcher")
        return replace(config, matcher=matcher, base_loss=matcher_class(matcher).parse_config(matcher).base_loss)

    @classmethod
    def from_config(cls, cfg: Any) -> Method:
        """Build from a `model` section; `finetuned` may be a checkpoint of this method or of a matcher alone."""
        config = cls.parse_config(cfg)
        weights = starting_weights(cfg)
        stored = _stored(read_checkpoint(weights), cls.arch) if weights else None
        model = cls(config, build_matcher(config.matcher, weights=weights), stored)
        if stored:
            model.load_checkpoint(weights)
        return model

    @classmethod
    def from_pretrained(cls, model_type: str) -> Method:
        """An unbuilt method for `load_model(..., checkpoint=...)`."""
        cls.default_config_path(model_type)
        return cls(None)

    def load_checkpoint(self, url_or_filename: str | Path) -> Any:
        """Load a checkpoint of this method, whole, or the matcher alone from another's.

        Raises ItmError when the file does not fit.
        """
        source, checkpoint = str(url_or_filename), read_checkpoint(url_or_filename)
        stored = _stored(checkpoint, self.arch)
        if self.config is None:
            if stored is None:
                raise ItmError(f"{source} holds no {self.arch}; load it under the name of what it holds")
            config = parse(self.config_class, stored["config"], source)
            matcher = matcher_class(config.matcher)(None)
            matcher.load_checkpoint(url_or_filename)
            self.config = config
            self._hold(matcher, stored)
        if stored is None:
            message = self.matcher.load_checkpoint(url_or_filename)
            self.renew_copies()
            return message
        return load_strictly(self, checkpoint.get("model", checkpoint), source)

    def get_extra_state(self) -> dict[str, Any]:
        """What the checkpoint says of the method: plain types only; a subclass adds what `setup` needs to know."""
        return {"arch": self.arch, "config": asdict(self.config) if self.config else None}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Nothing: `setup` had it already."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As every module, but a method that was never built says so."""
        if self.config is None:
            raise ItmError(f"this {self.arch} has no weights yet; load a checkpoint, or build it from a config")
        return nn.Module.__call__(self, *args, **kwargs)


def resolve_matcher(section: Mapping[str, Any], base_loss: BaseLoss | None, section_name: str) -> dict[str, Any]:
    """A matcher's section with the defaults of its model type and class, checked."""
    network = matcher_class(section, section_name)
    model_type = section.get("model_type") or next(iter(network.PRETRAINED_MODEL_CONFIG_DICT))
    try:
        defaults = OmegaConf.load(network.default_config_path(str(model_type)))
    except ItmError as error:
        raise ItmError(f"{where(section_name)}.model_type: {error}") from None
    # OmegaConf's sections below the first level are no dictionaries, and would hide the defaults
    given = OmegaConf.to_container(OmegaConf.create(dict(section)), resolve=True)
    whole = merged(OmegaConf.to_container(defaults)["model"], given)
    if base_loss is not None:
        whole["base_loss"] = asdict(base_loss)
    config = network.parse_config(OmegaConf.create(whole), section_name)
    weights = {key: whole[key] for key in LAVIS_KEYS if key in whole}
    return {**weights, "arch": network.arch, "model_type": str(model_type), **asdict(config)}


def matcher_class(section: Mapping[str, Any], section_name: str = "model.matcher") -> type[Matcher]:
    """The registered matcher that a section names; raises ItmError with the nearest name."""
    matchers = {
        name: model
        for name, model in registered("model").items()
        if isinstance(model, type) and issubclass(model, Matcher)
    }
    arch = section.get("arch")
    if arch not in matchers:
        raise ItmError(f"{where(section_name)}.arch: {unknown_name('matcher', str(arch), matchers)}")
    return matchers[arch]


def build_matcher(section: Mapping[str, Any], *, weights: str | None = None) -> Matcher:
    """A matcher of a checked section, from `weights` when they are given, else from the section's own `finetuned`."""
    given = {"finetuned": weights, "load_finetuned": True} if weights else {}
    return matcher_class(section).from_config(OmegaConf.create({**section, **given}))


def _stored(checkpoint: Mapping[str, Any], arch: str) -> Mapping[str, Any] | None:
    """The extra state of a method's checkpoint; None when it is another's."""
    described = checkpoint.get("model", checkpoint).get(DESCRIPTION)
    return described if described and described["arch"] == arch else None
