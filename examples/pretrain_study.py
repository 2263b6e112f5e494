# SPDX-License-Identifier: Apache-2.0
"""Pre-train a small LLaMA on real text with AdamW and seven memory-efficient methods, on the same tokens.

    python examples/pretrain_study.py [--steps N] [--seeds 0,1,2] [--methods NAME ...] [--out DIR]

A LLaMA of 4.9 M parameters reads Shakespeare byte by byte. Learning rates are tuned first, for each method alike: runs of
``--tune-steps`` steps, one seed, at half, once and twice a starting value, further by factors of two while the best is at an end.
Then each method trains with its rate from the same starts, on the same batches, once a seed. Every run is a process of its own
and is kept under OUT: an interrupted study continues with the run it was in. Writes OUT/pretrain_study.{json,md,png}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Each value is the paper's but for the gap: 200 of 10,000 steps there, a tenth of a run here.
# lr: where the search starts. rank: a quarter of the width (DCT-AdamW, FRUGAL: as dense).
METHODS: dict[str, dict[str, Any]] = {
    "AdamW": {"cls": "AdamW", "lr": 2e-3, "options": {"weight_decay": 0.0}},
    "GaLore": {"cls": "GaLoreAdamW", "lr": 1e-2, "rank": 0.25, "scale": 0.25},
    "Q-GaLore": {"cls": "QGaLoreAdamW", "lr": 1e-2, "rank": 0.25, "scale": 0.25, "int8": True},
    "Fira": {"cls": "FiraAdamW", "lr": 1e-2, "rank": 0.25, "scale": 0.25},
    "FRUGAL": {"cls": "FRUGAL", "lr": 2e-3, "rank": 0.25, "options": {"weight_decay": 0.0}},
    "DCT-AdamW": {"cls": "DCTAdamW", "lr": 2e-3, "rank": 0.25, "gap": 1, "options": {"weight_decay": 0.0}},
    "APOLLO": {"cls": "APOLLO", "lr": 1e-2, "rank": 0.25},
    "APOLLO-Mini": {"cls": "APOLLOMini", "lr": 1e-2, "rank": 1},
    # Not a method but a control: GaLore's rates without its subspace. Its scale of 0.25 leaves embeddings, head and norms with four
    # times the rate of the matrices.
    "AdamW, GaLore's rates": {
        "cls": "AdamW",
        "lr": 1e-2,
        "fixed": True,
        "matrix_rate": 0.25,
        "options": {"weight_decay": 0.0},
    },
}
TARGET = ["self_attn", "mlp"]
COLOURS = ["#4c566a", "#2e7fb8", "#7fb2d6", "#d1643c", "#8f6bb3", "#3b8f5a", "#c9a227", "#e0c878", "#a0a8b8"]
WIDTH, LAYERS, HEADS, HIDDEN = 256, 6, 4, 688


def build_model(seed: int, layers: int) -> Any:
    """A LLaMA over bytes, fp32, from a seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=layers,
        num_attention_heads=HEADS, max_position_embeddings=1024, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def build_optimizer(model: Any, name: str, lr: float, steps: int, seed: int) -> Any:
    """The method's optimizer; attention and MLP go low rank, embeddings, head and norms train at full rank."""
    import lowtide as lt

    m = METHODS[name]
    if m.get("int8"):
        lt.quant.quantize_model_(model, weights="int8", skip=("lm_head",))
    params: Any = list(model.parameters())
    if "rank" in m:
        params = lt.optim.param_groups(
            model, rank=m["rank"], update_proj_gap=m.get("gap", max(1, steps // 10)), scale=m.get("scale"),
            target=TARGET,
        )  # fmt: skip
    elif "matrix_rate" in m:
        params = [
            {k: v for k, v in g.items() if k in ("params", "param_ids")}
            for g in lt.optim.param_groups(model, target=TARGET)
        ]
    return getattr(lt.optim, m["cls"])(params, lr=lr, seed=seed, **m.get("options", {}))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """The GaLore recipe: linear warm-up over a tenth of the run, cosine to a tenth of the peak."""
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return peak * (0.1 + 0.45 * (1.0 + math.cos(math.pi * done)))


def train(a: argparse.Namespace) -> None:
    """One run, in this process; writes its result."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from lowtide.assets import fetch

    torch.set_num_threads(a.threads)
    text = np.frombuffer(Path(a.text or fetch("shakespeare")).read_bytes(), dtype=np.uint8)
    cut = int(len(text) * 0.95)

    def batch(part: Any, rng: Any) -> Any:
        at = rng.integers(0, len(part) - a.seq_len, a.batch_size)
        return torch.from_numpy(np.stack([part[i : i + a.seq_len] for i in at]).astype(np.int64))

    held_out = [batch(text[cut:], np.random.default_rng(1)) for _ in range(a.eval_batches)]
    model = build_model(a.seed, a.layers)
    opt = build_optimizer(model, a.worker, a.lr, a.steps, a.seed)

    @torch.no_grad()
    def evaluate() -> float:
        return statistics.fmean(float(model(input_ids=x, labels=x).loss) for x in held_out)

    rng = np.random.default_rng(a.seed)
    rates = [METHODS[a.worker].get("matrix_rate", 1.0)] + [1.0] * len(opt.param_groups)  # matrices come first
    curve, seconds, optimizer_seconds = [(0, evaluate())], 0.0, 0.0
    bar = tqdm(range(a.steps), desc=f"{a.worker} lr {a.lr:g} seed {a.seed}", leave=False, dynamic_ncols=True)
    for step in bar:
        started = time.perf_counter()
        for group, rate in zip(opt.param_groups, rates, strict=False):
            group["lr"] = rate * learning_rate(step, a.steps, a.lr)
        x = batch(text[:cut], rng)
        loss = model(input_ids=x, labels=x).loss
        loss.backward()
        stepping = time.perf_counter()
        opt.step()
        optimizer_seconds += time.perf_counter() - stepping
        opt.zero_grad()
        seconds += time.perf_counter() - started
        if not math.isfinite(loss.item()):
            curve.append((step + 1, math.inf))
            break
        if (step + 1) % max(1, a.steps // a.points) == 0 or step + 1 == a.steps:
            curve.append((step + 1, evaluate()))
            bar.set_postfix_str(f"held out {curve[-1][1]:.3f}")
    size = opt.state_bytes()
    result = {
        "method": a.worker, "lr": a.lr, "seed": a.seed, "steps": a.steps, "curve": curve, "loss": curve[-1][1],
        "bytes": {k: size[k] for k in ("weights", "states", "basis")},
        "step_seconds": seconds / a.steps, "optimizer_seconds": optimizer_seconds / a.steps,
    }  # fmt: skip
    out = Path(a.result)
    out.with_suffix(".part").write_text(json.dumps(result))
    out.with_suffix(".part").rename(out)


def run(a: argparse.Namespace, name: str, lr: float, seed: int, steps: int, points: int) -> dict[str, Any]:
    """The result of one run, its loss taken ``points`` times; from disk where it is there."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())
    key = f"{slug}-lr{lr:g}-s{seed}-n{steps}-b{a.batch_size}x{a.seq_len}-l{a.layers}"
    path = Path(a.out) / "runs" / f"{key}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, __file__, "--worker", name, "--lr", repr(lr), "--seed", str(seed), "--steps", str(steps),
            "--result", str(path), "--batch-size", str(a.batch_size), "--seq-len", str(a.seq_len), "--layers",
            str(a.layers), "--threads", str(a.threads), "--eval-batches", str(a.eval_batches), "--points", str(points),
            *(["--text", a.text] if a.text else []),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        shown = json.loads(path.read_text())
        print(
            f"{name:<12} lr {lr:<7g} seed {seed}  {steps} steps: held-out loss {shown['loss']:.4f}",
            flush=True,
        )
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def tune(a: argparse.Namespace, name: str) -> tuple[float, dict[str, float]]:
    """The learning rate with the least held-out loss, and what the search saw."""
    start = METHODS[name]["lr"]
    if not a.tune_steps or METHODS[name].get("fixed"):
        return start, {}

    def loss_at(factor: float) -> float:
        loss: float = run(a, name, start * factor, 0, a.tune_steps, points=1)["loss"]
        return loss

    seen = {f: loss_at(f) for f in (0.5, 1.0, 2.0)}
    for _ in range(3):
        best = min(seen, key=lambda f: seen[f])
        if min(seen) < best < max(seen):
            break
        further = best / 2 if best == min(seen) else best * 2
        seen[further] = loss_at(further)
    best = min(seen, key=lambda f: seen[f])
    return start * best, {f"{start * f:g}": loss for f, loss in sorted(seen.items())}


def study(a: argparse.Namespace, name: str) -> dict[str, Any]:
    """One method: its learning rate, then every seed."""
    lr, search = tune(a, name)
    seeds = [int(seed) for seed in a.seeds.split(",")]
    runs = [run(a, name, lr, seed, a.steps, points=5 if seed == seeds[0] else 1) for seed in seeds]
    shares = [r["optimizer_seconds"] / r["step_seconds"] for r in runs]
    return {
        "method": name, "lr": lr, "search": search, "losses": [r["loss"] for r in runs],
        "curve": runs[0]["curve"], "bytes": runs[0]["bytes"], "optimizer_share": statistics.median(shares),
    }  # fmt: skip


def report(a: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Table and figure."""
    base = next((r for r in rows if r["method"] == "AdamW"), rows[0])
    lines = [
        "| method | lr | held-out loss, mean (min to max) | bits a byte | states and bases | weights | optimizer's share of a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        low, mean, high = min(r["losses"]), statistics.fmean(r["losses"]), max(r["losses"])
        kept = r["bytes"]["states"] + r["bytes"]["basis"]
        lines.append(
            f"| {r['method']} | {r['lr']:g} | {mean:.4f} ({low:.4f} to {high:.4f}) | {mean / math.log(2):.3f} "
            f"| {kept / 1e6:.2f} MB | {r['bytes']['weights'] / 1e6:.1f} MB | {r['optimizer_share']:.0%} |"
        )
    out = Path(a.out)
    (out / "pretrain_study.md").write_text("\n".join(lines) + "\n")
    (out / "pretrain_study.json").write_text(
        json.dumps({"setting": setting(a), "rows": rows}, indent=1) + "\n"
    )
    print("\n".join(lines))

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True)
    for r, colour in zip(rows, COLOURS, strict=False):
        steps, losses = zip(*r["curve"][1:], strict=True)
        left.plot(steps, losses, color=colour, marker="o", markersize=3, label=r["method"])
        kept = (r["bytes"]["states"] + r["bytes"]["basis"]) / 1e6
        over = [loss - statistics.fmean(base["losses"]) for loss in r["losses"]]
        right.scatter([kept] * len(over), over, color=colour, s=28, zorder=3)
        right.annotate(r["method"], (kept, max(over)), xytext=(5, 5), textcoords="offset points", fontsize=8)
    left.set(xlabel="step", ylabel="held-out loss (nats a byte)", title=f"Seed {a.seeds.split(',')[0]}")
    left.legend(frameon=False, fontsize=8)
    right.axhline(0, color="black", linewidth=0.8)
    right.set(
        xlabel="optimizer states and bases (MB)",
        ylabel=f"loss over {base['method']}'s mean",
        title="Each seed",
    )
    right.margins(x=0.18, y=0.15)
    for ax in (left, right):
        ax.grid(alpha=0.25)
    fig.savefig(out / "pretrain_study.png", dpi=130)


def setting(a: argparse.Namespace) -> dict[str, Any]:
    """What the results depend on."""
    keys = ("steps", "tune_steps", "batch_size", "seq_len", "layers", "seeds", "eval_batches")
    return {k: getattr(a, k) for k in keys} | {"tokens": a.steps * a.batch_size * a.seq_len}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=300, metavar="N", help="updates of each run (default 300)")
    p.add_argument(
        "--tune-steps", type=int, default=100, metavar="N",
        help="updates of each run of the search for learning rates; 0: take the starting values (default 100)",
    )  # fmt: skip
    p.add_argument("--batch-size", type=int, default=16, metavar="N", help="windows a step (default 16)")
    p.add_argument("--seq-len", type=int, default=64, metavar="N", help="bytes a window (default 64)")
    p.add_argument("--layers", type=int, default=LAYERS, metavar="N", help=f"layers (default {LAYERS})")
    p.add_argument("--seeds", default="0,1,2", help="of starts, batches and rounding (default 0,1,2)")
    p.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME",
                   help=f"which to run, of {', '.join(METHODS)} (default: all)")  # fmt: skip
    p.add_argument("--eval-batches", type=int, default=40, metavar="N", help="held-out batches (default 40)")
    p.add_argument("--text", metavar="FILE", help="another text (default: Shakespeare, fetched and cached)")
    p.add_argument("--out", default="pretrain-study-out", metavar="DIR", help="default pretrain-study-out")
    p.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="methods at a time, which share the cores (default 1)",
    )
    p.add_argument(
        "--threads", type=int, metavar="N", help="of a run (default: the cores, divided by the jobs)"
    )
    for hidden in ("--worker", "--result"):
        p.add_argument(hidden, help=argparse.SUPPRESS)
    p.add_argument("--lr", type=float, help=argparse.SUPPRESS)
    for hidden in ("--seed", "--points"):
        p.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    a.threads = a.threads or max(1, (os.cpu_count() or 1) // a.jobs)
    if a.worker:
        train(a)
        return
    with ThreadPoolExecutor(a.jobs) as pool:
        report(a, list(pool.map(lambda name: study(a, name), a.methods)))


if __name__ == "__main__":
    main()
