"""How benchmarks measure memory: the most of a piece of work above what was there before it, on Linux."""

from __future__ import annotations

import ctypes
import os
import resource
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch


def most_memory(act: Callable[[], object]) -> int:
    """Bytes that `act()` needs above its start, on one thread, measured in a forked process."""
    # memory that is free but kept would be used again, and not counted
    ctypes.CDLL(None).malloc_trim(0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # a fork has none of its parent's other threads, and OpenMP would wait for them
            torch.set_num_threads(1)
            before = _most_resident()
            act()
            os.write(writer, str(_most_resident() - before).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as told:
        assert status == 0, f"the measured process ended with {os.waitstatus_to_exitcode(status)}"
        return int(told.read())


def _most_resident() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes() -> int:
    """Memory of this process now, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class PeakMemory:
    """The most memory of this process within a `with` block, above what it had before."""

    def __enter__(self) -> PeakMemory:
        self.running = True
        self.before = self.peak = resident_bytes()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, resident_bytes())
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()

    @property
    def extra(self) -> int:
        return self.peak - self.before
