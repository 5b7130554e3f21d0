"""The memory that benchmarks tell is what work needs, also where torch has threads already."""

import subprocess
import sys
from pathlib import Path

MEASURE = """
import signal

import torch
from benchmarks.memory import most_memory

def work():
    # a process that waits for ever ends itself
    signal.alarm(30)
    return torch.nn.functional.normalize(torch.ones(1024, 16 * 1024), dim=1)

torch.set_num_threads(2)
work()
print(most_memory(work))
"""


def test_a_forked_process_measures_where_the_parent_has_threads():
    # the ones, their squares' norms and the quotient: at least twice 64 MB, and no more than a few copies
    found = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert 2 * 2**26 <= int(found.stdout) < 5 * 2**26
