"""What training methods gain over a plain recipe of the same matcher: every row of a plan, over several seeds.

A plan (benchmarks/plans/*.yaml) names a project and the options of each row. Runs that are complete are not repeated,
so an interrupted comparison goes on where it stopped; one made with other settings is refused. Prints mean and
standard deviation of the dev metrics at the last epoch over the seeds, and the gain over a reference row with its
standard errors.
Run ``python -m benchmarks.quality benchmarks/plans/dbl_triplet.yaml --root DATA --seeds 1 2 3 [--jobs 2]``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


@dataclass(frozen=True)
class Row:
    """One setting: a project file, its options, and the row whose run it starts from (`{after}` in an option)."""

    name: str
    project: str
    options: list[str]
    after: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Plan:
    """Rows that are compared by `metrics`, each with its own reference row, else with the plan's."""

    name: str
    reference: str
    rows: list[Row]
    metrics: list[str] = field(default_factory=lambda: ["rsum"])


def read_plan(path: Path) -> Plan:
    """The plan of a YAML file; `common` options come before a row's own."""
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    rows = [
        Row(
            name,
            row["project"],
            [*content.get("common", []), *row.get("options", [])],
            row.get("after"),
            row.get("reference"),
        )
        for name, row in content["rows"].items()
    ]
    return Plan(path.stem, content["reference"], rows, content.get("metrics", ["rsum"]))


def chosen(plan: Plan, names: list[str]) -> Plan:
    """The plan with these rows, and those whose runs they start from."""
    rows = {row.name: row for row in plan.rows}
    kept: set[str] = set()
    for name in names:
        start: str | None = name
        while start is not None and start not in kept:
            if start not in rows:
                raise SystemExit(f"{plan.name} has no row {start!r}; give some of {', '.join(rows)}")
            kept.add(start)
            start = rows[start].after
    return replace(plan, rows=[row for row in plan.rows if row.name in kept])


@dataclass(frozen=True)
class Runs:
    """Where the runs of a plan are, and how they are made."""

    folder: Path
    root: str
    common: list[str]

    def path(self, row: str, seed: int) -> Path:
        return self.folder / f"{row.replace(' ', '_').replace('/', '-')}-s{seed}"

    def last(self, row: str, seed: int) -> dict[str, float] | None:
        """Dev metrics after the last epoch; None while the run is not complete."""
        folder = self.path(row, seed)
        if not (folder / "metrics.jsonl").exists():
            return None
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        epochs = OmegaConf.load(folder / "config.yaml").run.max_epoch
        done = [line for line in lines if line["split"] == "val" and line["epoch"] == epochs]
        return done[-1] if done else None

    def make(self, row: Row, seed: int) -> float:
        """Train one row with one seed in a process of its own; gives back its seconds."""
        started, folder = time.monotonic(), self.path(row.name, seed)
        made_with = folder.parent / f"{folder.name}.json"
        made_with.parent.mkdir(parents=True, exist_ok=True)
        made_with.write_text(json.dumps(self.settings(row, seed), indent=1))
        begun = folder / "checkpoint_last.pth"
        resume = ["--resume", str(begun)] if begun.exists() else []
        command = [sys.executable, "-m", "lavis_itm_plugins.cli.main", "train", "--cfg-path", row.project, *resume]
        done = subprocess.run(
            [*command, "--options", *self.options(row, seed)],
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{row.name}, seed {seed}: {done.stderr.strip()[-2000:]}")
        return time.monotonic() - started

    def options(self, row: Row, seed: int) -> list[str]:
        """What the row's run is made with, beside its project file."""
        folder, after = self.path(row.name, seed), "" if row.after is None else str(self.path(row.after, seed))
        own = [option.replace("{after}", after) for option in row.options]
        where = [f"run.output_dir={folder.parent}", f"run.itm.run_name={folder.name}", f"run.seed={seed}"]
        return [f"datasets.itm_precomp.root={self.root}", *where, *own, *self.common]

    def settings(self, row: Row, seed: int) -> dict[str, Any]:
        """What tells a run from one of another plan of the same name."""
        return {"project": Path(row.project).read_text(encoding="utf-8"), "options": self.options(row, seed)}

    def check(self, row: Row, seed: int) -> None:
        """Refuse a run that was made with other settings: its figures would count as this plan's."""
        folder = self.path(row.name, seed)
        made_with = folder.parent / f"{folder.name}.json"
        if made_with.exists() and json.loads(made_with.read_text()) != self.settings(row, seed):
            raise SystemExit(f"{folder} was made with other settings; remove it, or give another --output-dir")


def complete(plan: Plan, runs: Runs, seeds: list[int], jobs: int) -> None:
    """Make every run that is missing, `jobs` at a time, a row only after the one that it starts from."""
    for row in plan.rows:
        for seed in seeds:
            runs.check(row, seed)
    waiting = [(row, seed) for seed in seeds for row in plan.rows if runs.last(row.name, seed) is None]
    print(f"{plan.name}: {len(waiting)} of {len(plan.rows) * len(seeds)} runs to do", flush=True)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running: dict[concurrent.futures.Future[float], tuple[Row, int]] = {}
        while waiting or running:
            for row, seed in list(waiting):
                ready = row.after is None or runs.last(row.after, seed) is not None
                if ready and len(running) < jobs:
                    waiting.remove((row, seed))
                    running[pool.submit(runs.make, row, seed)] = row, seed
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                row, seed = running.pop(future)
                value = (runs.last(row.name, seed) or {}).get(plan.metrics[0], math.nan)
                print(f"  {row.name}, seed {seed}: {value:.2f} in {future.result():.0f} s", flush=True)


def table(plan: Plan, runs: Runs, seeds: list[int]) -> str:
    """Markdown: each metric's mean and standard deviation, and its gain over the row's reference."""
    names = {name for row in plan.rows for name in (row.name, row.reference or plan.reference)}
    values = {name: [runs.last(name, seed) or {} for seed in seeds] for name in names}
    head = [part for metric in plan.metrics for part in (f"{metric}, mean (sd)", "gain (standard error; paired)")]
    lines = [f"| row | {plan.metrics[0]} by seed | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
    for row in plan.rows:
        reference = row.reference or plan.reference
        by_seed = " ".join(f"{result.get(plan.metrics[0], math.nan):.1f}" for result in values[row.name])
        cells = []
        for metric in plan.metrics:
            digits = 1 if metric.endswith("sum") else 3
            own, base = ([result.get(metric, math.nan) for result in values[name]] for name in (row.name, reference))
            spread = statistics.stdev(own) if len(own) > 1 else math.nan
            cells += [f"{statistics.mean(own):.{digits}f} ({spread:.{digits}f})"]
            cells += ["" if row.name == reference else gain(own, base, digits)]
        over = f" (over {row.reference})" if row.reference else ""
        lines.append(f"| {row.name}{over} | {by_seed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gain(values: list[float], base: list[float], digits: int) -> str:
    """Difference of the means, and its standard error: as of independent runs (Welch), and of the seeds' differences.

    Runs of one seed share initial weights and the order of batches, so the second is the fairer, from few seeds.
    """
    difference = f"{statistics.mean(values) - statistics.mean(base):+.{digits}f}"
    if len(values) < 2 or len(base) < 2:
        return difference
    error = math.sqrt(statistics.variance(values) / len(values) + statistics.variance(base) / len(base))
    paired = statistics.stdev(a - b for a, b in zip(values, base, strict=True)) / math.sqrt(len(values))
    return f"{difference} ({error:.{digits}f}; {paired:.{digits}f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--root", required=True, help="folder of features in the SCAN layout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quality"))
    parser.add_argument("--rows", nargs="+", help="only these rows, and those they start from")
    parser.add_argument("--options", nargs="+", default=[], help="overrides for every run")
    args = parser.parse_args()
    plan = read_plan(args.plan)
    if args.rows:
        plan = chosen(plan, args.rows)
    runs = Runs(args.output_dir / plan.name, args.root, args.options)
    complete(plan, runs, args.seeds, args.jobs)
    print(table(plan, runs, args.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
