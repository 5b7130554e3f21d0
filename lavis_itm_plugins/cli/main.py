"""The `lavis-itm` command: subcommands, each in a file of its own that imports what is heavy when it runs."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from lavis_itm_plugins import __version__
from lavis_itm_plugins.cli import (
    concepts,
    data,
    demo,
    doctor,
    encode,
    ensemble,
    evaluate,
    import_official,
    listing,
    mine,
    relevance,
    train,
)
from lavis_itm_plugins.errors import ItmError, did_you_mean

COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "demo": demo,
    "data": data,
    "relevance": relevance,
    "concepts": concepts,
    "encode": encode,
    "mine": mine,
    "ensemble": ensemble,
    "import-official": import_official,
    "list": listing,
    "doctor": doctor,
}


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = _Parser(
        prog="lavis-itm",
        description="Train and evaluate image-text matching models in LAVIS.",
        epilog="Start with: lavis-itm demo. Each command has its own --help.",
    )
    parser.add_argument("--version", action="version", version=f"lavis-itm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        command = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        """One sentence and exit code 2, with the nearest command for a mistyped one."""
        words = message.split("invalid choice: ")
        if len(words) == 2 and "argument COMMAND" in message:
            typed = words[1].split("'")[1]
            message = f'unknown command "{typed}"; {did_you_mean(typed, COMMANDS)}'
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a mistake in its input ends in one sentence and exit code 2."""
    given = build_parser().parse_args(arguments)
    # LAVIS imports both, and neither can be mended from here
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"fairscale|timm")
    try:
        return COMMANDS[given.command].run(given) or 0
    except ItmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `lavis-itm list | head` closes the pipe; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
