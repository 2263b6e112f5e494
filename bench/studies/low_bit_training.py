# SPDX-License-Identifier: Apache-2.0
"""Does low bit cost accuracy? SmolLM2-135M on Shakespeare, fp32 AdamW against low-bit states and INT8 weights.

    python bench/studies/low_bit_training.py [--steps N] [--seeds 0,1,2] [--only NAME,...] [--jobs N] [--out DIR] [--no-save]

Every run is ``lowtide finetune`` in a process of its own: the same start, batches, trained parameters and learning
rate, only the storage differs. Runs are kept under OUT and continued when interrupted. Writes
bench/results/low_bit_training.json and docs/images/low_bit_training.png. ``nearest`` is the experiment that stochastic
rounding exists for: the same INT8 weights, updated by decoding, adding and rounding to the nearest code.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from run_benches import environment, save  # noqa: E402

LR = 1e-4
RUNS: dict[str, dict[str, Any]] = {
    "AdamW fp32": {"method": "adamw"},
    "AdamW8bit": {"method": "adamw8bit"},
    "AdamW4bit": {"method": "adamw4bit"},
    "INT8 weights, stochastic": {"method": "adamw8bit", "weights": "int8"},
    "INT8 weights, nearest": {"method": "adamw8bit", "weights": "int8", "nearest": True},
}
COLOURS = dict(zip(RUNS, ["#4c566a", "#2e7fb8", "#8f6bb3", "#d1643c", "#c9a227"], strict=True))


def round_to_nearest() -> None:
    """Make updates of packed weights in this process round to the nearest code."""
    import torch

    from lowtide import ops
    from lowtide.quant import QuantWeight

    def requant_add_(self: Any, delta: Any, alpha: float = 1.0, decay: float = 1.0, **_: Any) -> Any:
        w = self.dequantize().mul_(decay).add_(delta, alpha=alpha)
        codes, scale, zero = ops.quantize_group(w, bits=self.bits, group=self.group, scheme=self.scheme)
        for old, new in ((self.codes, codes), (self.scale, scale), (self.zero, zero)):
            old.copy_(new)
        return torch.zeros((), dtype=torch.int64)

    QuantWeight.requant_add_ = requant_add_  # type: ignore[method-assign]


def moved(out: Path, model: Path, config: Any) -> float:
    """Share of the packed weights whose decoded value is not that of the start."""
    from safetensors import safe_open

    import lowtide.quant
    from lowtide.train.loader import load_model
    from lowtide.train.methods import prepare_model

    start = load_model(model)
    prepare_model(start, config)
    (last,) = sorted(out.glob("ckpt-*"))[-1:]
    changed = total = 0
    with safe_open(last / "model.safetensors", "pt") as end:
        for name, layer in start.named_modules():
            if isinstance(layer, lowtide.quant.Linear):
                before = layer.dequantize()
                layer.weight.data.copy_(end.get_tensor(f"{name}.weight"))
                layer.weight_scale.copy_(end.get_tensor(f"{name}.weight_scale"))
                if layer.weight_zero is not None:
                    layer.weight_zero.copy_(end.get_tensor(f"{name}.weight_zero"))
                changed += int((layer.dequantize() != before).sum())
                total += before.numel()
    return changed / total


def work(args: argparse.Namespace) -> None:
    from lowtide.assets import fetch
    from lowtide.train import FinetuneConfig, Finetuner

    run = RUNS[args.worker]
    if run.get("nearest"):
        round_to_nearest()
    model, out = Path(fetch("smollm2-135m")), Path(args.out)
    config = FinetuneConfig(
        model=str(model), data=str(fetch("shakespeare")), out=str(out), method=run["method"],
        weights=run.get("weights", "fp32"), lr=LR, steps=args.steps, batch_size=args.batch_size, seq_len=args.seq_len,
        seed=int(args.seeds), eval_every=max(1, args.steps // 10), eval_batches=32, save_every=50, keep=1,
        token_cache=str(out.parent), export=False,
    )  # fmt: skip
    summary = Finetuner(config, resume=(out / "run.json").exists()).run()
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    result = {
        "val_loss_before": summary["val_loss_before"],
        "val_loss_after": summary["val_loss_after"],
        "curve": [(r["step"], r["val_loss"]) for r in records if "val_loss" in r],
        "bytes": summary["bytes"],
    }
    if config.weights == "int8":
        result["moved"] = moved(out, model, config)
    for checkpoint in out.glob("ckpt-*"):
        shutil.rmtree(checkpoint)
    (out / "result.json").write_text(json.dumps(result))


def collect(args: argparse.Namespace) -> dict[str, dict[int, dict[str, Any]]]:
    """Results by run and seed; runs what is missing, seed by seed, ``--jobs`` processes at a time."""
    names = args.only.split("+") if args.only else list(RUNS)
    environ = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.jobs))}

    def folder(name: str, seed: int) -> Path:
        return Path(args.out).resolve() / f"{name.lower().replace(',', '').replace(' ', '-')}-{seed}"

    def run(name: str, seed: int) -> None:
        out = folder(name, seed)
        if (out / "result.json").exists():
            return
        out.mkdir(parents=True, exist_ok=True)
        print(f"{name}, seed {seed}", flush=True)
        command = [
            sys.executable, __file__, "--worker", name, "--out", str(out), "--seeds", str(seed), "--steps",
            str(args.steps), "--batch-size", str(args.batch_size), "--seq-len", str(args.seq_len),
        ]  # fmt: skip
        subprocess.run(command, check=True, env=environ)

    seeds = [int(seed) for seed in args.seeds.split(",")]
    with ThreadPoolExecutor(args.jobs) as pool:
        for done in [pool.submit(run, name, seed) for seed in seeds for name in names]:
            done.result()
    return {
        name: {s: json.loads((folder(name, s) / "result.json").read_text()) for s in seeds} for name in names
    }


def table(results: dict[str, dict[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    reference = results.get("AdamW fp32", {})
    rows = []
    for name, by_seed in results.items():
        losses = [r["val_loss_after"] for r in by_seed.values()]
        over = [
            r["val_loss_after"] / reference[s]["val_loss_after"] - 1
            for s, r in by_seed.items()
            if s in reference
        ]
        row = {
            "name": name,
            "val_loss_before": statistics.mean(r["val_loss_before"] for r in by_seed.values()),
            "val_loss_after": losses,
            "over_fp32": over,
            "bytes": next(iter(by_seed.values()))["bytes"],
            "curve": next(iter(by_seed.values()))["curve"],
        }
        if "moved" in next(iter(by_seed.values())):
            row["moved"] = [r["moved"] for r in by_seed.values()]
        rows.append(row)
        worst = f"{max(over, key=abs):+.2%}" if over else "-"
        share = f"  {statistics.mean(row['moved']):.1%} of the weights moved" if "moved" in row else ""
        print(
            f"{name:<26} {row['val_loss_before']:.4f} -> {', '.join(f'{x:.4f}' for x in losses)}  worst {worst}{share}"
        )
    return rows


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for row in rows:
        steps, losses = zip(*row["curve"], strict=True)
        left.plot(
            steps,
            losses,
            color=COLOURS[row["name"]],
            marker="o",
            markersize=3.5,
            label=row["name"],
            alpha=0.85,
        )
    left.set(xlabel="step", ylabel="validation loss (nats per token)", title="One seed")
    left.legend(frameon=False)
    left.grid(alpha=0.25)
    for i, row in enumerate(rows):
        over = [100 * x for x in row["over_fp32"]]
        right.scatter([i] * len(over), over, color=COLOURS[row["name"]], zorder=3)
        if "moved" in row:
            right.annotate(
                f"{statistics.mean(row['moved']):.0%} of the\nweights moved", (i, max(over)), xytext=(0, 8),
                textcoords="offset points", ha="center", fontsize=8,
            )  # fmt: skip
    right.axhline(0, color="black", linewidth=0.8)
    right.set_xticks(range(len(rows)), [row["name"].replace(", ", "\n") for row in rows], fontsize=8)
    right.set(ylabel="loss over fp32 AdamW's (%)", title="After the same steps, each seed")
    right.margins(x=0.12, y=0.25)
    right.grid(alpha=0.25, axis="y")
    fig.suptitle("SmolLM2-135M on Shakespeare: what low bit costs")
    fig.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--seeds", default="0,1,2", help="seeds of batches and rounding (default 0,1,2)")
    parser.add_argument("--only", default="", help="names of runs, separated by +")
    parser.add_argument("--out", default="low-bit-out", help="where runs are kept (default low-bit-out)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, which share the cores (default 1)"
    )
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.worker:
        work(args)
        return
    rows = table(collect(args))
    if not args.no_save:
        setting = {k: getattr(args, k) for k in ("steps", "batch_size", "seq_len", "seeds")}
        save(
            "low_bit_training",
            {"bench": "low_bit_training", "environment": environment(), **setting, "lr": LR, "rows": rows},
        )
        figure(rows, ROOT / "docs" / "images" / "low_bit_training.png")


if __name__ == "__main__":
    main()
