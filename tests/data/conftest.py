"""The small generated data set, built once."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.small_scenes import SMALL

from lavis_itm_plugins.data.scenes import build_scenes


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `SMALL`; tests that damage it copy it first."""
    return build_scenes(SMALL, tmp_path_factory.mktemp("cache"), progress=False)
