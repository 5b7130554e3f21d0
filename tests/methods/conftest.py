"""What the tests of a method on one batch, and of whole runs of itm_aoq, start from; each asks for it by name."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from methods.dbl_batch import plain_matcher
from methods.runs import plain_run

from lavis_itm_plugins.config.load import ProjectConfig
from lavis_itm_plugins.data.precomp import read_precomp
from lavis_itm_plugins.mining import HardNegatives
from lavis_itm_plugins.mining.sampling import QuintupleSampler


@pytest.fixture
def configuration(tmp_path):
    """A project that is configured, as a run configures it: a matcher's vocabulary is made of its data."""
    root = tiny.write_precomp(tmp_path / "data")
    return ProjectConfig(tiny.write_project(tmp_path / "x.yaml", tiny.project(root, tmp_path)))


@pytest.fixture
def anchor(configuration, tmp_path):
    """A checkpoint of a plain matcher, and the matcher."""
    torch.manual_seed(5)
    matcher = plain_matcher().eval()
    torch.save({"model": matcher.state_dict()}, tmp_path / "anchor.pth")
    return matcher, str(tmp_path / "anchor.pth")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """A training split in the SCAN layout."""
    return read_precomp(tiny.write_precomp(tmp_path_factory.mktemp("data")), "train")


@pytest.fixture(scope="module")
def sampler(split):
    """Lists in which both mined items of a caption are often of one image."""
    rng = np.random.default_rng(0)
    owners = np.asarray(split.caption_image)
    captions = np.stack([rng.permutation(np.flatnonzero(owners != image))[:4] for image in range(24)])
    images = np.stack([owners[captions[image]][:3] for image in owners])
    empty = np.zeros((0, 0))
    return QuintupleSampler(HardNegatives(captions, images, empty, empty, empty), owners)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, and the run `plain` of round one."""
    return plain_run(tmp_path_factory.mktemp("aoq"))


@pytest.fixture
def as_before():
    """A run asks torch for deterministic algorithms; the next test has any again."""
    yield
    torch.use_deterministic_algorithms(False)
