# SPDX-License-Identifier: Apache-2.0
"""Token arrays: a text tokenised once, kept as .npy beside the run and found again by what it was made from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lowtide._files import sha256_file
from lowtide.train import text
from lowtide.train.errors import DataError, ModelError, first_line, missing_package, output_error
from lowtide.train.files import atomic_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SCHEME = "2"  # raise when `text` or the joining of documents changes


def load_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory, from its own files only."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing_package(error.name, "fine-tuning") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises anything from KeyError to a Rust panic's Exception
        raise ModelError(
            f"model: cannot load the tokenizer of {model} ({first_line(error)}); "
            "the directory needs tokenizer.json and tokenizer_config.json"
        ) from error
    tokenizer.model_max_length = (
        1 << 62
    )  # no warning about a text longer than the context: we cut it ourselves
    result: PreTrainedTokenizerBase = tokenizer
    return result


def tokenize(path: Path, tokenizer: Any, text_key: str) -> NDArray[np.uint32]:
    """All tokens of a text file in order, documents joined by the end-of-sequence token where there is one."""
    end = tokenizer.eos_token_id
    parts: list[NDArray[np.uint32]] = []
    for number, document in enumerate(text.documents(path, text_key)):
        if number and end is not None:
            parts.append(np.array([end], dtype=np.uint32))
        for piece in document:
            ids = tokenizer(piece, add_special_tokens=False, return_attention_mask=False)["input_ids"]
            parts.append(np.array(ids, dtype=np.uint32))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint32)


def load_tokens(data: Path, model: Path, cache: Path, *, text_key: str, key: str) -> NDArray[np.uint32]:
    """The tokens of `data` under the tokenizer of `model`; `key` is their `tokens_key`.

    They are read from `cache` when a run left them there (mapped, not copied), else made and left there.
    Raises DataError, ModelError, OutputError.
    """
    file = cache / f"tokens-{key[:16]}.npy"
    tokens = _read(file)
    if tokens is None:
        tokens = tokenize(data, load_tokenizer(model), text_key)
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(cache, error) from error
        with atomic_path(file) as temporary, open(temporary, "wb") as out:
            np.save(out, tokens, allow_pickle=False)
    if not len(tokens):
        raise DataError(f"data: {data} holds no tokens; give a file with text")
    return tokens


def _read(file: Path) -> NDArray[np.uint32] | None:
    """A cached array, or None where there is none or it is not what was written (it is then made again)."""
    try:
        tokens = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return tokens if tokens.dtype == np.uint32 and tokens.ndim == 1 else None


def tokens_key(data: Path, model: Path, text_key: str) -> str:
    """A hash of the text, the tokenizer's files and all else that a token array is made from."""
    made_from = {"scheme": _SCHEME, "data": sha256_file(data)}
    if data.suffix.lower() in (".jsonl", ".ndjson"):
        made_from["text_key"] = text_key
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
                 "special_tokens_map.json", "added_tokens.json"):  # fmt: skip
        if (model / name).is_file():
            made_from[name] = sha256_file(model / name)
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
