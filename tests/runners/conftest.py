"""A tiny project, and a way to train it in this process."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features in the SCAN layout, with a test split."""
    return tiny.write_precomp(tmp_path_factory.mktemp("data"), test=8)


@pytest.fixture
def project(data: Path, tmp_path: Path) -> SimpleNamespace:
    """A project file whose runs go to `tmp_path/runs`, as content that a test may change before `write()`."""
    content = tiny.project(data, tmp_path / "runs", test_splits=["test"], itm={"run_name": "a"})
    path = tmp_path / "project.yaml"
    return SimpleNamespace(
        content=content,
        run=content["run"],
        itm=content["run"]["itm"],
        model=content["model"],
        folder=tmp_path / "runs" / "a",
        write=lambda: tiny.write_project(path, content),
    )


@pytest.fixture
def train(project: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> Iterator:
    """`train("key=value", ...)`: the runner of the project after it has run; the log is in `caplog`."""
    caplog.set_level(logging.INFO)

    def run(*options: str):
        from lavis_itm_plugins.train import run_training

        return run_training(project.write(), options)

    yield run
    import torch

    torch.use_deterministic_algorithms(False)


@pytest.fixture
def refused(project: SimpleNamespace, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """`refused("--options", "key=value", ...)`: the sentence with which `lavis-itm train` ends, with exit code 2."""

    def run(*arguments: str, config: bool = True) -> str:
        from lavis_itm_plugins.cli.main import main

        path = ["--cfg-path", str(project.write())] if config else []
        capsys.readouterr()
        assert main(["train", *path, *arguments]) == 2
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        [sentence] = [line for line in errors.splitlines() if line.startswith("error: ")]
        return sentence.removeprefix("error: ")

    return run
