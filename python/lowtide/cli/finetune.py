# SPDX-License-Identifier: Apache-2.0
"""`lowtide finetune MODEL DATA`: fine-tune a causal language model on a text file."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from lowtide.train.config import SINKS, FinetuneConfig
from lowtide.train.methods import METHODS, WEIGHTS
from lowtide.train.progress import human_bytes
from lowtide.train.schedule import SCHEDULES

_EXAMPLES = """\
examples:
  lowtide finetune ./SmolLM2-135M shakespeare.txt --method qgalore --steps 200 --out run
  lowtide finetune ./model notes.jsonl --text-key body --freeze embed_tokens --plot loss.png --out run
  lowtide finetune ./SmolLM2-135M shakespeare.txt --method qgalore --steps 200 --out run --resume
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    methods = "\n".join(f"  {name:<12}{method.about} (lr {method.lr:g})" for name, method in METHODS.items())
    parser: argparse.ArgumentParser = commands.add_parser(
        "finetune",
        help="fine-tune a causal language model on a text file",
        description=(
            "Fine-tune MODEL, a directory that transformers loads as a causal language model, on DATA,\n"
            "a .txt, .md or .jsonl file. Every parameter trains unless --freeze says otherwise.\n\n"
            f"methods (and the learning rate each starts from):\n{methods}"
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    defaults = {field.name: field.default for field in dataclasses.fields(FinetuneConfig)}

    def option(name: str, help: str, **kwargs: Any) -> None:
        default = defaults[name]
        if "action" not in kwargs and default not in (None, ()) and "default" not in help:
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            help += f" (default {shown})"
        group.add_argument("--" + name.replace("_", "-"), dest=name, default=default, help=help, **kwargs)

    parser.add_argument(
        "model", metavar="MODEL", help="model directory (config.json, safetensors, tokenizer)"
    )
    parser.add_argument(
        "data", metavar="DATA", help=".txt or .md (one document) or .jsonl (one document a line)"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory of the run: checkpoints, metrics, final model"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out from its newest checkpoint, bit for bit",
    )

    group = parser.add_argument_group("method")
    option("method", "training method, one of those above", choices=sorted(METHODS), metavar="METHOD")
    option("weights", "how linear weights are held while they train; int8: in groups of 256, updated with stochastic rounding; "
           "int4: in groups of 64, qzo only (auto: int8 for qgalore, int4 for qzo, else fp32)", choices=("auto", *WEIGHTS))  # fmt: skip
    option("lr", "peak learning rate (default: the method's, above)", type=float, metavar="X")
    option("rank", "rank of low-rank methods", type=int, metavar="R")
    option(
        "update_proj_gap",
        "steps between refreshes of the subspace (default: the method's, 1 or 200)",
        type=int,
        metavar="T",
    )
    option("scale", "factor on low-rank updates (default: the method's)", type=float, metavar="X")
    option(
        "betas",
        "decay rates of the moments (default: the method's)",
        type=float,
        nargs=2,
        metavar=("B1", "B2"),
    )
    option(
        "eps",
        "added to the root of the second moment; mezo, qzo: how far the two probes lie (default: the method's)",
        type=float,
        metavar="X",
    )
    option("weight_decay", "decoupled weight decay", type=float, metavar="X")
    option("grad_clip", "clip the norm of all gradients together to X (default: no clipping); they wait for it, projected with --in-backward on; "
           "mezo, qzo: largest slope that counts",
           type=float, metavar="X")  # fmt: skip
    option("in_backward", "update each parameter, and free its gradient, within the backward pass (auto: as the method likes)",
           choices=("auto", "on", "off"))  # fmt: skip
    option("freeze", "do not train parameters whose name holds REGEX, e.g. embed_tokens", metavar="REGEX")
    option("gradient_checkpointing", "keep fewer activations and compute them again", action="store_true")

    group = parser.add_argument_group("course")
    option("steps", "updates to make", type=int, metavar="N")
    option("batch_size", "windows a step", type=int, metavar="N")
    option("seq_len", "tokens a window", type=int, metavar="N")
    option("schedule", "learning rate after warm-up", choices=SCHEDULES)
    option("warmup", "steps of linear warm-up (default: a tenth of --steps)", type=int, metavar="N")
    option("seed", "seed of batches, dropout and rounding", type=int, metavar="N")
    option("threads", "threads to compute with (default: all cores)", type=int, metavar="N")

    group.add_argument(
        "--no-release-memory",
        dest="release_memory",
        action="store_false",
        help="let malloc keep freed memory: up to a tenth faster, a larger resident set",
    )

    group = parser.add_argument_group("data and validation")
    option("text_key", "key of the text in .jsonl records", metavar="KEY")
    option(
        "val_fraction",
        "share of the text, at its end, kept for validation; 0 for none",
        type=float,
        metavar="X",
    )
    option("eval_every", "steps between validations", type=int, metavar="N")
    option("eval_batches", "batches of a validation", type=int, metavar="N")
    option("token_cache", "directory for the tokenised text, shared by runs (default: --out)", metavar="DIR")

    group = parser.add_argument_group("output")
    option("save_every", "steps between checkpoints; Ctrl-C and SIGTERM save one too", type=int, metavar="N")
    option("keep", "checkpoints to keep", type=int, metavar="K")
    group.add_argument(
        "--no-export", dest="export", action="store_false", help="do not write the trained model to DIR/model"
    )
    option("plot", "write a picture of losses and memory at the end", metavar="PNG")
    option("log", "write metrics for TensorBoard (DIR/tensorboard) or Weights & Biases, offline (DIR/wandb), as well as to "
           "DIR/metrics.jsonl", nargs="+", choices=SINKS)  # fmt: skip
    option(
        "measure_every",
        "steps between measurements of subspaces and rounding for metrics.jsonl; 0 for none",
        type=int,
        metavar="N",
    )
    option("progress", "progress bar; auto shows it on a terminal", choices=("auto", "on", "off"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    names = {field.name for field in dataclasses.fields(FinetuneConfig)}
    settings = {name: value for name, value in vars(arguments).items() if name in names}
    config = FinetuneConfig(**settings)

    from lowtide.train import Finetuner

    summary = Finetuner(config, resume=arguments.resume, handle_signals=True, say=_say).run()
    if summary["status"] == "interrupted":
        if summary["checkpoint"] is None:
            _say("interrupted before the first step; nothing was saved")
        else:
            _say(
                f"interrupted after step {summary['step']} of {summary['steps']}; saved "
                f"{config.out}/{summary['checkpoint']}; run the same command with --resume to continue"
            )
        return 130
    _report(config, summary)
    return 0


def _say(text: str) -> None:
    print(f"lowtide: {text}", file=sys.stderr)


def _report(config: FinetuneConfig, summary: dict[str, Any]) -> None:
    rows = [("steps", f"{summary['step']}")]
    if summary["val_loss_before"] is not None:
        rows.append(
            ("validation loss", f"{summary['val_loss_before']:.4f} -> {summary['val_loss_after']:.4f}")
        )
    rows.append(("training loss", f"{summary['train_loss_first']:.4f} -> {summary['train_loss_last']:.4f}"))
    rows.append(
        ("seconds a step", f"{summary['seconds_per_step']:.3f} ({summary['tokens_per_second']:.0f} tokens/s)")
    )
    rows.append(("trained parameters", f"{summary['trained']:,} of {summary['total']:,}"))
    rows += [(f"{kind} (counted)", human_bytes(count)) for kind, count in summary["bytes"].items()]
    rows.append(("peak RSS in training", human_bytes(summary["peak_rss"])))
    if config.export:
        rows.append(("model", f"{config.out}/model"))
    rows.append(("metrics", f"{config.out}/metrics.jsonl"))
    if config.plot is not None:
        rows.append(("plot", config.plot))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
