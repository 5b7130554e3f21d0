"""Fixtures that more than one test folder uses."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the specifications, golden files and real data; tests that need it are skipped without it."""
    folder = Path(os.environ.get("ITM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set ITM_SHARED")
    return folder
