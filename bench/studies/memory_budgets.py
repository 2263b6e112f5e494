# SPDX-License-Identifier: Apache-2.0
"""Which method for 2, 1 and 0.6 GiB? Ten methods fine-tune SmolLM2-135M on Shakespeare from one start.

    python bench/studies/memory_budgets.py [--minutes M] [--only NAME,...] [--budgets GIB,...] [--out DIR] [--prepare] [--no-save]

For each method and budget the first setting of a ladder is taken whose measured peak fits: whole gradients, updates
within the backward pass, activations computed again, smaller batches. A method's learning rate comes from a sweep of
short runs at the first setting that fits its first budget.
Each run then trains for M minutes of its own steps (validation apart), a cosine schedule over as many steps as that is,
by a few steps timed just before; a run that turns out above its budget gives way to the next setting. All losses are of
the same windows of the validation part. Memory is the peak resident set less what the same
process holds with every library loaded and a model of a few kilobytes: weights, gradients, states, activations and
whatever the allocator keeps. Peaks and losses do not depend on what else the machine does, minutes do: --prepare makes the
probes and sweeps alone, and a later call goes on from them. Every run is ``lowtide finetune`` in a process of its own; finished ones are kept under OUT
and interrupted ones continued. Writes bench/results/memory_budgets.json and docs/images/memory_budgets.png.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _budget_figure import GIB, draw, table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from run_benches import environment, save  # noqa: E402

RESULTS = ROOT / "bench/results/memory_budgets.json"

SEQ = 128
PROBE_STEPS = 3  # of the measurement of memory
PACE_STEPS = 4
SWEEP_STEPS = 16
EVALUATIONS = 3  # of a run, after the one before its first step
SWEEP_WINDOWS, RUN_WINDOWS = 32, 48  # of SEQ tokens, in a validation
LOW_RANK = ("--rank", "64", "--update-proj-gap", "50")
RECOMPUTE = ("--gradient-checkpointing",)
LAYERWISE = ("--in-backward", "on")


@dataclass(frozen=True)
class Entry:
    """A method of the study: its name in `lowtide finetune`, its flags, the learning rate that its sweep starts from."""

    label: str
    method: str
    lr: float
    flags: tuple[str, ...] = ()
    zeroth_order: bool = False

    def ladder(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Batch size and flags, the fastest setting first."""
        if self.zeroth_order:
            yield from ((batch, ()) for batch in (16, 8, 4, 2, 1))
            return
        yield 4, ("--in-backward", "off")
        yield 4, LAYERWISE
        yield from ((batch, (*LAYERWISE, *RECOMPUTE)) for batch in (4, 2, 1))


ADAM = 1e-4
METHODS = {
    e.method: e
    for e in (
        Entry("AdamW", "adamw", ADAM),
        Entry("AdamW8bit", "adamw8bit", ADAM),
        Entry("AdamW4bit", "adamw4bit", ADAM),
        Entry("Lion8bit", "lion8bit", 1e-5),
        Entry("GaLore, 8-bit", "galore8bit", ADAM, LOW_RANK),
        Entry("Q-GaLore", "qgalore", ADAM, LOW_RANK),
        Entry("Fira", "fira", ADAM, LOW_RANK),
        Entry("APOLLO-Mini", "apollo-mini", ADAM),
        Entry("MeZO", "mezo", 1e-6, zeroth_order=True),
        Entry("QZO, INT4", "qzo", 3e-3, zeroth_order=True),
    )
}

_LIBRARIES = """
import torch, transformers
import lowtide.train, lowtide as lt
from lowtide.train.process import return_freed_memory, rss, trim
return_freed_memory()
config = transformers.LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=16)
model = transformers.LlamaForCausalLM(config)
optimizer = lt.optim.AdamW8bit(model.parameters(), lr=1e-3)
x = torch.arange(16).reshape(1, -1)
model(x, labels=x).loss.backward()
optimizer.step()
trim()
print(rss())
"""


def libraries_rss() -> int:
    """Resident bytes of a training process whose model is nothing; the median of three."""
    one = [sys.executable, "-c", _LIBRARIES]
    runs = [subprocess.run(one, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    return int(statistics.median(int(r.split()[-1]) for r in runs))


class Study:
    """Runs of one output directory; each is made once."""

    def __init__(self, args: argparse.Namespace) -> None:
        from lowtide.assets import fetch

        self.args = args
        self.out = Path(args.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.inputs = str(fetch("smollm2-135m")), str(fetch("shakespeare"))
        self.tuned: dict[str, tuple[float, dict[str, float]]] = {}
        self.libraries = self.once("libraries.json", lambda: {"rss": libraries_rss()})["rss"]

    def once(self, name: str, make: Any) -> dict[str, Any]:
        path = self.out / name
        if not path.exists():
            path.write_text(json.dumps(make()))
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    def finetune(
        self, name: str, entry: Entry, batch: int, flags: tuple[str, ...], **options: Any
    ) -> dict[str, Any]:
        """One run: its summary, with the training seconds and losses of its course; {"failed": why} where it failed."""

        def make() -> dict[str, Any]:
            out = self.out / name
            command = [
                sys.executable,
                "-m",
                "lowtide",
                "finetune",
                *self.inputs,
                "--out",
                str(out),
                "--method",
                entry.method,
            ]
            command += [
                *entry.flags,
                *flags,
                "--batch-size",
                str(batch),
                "--seq-len",
                str(SEQ),
                "--no-export",
                "--keep",
                "1",
            ]
            command += ["--token-cache", str(self.out), "--progress", "off"]
            for option, value in options.items():
                command += [f"--{option.replace('_', '-')}", str(value)]
            command += ["--resume"] if (out / "run.json").exists() else []
            print(f"  {name}", flush=True)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return {
                    "failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"
                }
            summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
            records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            minutes, course = 0.0, []
            for r in records:
                minutes += r.get("seconds", 0.0) / 60
                if "val_loss" in r:
                    course.append((round(minutes, 4), r["val_loss"]))
            for checkpoint in out.glob("ckpt-*/*.safetensors"):
                checkpoint.unlink()
            kept = ("steps", "val_loss_before", "val_loss_after", "seconds_per_step", "peak_rss", "bytes")
            return {k: summary[k] for k in kept} | {"minutes": minutes, "course": course}

        return self.once(f"{name}.json", make)

    def memory(self, run: dict[str, Any]) -> int:
        return int(run["peak_rss"]) - int(self.libraries)

    def probe(
        self, kind: str, steps: int, entry: Entry, batch: int, flags: tuple[str, ...]
    ) -> dict[str, Any]:
        """A few steps of a setting, with the validation that a run has: its peak and the seconds of a step."""
        options = {"steps": steps, "eval_every": steps, "eval_batches": 1, "save_every": 1000}
        return self.finetune(setting(kind, entry, batch, flags), entry, batch, flags, lr=entry.lr, **options)

    def rate(self, entry: Entry, batch: int, flags: tuple[str, ...]) -> tuple[float, dict[str, float]]:
        """The best learning rate of short runs at a setting, among 1, 3, 10, 30 ..., and the losses of all that were tried."""
        losses: dict[float, float] = {}

        def loss(lr: float) -> float:
            options = {"steps": SWEEP_STEPS, "eval_every": SWEEP_STEPS, "save_every": 1000}
            options["eval_batches"] = SWEEP_WINDOWS // batch
            run = self.finetune(f"sweep-{entry.method}-{batch}-{lr:g}", entry, batch, flags, lr=lr, **options)
            losses[lr] = math.inf if "failed" in run else run["val_loss_after"]
            return losses[lr]

        best = entry.lr
        for up in (True, False):  # on while it gets better; down only where the first step up did not
            if not up and best != entry.lr:
                break
            least = losses[best] if best in losses else loss(best)
            while (tried := loss(neighbour(best, up))) < least:
                best, least = neighbour(best, up), tried
        if math.isinf(losses[best]):
            raise SystemExit(f"{entry.label}: no run of the sweep finished")
        return best, {f"{lr:g}": x for lr, x in sorted(losses.items()) if math.isfinite(x)}

    def fit(self, entry: Entry, budget: float) -> dict[str, Any] | None:
        """The run of a method within a budget in bytes; None where no setting fits, or nothing is to be run yet."""
        for batch, flags in entry.ladder():
            probe = self.probe("probe", PROBE_STEPS, entry, batch, flags)
            if "failed" in probe or self.memory(probe) > budget:
                continue
            if entry.method not in self.tuned:
                self.tuned[entry.method] = self.rate(entry, batch, flags)
            lr, losses = self.tuned[entry.method]
            if self.args.prepare:
                return None
            pace = self.probe("pace", PACE_STEPS, entry, batch, flags)
            if "failed" in pace or self.memory(pace) > budget:
                continue
            steps = max(2 * EVALUATIONS, round(60 * self.args.minutes / pace["seconds_per_step"]))
            options = {
                "steps": steps,
                "eval_every": -(-steps // EVALUATIONS),
                "eval_batches": RUN_WINDOWS // batch,
                "save_every": 1000,
            }
            name = setting(f"run{self.args.minutes:g}", entry, batch, flags)
            run = self.finetune(name, entry, batch, flags, lr=lr, **options)
            if "failed" in run or self.memory(run) > budget:
                continue
            return run | {
                "batch": batch,
                "flags": list(flags),
                "lr": lr,
                "sweep": losses,
                "memory": self.memory(run),
            }
        return None


def neighbour(lr: float, up: bool) -> float:
    """The next rate in ... 1e-5, 3e-5, 1e-4 ..."""
    digit, exponent = f"{lr:.0e}".split("e")
    if up:
        return float(f"3e{exponent}") if digit == "1" else float(f"1e{int(exponent) + 1}")
    return float(f"1e{exponent}") if digit == "3" else float(f"3e{int(exponent) - 1}")


def setting(kind: str, entry: Entry, batch: int, flags: tuple[str, ...]) -> str:
    return "-".join([kind, entry.method, str(batch), *(f.strip("-") for f in flags)])


def rows(study: Study, names: list[str], budgets: list[float]) -> list[dict[str, Any]]:
    found = []
    for budget in budgets:
        print(f"{budget:g} GiB", flush=True)
        for name in names:
            run = study.fit(METHODS[name], budget * GIB)
            found.append({"budget": budget, "method": name, "label": METHODS[name].label, "run": run})
            if run is None:
                print(
                    f"    {METHODS[name].label:<14} {'prepared' if study.args.prepare else 'does not fit'}",
                    flush=True,
                )
                continue
            print(
                f"    {METHODS[name].label:<14} {run['val_loss_before']:.4f} -> {run['val_loss_after']:.4f}  {run['memory'] / GIB:.2f} GiB  "
                f"{run['steps']} steps of {run['batch']} x {SEQ} in {run['minutes']:.1f} min  {' '.join(run['flags'])}",
                flush=True,
            )
    return found


def committed(minutes: float, budgets: list[float]) -> list[dict[str, Any]]:
    """The rows of the results for other budgets and as many minutes: a budget can be run on another day."""
    if not RESULTS.exists():
        return []
    data = json.loads(RESULTS.read_text())
    kept: list[dict[str, Any]] = [r for r in data["rows"] if r["budget"] not in budgets]
    return kept if data["minutes"] == minutes else []


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    split = functools.partial(str.split, sep=",")
    parser.add_argument("--minutes", type=float, default=2, help="training time of each run (default 2)")
    parser.add_argument(
        "--only", type=split, default=list(METHODS), help=f"methods (default: {','.join(METHODS)})"
    )
    parser.add_argument("--budgets", type=split, default=["2", "1", "0.6"], help="in GiB (default 2,1,0.6)")
    parser.add_argument(
        "--out", default="build/memory-budgets", help="where runs are kept (default %(default)s)"
    )
    parser.add_argument(
        "--prepare", action="store_true", help="only the probes of memory and the sweeps of rates"
    )
    parser.add_argument("--table", action="store_true", help="only print the tables of the committed results")
    parser.add_argument("--no-save", action="store_true", help="leave the committed results and figure alone")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(RESULTS.read_text())["rows"]))
        return 0
    unknown = set(args.only) - set(METHODS)
    if unknown:
        parser.error(f"no method {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    budgets = [float(b) for b in args.budgets]
    started = environment()
    study = Study(args)
    kept = committed(args.minutes, budgets)
    study.tuned = {r["method"]: (r["run"]["lr"], r["run"]["sweep"]) for r in reversed(kept) if r["run"]}
    found = [*kept, *rows(study, args.only, budgets)]
    if args.prepare:
        return 0
    draw(found, args.minutes, study.out / "memory_budgets.png")
    if not args.no_save:
        data = {"minutes": args.minutes, "seq_len": SEQ, "libraries_rss": study.libraries, "rows": found}
        save("memory_budgets", {"bench": "memory_budgets", "environment": started, **data})
        draw(found, args.minutes, ROOT / "docs/images/memory_budgets.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
