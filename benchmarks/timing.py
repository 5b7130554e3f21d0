"""How benchmarks measure: the fastest of several runs, since other jobs on the machine only ever add."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def fastest(act: Callable[[], Any], repeats: int = 1) -> tuple[float, float, Any]:
    """CPU seconds and seconds by the clock of the fastest run, and its result."""
    best, result = (float("inf"), float("inf")), None
    for _ in range(repeats):
        start = time.process_time(), time.perf_counter()
        result = act()
        best = min(best, (time.process_time() - start[0], time.perf_counter() - start[1]))
    return *best, result


def cpu_seconds(act: Callable[[], Any], repeats: int) -> float:
    """CPU seconds of the fastest run."""
    return fastest(act, repeats)[0]
