"""What training methods gain over a plain recipe of the same matcher: every row of a plan, over several seeds.

A plan (benchmarks/plans/*.yaml) names a project and the options of each row; the rows of one plan take the same number
of steps unless the plan says otherwise. Runs that are complete are not repeated, so an interrupted comparison goes on
where it stopped. Prints mean and standard deviation of a dev metric at the last epoch over the seeds, and the gain over
the reference row with its standard error.
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
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Plan:
    """Rows that are compared with `reference` by `metrics`, the first of which is the one with a gain."""

    name: str
    reference: str
    rows: list[Row]
    metrics: list[str] = field(default_factory=lambda: ["rsum"])


def read_plan(path: Path) -> Plan:
    """The plan of a YAML file; `common` options come before a row's own."""
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    rows = [
        Row(name, row["project"], [*content.get("common", []), *row.get("options", [])], row.get("after"))
        for name, row in content["rows"].items()
    ]
    return Plan(path.stem, content["reference"], rows, content.get("metrics", ["rsum"]))


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
        after = "" if row.after is None else str(self.path(row.after, seed))
        options = [option.replace("{after}", after).replace("{root}", self.root) for option in row.options]
        where = [f"run.output_dir={folder.parent}", f"run.itm.run_name={folder.name}", f"run.seed={seed}"]
        begun = folder / "checkpoint_last.pth"
        resume = ["--resume", str(begun)] if begun.exists() else []
        command = [sys.executable, "-m", "lavis_itm_plugins.cli.main", "train", "--cfg-path", row.project, *resume]
        done = subprocess.run(
            [*command, "--options", f"datasets.itm_precomp.root={self.root}", *where, *options, *self.common],
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{row.name}, seed {seed}: {done.stderr.strip()[-2000:]}")
        return time.monotonic() - started


def complete(plan: Plan, runs: Runs, seeds: list[int], jobs: int) -> None:
    """Make every run that is missing, `jobs` at a time, a row only after the one that it starts from."""
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
    """Markdown: each metric's mean and standard deviation, and the first one's gain with its standard error."""
    values = {row.name: [runs.last(row.name, seed) or {} for seed in seeds] for row in plan.rows}
    head = " | ".join(f"{metric}, mean (sd)" for metric in plan.metrics)
    lines = [
        f"| row | {plan.metrics[0]} by seed | {head} | gain (standard error) |",
        "|---" * (len(plan.metrics) + 3) + "|",
    ]
    for name, results in values.items():
        first = [result.get(plan.metrics[0], math.nan) for result in results]
        spread = [
            f"{statistics.mean(own):.{digits}f} ({statistics.stdev(own) if len(own) > 1 else math.nan:.{digits}f})"
            for metric in plan.metrics
            for own in [[result.get(metric, math.nan) for result in results]]
            for digits in [1 if metric.endswith("sum") else 3]
        ]
        base = [result.get(plan.metrics[0], math.nan) for result in values[plan.reference]]
        gained = "" if name == plan.reference else gain(first, base)
        lines.append(f"| {name} | {' '.join(f'{v:.1f}' for v in first)} | {' | '.join(spread)} | {gained} |")
    return "\n".join(lines)


def gain(values: list[float], base: list[float]) -> str:
    """Difference of the means, and its standard error (Welch)."""
    if len(values) < 2 or len(base) < 2:
        return f"{statistics.mean(values) - statistics.mean(base):+.1f}"
    error = math.sqrt(statistics.variance(values) / len(values) + statistics.variance(base) / len(base))
    return f"{statistics.mean(values) - statistics.mean(base):+.1f} ({error:.1f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--root", required=True, help="folder of features in the SCAN layout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quality"))
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--options", nargs="+", default=[], help="overrides for every run")
    args = parser.parse_args()
    plan = read_plan(args.plan)
    if args.rows:
        plan = Plan(plan.name, plan.reference, [row for row in plan.rows if row.name in args.rows], plan.metrics)
    runs = Runs(args.output_dir / plan.name, args.root, args.options)
    complete(plan, runs, args.seeds, args.jobs)
    print(table(plan, runs, args.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
