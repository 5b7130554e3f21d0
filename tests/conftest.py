"""Fixtures that more than one test folder uses."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, register_random, settings

# a busy machine is no fault of the code; CI repeats the same examples, a person's machine looks for new ones
settings.register_profile(
    "project", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the specifications, golden files and real data; tests that need it are skipped without it."""
    folder = Path(os.environ.get("ITM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set ITM_SHARED")
    return folder


@pytest.fixture(scope="session")
def farm() -> Iterator:
    """Runs commands in killable children."""
    from runners.farm import Farm

    running = Farm()
    yield running
    running.close()


class TorchRandom:
    """What hypothesis seeds before each example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


# hypothesis keeps no reference of its own
TORCH_RANDOM = TorchRandom()
register_random(TORCH_RANDOM)


@pytest.fixture(autouse=True)
def draws_repeat() -> None:
    """Tensors that a test draws without a seed are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_run_goes_on() -> Iterator[None]:
    """LAVIS keeps the configuration of the last run of a process; errors of the next test would name its file."""
    yield
    if "lavis.common.registry" in sys.modules:
        sys.modules["lavis.common.registry"].registry.unregister("configuration")
