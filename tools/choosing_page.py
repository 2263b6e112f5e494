# SPDX-License-Identifier: Apache-2.0
"""Fill the tables of docs/choosing.md from ``lt.optim.memory`` and ``lt.optim.fit``, or with ``--check`` say whether they are up to date.

Between ``<!-- bytes:MODEL -->`` and ``<!-- /bytes -->`` go bytes by kind and method, between ``<!-- fit -->`` and ``<!-- /fit -->`` what the
planner proposes for budgets.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lowtide as lt
from lowtide.optim.architectures import read
from lowtide.optim.memory import packed_bytes

PAGE = Path(__file__).resolve().parent.parent / "docs" / "choosing.md"
SECTION = re.compile(r"<!-- (bytes|fit)(?::([\w-]+))? -->\n(.*?)<!-- /\1 -->", re.DOTALL)

#: SmolLM2-135M's config.json, as far as bytes depend on it.
SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
MODELS: dict[str, Any] = {"smollm2-135m": SMOLLM2, "llama-1b": "llama-1b", "llama-7b": "llama-7b"}
BUDGETS = {"smollm2-135m": (1, 2, 4), "llama-1b": (8, 16, 24), "llama-7b": (16, 24, 48, 80)}
BATCH, SEQ, GROUP = 1, 1024, 128


@dataclass(frozen=True)
class Row:
    """A method as ``lt.optim.memory`` takes it, and how the page writes it."""

    label: str
    method: str
    weights: str
    gradients: str = "all"
    rank: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Of ``lt.optim.memory``."""
        rank = {} if self.rank is None else {"rank": self.rank}
        return {"weights": self.weights, "gradients": self.gradients, **rank}


ROWS = (
    Row("`AdamW`", "adamw", "fp32"),
    Row("`AdamW8bit`", "adamw8bit", "fp32"),
    Row("`AdamW4bit`", "adamw4bit", "fp32"),
    Row("`AdamMini8bit`", "adam-mini8bit", "fp32"),
    Row("`FiraAdamW`, r = ¼", "fira", "fp32", rank=0.25),
    Row("`GaLoreAdamW`, r = ¼", "galore", "fp32", rank=0.25),
    Row("`APOLLO`, r = ¼", "apollo", "fp32", rank=0.25),
    Row("`FRUGAL`, r = ¼", "frugal", "fp32", rank=0.25),
    Row("`AdamW8bit`, bf16 weights", "adamw8bit", "bf16"),
    Row("`AdamW8bit`, INT8 weights", "adamw8bit", "int8"),
    Row("the same, `in_backward`", "adamw8bit", "int8", "one"),
    Row("`QGaLoreAdamW`, r = ¼, `in_backward`", "qgalore", "int8", "one", 0.25),
    Row("`APOLLOMini`, INT8 weights, `in_backward`", "apollo-mini", "int8", "one"),
)


def megabytes(n: int) -> str:
    """Of 10^6 bytes, above a thousand of them gigabytes; empty for none."""
    if n == 0:
        return ""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{max(1, round(n / 1e6))} MB"


def line(label: str, kinds: tuple[int, int, int, int]) -> str:
    """A row of the table; ``kinds`` are weights, gradients or probes, states, bases."""
    return f"| {label} | {' | '.join(megabytes(n) for n in kinds)} | {megabytes(sum(kinds))} |"


def zeroth_order(model: Any) -> list[str]:
    """MeZO holds the weights and a scratch of the largest of them; QZO packed weights, of which only scales move."""
    tensors = [w for w in read(model)[0] if w.trains]
    total, largest = sum(w.numel for w in tensors), max(w.numel for w in tensors)
    rest = sum(4 * w.numel for w in tensors if not w.linear)
    packed = [packed_bytes(*w.matrix, 4, GROUP) for w in tensors if w.linear]
    return [
        line("`MeZO`", (4 * total, 4 * largest, 0, 0)),
        line("`MeZO`, bf16 weights", (2 * total, 2 * largest, 0, 0)),
        line("`QZO`, INT4 weights", (rest + sum(packed), 0, 0, 0)),
    ]


def bytes_table(name: str) -> str:
    """Bytes by kind of each method for one model."""
    model = MODELS[name]
    lines = [
        "| method | weights | gradients or probe | states | bases | together |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        report = lt.optim.memory(model, row.method, **row.options)
        lines.append(line(row.label, (report.weights, report.gradients, report.states, report.basis)))
    lines += zeroth_order(model)
    saved = [
        lt.optim.memory(model, "adamw", batch=BATCH, seq=SEQ, activations=kind).activations
        for kind in ("full", "checkpointed")
    ]
    count = sum(w.numel for w in read(model)[0])
    lines.append("")
    lines.append(
        f"{count / 1e6:,.0f} million parameters. Backpropagation holds activations on top: for {BATCH} × {SEQ} tokens in fp32 "
        f"{megabytes(saved[0])}, with checkpointed layers {megabytes(saved[1])}."
    )
    return "\n".join(lines)


def fit_table() -> str:
    """The first proposal of the planner for each budget."""
    lines = ["| model | budget | first proposal | together |", "|---|---|---|---|"]
    for name, budgets in BUDGETS.items():
        for budget in budgets:
            best = lt.optim.fit(MODELS[name], budget * 10**9, batch=BATCH, seq=SEQ)[0]
            how = [f"{best.weights} weights"] if best.weights != "fp32" else []
            how += [f"rank {best.rank:g} of the shorter side"] if best.rank else []
            how += ["`in_backward`"] if best.in_backward else []
            how += ["checkpointed layers"] if best.checkpointing else []
            text = ", ".join([f"`{best.method}`", *how]) if best.fits else f"none; nearest: `{best.method}`"
            lines.append(f"| {name} | {budget} GB | {text} | {megabytes(best.report.total)} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """The page with its sections computed anew."""

    def section(found: re.Match[str]) -> str:
        kind, name = found[1], found[2]
        body = bytes_table(name) if kind == "bytes" else fit_table()
        head = f"{kind}:{name}" if name else kind
        return f"<!-- {head} -->\n\n{body}\n\n<!-- /{kind} -->"

    return SECTION.sub(section, text)


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if the page is out of date")
    check = parser.parse_args().check
    old = PAGE.read_text()
    new = filled(old)
    if old == new:
        print("docs/choosing.md: up to date")
        return 0
    if not check:
        PAGE.write_text(new)
    print("docs/choosing.md: out of date" if check else "docs/choosing.md: written", file=sys.stderr)
    return int(check)


if __name__ == "__main__":
    sys.exit(main())
