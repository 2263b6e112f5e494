# SPDX-License-Identifier: Apache-2.0
"""One optimizer step over a real model's shapes (SmolLM2-135M), against the optimizers that people use today.

    python bench/python/optim_step.py [--threads 1,2] [--rounds N] [--layers N] [--only NAME,...] [--no-save]
                                      [--path bitsandbytes-cpu-fork=DIR]

Each rival runs in a process of its own (two of them are both called ``bitsandbytes``) and takes turns with
``torch.optim.AdamW(fused=True)``, so that both see the same machine; ``vs torch`` is the ratio of the medians of those
rounds. A rival is verified before it is timed: full-rank ones by three steps against the formula in double precision,
GaLore variants by the rank of their update. A peer that is not installed is left out, and the table says so.
``pip install --no-deps --target DIR bitsandbytes-cpu-fork==0.50.2.dev9`` makes a folder for ``--path``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from _timing import environment, rounded, save

ROOT = Path(__file__).resolve().parents[2]
LR, BETAS, EPS, DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01
RANK = 128


@dataclass(frozen=True)
class Rival:
    """One row. ``make`` gets the parameters and returns an optimizer; it runs in the worker process."""

    name: str
    make: Callable[[list[Any]], Any]
    bytes: float | None = None  # read and written for each parameter, where counted
    tolerance: float | None = 2e-6  # relative error of three AdamW steps; None: a GaLore step of rank RANK
    needs: str = "torch"
    threads: str = "any"  # "max": only with all threads
    env: tuple[tuple[str, str], ...] = ()
    rule: str = "adamw"  # what the formula of the check is


def _adamw(module: str, name: str, **options: Any) -> Callable[[list[Any]], Any]:
    def make(params: list[Any]) -> Any:
        from importlib import import_module

        cls = getattr(import_module(module), name)
        return cls(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, **options)

    return make


def _one_moment(module: str, name: str, **options: Any) -> Callable[[list[Any]], Any]:
    def make(params: list[Any]) -> Any:
        from importlib import import_module

        return getattr(import_module(module), name)(params, lr=LR, weight_decay=0.0, **options)

    return make


def _galore(module: str, name: str, **options: Any) -> Callable[[list[Any]], Any]:
    """Matrices of rank RANK whose basis is computed once, in the warm-up; the rest is AdamW."""

    def make(params: list[Any]) -> Any:
        from importlib import import_module

        matrices = [p for p in params if p.ndim == 2 and p.shape[0] < 10_000]
        rest = [p for p in params if p.ndim != 2 or p.shape[0] >= 10_000]
        low = {"rank": RANK, "update_proj_gap": 1_000_000, "scale": 0.25, "proj_type": "std"}
        cls = getattr(import_module(module), name)
        return cls([{"params": matrices, **low}, {"params": rest}], lr=LR, weight_decay=0.0, **options)

    return make


# Moments rounded to 8 bits change the second and later steps: a code is 1.5 % off on average.
CODED = 0.05
BASELINE = Rival("torch AdamW fused", _adamw("torch.optim", "AdamW", fused=True), bytes=28)
RIVALS = [
    Rival("lowtide AdamW", _adamw("lowtide.optim", "AdamW"), 28, needs="lowtide"),
    Rival("lowtide AdamW8bit", _adamw("lowtide.optim", "AdamW8bit"), 16.06, CODED, "lowtide"),
    Rival("lowtide AdamW4bit", _adamw("lowtide.optim", "AdamW4bit"), 14.13, 0.6, "lowtide"),
    Rival(
        "lowtide Lion8bit",
        _one_moment("lowtide.optim", "Lion8bit", betas=(0.9, 0.99)),
        14.03,
        0.2,
        "lowtide",
        rule="lion",
    ),
    Rival(
        "lowtide SGD8bit",
        _one_moment("lowtide.optim", "SGD8bit", momentum=0.9),
        14.03,
        CODED,
        "lowtide",
        rule="sgd",
    ),
    Rival("bitsandbytes AdamW8bit", _adamw("bitsandbytes.optim", "AdamW8bit"), None, CODED, "bitsandbytes"),
    Rival(
        "bitsandbytes-cpu-fork AdamW8bit",
        _adamw("bitsandbytes.optim", "AdamW8bit"),
        16.06,
        CODED,
        "bitsandbytes-cpu-fork",
        # The default AVX-512 library is single-threaded and lacks kernels; this one is their full path.
        env=(("BNB_CPU_DISABLE_AVX512", "1"),),
    ),
    Rival(
        "torchao AdamW8bit",
        _adamw("torchao.optim", "AdamW8bit", block_size=256),
        None,
        CODED,
        "torchao",
        threads="max",
    ),
    Rival(
        "bitsandbytes Lion8bit",
        _one_moment("bitsandbytes.optim", "Lion8bit", betas=(0.9, 0.99)),
        None,
        0.2,
        "bitsandbytes",
        rule="lion",
    ),
    Rival(
        "torchao AdamW4bit",
        _adamw("torchao.optim", "AdamW4bit", block_size=128),
        None,
        0.6,
        "torchao",
        threads="max",
    ),
    Rival("galore-torch GaLoreAdamW", _galore("galore_torch", "GaLoreAdamW"), None, None, "galore-torch"),
    Rival("lowtide GaLoreAdamW", _galore("lowtide.optim", "GaLoreAdamW"), None, None, "lowtide"),
    Rival("lowtide GaLoreAdamW8bit", _galore("lowtide.optim", "GaLoreAdamW8bit"), None, None, "lowtide"),
    Rival("lowtide QGaLoreAdamW", _galore("lowtide.optim", "QGaLoreAdamW"), None, None, "lowtide"),
]


def shapes(layers: int) -> list[tuple[int, ...]]:
    """Trained tensors of SmolLM2-135M: 30 layers and a tied embedding, 134.5 million parameters."""
    square, kv, up, down = (576, 576), (192, 576), (1536, 576), (576, 1536)
    layer = [(576,), square, kv, kv, square, (576,), up, up, down]
    return [(49152, 576), *layer * layers, (576,)]


# ---- the worker: one rival, told what to do line by line -------------------------------------------


def _tensors(sizes: list[tuple[int, ...]], seed: int) -> list[Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator) * 0.02) for s in sizes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * 1e-3
    return params


def _formula(rule: str, x: Any, m: Any, v: Any, g: Any, step: int) -> None:
    if rule == "lion":
        x.sub_(LR * (0.9 * m + 0.1 * g).sign())
        m.mul_(0.99).add_(g, alpha=0.01)
    elif rule == "sgd":
        m.mul_(0.9).add_(g)
        x.sub_(LR * m)
    else:
        m.mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
        v.mul_(BETAS[1]).add_(g**2, alpha=1 - BETAS[1])
        root = (v / (1 - BETAS[1] ** step)).sqrt() + EPS
        x.mul_(1 - LR * DECAY).sub_(LR / (1 - BETAS[0] ** step) * m / root)


def _verify_formula(rival: Rival) -> float:
    """Relative error of the movement of three steps against the formula in double."""
    import torch

    params = _tensors([(576, 192), (576,), (64, 65)], 1)
    start = [p.detach().double() for p in params]
    optimizer = rival.make(params)
    states = [(torch.zeros_like(x), torch.zeros_like(x)) for x in start]
    want = [x.clone() for x in start]
    for step in range(1, 4):
        gs = [torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) * 1e-3 for p in params]
        for p, g in zip(params, gs, strict=True):
            p.grad = g.clone()
        optimizer.step()
        for x, (m, v), g in zip(want, states, gs, strict=True):
            _formula(rival.rule, x, m, v, g.double(), step)
    moved = math.sqrt(sum(float((x - s).norm() ** 2) for x, s in zip(want, start, strict=True)))
    wrong = sum(float((p.detach() - x).norm() ** 2) for p, x in zip(params, want, strict=True))
    return math.sqrt(wrong) / moved


def _verify_galore(rival: Rival) -> float:
    """Share of the movement of two steps outside its RANK largest singular values."""
    import torch

    params = _tensors([(576, 1536)], 1)
    start = params[0].detach().clone()
    optimizer = rival.make(params)
    for _ in range(2):
        optimizer.step()
    values = torch.linalg.svdvals((params[0].detach() - start).double())
    if not bool(torch.isfinite(values).all()) or float(values[0]) == 0.0:
        return math.inf
    return float(values[RANK:].norm() / values.norm())


def work(rival: Rival, layers: int, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w")  # peers print to stdout as they please
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(threads)
    if rival.needs == "lowtide":
        import lowtide

        lowtide.set_num_threads(threads)
    error = _verify_formula(rival) if rival.tolerance is not None else _verify_galore(rival)
    params = _tensors(shapes(layers), 0)
    optimizer = rival.make(params)
    took = []
    for _ in range(2):
        began = time.perf_counter()
        optimizer.step()
        took.append(time.perf_counter() - began)
    state = sum(
        sum(part.nbytes for part in (t.codes, t.scale))
        if hasattr(t, "codes")
        else t.nbytes  # torchao's wrapper
        for s in optimizer.state.values()
        for t in s.values()
        if isinstance(t, torch.Tensor) and t.numel() > 1
    )
    ready = {"error": error, "first_step": took[0], "numel": sum(p.numel() for p in params), "state": state}
    print(json.dumps(ready), file=answers, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        optimizer.step()
        print(json.dumps(time.perf_counter() - began), file=answers, flush=True)


# ---- the race --------------------------------------------------------------------------------------


class Worker:
    def __init__(self, rival: Rival, args: argparse.Namespace, threads: int) -> None:
        paths = dict(item.split("=", 1) for item in args.path)
        source = ROOT / "python"  # where `make inplace` builds; otherwise the installed package
        built = str(source) if any(source.glob("lowtide/_core.*.so")) else ""
        search = [paths.get(rival.needs, ""), built, os.environ.get("PYTHONPATH", "")]
        command = [sys.executable, __file__, "--worker", rival.name, "--layers", str(args.layers)]
        self.log = tempfile.TemporaryFile("w+")  # not a pipe: nobody reads it while the worker runs  # noqa: SIM115  (closed with the worker)
        self.process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if args.verbose else self.log,
            text=True,
            env={
                **os.environ,
                **dict(rival.env),
                "OMP_NUM_THREADS": str(threads),
                "PYTHONPATH": os.pathsep.join(p for p in search if p),
            },
        )
        line = self._read()
        if not line:
            self.stop()
            self.log.seek(0)
            last = [x for x in self.log.read().splitlines() if x.strip()]
            raise RuntimeError(last[-1] if last else "the worker ended without a word")
        self.ready: dict[str, Any] = json.loads(line)

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def step(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(json.loads(self._read()))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.communicate()  # closes its stdin, which ends it


def mad(values: list[float]) -> float:
    middle = statistics.median(values)
    return statistics.median(abs(v - middle) for v in values)


def race(rival: Rival, base: Worker, args: argparse.Namespace, threads: int) -> dict[str, Any]:
    worker = Worker(rival, args, threads)
    try:
        limit = rival.tolerance if rival.tolerance is not None else 1e-5
        if not worker.ready["error"] <= limit:
            raise RuntimeError(f"wrong result: error {worker.ready['error']:.2e}, at most {limit:.0e}")
        ours: list[float] = []
        theirs: list[float] = []
        began = time.perf_counter()
        for turn in range(args.rounds):
            theirs.append(base.step())
            ours.append(worker.step())
            if turn >= 2 and time.perf_counter() - began > args.budget:
                break
    finally:
        worker.stop()
    numel = worker.ready["numel"]
    middle = statistics.median(ours)
    row = {
        "name": rival.name,
        "ms": middle * 1e3,
        "mad_ms": mad(ours) * 1e3,
        "best_ms": min(ours) * 1e3,
        "rounds": len(ours),
        "ns_per_parameter": middle / numel * 1e9,
        "torch_ms": statistics.median(theirs) * 1e3,
        "vs_torch": statistics.median(theirs) / middle,
        "state_bytes_per_parameter": worker.ready["state"] / numel,
        "first_step_s": worker.ready["first_step"],
        "error": worker.ready["error"],
    }
    if rival.bytes is not None:
        row["GB_per_s"] = rival.bytes * numel / middle / 1e9
    return rounded(row)


def installed(needs: str, paths: list[str]) -> str | None:
    """The version of a rival's package, or None."""
    folders = [p.split("=", 1)[1] for p in paths if p.startswith(f"{needs}=")]
    if needs == "lowtide":
        folders.append(str(ROOT / "python"))
        if any((ROOT / "python" / "lowtide").glob("_core*.so")):  # else the installed package runs
            return "source tree"
    for d in metadata.distributions(path=folders) if folders else []:
        if d.metadata["Name"].lower().replace("_", "-") == needs:
            return d.version
    try:
        return metadata.version(needs)
    except metadata.PackageNotFoundError:
        return None


def run(args: argparse.Namespace) -> None:
    wanted = args.only.split(",") if args.only else [r.name for r in RIVALS]
    runs = []
    for threads in map(int, args.threads.split(",")):
        started = {**environment(), "torch": metadata.version("torch"), "python": sys.version.split()[0]}
        rows: list[dict[str, Any]] = []
        left_out: dict[str, str] = {}
        print(f"{threads} thread{'s' * (threads > 1)}, {args.layers} layers", flush=True)
        base = Worker(BASELINE, args, threads)
        try:
            for rival in (r for r in RIVALS if r.name in wanted):
                version = installed(rival.needs, args.path)
                if version is None:
                    left_out[rival.name] = f"{rival.needs} is not installed"
                elif rival.threads == "max" and threads != max(map(int, args.threads.split(","))):
                    left_out[rival.name] = "measured with all threads only"
                else:
                    try:
                        rows.append({**race(rival, base, args, threads), "version": version})
                        show(rows[-1])
                        continue
                    except RuntimeError as error:
                        left_out[rival.name] = str(error)
                print(f"  {rival.name:<34} left out: {left_out[rival.name]}", flush=True)
        finally:
            base.stop()
        times = {r["name"]: r["ms"] / r["torch_ms"] for r in rows}
        ratios = {
            f"{a} over {b}": float(f"{times[b] / times[a]:.3g}")
            for a, b in (
                ("lowtide AdamW8bit", "bitsandbytes AdamW8bit"),
                ("lowtide AdamW8bit", "bitsandbytes-cpu-fork AdamW8bit"),
                ("lowtide AdamW8bit", "torchao AdamW8bit"),
                ("lowtide AdamW4bit", "torchao AdamW4bit"),
                ("lowtide Lion8bit", "bitsandbytes Lion8bit"),
                ("lowtide GaLoreAdamW", "galore-torch GaLoreAdamW"),
            )
            if a in times and b in times
        }
        for name, ratio in ratios.items():
            print(f"  {name}: {ratio:.3g} x")
        runs.append(
            {
                "threads": threads,
                "environment": started,
                "layers": args.layers,
                "rows": rows,
                "ratios": ratios,
                "left_out": left_out,
            }
        )
    if not args.no_save:
        save("optim_step", {"bench": "optim_step", "runs": runs})


def show(row: dict[str, Any]) -> None:
    rate = f"{row['GB_per_s']:6.1f} GB/s" if "GB_per_s" in row else " " * 11
    print(
        f"  {row['name']:<34} {row['ms']:9.1f} ms ±{row['mad_ms']:6.1f}  {rate}  {row['vs_torch']:7.3f} x torch"
        f"  states {row['state_bytes_per_parameter']:5.2f} B  first step {row['first_step_s']:7.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", default=",".join(str(n) for n in sorted({1, cores})))
    parser.add_argument("--rounds", type=int, default=15, help="turns of each rival (default 15)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of one race, 3 turns at least")
    parser.add_argument("--layers", type=int, default=30, help="layers of the model (default 30, all)")
    parser.add_argument("--only", default="", help="names of rivals, separated by commas")
    parser.add_argument(
        "--path", action="append", default=[], metavar="PACKAGE=DIR", help="where a peer lies"
    )
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        rival = next(r for r in [BASELINE, *RIVALS] if r.name == args.worker)
        work(rival, args.layers, int(args.threads))
    else:
        run(args)


if __name__ == "__main__":
    main()
