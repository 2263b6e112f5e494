# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a real language model three ways and show what each one costs.

SmolLM2-135M on Shakespeare: AdamW, GaLore and Q-GaLore from the same start, on the same batches, training the
same parameters, each at a learning rate tuned for it (docs/demo.md says how). Every method runs in a process of its own
through ``lowtide finetune``, so that peak memory is its own; an interrupted demo continues where it was.
Writes OUT/demo.png, OUT/demo.json and one table; all numbers are measured in this run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Validation loss over a sweep of learning rates, 60 steps, seed 0 (docs/demo.md).
_LOW_RANK = ["--rank", "64", "--update-proj-gap", "50", "--scale", "4"]
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {"label": "AdamW", "lr": 1e-4, "args": []},
    "galore": {"label": "GaLore", "lr": 1e-4, "args": _LOW_RANK},
    "qgalore": {"label": "Q-GaLore", "lr": 1e-4, "args": _LOW_RANK},
}
KINDS = ("weights", "gradients", "states", "basis")
GIB = 2**30


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", default="demo-out", metavar="DIR", help="where runs, table and figure go (default demo-out)"
    )
    parser.add_argument(
        "--steps", type=int, default=60, metavar="N", help="updates of each method (default 60)"
    )
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="windows a step (default 4)")
    parser.add_argument("--seq-len", type=int, default=64, metavar="N", help="tokens a window (default 64)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of batches and rounding (default 0)"
    )
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where model and text are kept (default $LOWTIDE_CACHE or ~/.cache/lowtide)",
    )
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which to run (default: all)"
    )
    return parser.parse_args()


def inference_rss(model: Path, batch: int, seq: int) -> int:
    """Peak resident bytes of a process that only evaluates the model on batches of this size."""
    code = (
        "import sys, torch, transformers\n"
        "from lowtide.train.process import peak_rss, reset_peak_rss, return_freed_memory\n"
        "return_freed_memory()\n"  # as the runs do
        "m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], local_files_only=True, dtype=torch.float32)\n"
        "x = torch.arange(int(sys.argv[2]) * int(sys.argv[3])).reshape(int(sys.argv[2]), -1)\n"
        "reset_peak_rss()\n"
        "with torch.inference_mode():\n"
        "    for _ in range(2): m(x, labels=x)\n"
        "print(peak_rss())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(batch), str(seq)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def run_method(name: str, options: argparse.Namespace, model: Path, text: Path, out: Path) -> dict[str, Any]:
    method = METHODS[name]
    command = [
        sys.executable, "-m", "lowtide", "finetune", str(model), str(text), "--out", str(out), "--method", name,
        "--lr", str(method["lr"]), *method["args"], "--steps", str(options.steps), "--batch-size", str(options.batch_size),
        "--seq-len", str(options.seq_len), "--seed", str(options.seed), "--eval-every", "15", "--eval-batches", "16",
        "--save-every", "30", "--token-cache", str(out.parent), "--no-export",
    ]  # fmt: skip
    if (out / "metrics.jsonl").exists():
        command.append("--resume")
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0:
        raise SystemExit(
            f"demo: {name} stopped; run the same command again to continue, or remove {out} to start over"
        )
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary["curve"] = [(r["step"], r["val_loss"]) for r in records if "val_loss" in r]
    summary["train_curve"] = [(r["step"], r["loss"]) for r in records if "loss" in r]
    return summary


def table(results: dict[str, dict[str, Any]], inference: int) -> str:
    head = [
        "",
        "val loss before",
        "after",
        "peak RSS",
        "x inference",
        "weights",
        "gradients",
        "states",
        "basis",
        "counted",
        "s/step",
    ]
    rows = [head, ["inference only", "", "", f"{inference / GIB:.2f} GiB", "1.00", *[""] * 6]]
    for name, r in results.items():
        counted = [r["bytes"].get(kind, 0) for kind in KINDS]
        rows.append(
            [
                METHODS[name]["label"],
                f"{r['val_loss_before']:.4f}",
                f"{r['val_loss_after']:.4f}",
                f"{r['peak_rss'] / GIB:.2f} GiB",
                f"{r['peak_rss'] / inference:.2f}",
                *[f"{c / 1e6:.0f} MB" for c in counted],
                f"{sum(counted) / 1e6:.0f} MB",
                f"{r['seconds_per_step']:.2f}",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def figure(results: dict[str, dict[str, Any]], inference: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(METHODS, ["#4c566a", "#2e7fb8", "#d1643c"], strict=True))
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for name, r in results.items():
        label = METHODS[name]["label"]
        left.plot(*zip(*r["train_curve"], strict=True), color=colours[name], alpha=0.2, linewidth=1)
        left.plot(*zip(*r["curve"], strict=True), color=colours[name], marker="o", markersize=4, label=label)
    left.set(xlabel="step", ylabel="loss (nats per token)", title="Validation (dots) and training loss")
    left.legend(frameon=False)
    left.grid(alpha=0.25)
    labels = [METHODS[name]["label"] for name in results]
    bottom = [0.0] * len(labels)
    for kind, colour in zip(KINDS, ["#4c566a", "#d08770", "#5e81ac", "#a3be8c"], strict=True):
        heights = [r["bytes"].get(kind, 0) / 1e9 for r in results.values()]
        right.bar(labels, heights, 0.5, bottom=bottom, label=kind, color=colour)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    peaks = [r["peak_rss"] / 1e9 for r in results.values()]
    right.scatter(labels, peaks, marker="_", s=900, color="black", label="peak RSS of the process")
    for i, (total, peak) in enumerate(zip(bottom, peaks, strict=True)):
        right.annotate(f"{total:.2f} GB", (i, total), ha="center", va="bottom", fontsize=9)
        right.annotate(f"{peak:.2f} GB", (i, peak), ha="center", va="bottom", fontsize=9)
    right.axhline(
        inference / 1e9, color="black", linewidth=0.8, linestyle=":", label="peak RSS of inference alone"
    )
    right.set(ylabel="GB", title="Memory: counted tensors (bars) and process", ylim=(0, max(peaks) * 1.15))
    right.legend(frameon=False, fontsize=8)
    fig.suptitle("SmolLM2-135M on Shakespeare, all parameters trained")
    fig.savefig(path, dpi=150)


def main() -> int:
    options = arguments()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lowtide.assets import fetch

    began = time.monotonic()
    model = Path(fetch("smollm2-135m", cache_dir=options.cache_dir))
    text = Path(fetch("shakespeare", cache_dir=options.cache_dir))
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    print(
        f"demo: {options.steps} steps of {options.batch_size} x {options.seq_len} tokens, seed {options.seed}",
        file=sys.stderr,
    )
    results = {}
    for name in options.methods:
        print(f"demo: {METHODS[name]['label']}, learning rate {METHODS[name]['lr']:g}", file=sys.stderr)
        results[name] = run_method(name, options, model, text, out / name)
    inference = inference_rss(model, options.batch_size, options.seq_len)
    print("\n" + table(results, inference) + "\n")
    if "adamw" in results and "qgalore" in results:
        a, q = results["adamw"], results["qgalore"]
        counted = sum(a["bytes"].values()) / sum(q["bytes"].values())
        print(
            f"Q-GaLore against AdamW: validation loss {q['val_loss_after'] / a['val_loss_after'] - 1:+.1%}, counted bytes "
            f"{counted:.1f}x fewer, peak RSS {a['peak_rss'] / q['peak_rss']:.1f}x lower"
        )
    (out / "demo.json").write_text(
        json.dumps({"inference_peak_rss": inference, "results": results}, indent=1)
    )
    figure(results, inference, out / "demo.png")
    print(f"figure: {out / 'demo.png'}   numbers: {out / 'demo.json'}   ({time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
