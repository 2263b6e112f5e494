# SPDX-License-Identifier: Apache-2.0
"""Hessian products, traces and eigenvalues beside PyHessian, hessian-eigenthings and curvlinops.

    python bench/python/curvature_peers.py [--threads 1] [--sizes mlp,conv,transformer] [--runs 30] [--only NAMES] [--no-save]

The peers: ``pip install --no-deps PyHessian==0.1 hessian-eigenthings==1.0.0a5 curvlinops-for-pytorch==3.0.1`` with einops 0.8.2,
einconv 0.1.0, linear_operator 0.6.1, backpack-for-pytorch 1.7.1, opt_einsum 3.4.0, jaxtyping 0.3.11, wadler_lindig 0.1.8 and
unfoldNd 0.2.3; a peer that is missing has no rows, and the results say so.

Products take turns with a gradient of the same model over the same two batches; ``gradients`` is how many of these a product costs.
Each is compared with double backward in float64 before it is timed, and its peak of resident memory measured. Then the cases of
the report: traces with default settings over ``--runs`` seeds, the three largest eigenvalues with default settings, and two batches
of 24 and 8 samples, whose mean loss is that of the 32; and the peak memory of a trace from 30 products.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from _timing import rounded, save
from _workers import Rival, Worker, compare, installed, parser, serve, started


@dataclass(frozen=True)
class Peer(Rival):
    package: str = "lowtide"
    method: str = ""


def _peer(package: str, needs: str, method: str, sizes: str = "any") -> Peer:
    return Peer(f"{package} {method}".strip(), needs, package=package, method=method, sizes=sizes)


PRODUCTS = [
    *(_peer("lowtide", "lowtide", m) for m in ("fd", "double", "fwdrev", "ggn")),
    _peer("lowtide", "lowtide", "rop", "mlp"),
    _peer("lowtide", "lowtide", "double+cached"),
    _peer("PyHessian", "pyhessian", ""),
    _peer("eigenthings", "hessian-eigenthings", "autograd"),
    _peer("eigenthings", "hessian-eigenthings", "finite_difference"),
    _peer("curvlinops", "curvlinops-for-pytorch", ""),
    _peer("curvlinops", "curvlinops-for-pytorch", "math attention", "transformer"),
]
CASES = ("trace", "top3", "uneven", "memory")
#: Whose cases are measured: each package once, with its default settings.
DEFAULTS = [
    _peer("lowtide", "lowtide", "auto"),
    _peer("PyHessian", "pyhessian", ""),
    _peer("eigenthings", "hessian-eigenthings", "autograd"),
    _peer("curvlinops", "curvlinops-for-pytorch", ""),
]


def prepare(name: str, size: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """In the worker: a product's timed call, or a case, whose result are the facts."""
    from _curvature_peers import case, prepare_product

    package, _, method = name.partition(" ")
    if size.startswith("case "):
        _, kind, runs = size.split()
        return lambda: None, case(package, method, kind, int(runs))
    return prepare_product(package, method, size)


def cases(args: argparse.Namespace, threads: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of all packages and cases, and what is missing and why."""
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for peer in DEFAULTS:
        version = installed(peer.needs, args.path)
        if version is None:
            left_out[peer.package] = f"{peer.needs} is not installed"
            continue
        worker = Worker(peer, args, threads)
        try:
            for kind in CASES:
                try:
                    facts = worker.prepare(peer.name, f"case {kind} {args.runs}")
                except RuntimeError as error:
                    left_out[f"{peer.package}, {kind}"] = str(error)
                    print(f"  {peer.package:<12} {kind:<7} failed: {error}", flush=True)
                    continue
                row = {"package": peer.package, "version": version, "case": kind}
                row |= {k: v for k, v in facts.items() if k not in ("first", "warm")}
                rows.append(rounded(row))
                print(
                    f"  {peer.package:<12} {kind:<7} "
                    + ", ".join(f"{k} {v}" for k, v in list(rows[-1].items())[3:])
                )
        finally:
            worker.stop()
    return rows, left_out


def main() -> None:
    """Measure, print and save."""
    p = parser(__doc__, "mlp,conv,transformer")
    p.add_argument("--runs", type=int, default=30, help="seeds of the trace case")
    p.set_defaults(threads="1", patience=60.0, budget=20.0)
    args = p.parse_args()
    if args.worker:
        serve(prepare, int(args.threads))
        return
    args.count = lambda size: 1
    start = started()
    runs = []

    def row_of(
        rival: Peer, size: str, facts: dict[str, Any], row: dict[str, Any], base: Worker
    ) -> dict[str, Any]:
        return row | {
            "gradients": 1 / row["vs"],
            "error": facts["error"],
            "peak_MB": facts["peak_MB"],
            "n": facts["n"],
        }

    for threads in map(int, args.threads.split(",")):
        print(f"{threads} thread{'s' * (threads > 1)}", flush=True)
        rows, left_out = compare(
            PRODUCTS,
            args.sizes.split(","),
            args,
            threads,
            base_of=lambda rival, size, facts: ("baseline", size),
            row_of=row_of,
            show=show,
        )
        runs.append({"threads": threads, "products": rows, "left_out": left_out})
    found, missing = cases(args, int(args.threads.split(",")[0]))
    if not args.no_save:
        save(
            "curvature_peers",
            {
                "bench": "curvature_peers",
                "environment": start,
                "runs": runs,
                "cases": found,
                "cases_left_out": missing,
            },
        )


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    print(
        f"  {row['name']:<32} {row['size']:<12} {row['ms']:8.2f} ms  {row['gradients']:5.2f} gradients  "
        f"peak {row['peak_MB']:7.1f} MB  error {row['error']:.1e}",
        flush=True,
    )


if __name__ == "__main__":
    main()
