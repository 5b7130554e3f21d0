"""The shipped comparisons: each row names a project that exists, and rows to start from and to compare with."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality import Plan, Row, Runs, chosen, gain, read_plan, table

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


def test_some_rows_bring_what_they_start_from_and_are_compared_with_what_is_there(tmp_path):
    """A row without its start would be waited for without an end."""
    rows = [Row("plain", "x", []), Row("goes on", "x", [], after="plain"), Row("other", "x", [])]
    plan = Plan("plan", "plain", rows)
    assert [row.name for row in chosen(plan, ["goes on"]).rows] == ["plain", "goes on"]
    with pytest.raises(SystemExit, match="plan has no row 'othr'; give some of plain, goes on, other"):
        chosen(plan, ["othr"])
    runs = Runs(tmp_path, "data", [])
    for name, rsums in {"plain": (1.0, 3.0), "other": (2.0, 4.0)}.items():
        for seed, rsum in enumerate(rsums):
            folder = runs.path(name, seed)
            folder.mkdir()
            (folder / "config.yaml").write_text("run: {max_epoch: 1}")
            (folder / "metrics.jsonl").write_text(f'{{"split": "val", "epoch": 1, "rsum": {rsum}}}\n')
    assert table(chosen(plan, ["other"]), runs, [0, 1]).splitlines()[2:] == [
        "| other | 2.0 4.0 | 3.0 (1.4) | +1.0 (1.4; 0.0) |"
    ]
