"""Fixtures that more than one test folder uses."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the specifications, golden files and real data; tests that need it are skipped without it."""
    folder = Path(os.environ.get("ITM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set ITM_SHARED")
    return folder


@pytest.fixture(autouse=True)
def no_run_goes_on() -> Iterator[None]:
    """LAVIS keeps the configuration of the last run of a process; errors of the next test would name its file."""
    yield
    if "lavis.common.registry" in sys.modules:
        sys.modules["lavis.common.registry"].registry.unregister("configuration")
