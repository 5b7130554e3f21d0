"""The shipped comparisons: each row names a project that exists, and rows to start from and to compare with."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality import Runs, gain, read_plan

ROOT = Path(__file__).parent.parent
PLANS = sorted((ROOT / "benchmarks" / "plans").glob("*.yaml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_rows_of_a_plan_exist(path):
    plan = read_plan(path)
    names = [row.name for row in plan.rows]
    assert plan.reference in names and len(set(names)) == len(names)
    for row in plan.rows:
        assert (ROOT / row.project).is_file()
        assert row.after in (None, *names) and row.reference in (None, *names)
        assert all("=" in option for option in row.options)


def test_a_run_made_with_other_settings_is_refused(tmp_path):
    row = read_plan(PLANS[0]).rows[0]
    row = type(row)(row.name, str(ROOT / row.project), row.options)
    runs = Runs(tmp_path, "data", [])
    (tmp_path / f"{runs.path(row.name, 1).name}.json").write_text('{"project": "another"}')
    with pytest.raises(SystemExit, match="made with other settings"):
        runs.check(row, 1)


def test_gain_and_its_standard_errors():
    assert gain([2.0, 4.0], [1.0, 1.0], 1) == "+2.0 (1.0; 1.0)"
    # the same difference with each seed
    assert gain([2.0, 4.0], [1.0, 3.0], 1) == "+1.0 (1.4; 0.0)"
    assert gain([2.0], [1.0], 1) == "+1.0"
