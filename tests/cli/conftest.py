"""A tiny data set, and the commands run on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import yaml
from cli.failures import edited, failure

from lavis_itm_plugins.cli.main import main


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tiny.write_precomp(tmp_path_factory.mktemp("data"))


@pytest.fixture
def attempt(root, tmp_path, monkeypatch, capsys):
    """`attempt(*options, **{"run.task": value})`: train the tiny project, changed; the error, after its checks."""
    monkeypatch.chdir(tmp_path)

    def run(*options, command=None, content=None, **changes):
        if content is None:
            content = yaml.safe_dump(edited(tiny.project(root, tmp_path / "runs"), changes))
        Path("x.yaml").write_text(content, encoding="utf-8")
        arguments = ["train", "--cfg-path", "x.yaml", *(["--options", *options] if options else [])]
        return failure(capsys, arguments if command is None else command, tmp_path / "runs")

    return run


@pytest.fixture
def data(capsys):
    """`data("verify", ...)`: exit code, printed text, and what was printed as an error."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["data", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, "".join(line for line in err.splitlines(True) if line.startswith("error:"))

    return run
