# SPDX-License-Identifier: Apache-2.0
"""Write docs/benchmarks.md from bench/results: every target, what was measured beside whom, and why some are missed.

python tools/benchmarks_page.py            writes the page
python tools/benchmarks_page.py --check    fails where the committed page is not what the results give
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmark_rows import (
    Case,
    Work,
    codecs,
    cuda,
    dispatch,
    head,
    hutchinson,
    imports,
    linear,
    low_rank,
    memory,
    noise,
    products,
    refreshes,
    result,
    shares,
    shipped,
    steps,
    zeroth_order,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"

WORKS = (
    Work(
        "A Gaussian direction added to 2^24 weights",
        ("spsa_perturb",),
        lambda: noise("gaussian", 0.95, 10.0),
        why="About 210 vector instructions for 64 numbers (ten rounds of Philox, a logarithm, a sine) on two ports: arithmetic, not memory. "
        "A narrower generator would be another stream; `ih4` and `lut8` are the cheaper distributions.",
    ),
    Work(
        "The same, Rademacher",
        ("spsa_perturb",),
        lambda: noise("rademacher", 0.98, 10.0),
        why="To scratch, 12 bytes an element move as in axpy, and the words of the signs come on top; in place 8 bytes move.",
    ),
    Work(
        "AdamW8bit step",
        ("optim_step",),
        lambda: steps("AdamW8bit"),
        why="57 % of the bytes of fp32 states, but 63 instructions decode, update and encode 16 parameters: bound by two 512-bit ports.",
    ),
    Work(
        "AdamW4bit step",
        ("optim_step",),
        lambda: steps("AdamW4bit"),
        why="Half of the bytes, the same arithmetic. Tensors that fit into the caches gain nothing from fewer bytes, and the model has many.",
    ),
    Work(
        "INT8 and INT4 group codecs",
        ("group_codec", "requant"),
        codecs,
        why="Stochastic rounding is 0.2 ns of arithmetic an element, half of it Philox, beside 0.3 ns of memory that it overlaps in part; INT4 has as much "
        "arithmetic for fewer bytes. Requantization starts a group again when it outgrows its range.",
    ),
    Work(
        "Low-rank step without refresh",
        ("low_rank_step", "optim_step"),
        low_rank,
        why="GaLore's step is its two products, which galore-torch runs on MKL: a step that cost nothing else would reach 1.45×. APOLLO has one of them. "
        "On small layers 0.14 ms of Python a matrix is up to half of a step. A DCT step is two transforms, of which only 128 of 768 coefficients are wanted.",
    ),
    Work(
        "Subspace refresh, rank 128",
        ("refresh", "refresh_large"),
        refreshes,
        why="A warm start is two products with the gradient at 158 GFLOP/s: 5.1 of 7.3 ms. Flat spectra need more iterations for 0.99 of the energy.",
    ),
    Work(
        "Projection with an INT4 basis",
        ("projection",),
        products,
        why="One fixed order of additions for every instruction set and thread count; MKL chooses its own. Bases are decoded tile by tile.",
    ),
    Work(
        "Linear layer, batch 1",
        ("linear",),
        linear,
        why="INT4 is six operations for 32 weights; layers that fit into a cache are bound by the call. Medians of large layers had company on the host.",
    ),
    Work(
        "Softmax head, Hessian product",
        ("ce_head",),
        head,
        why="Two of the five matrix products of double backward remain, and they are the time; the rows alone, from logits, are 10.7 to 11.8 times as fast.",
    ),
    Work(
        "Hutchinson trace, beyond its products",
        ("curvature_hutchinson",),
        hutchinson,
        why="A million signs cost the same for any batch, and products with 128 samples are short. A trace also sums in double and keeps an interval.",
    ),
    Work("One op call", ("dispatch",), dispatch),
    Work(
        "Import",
        ("import_time",),
        imports,
        why="Where the collector is on, one full collection falls into this import: it walks every object of torch. The rest is reading 110 modules and "
        "making 87 frozen dataclasses, the values of the axes, each of which compiles six methods.",
    ),
    Work(
        "CUDA, without a GPU",
        ("cuda_static",),
        cuda,
        notes="Counted while the PTX is executed on the CPU, and by ptxas. No times: nothing ran on a GPU.",
    ),
    Work(
        "Peak memory, fine-tuning every parameter of SmolLM2-135M",
        ("end_to_end",),
        memory,
        why="The peak includes what packing fp32 weights takes at the start, the logits' gradient, and pages that the allocator keeps.",
    ),
    Work(
        "The optimizer's share of a step",
        ("end_to_end",),
        shares,
        why="512 tokens are few: the share falls in proportion to a batch's tokens, updates do not. Low-rank updates are products of their own.",
    ),
    Work(
        "Zeroth-order step over its forwards",
        ("spsa_step",),
        zeroth_order,
        why="Two perturbations and an update move 3 GB at least, a twentieth of forwards with 2048 tokens.",
    ),
    Work(
        "A run that ships as its log",
        ("end_to_end",),
        shipped,
        why="10,000 bytes of gradients, 1.3 KB of names and shapes of 272 tensors, compressed, 0.4 KB of frames with their checks, 0.4 KB for a digest of "
        "all weights every 1000 steps.",
    ),
)


def figure(case: Case) -> str:
    def one(v: float) -> str:
        if case.unit == " bytes" or v == int(v):
            return f"{v:,.0f}{case.unit}"
        return (f"{v:.2f}" if abs(v) < 10 else f"{v:.1f}") + case.unit if case.unit else f"{v:.4f}"

    return " / ".join(one(v) for v in case.values.values())


def target(case: Case) -> str:
    if case.target is None:
        return ""
    sign = "≤" if case.at_most else "≥"
    return f"{sign} {case.target:,g}{case.unit}"


def verdict(case: Case) -> str:
    return {None: "", True: "met", False: "**missed**"}[case.met]


def section(work: Work) -> list[str]:
    cases = work.cases()
    missed = [c for c in cases if c.met is False]
    if missed and not work.why:
        raise SystemExit(f"{work.name}: {len(missed)} targets are missed and nothing says why")
    threads = sorted({t for c in cases for t in c.values if t})
    head = " / ".join(f"{t} thread{'s' * (t > 1)}" for t in threads) or "measured"
    lines = [f"## {work.name}", "", f"| | against | {head} | target | |", "|---|---|---|---|---|"]
    lines += [f"| {c.label} | {c.against} | {figure(c)} | {target(c)} | {verdict(c)} |" for c in cases]
    if work.notes:
        lines += ["", work.notes]
    if missed:
        lines += ["", f"What limits it: {work.why}"]
    return [*lines, ""]


def provenance() -> list[str]:
    lines = [
        "## Where the figures come from",
        "",
        "| results | commit | taken | load before |",
        "|---|---|---|---|",
    ]
    for name in sorted({s for work in WORKS for s in work.sources}):
        data = result(name)
        environment = data.get("environment") or data["runs"][0]["environment"]
        date = environment["date"][:16].replace("T", " ")
        lines.append(
            f"| `bench/results/{name}.json` | `{environment['commit']}` | {date} | {environment['load_before']:.1f} |"
        )
    return lines


def machine() -> str:
    e = result("optim_step")["runs"][-1]["environment"]
    return f"{e['processors']} cores of an {e['cpu'].replace('(R)', '')}, {e['compiler'].split(' (')[0]} {e['compiler'].split()[-1]}, torch {e['torch']}"


def page() -> str:
    cases = [c for work in WORKS for c in work.cases()]
    judged = [c for c in cases if c.met is not None]
    met = sum(c.met is True for c in judged)
    lines = [
        "# Benchmarks",
        "",
        "<!-- Written by tools/benchmarks_page.py from bench/results; `make bench` takes the figures again. -->",
        "",
        "Every performance target that the project set itself, with what was measured beside its peers. Ratios of medians, taken in turns in one run,",
        f"warmed up, each rival's output verified: {machine()}. Above 1× lowtide is faster.",
        f"Of {len(judged)} figures with a target {met} meet it; a row is missed where one thread count misses.",
        "[Performance](performance.md) has more rows and their reasons, [curvature](curvature.md#beside-other-packages) the peers of Hessian tools.",
        "",
    ]
    for work in WORKS:
        lines += section(work)
    return "\n".join([*lines, *provenance()]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="only whether the committed page is up to date")
    args = parser.parse_args()
    text = page()
    if args.check:
        same = PAGE.exists() and PAGE.read_text() == text
        print(
            "docs/benchmarks.md "
            + ("is up to date" if same else "is not what bench/results give; run tools/benchmarks_page.py")
        )
        return 0 if same else 1
    PAGE.write_text(text)
    print(f"wrote docs/{PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
