# SPDX-License-Identifier: Apache-2.0
"""Short runs on a tiny model, and what of them must be equal."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

VOCAB = 300
METHODS = (
    "adamw", "adamw8bit", "adamw4bit", "lion8bit", "galore", "galore8bit", "qgalore", "fira", "frugal", "apollo",
    "apollo-mini", "ldadam", "dct", "grass", "gradnormlorp", "subtrack", "adam-mini8bit",
)  # fmt: skip


def make_model(
    path: Path, *, seed: int = 0, hidden: int = 48, tied: bool = True, kind: str = "llama"
) -> Path:
    """A model of 2 layers with random weights and a byte-level tokenizer, as save_pretrained writes it."""
    import tokenizers
    import torch
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<eos>": 0, **{char: i for i, char in enumerate(alphabet, start=1)}}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(path)
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if kind == "llama":
        config = transformers.LlamaConfig(
            **sizes, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            tie_word_embeddings=tied, attention_dropout=0.1,
        )  # fmt: skip
    elif kind == "mamba":
        config = transformers.MambaConfig(**sizes)
    else:
        config = transformers.GPT2Config(**sizes, n_embd=hidden, n_layer=2, n_head=4, n_positions=64)
    transformers.utils.logging.disable_progress_bar()
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def settings(model: Path, data: Path, out: Path, /, **changes: Any) -> dict[str, Any]:
    """Settings of a short run on the tiny model."""
    return {
        "model": str(model), "data": str(data), "out": str(out), "method": "adamw", "lr": 3e-3, "rank": 8,
        "update_proj_gap": 4, "steps": 10, "batch_size": 4, "seq_len": 32, "eval_every": 4, "eval_batches": 2,
        "save_every": 3, "threads": 1, "progress": "off", **changes,
    }  # fmt: skip


def flags(values: dict[str, Any]) -> list[str]:
    """The same settings as arguments of `lowtide finetune`."""
    values = dict(values)
    arguments = ["finetune", values.pop("model"), values.pop("data")]
    for name, value in values.items():
        arguments += ["--" + name.replace("_", "-"), str(value)]
    return arguments


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lowtide", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def numbers(out: Path) -> list[dict[str, Any]]:
    """The metrics of a run without what depends on the clock and the machine."""
    clock = {"seconds", "tokens_per_second", "rss", "peak_rss"}
    return [{k: v for k, v in record.items() if k not in clock} for record in records(out)]


def state(out: Path, step: int) -> dict[str, Any]:
    """Everything in a checkpoint: SHA-256 of weights and optimizer tensors, plain state, settings."""
    path = out / f"ckpt-{step:08d}"
    result: dict[str, Any] = json.loads((path / "state.json").read_text())
    return result


def listing(path: Path) -> dict[str, bytes]:
    """All files below a directory, to show that nothing changed."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def said(stderr: str) -> str:
    """What the command itself wrote. transformers imports torchao where that is installed, which complains at length."""
    foreign = re.compile(r"Failed to load \S*torchao|W\d{4} .*torch/utils/_pytree")
    return "".join(line for line in stderr.splitlines(keepends=True) if not foreign.match(line))
