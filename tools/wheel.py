# SPDX-License-Identifier: Apache-2.0
"""Build, repair, audit and test the wheels; `make wheel` runs this.

    python tools/wheel.py [--out dist] [--python all|this|"3.10 3.12"] [--cuda] [--torch 2.13.0 ...] [--no-audit]
                          [--tests none|quick]

The sdist is built first and every wheel from the unpacked sdist, with no network. A wheel carries the torch ops, built with
the headers of the torch of this interpreter. Clean virtual environments then hold the wheel with NumPy alone and with each
torch that can be had without CUDA; what cannot be had is named.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import wheel_audit
import wheel_build
import wheel_environments
from wheel_build import ROOT, Python, WheelError

_START = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - _START:5.0f} s] {text}", flush=True)


def make(source: Path, python: Python, args: argparse.Namespace) -> Path:
    """One wheel: built, repaired, audited."""
    raw = wheel_build.build(source, python, cuda=args.cuda, werror=args.werror)
    wheel = wheel_build.repair(raw, args.out)
    say(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")
    if args.cuda and not any("_ops_cuda" in name for name in wheel_build.names(wheel)):
        raise WheelError(f"{wheel.name} has no lowtide/_ops_cuda.abi3.so")
    if args.audit:
        for line in wheel_audit.audit(wheel):
            say(f"    {line}")
    return wheel


def test(wheel: Path, python: Python, torches: list[str]) -> None:
    """The wheel in clean environments of its Python."""
    say(f"Python {python.version}, NumPy only")
    for line in wheel_environments.numpy_only(python, wheel):
        say(f"    {line}")
    loaded = False
    for requirement in torches:
        version = wheel_environments.cpu_torch(python, requirement)
        if version is None:
            say(
                f"Python {python.version}, torch {requirement}: not tested, pip finds no build of it without CUDA"
            )
            continue
        say(f"Python {python.version}, torch {version}")
        for line in wheel_environments.with_torch(python, wheel, version):
            say(f"    {line}")
        loaded = True
    if not loaded:
        for line in wheel_environments.ops_with_libtorch(python, wheel):
            say(f"    {line}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for sdist and wheels")
    parser.add_argument(
        "--python", default="this", metavar="WHICH", help='all, this, or versions: "3.10 3.12"'
    )
    parser.add_argument(
        "--cuda", action="store_true", help="with CUDA kernels; the version is labelled +cuNN"
    )
    parser.add_argument("--werror", action="store_true", help="warnings of the compiler are errors")
    parser.add_argument("--audit", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tests", choices=("none", "quick"), default="quick")
    parser.add_argument(
        "--torch", nargs="*", default=["2.13.0"], metavar="VERSION", help="releases to test with"
    )
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        pythons = wheel_build.find_pythons(args.python)
        archive = wheel_build.sdist(args.out)
        say(f"{archive.name}: {archive.stat().st_size / 2**20:.1f} MiB")
        source = wheel_build.unpack(archive, wheel_build.cuda_label() if args.cuda else "")
        wheels = [(make(source, python, args), python) for python in pythons]
        if args.tests != "none":
            for wheel, python in wheels:
                test(wheel, python, args.torch)
    except WheelError as error:
        print(f"wheel: {error}", file=sys.stderr)
        return 1
    say(f"{len(wheels)} wheel{'s' if len(wheels) > 1 else ''} in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
