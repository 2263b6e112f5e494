# SPDX-License-Identifier: Apache-2.0
"""One optimizer step, over a real model's shapes (SmolLM2-135M) and over single tensors, against the optimizers that people
use today.

    python bench/python/optim_step.py [--threads 1,2] [--sizes 2^20,...,model] [--rounds N] [--only NAME,...] [--no-save]
                                      [--path bitsandbytes-cpu-fork=DIR] [--layers N]

Each rival takes turns with ``torch.optim.AdamW(fused=True)``, see :mod:`_workers`; ``vs`` is the ratio to it. ``of_copy``:
bytes that the step must read and write, over its time, as a share of the best rate of ``copy_`` of 16 bytes a parameter
in the same run. A rival is verified before it is timed: full-rank ones by three steps against the formula in double
precision, GaLore variants by the rank of their update. A peer that is not installed is left out, and the table says so.
``pip install --no-deps --target DIR bitsandbytes-cpu-fork==0.50.2.dev9`` makes a folder for ``--path``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from _timing import save
from _workers import Call, Worker, WrongResult, compare, copy_call, parser, power, ratios_of, serve, started
from _workers import Rival as Named

LR, BETAS, EPS, DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01
RANK = 128
MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class Rival(Named):
    """``make`` gets the parameters and returns an optimizer; it runs in the worker process."""

    make: Callable[[list[Any]], Any]
    bytes: float | None = None  # read and written for each parameter, where counted
    tolerance: float | None = 2e-6  # relative error of three AdamW steps; None: a GaLore step of rank RANK
    rule: str = "adamw"  # what the formula of the check is
    native: bool | None = None  # what the fork's AdamW4bit must say of itself


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
CODED4 = 0.6
BNB, FORK, AO = "bitsandbytes", "bitsandbytes-cpu-fork", "torchao"
# The fork's default AVX-512 library is single-threaded and lacks the 4-bit kernel; without it, it takes its full path.
FULL = (("BNB_CPU_DISABLE_AVX512", "1"),)
BASELINE = Rival(name="torch AdamW fused", make=_adamw("torch.optim", "AdamW", fused=True), bytes=28)


def _eight(package: str, module: str, name: str = "AdamW8bit", **rest: Any) -> Rival:
    options = rest.pop("options", {})
    label = f"{rest.pop('label', package)} {name}"
    return Rival(
        name=label,
        needs=package,
        make=_adamw(module, name, **options),
        tolerance=rest.pop("tolerance", CODED),
        **rest,
    )


def _lion(package: str, module: str, **rest: Any) -> Rival:
    make = _one_moment(module, "Lion8bit", betas=(0.9, 0.99))
    return Rival(
        name=f"{package} Lion8bit", needs=package, make=make, tolerance=0.2, rule="lion", sizes=MODEL, **rest
    )


def _low_rank(package: str, module: str, name: str) -> Rival:
    return Rival(
        name=f"{package} {name}", needs=package, make=_galore(module, name), tolerance=None, sizes=MODEL
    )


OURS = "lowtide.optim"
RIVALS = [
    Rival(name="lowtide AdamW", needs="lowtide", make=_adamw(OURS, "AdamW"), bytes=28),
    _eight("lowtide", OURS, bytes=16.06),
    _eight("lowtide", OURS, "AdamW4bit", bytes=14.13, tolerance=CODED4),
    _lion("lowtide", OURS, bytes=14.03),
    Rival(
        name="lowtide SGD8bit",
        needs="lowtide",
        make=_one_moment(OURS, "SGD8bit", momentum=0.9),
        bytes=14.03,
        tolerance=CODED,
        rule="sgd",
        sizes=MODEL,
    ),
    *(_low_rank("lowtide", OURS, name) for name in ("GaLoreAdamW", "GaLoreAdamW8bit", "QGaLoreAdamW")),
    _eight(BNB, "bitsandbytes.optim"),
    _lion(BNB, "bitsandbytes.optim"),
    _eight(FORK, "bitsandbytes.optim", bytes=16.06, env=FULL),
    # Both of its moments have 16 even levels without a zero.
    _eight(FORK, "bitsandbytes.optim", "AdamW4bit", bytes=14.06, env=FULL, native=True, tolerance=CODED4),
    _eight(FORK, "bitsandbytes.optim", bytes=16.06, label=f"{FORK} (AVX-512)"),
    _eight(
        FORK, "bitsandbytes.optim", "AdamW4bit", label=f"{FORK} (AVX-512)", native=False, tolerance=CODED4
    ),
    _eight(AO, "torchao.optim", threads="max", options={"block_size": 256}),
    _eight(AO, "torchao.optim", "AdamW4bit", threads="max", options={"block_size": 128}, tolerance=CODED4),
    _low_rank("galore-torch", "galore_torch", "GaLoreAdamW"),
    *(
        # Steps of a thousandth of the weights: their rounding to fp32 is 6e-5 of them.
        Rival(
            name=f"{package} Adafactor",
            needs=package,
            make=_one_moment(module, "Adafactor"),
            tolerance=2e-4,
            rule="adafactor",
            sizes=MODEL,
        )
        for package, module in (("lowtide", OURS), ("torch", "torch.optim"))
    ),
]
#: ours, theirs ("" is the baseline), target in words of docs/performance.md
RATIOS = [
    ("lowtide AdamW8bit", "", 1.5),
    ("lowtide AdamW8bit", "bitsandbytes AdamW8bit", 15),
    ("lowtide AdamW8bit", "bitsandbytes-cpu-fork AdamW8bit", 7),
    ("lowtide AdamW8bit", "bitsandbytes-cpu-fork (AVX-512) AdamW8bit", None),
    ("lowtide AdamW8bit", "torchao AdamW8bit", 50),
    ("lowtide AdamW4bit", "", 1.7),
    ("lowtide AdamW4bit", "bitsandbytes-cpu-fork AdamW4bit", 14),
    ("lowtide AdamW4bit", "bitsandbytes-cpu-fork (AVX-512) AdamW4bit", 14),
    ("lowtide AdamW4bit", "torchao AdamW4bit", 80),
    ("lowtide Lion8bit", "bitsandbytes Lion8bit", None),
    ("lowtide GaLoreAdamW", "galore-torch GaLoreAdamW", 1.5),
    ("lowtide Adafactor", "torch Adafactor", None),
]


def shapes(layers: int) -> list[tuple[int, ...]]:
    """Trained tensors of SmolLM2-135M: 30 layers and a tied embedding, 134.5 million parameters."""
    square, kv, up, down = (576, 576), (192, 576), (1536, 576), (576, 1536)
    layer = [(576,), square, kv, kv, square, (576,), up, up, down]
    return [(49152, 576), *layer * layers, (576,)]


def _tensors(sizes: list[tuple[int, ...]], seed: int) -> list[Any]:
    import torch

    tile = torch.randn(1 << 20, generator=torch.Generator().manual_seed(seed))

    def noise(shape: tuple[int, ...], scale: float) -> Any:
        n = math.prod(shape)
        return (tile.repeat(-(-n // tile.numel()))[:n] * scale).reshape(shape)

    params = [torch.nn.Parameter(noise(s, 0.02)) for s in sizes]
    for p in params:
        p.grad = noise(tuple(p.shape), 1e-3).flip(0)
    return params


def _formula(rule: str, x: Any, m: Any, v: Any, g: Any, step: int) -> None:
    if rule == "lion":
        x.sub_(LR * (0.9 * m + 0.1 * g).sign())
        m.mul_(0.99).add_(g, alpha=0.01)
    elif rule == "sgd":
        m.mul_(0.9).add_(g)
        x.sub_(LR * m)
    elif (
        rule == "adafactor"
    ):  # torch's form; the means of rows and columns lie in the first column of m, the first row of v
        new = step**-0.8
        alpha = max(1e-3, float(x.square().mean().sqrt())) * min(LR, step**-0.5)
        if x.ndim > 1:
            m[:, 0].lerp_(g.square().mean(1), new)
            v[0].lerp_(g.square().mean(0), new)
            second = m[:, :1] * v[:1] / m[:, 0].mean().clamp_min(2.0**-23)
        else:
            second = v.lerp_(g.square(), new)
        u = g / second.clamp_min(2.0**-46).sqrt()
        x.sub_(alpha * u / max(1.0, float(u.square().mean().sqrt())))
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


# ---- the worker ----------------------------------------------------------------------------------------


def _sizes(size: str, layers: int) -> list[tuple[int, ...]]:
    return shapes(layers) if size == MODEL else [(power(size) // 1024, 1024)]


def count(size: str, layers: int) -> int:
    return sum(math.prod(s) for s in _sizes(size, layers))


def prepare(name: str, size: str, layers: int) -> tuple[Call, dict[str, Any]]:
    import torch

    if name == "copy":
        return copy_call(16 * count(size, layers)), {}
    rival = next(r for r in [BASELINE, *RIVALS] if r.name == name)
    if rival.needs == "lowtide":
        import lowtide

        lowtide.set_num_threads(torch.get_num_threads())
    if rival.native is not None:
        from bitsandbytes.optim.adamw4bit import native_available

        if native_available() != rival.native:
            raise WrongResult(f"native_available() is {native_available()}")
    limit = rival.tolerance if rival.tolerance is not None else 1e-5
    error = _verify_galore(rival) if rival.tolerance is None else _verify_formula(rival)
    if not error <= limit:
        raise WrongResult(f"error {error:.2e}, at most {limit:.0e}")
    params = _tensors(_sizes(size, layers), 0)
    optimizer = rival.make(params)
    optimizer.step()
    state = sum(
        sum(part.nbytes for part in (t.codes, t.scale))
        if hasattr(t, "codes")
        else t.nbytes  # torchao's wrapper
        for s in optimizer.state.values()
        for t in s.values()
        if isinstance(t, torch.Tensor) and t.numel() > 1
    )
    return optimizer.step, {"error": error, "state": state, "numel": sum(p.numel() for p in params)}


# ---- the race ------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    sizes = args.sizes.split(",")
    args.count = lambda size: count(size, args.layers)
    runs = []
    for threads in map(int, args.threads.split(",")):
        start = started()
        rates: dict[str, float] = {}

        def row_of(
            rival: Rival,
            size: str,
            facts: dict[str, Any],
            row: dict[str, Any],
            base: Worker,
            rates: dict[str, float] = rates,
        ) -> dict[str, Any]:
            n = facts["numel"]
            if size not in rates:
                base.prepare("copy", size, "copy")
                rates[size] = 16 * n / min(t for _ in range(5) for t in base.turn(args.turn, "copy"))
            row |= {
                "ns_per_parameter": row["ms"] / n * 1e6,
                "state_bytes_per_parameter": facts["state"] / n,
                "error": facts["error"],
            }
            if rival.bytes is not None:
                row |= {"GB_per_s": rival.bytes * n / row["ms"] / 1e6}
                row["of_copy"] = row["GB_per_s"] * 1e9 / rates[size]
            return row

        print(f"{threads} thread{'s' * (threads > 1)}, model: {args.layers} layers", flush=True)
        rows, left_out = compare(
            RIVALS,
            sizes,
            args,
            threads,
            base_of=lambda rival, size, facts: (BASELINE.name, size),
            row_of=row_of,
            show=show,
        )
        ratios = ratios_of(rows, RATIOS)
        runs.append(
            {
                "threads": threads,
                "environment": start,
                "layers": args.layers,
                "copy_GB_per_s": {k: v / 1e9 for k, v in rates.items()},
                "rows": rows,
                "ratios": ratios,
                "left_out": left_out,
            }
        )
    if not args.no_save:
        save("optim_step", {"bench": "optim_step", "runs": runs})


def show(row: dict[str, Any]) -> None:
    rate = f"{row['of_copy']:5.2f} of copy" if "of_copy" in row else " " * 13
    print(
        f"  {row['size']:<6} {row['name']:<42} {row['ms']:9.2f} ms ±{row['mad_ms']:6.2f}  {rate}  "
        f"{row['vs']:7.3f} ±{row['vs_mad']:.3f} x torch  states {row['state_bytes_per_parameter']:5.2f} B",
        flush=True,
    )


def main() -> None:
    p = parser(__doc__, "2^20,2^22,2^24,2^26,model")
    p.add_argument("--layers", type=int, default=12, help="layers of the model (default 12; all: 30)")
    args = p.parse_args()
    if args.worker:
        serve(lambda name, size: prepare(name, size, args.layers), int(args.threads))
    else:
        args.pass_on = ["--layers", str(args.layers)]
        run(args)


if __name__ == "__main__":
    main()
