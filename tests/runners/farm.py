"""Runs `lavis-itm`, or a script, in forked children of one process that has imported LAVIS: no run costs an import.

As a script it is that process: it reads a command as a line of JSON, forks, and answers with the child's exit status.
A child can be told to send itself a signal at the n-th call of a function, or in the middle of the n-th checkpoint.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Farm:
    """`run(arguments, event=, call=, stop=)`: exit code and output of one command; negative codes are signals.

    With `script=` the arguments are those of a Python file, such as LAVIS's train.py.
    """

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        event: str | None = None,
        call: int = 1,
        stop: str = "SIGKILL",
        script: str | None = None,
        **environment: str,
    ) -> tuple[int, str]:
        request = {"arguments": list(map(str, arguments)), "log": str(log), "environment": environment}
        request.update(event=event, call=call, stop=stop, script=script)
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the farm ended"
        return int(answer), log.read_text()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


def serve() -> None:
    import lavis  # noqa: F401  brings our names, as in any process of a person's

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run_child(request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    # taking LAVIS's modules apart would cost seconds
    os._exit(0)


def run_child(request: dict[str, Any]) -> None:
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["environment"])
    if request["event"]:
        at_call(EVENTS[request["event"]], request["call"], send(request["stop"]))
    code = 1
    try:
        code = run_script(request["script"], request["arguments"]) if request["script"] else run_command(request)
    except SystemExit as error:
        code = error.code
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_command(request: dict[str, Any]) -> int:
    """`lavis-itm` with these arguments."""
    from lavis_itm_plugins.cli.main import main

    return main(request["arguments"])


def run_script(script: str, arguments: list[str]) -> int:
    """The file as a person starts it."""
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    return 0


def send(stop: str) -> Callable[[], None]:
    """What stops the run: SIGKILL or SIGTERM to this process, or GROUP, a SIGTERM to it and its workers."""
    if stop == "GROUP":
        # sent by a third process, as torchrun and cluster managers do
        return lambda: subprocess.run(["kill", "-TERM", "--", f"-{os.getpgid(0)}"], check=False)
    return lambda: os.kill(os.getpid(), getattr(signal, stop))


def at_call(install: Callable[[Callable[[], None]], None], number: int, act: Callable[[], None]) -> None:
    """Count the calls of what `install` watches, and act at the one with this number."""
    calls = 0

    def counted() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            act()

    install(counted)


def before_batch(counted: Callable[[], None]) -> None:
    """Before a batch is computed."""
    from lavis_itm_plugins.runners import loop

    stock = loop._Stepper.accumulate
    loop._Stepper.accumulate = lambda *given: (counted(), stock(*given))[1]


def after_metrics(counted: Callable[[], None]) -> None:
    """After a line of metrics is on the disk: the first of an epoch stands between training and validation."""
    from lavis_itm_plugins.runners.folder import RunFolder

    stock = RunFolder.add_metrics
    RunFolder.add_metrics = lambda *given: (stock(*given), counted())[0]


def within_write(counted: Callable[[], None]) -> None:
    """When half of the first kilobytes of a checkpoint are on the disk."""
    import torch

    stock = torch.save

    class Counting:
        def __init__(self, file: Any) -> None:
            self.file, self.written, self.told = file, 0, False

        def write(self, data: Any) -> int:
            self.written += len(data)
            if self.written > 2000 and not self.told:
                self.file.flush()
                self.told = True
                counted()
            return self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    torch.save = lambda content, file: stock(content, Counting(file))


def before_rename(counted: Callable[[], None]) -> None:
    """Before checkpoint_last gets its name, when the one before has made room for it."""
    stock = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "checkpoint_last.pth":
            counted()
        stock(source, target)

    os.replace = replace


EVENTS = {"batch": before_batch, "metrics": after_metrics, "write": within_write, "rename": before_rename}

if __name__ == "__main__":
    serve()
