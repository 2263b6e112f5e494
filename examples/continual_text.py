# SPDX-License-Identifier: Apache-2.0
"""Learn four kinds of text one after another and see what is left of the first.

    python examples/continual_text.py [--steps N] [--seeds 0,1,2] [--methods NAME ...] [--tasks NAME ...] [--out DIR]

Tasks: Shakespeare, the manual of Python (as Python ships it), its library's code, and the C++ headers that torch ships. A small
network guesses the next character from the eight before. No task is seen again: plain AdamW against the methods of
``lowtide.continual``, and AdamW on all texts at once for comparison. Methods that keep matrices of their own for each task (TRGP, CUBER) are told which task they are evaluated on. Writes
OUT/continual_text.{json,md,png}. Three minutes.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import random
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowtide as lt

SYMBOLS = [chr(c) for c in range(32, 127)] + ["\n"]
CONTEXT, WIDTH, BATCH, SAMPLES, LR = 8, 128, 128, 2048, 3e-3
TRAIN, TEST = 300_000, 20_000


# ---------------------------------------------------------------------- texts


def shakespeare() -> str:
    from lowtide.assets import fetch

    return Path(fetch("shakespeare")).read_text(encoding="utf-8")


def manual() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[key] for key in sorted(topics))


def files(root: Path, pattern: str) -> str:
    """Files in a shuffled order, the same on every machine that has the same ones."""
    paths = sorted(root.glob(pattern))
    random.Random(0).shuffle(paths)
    text = ""
    for path in paths:
        text += path.read_text(encoding="utf-8", errors="replace")
        if len(text) > 2 * (TRAIN + TEST):
            break
    return text


TASKS: dict[str, Callable[[], str]] = {
    "verse": shakespeare,
    "manual": manual,
    "python": lambda: files(Path(sysconfig.get_paths()["stdlib"]), "*.py"),
    "c++": lambda: files(Path(torch.__file__).parent / "include" / "ATen", "*.h"),
}


class Text:
    """A text as numbers; windows of CONTEXT characters as one-hot rows and the character after each."""

    def __init__(self, text: str) -> None:
        index = {c: i for i, c in enumerate(SYMBOLS)}
        codes = torch.tensor([index[c] for c in text if c in index][: TRAIN + TEST])
        cut = len(codes) - len(codes) * TEST // (TRAIN + TEST)
        self.train, self.test = codes[:cut], codes[cut:]

    def batch(self, codes: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        windows = codes[starts[:, None] + torch.arange(CONTEXT + 1)]
        x = nn.functional.one_hot(windows[:, :-1], len(SYMBOLS)).float()
        return x.reshape(len(starts), -1), windows[:, -1]

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(self.train) - CONTEXT, (n,), generator=generator)
        return self.batch(self.train, starts)

    def accuracy(self, model: nn.Module) -> float:
        x, y = self.batch(self.test, torch.arange(0, len(self.test) - CONTEXT, 7))
        with torch.no_grad():
            return float((model(x).argmax(1) == y).float().mean())


# -------------------------------------------------------------------- methods


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "AdamW": lambda m: None,
    "GPM": lambda m: lt.continual.GPM(m, 0.99),
    "SGP": lambda m: lt.continual.SGP(m, 0.99),
    "NSGP": lambda m: lt.continual.NSGP(m),
    "Adam-NSCL": lambda m: lt.continual.AdamNSCL(m, ratio=30.0),
    "OSF": lambda m: lt.continual.OSF(m, 0.5),
    "TRGP": lambda m: lt.continual.TRGP(m, loss, 0.99),
    "CUBER": lambda m: lt.continual.CUBER(m, loss, 0.99),
}
DEFAULT = ["AdamW", "GPM", "SGP", "NSGP", "OSF", "CUBER"]
COLOURS = ["#4c566a", "#2e7fb8", "#7fb2d6", "#d1643c", "#e0a080", "#3b8f5a", "#c9a227", "#8f6bb3"]


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    n = len(SYMBOLS)
    sizes = (CONTEXT * n, WIDTH, WIDTH, n)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(model: nn.Module, opt: torch.optim.Optimizer, texts: list[Text], steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for t in range(steps):
        for group in opt.param_groups:
            group["lr"] = LR * (1.0 - t / steps)
        opt.zero_grad()
        loss(model, texts[t % len(texts)].sample(BATCH, generator)).backward()
        opt.step()


def sequence(name: str, texts: list[Text], first: nn.Module, steps: int, seed: int) -> dict[str, Any]:
    """All tasks in a row; ``first`` has learned the first of them, which no method constrains."""
    model = copy.deepcopy(first)
    memory = METHODS[name](model)
    scores = []
    start = time.perf_counter()
    for t, text in enumerate(texts):
        seen = text.sample(SAMPLES, torch.Generator().manual_seed(1000 * seed + t))
        extra: list[nn.Parameter] = []
        if hasattr(memory, "begin"):
            memory.begin([seen])
            extra = memory.parameters()
        if isinstance(memory, lt.continual.OSF) and t:
            memory.renew()
        if t:
            constraint = None if memory is None else memory.constraint()
            params = [*model.parameters(), *extra]
            opt = lt.optim.AdamW(params, lr=LR, weight_decay=0.0, constraint=constraint)
            train(model, opt, [text], steps, 100 * seed + t)
        if memory is not None and not isinstance(memory, lt.continual.OSF):
            memory.learn([seen] if hasattr(memory, "begin") else [seen[0]])
        row = []
        for j in range(t + 1):
            if hasattr(memory, "use"):
                memory.use(j)
            row.append(texts[j].accuracy(model))
        scores.append(row)
    summary = lt.continual.transfer(scores)
    return {
        "scores": scores,
        "average": summary.average,
        "backward": summary.backward,
        "learned": summary.learned,
        "bytes": 0 if memory is None else memory.nbytes,
        "seconds": time.perf_counter() - start,
    }


# --------------------------------------------------------------------- report


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| method | accuracy at the end, % | forgetting, points | accuracy when learned, % | kept, MB |",
        "|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        cells = [name]
        for key, sign in (("average", 1), ("backward", -1), ("learned", 1)):
            values = [100 * sign * run[key] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values) + 0.0:.1f}{spread}")
        cells.append(f"{runs[0]['bytes'] / 1e6:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figure(results: dict[str, list[dict[str, Any]]], tasks: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for (name, runs), colour in zip(results.items(), ["#999999", *COLOURS], strict=False):
        if "scores" in runs[0]:
            first = [[100 * row[0] for row in run["scores"]] for run in runs]
            left.plot(
                tasks, [statistics.mean(v) for v in zip(*first, strict=True)], "o-", color=colour, label=name
            )
        x = [-100 * run["backward"] for run in runs]
        right.scatter(x, [100 * run["average"] for run in runs], color=colour, label=name)
    left.set(
        ylabel=f"accuracy on {tasks[0]}, %", xlabel="after learning", title="What is left of the first task"
    )
    right.set(
        xlabel="forgetting, points", ylabel="accuracy over all tasks at the end, %", title="One point a seed"
    )
    right.legend(fontsize=8)
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="updates a task (default 300)")
    parser.add_argument("--seeds", default="0,1,2", help="default 0,1,2")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=DEFAULT, help=f"default {' '.join(DEFAULT)}"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="in this order")
    parser.add_argument("--out", type=Path, default=Path("continual-out"), metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)  # matrices this small are slower on more
    seeds = [int(s) for s in options.seeds.split(",")]
    texts = [Text(TASKS[task]()) for task in options.tasks]
    options.out.mkdir(parents=True, exist_ok=True)

    results: dict[str, list[dict[str, Any]]] = {"all at once": []}
    for seed in seeds:
        joint = network(seed)
        train(
            joint,
            lt.optim.AdamW(joint.parameters(), lr=LR, weight_decay=0.0),
            texts,
            options.steps * len(texts),
            seed,
        )
        score = statistics.mean(text.accuracy(joint) for text in texts)
        results["all at once"].append({"average": score, "backward": 0.0, "learned": score, "bytes": 0})
        first = network(seed)
        train(
            first,
            lt.optim.AdamW(first.parameters(), lr=LR, weight_decay=0.0),
            texts[:1],
            options.steps,
            100 * seed,
        )
        for name in options.methods:
            results.setdefault(name, []).append(sequence(name, texts, first, options.steps, seed))
            run = results[name][-1]
            print(
                f"seed {seed} {name:10s} end {run['average']:.3f} forgot {-run['backward']:.3f} {run['seconds']:.0f} s",
                flush=True,
            )
    about = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "steps": options.steps,
        "tasks": options.tasks,
    }
    (options.out / "continual_text.json").write_text(
        json.dumps({**about, "results": results}, indent=1) + "\n"
    )
    (options.out / "continual_text.md").write_text(table(results))
    figure(results, options.tasks, options.out / "continual_text.png")
    print("\n" + table(results))


if __name__ == "__main__":
    main()
