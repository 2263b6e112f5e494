# SPDX-License-Identifier: Apache-2.0
"""The targets that the project set itself, and where in bench/results each one's figures are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "bench" / "results"

Run = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One line of the page: what is compared with what, its figure by number of threads (0: no threads), its target."""

    label: str
    against: str
    values: dict[int, float]
    target: float | None = None
    at_most: bool = False
    unit: str = "×"

    @property
    def met(self) -> bool | None:
        """Whether every figure reaches the target; None without a target."""
        if self.target is None:
            return None
        return all(v <= self.target if self.at_most else v >= self.target for v in self.values.values())


@dataclass(frozen=True)
class Work:
    """A row of the targets: its cases, the benches they come from, and what limits those that miss."""

    name: str
    sources: tuple[str, ...]
    cases: Callable[[], list[Case]]
    why: str = ""
    notes: str = ""


@cache
def result(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return data


def by_threads(name: str, pick: Callable[[Run], float | None]) -> dict[int, float]:
    found = {int(run["threads"]): pick(run) for run in result(name)["runs"]}
    return {threads: value for threads, value in sorted(found.items()) if value is not None}


def first(rows: Iterable[Run], key: str, **want: Any) -> float | None:
    return next((float(r[key]) for r in rows if all(r.get(k) == v for k, v in want.items())), None)


def noise(dist: str, against: float, over_torch: float | None) -> list[Case]:
    out = []
    for place in ("in place", "to scratch"):
        for column, name, target in (
            ("axpy", "axpy of a stored direction", against),
            ("torch", "`torch.normal` and add", over_torch),
        ):
            values = by_threads(
                "spsa_perturb",
                lambda run, p=place, c=column: first(run["rows"], c, case=f"{dist} {p}", dtype="float32"),
            )
            out.append(Case(f"{dist}, {place}", name, values, target))
    return out


PEERS = {
    "AdamW8bit": (
        ("baseline", 1.5),
        ("bitsandbytes AdamW8bit", 15.0),
        ("bitsandbytes-cpu-fork AdamW8bit", 7.0),
        ("torchao AdamW8bit", 50.0),
    ),
    "AdamW4bit": (("baseline", 1.7), ("bitsandbytes-cpu-fork AdamW4bit", 14.0), ("torchao AdamW4bit", 80.0)),
}


def steps(kind: str) -> list[Case]:
    out = []
    for peer, target in PEERS[kind]:
        for size in ("model", "2^24"):
            values = by_threads(
                "optim_step",
                lambda run, s=size, p=peer: first(
                    run["ratios"], "ratio", size=s, ours=f"lowtide {kind}", theirs=p
                ),
            )
            name = "`torch.optim.AdamW(fused=True)`, fp32" if peer == "baseline" else peer
            label = "SmolLM2's shapes" if size == "model" else "2^24 parameters"
            if values:
                out.append(Case(label, name, values, target))
    return out


def codecs() -> list[Case]:
    def at(bench: str, kernel: str, elements: int) -> dict[int, float]:
        return by_threads(
            bench, lambda run: first(run["rows"], "roofline", name=f"{kernel}/{best(bench)}/{elements}")
        )

    cases = [
        ("group_codec", "quantize_int8_sym_sr", "quantize INT8 with SR"),
        ("group_codec", "quantize_int4_asym_sr", "quantize INT4 with SR"),
        ("group_codec", "dequantize_int8", "dequantize INT8"),
        ("group_codec", "dequantize_int4", "dequantize INT4"),
        ("requant", "requant_int8", "requantize INT8 with SR"),
        ("requant", "requant_int4", "requantize INT4 with SR"),
    ]
    out = []
    for bench, kernel, name in cases:
        for power in (20, 24, 25):
            values = at(bench, kernel, 1 << power)
            if values:
                out.append(Case(f"{name}, 2^{power}", "memcpy of as many bytes", values, 0.8))
    return out


def best(bench: str) -> str:
    """The instruction set that the bench's own ISA rows are of, the widest of the machine."""
    return str(result(bench)["runs"][0]["rows"][0]["name"].split("/")[1])


def low_rank() -> list[Case]:
    wanted = {
        "FiraAdamW": 1.5,
        "APOLLO": 1.5,
        "APOLLOMini": 1.5,
        "GaLoreAdamW": 1.5,
        "QGaLoreAdamW": None,
        "GaLore, DCT basis": 4.0,
    }
    out = []
    for kind, target in wanted.items():
        for size in ("768x2048", "2048x768", "model"):
            values = by_threads(
                "low_rank_step", lambda run, k=kind, s=size: first(run["rows"], "vs", name=k, size=s)
            )
            peer = next(r["peer"] for r in result("low_rank_step")["runs"][0]["rows"] if r["name"] == kind)
            label = "three layers of SmolLM2" if size == "model" else size.replace("x", " × ")
            out.append(Case(f"{kind}, {label}", peer, values, target))
    values = by_threads(
        "optim_step", lambda run: first(run["rows"], "vs", name="lowtide GaLoreAdamW", size="model")
    )
    return [*out, Case("GaLoreAdamW, all of SmolLM2", "`torch.optim.AdamW(fused=True)`", values)]


def refreshes() -> list[Case]:
    def at(bench: str, gradient: str, shape: list[int], row: str, key: str) -> dict[int, float]:
        def pick(run: Run) -> float | None:
            for g in run["gradients"]:
                if g["gradient"].startswith(gradient) and g["shape"] == shape:
                    return first(g["rows"], key, name=row)
            return None

        return by_threads(bench, pick)

    out = []
    places = (
        ("refresh", "k^-1.0, drift 0.3", [768, 2048], "768 × 2048, σ ~ 1/k", {"cold": 25.0, "warm": 50.0}),
        ("refresh", "k^-0.5", [768, 2048], "768 × 2048, σ ~ 1/√k", {"cold": 25.0, "warm": 50.0}),
        ("refresh_large", "falling like 1/k", [4096, 4096], "4096 × 4096, σ ~ 1/k", {"warm": 200.0}),
    )
    for bench, gradient, shape, label, targets in places:
        for kind, target in targets.items():
            row = f"lowtide {kind}"
            out.append(
                Case(
                    f"{label}, {kind}",
                    "`torch.linalg.svd`",
                    at(bench, gradient, shape, row, "vs_torch"),
                    target,
                )
            )
            out.append(
                Case(
                    f"{label}, {kind}",
                    "energy of the exact basis",
                    at(bench, gradient, shape, row, "energy"),
                    0.99,
                    unit="",
                )
            )
    return out


def products() -> list[Case]:
    names = {
        "project right 768x2048 r128": "project from the right",
        "project left 768x2048 r128": "project from the left",
        "back right 768x2048 r128": "back from the right",
        "back left 768x2048 r128": "back from the left",
    }

    def pick(run: Run, product: str) -> float | None:
        found = next(p for p in run["products"] if p["product"] == product)
        return first(found["rows"], "vs_torch", name="int4")

    return [
        Case(
            f"{label}, 768 × 2048, rank 128",
            "`torch.mm` (MKL), fp32 basis",
            by_threads("projection", lambda run, p=product: pick(run, p)),
            0.9,
        )
        for product, label in names.items()
    ]


def linear() -> list[Case]:
    out = []
    for bits, target in (("int8", 2.0), ("int4", 3.5)):
        for size in ("4096x4096", "11008x4096", "1536x576"):
            label = f"{bits.upper()}, {size.replace('x', ' × ')}"
            ours = f"lowtide {bits}"
            against = by_threads(
                "linear",
                lambda run, o=ours, s=size: first(run["ratios"], "ratio", size=s, ours=o, theirs="baseline"),
            )
            limit = by_threads(
                "linear", lambda run, o=ours, s=size: first(run["rows"], "of_memory", name=o, size=s)
            )
            out += [
                Case(label, "`torch` bf16 linear", against, target),
                Case(label, "speed of reading memory", limit, 0.8),
            ]
    return out


def head() -> list[Case]:
    data = result("ce_head")
    out = []
    for r in data["products"]:
        if r["name"] == "as_operator":
            label = f"product, {r['n']} × {r['d']}, {r['c']} classes"
            out.append(Case(label, "double backward", {1: r["of_double"]}, 10.0))
    return out


def hutchinson() -> list[Case]:
    out = []
    for batch in (128, 1024):
        for key, name in (
            ("probe", "drawing probes and their dots"),
            ("beyond", "whole trace less its products"),
        ):
            values = by_threads(
                "curvature_hutchinson",
                lambda run, b=batch, k=key: first(run["rows"], k, batch=b, method="double"),
            )
            out.append(
                Case(
                    f"{name}, batch {batch}",
                    "its products (`double`)",
                    {t: 100 * v for t, v in values.items()},
                    3.0,
                    True,
                    " %",
                )
            )
    return out


def dispatch() -> list[Case]:
    calls = {c["name"]: c["us"] for c in result("dispatch")["calls"]}
    op, wrapper = "torch.ops.lowtide.random_add_", "lowtide.ops.random_add_"
    own = {0: calls[op]}
    return [
        Case(
            f"`{op}`, 16 elements",
            f"torch's `add_`: {calls['torch.Tensor.add_']:.2f} µs",
            own,
            4.0,
            True,
            " µs",
        ),
        Case(f"`{wrapper}`, with its checks", "", {0: calls[wrapper]}, None, True, " µs"),
    ]


def cuda() -> list[Case]:
    data = result("cuda_static")
    worst = max(data["traffic"], key=lambda r: float(r["ratio"]))
    spills = sum(k["spill_bytes"] for k in data["kernels"])
    return [
        Case(
            f"global memory, worst of {len(data['traffic'])} kernels (`{worst['kernel']}`)",
            "the least it could be",
            {0: worst["ratio"]},
            1.05,
            True,
        ),
        Case(
            f"bytes spilled, {len(data['kernels'])} kernels and architectures",
            "ptxas",
            {0: float(spills)},
            0.0,
            True,
            "",
        ),
    ]


def imports() -> list[Case]:
    data = result("import_time")
    return [
        Case(
            f"`import {r['name']}`{'' if r['collector'] == 'on' else ', garbage collector off'}",
            "beyond NumPy and torch",
            {0: r["median_ms"]},
            float(data["target_ms"]),
            True,
            " ms",
        )
        for r in data["imports"]
    ]


def memory() -> list[Case]:
    return [
        Case(
            r["method"],
            f"inference of the same weights ({r['inference'] / 1e9:.2f} GB)",
            {0: r["over"]},
            r.get("target"),
            True,
        )
        for r in result("end_to_end")["memory"]
    ]


def shares() -> list[Case]:
    return [
        Case(r["method"], "its step", {0: 100 * r["share"]}, 10.0, True, " %")
        for r in result("end_to_end")["share"]
    ]


def shipped() -> list[Case]:
    log = result("end_to_end")["log"]
    return [
        Case(
            "10,000 steps of MeZO, SmolLM2's tensors",
            "",
            {0: float(log["bytes"])},
            float(log["target"]),
            True,
            " bytes",
        )
    ]


def zeroth_order() -> list[Case]:
    found: dict[str, dict[int, float]] = {}
    for r in result("spsa_step")["results"]:
        found.setdefault(r["dist"], {})[int(r["threads"])] = float(r["step"]["over"])
    return [
        Case(f"MeZO step, {dist}", "its two forwards", values, 1.05, True) for dist, values in found.items()
    ]
