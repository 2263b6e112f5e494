# SPDX-License-Identifier: Apache-2.0
"""Causal language models from local directories: load, choose what trains, count, write back."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowtide._files import sha256_file, sync_directory, sync_file
from lowtide.train import process
from lowtide.train.errors import ConfigError, ModelError, first_line, missing_package, output_error

if TYPE_CHECKING:
    import torch

_SAMPLE = 1 << 20
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
                    "chat_template*", "*.model", "LICENSE*", "NOTICE*")  # fmt: skip


def check_directory(path: Path) -> None:
    """Refuse what is not a Hugging Face model directory with safetensors weights. Raises ModelError."""
    if not path.exists():
        raise ModelError(
            f"model: there is no directory {path}; give a local directory with config.json and safetensors"
        )
    if not path.is_dir():
        raise ModelError(f"model: {path} is not a directory; give the directory that holds config.json")
    try:
        names = os.listdir(path)
    except OSError as error:
        raise ModelError(f"model: cannot read {path}: {error.strerror}; check its permissions") from error
    if "config.json" not in names:
        raise ModelError(
            f"model: {path} has no config.json; give a model directory as save_pretrained writes it"
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"model: {path} has no .safetensors weights (pickled weights are not loaded); "
            "save the model with save_pretrained first"
        )


def load_model(path: Path) -> torch.nn.Module:
    """Load a causal language model in fp32 from its own files only; no network, no pickles, no code from the directory.

    Raises ModelError when transformers cannot, or when a weight would be left at random.
    """
    check_directory(path)
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise missing_package(error.name, "fine-tuning") from error
    loader: Any = AutoModelForCausalLM
    with _quiet_transformers():
        try:
            model, info = loader.from_pretrained(
                str(path),
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # from KeyError to SafetensorError: transformers promises no type
            raise ModelError(
                f"model: cannot load {path} as a causal language model ({first_line(error)}); "
                "check that it is complete and that AutoModelForCausalLM knows it"
            ) from error
    missing = sorted(info.get("missing_keys", ()))
    mismatched = sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing or mismatched:
        what = missing[0] if missing else mismatched[0]
        count = len(missing) + len(mismatched)
        raise ModelError(f"model: {path} lacks {count} of its weights (e.g. {what}); complete the directory")
    _own_memory(model, path)
    result: torch.nn.Module = model
    return result


def _own_memory(model: Any, path: Path) -> None:
    """Copy weights that safetensors left mapped from their files into aligned memory of their own.

    The files may then be replaced while the run goes on. Pages are given back tensor by tensor, so that the peak is
    that of one copy of the weights and not of two.
    """
    ranges = process.mapped_ranges(path)
    for tensor in (*model.parameters(), *model.buffers()):
        start, size = tensor.data_ptr(), tensor.nbytes
        if any(low <= start and start + size <= high for low, high in ranges):
            tensor.data = tensor.data.clone()
            process.drop_pages(start, start + size)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def check_fit(model: Any, *, seq_len: int, largest_token: int) -> None:
    """Refuse windows longer than the context and tokens beyond the vocabulary."""
    context = getattr(model.config, "max_position_embeddings", None)
    if isinstance(context, int) and seq_len > context:
        raise ConfigError(
            f"seq_len: got {seq_len}, takes at most the model's context of {context}; give a smaller one"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if largest_token >= rows:
        raise ModelError(
            f"model: its tokenizer makes token {largest_token} and its embedding has {rows} rows; "
            "give a tokenizer that belongs to the model"
        )


def freeze(model: torch.nn.Module, pattern: str | None) -> tuple[int, int]:
    """Exclude parameters whose name holds `pattern` from training; returns (trained, total) elements.

    Raises ConfigError when the pattern matches nothing or everything.
    """
    parameters = dict(model.named_parameters())
    if pattern is not None:
        matched = [name for name in parameters if re.search(pattern, name)]
        if not matched:
            example = ", ".join(list(parameters)[:3])
            raise ConfigError(f"freeze: {pattern!r} matches no parameter; their names look like {example}")
        for name in matched:
            parameters[name].requires_grad_(False)
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    if not trained:
        raise ConfigError(
            f"freeze: {pattern!r} matches every parameter and leaves nothing to train; give a narrower one"
        )
    return trained, sum(p.numel() for p in parameters.values())


def checkpoint_activations(model: Any) -> None:
    """Keep the inputs of the layers only and compute the rest again in the backward pass."""
    # transformers 5.23 renamed it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable()
    except ValueError as error:
        raise ModelError(
            f"model: {type(model).__name__} does not support --gradient-checkpointing; leave it out"
        ) from error


def identity(path: Path) -> str:
    """A digest that tells one model directory from another.

    It covers config.json, and of each weight file the size and the first and last MiB (the first holds the names
    and shapes): whole files of many gigabytes would take minutes.
    """
    digest = hashlib.sha256(sha256_file(path / "config.json").encode())
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as stream:
            digest.update(stream.read(_SAMPLE))
            stream.seek(max(0, size - _SAMPLE))
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def export_model(model: Any, source: Path, target: Path) -> None:
    """Write the trained model as a normal model directory, with the tokenizer files of `source`.

    It appears whole or not at all. Raises OutputError when the disk refuses.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        with _quiet_transformers():
            model.save_pretrained(str(temporary))
        for pattern in _TOKENIZER_FILES:
            for file in source.glob(pattern):
                if file.is_file() and not (temporary / file.name).exists():
                    shutil.copy(file, temporary)
        for file in temporary.iterdir():
            sync_file(file)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        sync_directory(target.parent)
    except Exception as error:
        if isinstance(error, OSError) or "os error" in str(error):
            raise output_error(target, error) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
