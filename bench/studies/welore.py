# SPDX-License-Identifier: Apache-2.0
"""Does a rank per weight pay? Perplexity of SmolLM2-135M on Shakespeare, ranks by WeLore against the same share everywhere.

    python bench/studies/welore.py [--windows N] [--steps N] [--no-save]

Each weight is replaced by its best approximation of the planned rank: all of them, as in the paper's tables, or only
those whose factors are smaller than the weight, as ``welore_compress_`` does by default. Then, for one ratio, the factors
are fine-tuned for a few steps on other parts of the text. Writes bench/results/welore.json and docs/images/welore.png.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import lowtide as lt  # noqa: E402
from lowtide.lowrank import WeLorePlan, welore_plan  # noqa: E402
from run_benches import environment, save  # noqa: E402

PLANS = {"WeLore": False, "uniform": True}
#: The argument ``minimum`` (factor everything, or what becomes smaller), and ratios.
CLASSES = {
    "every matrix": (0.0, (0.01, 0.05, 0.1)),
    "where smaller": (None, (0.1, 0.2, 0.3, 0.4, 0.5)),
}


def tokens(folder: Path, windows: int, length: int, at: float) -> Tensor:
    """(windows, length) token ids from as many places of the text, ``at`` of the way from each to the next."""
    from transformers import AutoTokenizer

    text = lt.assets.fetch("shakespeare").read_text(encoding="utf-8")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    starts = [int(len(text) * (i + at) / windows) for i in range(windows)]
    rows = [
        tokenizer(text[start : start + 8 * length], return_tensors="pt").input_ids[:, :length]
        for start in starts
    ]
    return torch.cat(rows)


@torch.no_grad()
def perplexity(model: nn.Module, ids: Tensor) -> float:
    losses = [float(model(input_ids=row, labels=row).loss) for row in ids.split(2)]
    return math.exp(sum(losses) / len(losses))


@torch.no_grad()
def truncate(model: nn.Module, plan: WeLorePlan, parts: dict[str, tuple[Tensor, Tensor, Tensor]]) -> None:
    """The weights that the plan's factors multiply to; the others are put back."""
    for m in plan.matrices:
        u, s, vh = parts[m.name]
        r = m.rank if m.low_rank else s.numel()
        model.get_submodule(m.name).weight.copy_((u[:, :r] * s[:r]) @ vh[:r])


def finetune(model: nn.Module, batches: Tensor) -> None:
    """One AdamW step a batch on what requires grad."""
    optimizer = lt.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.0)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 3e-4 * min(1.0, (step + 1) / 10) * (1 - step / len(batches))
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=12, help="of 512 tokens")
    parser.add_argument("--steps", type=int, default=30, help="of fine-tuning, 2 x 128 tokens each")
    parser.add_argument("--finetune-ratio", type=float, default=0.3)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    from lowtide.train.loader import load_model

    folder = lt.assets.fetch("smollm2-135m")
    model = load_model(folder).eval()
    ids = tokens(folder, args.windows, 512, 0.0)
    started = time.perf_counter()
    first = welore_plan(model, 0.0)
    print(f"spectra of {len(first.matrices)} weights in {time.perf_counter() - started:.0f} s", flush=True)
    parts = {
        m.name: torch.linalg.svd(model.get_submodule(m.name).weight.detach(), full_matrices=False)
        for m in first.matrices
    }
    rows = [{"plan": "dense", "ratio": 0.0, "perplexity": perplexity(model, ids)}]
    print(rows[0], flush=True)
    for which, (minimum, ratios) in CLASSES.items():
        for ratio in ratios:
            for name, uniform in PLANS.items():
                plan = first.at(ratio, minimum=minimum, uniform=uniform)
                truncate(model, plan, parts)
                rows.append(
                    {
                        "plan": name,
                        "factored": which,
                        "ratio": ratio,
                        "matrices": sum(m.low_rank for m in plan.matrices),
                        "parameters": plan.parameters / plan.dense_parameters,
                        "threshold": plan.threshold,
                        "perplexity": perplexity(model, ids),
                    }
                )
                print(rows[-1], flush=True)
    train = tokens(folder, 2 * args.steps, 128, 0.5).view(-1, 2, 128)
    tuned = []
    for name, uniform in PLANS.items():
        truncate(model, first, parts)
        plan = first.at(args.finetune_ratio, uniform=uniform)
        compressed = lt.lowrank.welore_compress_(copy.deepcopy(model), plan)
        before = perplexity(compressed, ids)
        finetune(compressed, train)
        tuned.append(
            {
                "plan": name,
                "ratio": args.finetune_ratio,
                "parameters": plan.parameters / plan.dense_parameters,
                "trainable": plan.trainable_parameters / plan.parameters,
                "perplexity_before": before,
                "perplexity_after": perplexity(compressed, ids),
            }
        )
        print(tuned[-1], flush=True)
    if not args.no_save:
        images = ROOT / "docs" / "images"
        images.mkdir(exist_ok=True)
        first.at(0.3).plot(images / "welore.png", title="SmolLM2-135M, ratio 0.3")
        setting = {"tokens": ids.numel(), "steps": args.steps}
        save(
            "welore",
            {"bench": "welore", "environment": environment(), **setting, "rows": rows, "finetuned": tuned},
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
