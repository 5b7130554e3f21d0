"""Run every benchmark in turn, each printing its own lines."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys

import benchmarks

# comparisons over whole training runs take hours, and need data: `python -m benchmarks.quality --help`
LONG = ("quality",)
TOOLS = ("__main__", "memory", "scoring_official", "timing")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("names", nargs="*", help="only these, such as loading")
    args = parser.parse_args()
    known = sorted({module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - {*TOOLS, *LONG})
    unknown = set(args.names) - set(known)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; choose from: {', '.join(known)}")
    failed = False
    for name in args.names or known:
        # each module reads its own arguments, as when it is run alone
        sys.argv = [f"benchmarks/{name}.py", "--threads", str(args.threads), *(["--quick"] if args.quick else [])]
        failed |= bool(importlib.import_module(f"benchmarks.{name}").main())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
