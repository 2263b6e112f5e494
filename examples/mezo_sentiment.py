# SPDX-License-Identifier: Apache-2.0
"""Teach a language model what film reviews mean, without a backward pass.

    python examples/mezo_sentiment.py [--steps N] [--seeds 0,1,2] [--methods mezo,qzo] [--out DIR]

SmolLM2-135M reads "<sentence> It was" and must prefer " great" or " terrible"; sentences and ratings are the film snippets of the VADER
study. MeZO (arXiv 2305.17333) trains the query and value projections, QZO (2505.13430) the scales of INT4 linear layers; AdamW takes a
few steps on the weights MeZO trains, for its memory. Accuracy is of held-out sentences, before and after; peak memory is of a process
of its own for each row, beside one that only evaluates. Every run's log is a byte a step: OUT/<method>-<seed>.ltlog.
Finished runs are not repeated. Writes OUT/mezo_sentiment.{json,md,png}. 400 steps take about ten minutes a seed and method on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = (" terrible", " great")
BATCH, HELD_OUT, EVAL_BATCH, MAX_WORDS = 16, 512, 32, 20
#: Learning rates of 400 steps; eps of QZO is relative to the size of a scale.
SETTINGS: dict[str, dict[str, float]] = {
    "mezo": {"lr": 1e-4, "eps": 1e-3},
    "qzo": {"lr": 3e-3, "eps": 1e-2},
    "adamw": {"lr": 1e-5},
    "inference": {},
}
COLOURS = {"mezo": "#1f5a99", "qzo": "#c8501e"}


def sentences(path: Path, seed: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(training, held-out) pairs of sentence and label; clear ratings, short sentences, as many of either kind held out."""
    rows = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    clear = [(text.strip(), int(float(score) > 0)) for score, text in rows if abs(float(score)) >= 1.0]
    short = [(text, label) for text, label in clear if len(text.split()) <= MAX_WORDS]
    random.Random(20_260).shuffle(short)  # the split is the same for every seed
    held: list[tuple[str, int]] = []
    for label in (0, 1):
        held += [row for row in short if row[1] == label][: HELD_OUT // 2]
    train = [row for row in short if row not in set(held)]
    random.Random(seed).shuffle(train)
    return train, held


class Task:
    """Model, tokenizer and data of one run."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(options.model)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            options.model, dtype=torch.float32
        )
        self.model.eval().requires_grad_(False)
        self.train, self.held = sentences(options.data, seed)
        self.held = self.held[: options.held_out // 2] + self.held[len(self.held) - options.held_out // 2 :]
        self.answers = [self.tokenizer.encode(w, add_special_tokens=False)[0] for w in WORDS]
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "left"  # the answer follows the last position

    def logits(self, rows: list[tuple[str, int]]) -> Any:
        """(rows, 2): of the two words after each sentence, float32."""
        batch = self.tokenizer([f"{text} It was" for text, _ in rows], return_tensors="pt", padding=True)
        out = self.model(**batch, logits_to_keep=1, use_cache=False)
        return out.logits[:, -1, self.answers].float()

    def loss(self, rows: list[tuple[str, int]]) -> Any:
        import torch

        return torch.nn.functional.cross_entropy(self.logits(rows), torch.tensor([y for _, y in rows]))

    def accuracy(self) -> float:
        import torch

        right = 0
        with torch.no_grad():
            for i in range(0, len(self.held), EVAL_BATCH):
                rows = self.held[i : i + EVAL_BATCH]
                right += int((self.logits(rows).argmax(1) == torch.tensor([y for _, y in rows])).sum())
        return right / len(self.held)

    def batch(self, step: int) -> list[tuple[str, int]]:
        n = len(self.train)
        return [self.train[(step * BATCH + i) % n] for i in range(BATCH)]


def optimizer(task: Task, method: str, log: Path, seed: int) -> Any:
    import torch

    import lowtide as lt

    settings = SETTINGS[method]
    if method == "qzo":
        lt.quant.quantize_model_(task.model, weights="int4", group=64, skip=("lm_head",))
        return lt.spsa.QZO(task.model, **settings, seed=seed, log=log, codec="log8")
    for name, p in task.model.named_parameters():
        p.requires_grad_(name.endswith(("q_proj.weight", "v_proj.weight")))
    if method == "mezo":
        named = task.model.named_parameters()
        return lt.spsa.MeZO(named, **settings, seed=seed, log=log, codec="log8", module=task.model)
    return torch.optim.AdamW([p for p in task.model.parameters() if p.requires_grad], **settings)


def child(options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """One row, in this process: its peak memory is the method's."""
    import torch

    torch.set_num_threads(options.threads)
    task = Task(options, seed)
    log = options.out / f"{method}-{seed}.ltlog"
    log.unlink(missing_ok=True)
    opt = None if method == "inference" else optimizer(task, method, log, seed)
    result: dict[str, Any] = {"losses": [], "before": task.accuracy()}
    steps = {"inference": 1, "adamw": min(5, options.steps)}.get(method, options.steps)
    start = time.perf_counter()
    with bar(f"{method} {seed}", steps, options.progress) as tick:
        for step in range(steps):
            rows = task.batch(step)
            if opt is None:
                with torch.no_grad():
                    loss = float(task.loss(rows))
            elif method == "adamw":
                opt.zero_grad()
                value = task.loss(rows)
                value.backward()
                opt.step()
                loss = float(value)
            else:
                loss = opt.step(lambda rows=rows: task.loss(rows))
            result["losses"].append(loss)
            tick(loss)
    result["seconds_per_step"] = (time.perf_counter() - start) / steps
    if method in COLOURS:
        opt.close()
        result["after"] = task.accuracy()
        result["log_bytes"] = log.stat().st_size
    result["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result


class bar:
    """tqdm where it is wanted; called with each loss."""

    def __init__(self, name: str, steps: int, wanted: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=steps, desc=name, disable=not wanted, dynamic_ncols=True)
        self._seen: list[float] = []

    def __enter__(self) -> Callable[[float], None]:
        def tick(loss: float) -> None:
            self._seen.append(loss)
            self._bar.set_postfix(loss=f"{statistics.mean(self._seen[-20:]):.3f}", refresh=False)
            self._bar.update()

        return tick

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def spawn(options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """One row in a process of its own; a finished one with the same settings is read instead."""
    path = options.out / f"{method}-{seed}.json"
    about = [
        options.steps,
        options.held_out,
        options.threads,
        str(options.model),
        str(options.data),
        SETTINGS[method],
    ]
    if path.exists() and (found := json.loads(path.read_text()))["about"] == about:
        return dict(found["result"])
    command = [sys.executable, __file__, *sys.argv[1:], "--child", method, "--seeds", str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"mezo_sentiment: {method}, seed {seed} stopped; run the same command again to continue"
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    path.write_text(json.dumps({"about": about, "result": result}))
    return result


def mean_and_range(values: list[float]) -> str:
    text = f"{100 * statistics.mean(values):.1f}"
    return text if len(values) == 1 else f"{text} ({', '.join(f'{100 * v:.1f}' for v in values)})"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    inference = results["inference"][0]["peak_rss"]
    lines = [
        "| | accuracy before, % | after, % (each seed) | peak memory | over inference | s a step | log |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        peak = statistics.median(r["peak_rss"] for r in runs)
        after = [r["after"] for r in runs if "after" in r]
        log = f"{statistics.mean(r['log_bytes'] for r in runs):.0f} B" if after else ""
        lines.append(
            f"| {name} | {mean_and_range([r['before'] for r in runs])} | {mean_and_range(after) if after else ''} "
            f"| {peak / 2**20:.0f} MiB | {peak / inference:.2f} "
            f"| {statistics.median(r['seconds_per_step'] for r in runs):.2f} | {log} |"
        )
    return "\n".join(lines) + "\n"


def figure(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 4))
    for name, runs in results.items():
        for i, r in enumerate(runs if name in COLOURS else []):
            width = max(1, len(r["losses"]) // 20)
            smooth = [
                statistics.mean(r["losses"][max(0, t - width + 1) : t + 1]) for t in range(len(r["losses"]))
            ]
            ax.plot(smooth, color=COLOURS[name], alpha=0.8, label=None if i else name)
    ax.axhline(math.log(2), color="#999", linestyle=":", label="chance")
    ax.set(
        xlabel="step", ylabel="loss (running mean)", title="SmolLM2-135M learns sentiment from losses alone"
    )
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="steps a run (default 400)")
    parser.add_argument("--seeds", default="0,1,2", help="default 0,1,2")
    parser.add_argument("--methods", default="mezo,qzo,adamw", help="from mezo,qzo,adamw (default: all)")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, metavar="N", help=f"default {HELD_OUT}")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default 2")
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: SmolLM2-135M, downloaded once")
    parser.add_argument(
        "--data", type=Path, metavar="TSV", help="default: the film snippets, downloaded once"
    )
    parser.add_argument("--out", type=Path, default=Path("mezo-out"), metavar="DIR")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
    parser.add_argument("--child", metavar="METHOD", help=argparse.SUPPRESS)
    options = parser.parse_args()

    from lowtide import assets

    options.model = options.model or assets.fetch("smollm2-135m")
    options.data = options.data or assets.fetch("movie-snippets")
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = [int(s) for s in options.seeds.split(",")]
    if options.child:
        print(json.dumps(child(options, options.child, seeds[0])))
        return
    results: dict[str, list[dict[str, Any]]] = {"inference": [spawn(options, "inference", seeds[0])]}
    for method in options.methods.split(","):
        for seed in seeds[:1] if method == "adamw" else seeds:
            results.setdefault(method, []).append(spawn(options, method, seed))
    about = {"steps": options.steps, "seeds": seeds, "settings": SETTINGS}
    (options.out / "mezo_sentiment.json").write_text(json.dumps({**about, "results": results}) + "\n")
    (options.out / "mezo_sentiment.md").write_text(table(results))
    figure(results, options.out / "mezo_sentiment.png")
    print("\n" + table(results))


if __name__ == "__main__":
    main()
