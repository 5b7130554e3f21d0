"""How a command ends that fails, and projects changed so that it does."""

from __future__ import annotations

from lavis_itm_plugins.cli.main import main


def edited(content, changes):
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = content
        for name in parents:
            node = node.setdefault(name, {})
        if value is None:
            del node[last]
        else:
            node[last] = value
    return content


def failure(capsys, arguments, runs=None):
    """The sentence that a command ends with; nothing was written, and no traceback is shown."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert code == 2 and last.startswith("error: "), printed.err
    assert "Traceback" not in printed.err and "error: " not in printed.out
    assert runs is None or not runs.exists()
    return last.removeprefix("error: ")
