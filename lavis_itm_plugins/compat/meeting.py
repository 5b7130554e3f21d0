"""The start of several processes: they meet within minutes, or say who is missing."""

from __future__ import annotations

import os
import re
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lavis_itm_plugins.errors import ItmError

START_TIMEOUT = 300.0
VARIABLE = "LAVIS_ITM_START_TIMEOUT"
LOOK_EVERY = 0.05


def meet(rank: int, size: int, url: str = "env://") -> Any:
    """The store that all processes have reached.

    Raises ItmError, with how many of how many came, when one is missing after `LAVIS_ITM_START_TIMEOUT` seconds
    (default 300).
    """
    seconds = start_timeout()
    deadline, arrived = time.monotonic() + seconds, 0
    try:
        store, _, _ = next(dist.rendezvous(url, rank, size, timeout=timedelta(seconds=seconds)))
        store = dist.PrefixStore(f"lavis_itm/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        arrived = store.add("arrived", 1)
        while arrived < size and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)
            arrived = store.add("arrived", 0)
    except dist.DistError as error:
        # torch's store also waits for everybody on the first rank, and counts in its message
        joined = re.search(r"(\d+)/\d+ clients joined", str(error))
        arrived = int(joined[1]) if joined else arrived
    if arrived < size:
        raise ItmError(_missing(rank, size, arrived, seconds))
    return store


def start_timeout() -> float:
    """Seconds to wait for the other processes at the start."""
    given = os.environ.get(VARIABLE, "")
    try:
        seconds = float(given or START_TIMEOUT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ItmError(f"{VARIABLE} is {given!r}; give a number of seconds above 0")
    return seconds


def _missing(rank: int, size: int, arrived: int, seconds: float) -> str:
    address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    if not arrived:
        came = f"process {rank} of {size} did not reach the first one at {address}"
    else:
        came = f"only {arrived} of {size} processes have come to {address}"
    return (
        f"{came} within {seconds:g} s; check that every process was started, with the same MASTER_ADDR, MASTER_PORT "
        f"and WORLD_SIZE, or set {VARIABLE} to wait longer"
    )
