"""LAVIS's networks at their smallest, and the words they read; data in the SCAN layout; a process without a project."""

from __future__ import annotations

import lavis_tiny
import pytest
import tiny
import torch
from omegaconf import OmegaConf

from lavis_itm_plugins.registry import registered


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A vocabulary in a folder of its own."""
    return lavis_tiny.write_words(tmp_path_factory.mktemp("words"))


@pytest.fixture
def make(words):
    """`make("blip", seed=0, objective="itc", ...)`: a random `itm_blip`, its momentum towers the same."""

    def build(network, seed=0, **keys):
        torch.manual_seed(seed)
        model = registered("model")[f"itm_{network}"].from_config(
            OmegaConf.create(lavis_tiny.section(network, words, **keys))
        )
        with torch.no_grad():
            # LAVIS starts biases at 0 and norms at 1, behind which mistakes hide
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
            if hasattr(model.network, "temp"):
                model.network.temp.fill_(0.07)
            if hasattr(model.network, "visual_encoder_m"):
                for name in ("visual_encoder", "text_encoder", "vision_proj", "text_proj"):
                    own, copy = getattr(model.network, name), getattr(model.network, f"{name}_m")
                    for ours, theirs in zip(own.parameters(), copy.parameters(), strict=True):
                        theirs.copy_(ours)
        return model

    return build


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Region features and captions; no test changes them."""
    return tiny.write_precomp(tmp_path_factory.mktemp("data"))
