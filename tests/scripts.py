"""Runs a script that stands beside a test: what other processes compute, such as two ranks."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def environment(**more: str) -> dict[str, str]:
    """One thread, no warnings, and the tests' own modules."""
    places = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places, "PYTHONWARNINGS": "ignore", **more}


def run_script(name: str, *arguments: object, timeout: float = 280, **more: str) -> None:
    """Run `tests/NAME` to its end; `more` goes into its environment."""
    command = [sys.executable, str(TESTS / name), *map(str, arguments)]
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
