"""Runs a short script in a Python of its own: what an import does can only be seen in a fresh process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]

TWO_MODULES = {
    "probe_model.py": """
from lavis.models.base_model import BaseModel
from lavis_itm_plugins.registry import register_model

@register_model("probe_model")
class ProbeModel(BaseModel):
    PRETRAINED_MODEL_CONFIG_DICT = {"tiny": "/nowhere.yaml"}
""",
    "probe_task.py": """
from lavis.tasks.base_task import BaseTask
from lavis_itm_plugins.probe_model import ProbeModel
from lavis_itm_plugins.registry import register_task

@register_task("probe_task")
class ProbeTask(BaseTask):
    model = ProbeModel
""",
}


@pytest.fixture
def run_python(tmp_path: Path) -> Run:
    """`run_python(script or list of arguments, NAME=value)`: the finished process, its output as text."""

    def run(what: str | list[str], **environment: str) -> subprocess.CompletedProcess:
        arguments = ["-c", what] if isinstance(what, str) else what
        inherited = {key: value for key, value in os.environ.items() if key not in ("LAVIS_ITM_AUTOLOAD", "PYTHONPATH")}
        settings = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::FutureWarning", **environment}
        return subprocess.run(
            [sys.executable, *arguments],
            env={**inherited, **settings},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture
def probe(tmp_path: Path) -> str:
    """First lines of a script: two throw-away modules in our package, to be registered in place of the real ones."""
    for name, source in TWO_MODULES.items():
        (tmp_path / name).write_text(source)
    return f"""
import lavis_itm_plugins
lavis_itm_plugins.__path__.append({str(tmp_path)!r})
from lavis_itm_plugins import registration
registration.MODULES = ("lavis_itm_plugins.probe_task", "lavis_itm_plugins.probe_model")
"""
