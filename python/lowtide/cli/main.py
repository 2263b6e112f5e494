# SPDX-License-Identifier: Apache-2.0
"""Entry point: parse, run one command, turn errors into one sentence and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lowtide.cli import (
    finetune,
    info,
    log,
    memory,
    quant_report,
    replay,
    report,
    sequencer,
    spectrum,
    welore_report,
)
from lowtide.errors import LowtideError
from lowtide.train.errors import out_of_memory

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
COMMANDS = (info, memory, finetune, report, quant_report, welore_report, spectrum, replay, log, sequencer)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    import lowtide

    parser = _Parser(
        prog="lowtide",
        description="Train large models in little memory.",
        epilog="Errors end in exit code 2 with one sentence; a run stopped by Ctrl-C or SIGTERM ends in 130.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lowtide {lowtide.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except LowtideError as error:
        return _fail(str(error))
    except BrokenPipeError:  # `lowtide info | head -1`: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except KeyboardInterrupt:
        return _fail("interrupted; nothing more was saved", EXIT_INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return _fail(
            "out of memory; use a smaller --batch-size or --seq-len, --gradient-checkpointing, or qgalore"
        )
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}; check the path and the disk")


def _fail(sentence: str, code: int = EXIT_ERROR) -> int:
    text = " ".join(sentence.split())
    print(f"lowtide: error: {text}", file=sys.stderr)
    return code
