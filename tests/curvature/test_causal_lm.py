# SPDX-License-Identifier: Apache-2.0
"""Language models of Hugging Face: logits in chunks give the loss and products of whole logits; a real one in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="language models (pip install lowtide[demo])")

from curvature_operators import relative, seeded, unchanged  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from lowtide.curvature import FisherOperator, GGNOperator, HessianOperator, Problem  # noqa: E402

SIZE = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}


def llama(tied=True):
    config = transformers.LlamaConfig(**SIZE, tie_word_embeddings=tied)
    model = seeded(0, lambda: transformers.LlamaForCausalLM(config)).double()
    with torch.no_grad():  # random initialisation is too small to show any curvature
        for p in model.parameters():
            p.mul_(8)
    return model


def batches():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(13, (3, 6), generator=g)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return [
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": ids[:1, :4], "attention_mask": mask[1:2, :4]},
    ]


def whole(model, batch):
    """The loss by the model's own code."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    logits = model(**batch).logits[:, :-1]  # model(labels=...) computes its loss in float32
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))


@pytest.mark.parametrize("tied", [True, False])
def test_chunked_loss_and_products_are_those_of_whole_logits(tied):
    model = llama(tied)
    own = Problem(model, None, batches(), whole, weight=lambda b: float(b["attention_mask"][:, 1:].sum()))
    op = HessianOperator(model, None, batches(), "causal_lm", method="double")
    counts = [op.problem.loss.count(b) for b in batches()]
    assert counts == [float(b["attention_mask"][:, 1:].sum()) for b in batches()]
    with unchanged(model):
        assert op.problem.evaluate() == pytest.approx(own.evaluate(), rel=1e-12)
        assert op.problem.loss.chunked(model, batches()[0])
        assert relative(op.problem.gradient(), own.gradient()) < 1e-12
        hz = op.hvp_seeded(0, 0)
    reference = HessianOperator(model, None, batches(), whole, method="double", weight=own.weight)
    assert relative(hz, reference.hvp_seeded(0, 0)) < 1e-11
    fd = HessianOperator(model, None, batches(), "causal_lm", method="fd")
    # These models normalize in float32, whatever their parameters' dtype: the noise of a gradient is 1e-7.
    assert relative(fd.hvp_seeded(0, 0), hz) < 1e-3


@pytest.mark.parametrize("jvp", ["forward", "fd"])
@pytest.mark.parametrize("params", [None, "head", "body"])
def test_chunked_gauss_newton_is_that_of_whole_logits(jvp, params):
    model = llama(tied=params is None)
    chosen = {
        None: None,
        "head": ["lm_head.weight"],
        "body": lambda name, p: not name.startswith(("lm_head", "model.embed")),
    }[params]
    op = GGNOperator(model, chosen, batches(), "causal_lm", jvp=jvp)
    with unchanged(model):
        got = op.hvp_seeded(0, 0)
    assert op._chunks
    op._chunks = False
    assert relative(got, op.hvp_seeded(0, 0)) < (1e-6 if jvp == "fd" else 1e-11)
    fisher = FisherOperator(model, chosen, batches(), "causal_lm", kind="type2", jvp=jvp)
    assert torch.equal(fisher.hvp_seeded(0, 0), got)


def test_capped_logits_are_not_taken_for_a_product():
    config = transformers.Gemma2Config(**SIZE, final_logit_softcapping=0.5)
    model = seeded(0, lambda: transformers.Gemma2ForCausalLM(config)).double()
    batch = {"input_ids": batches()[0]["input_ids"]}
    logits = model(**batch).logits
    problem = Problem(model, None, batch, "causal_lm")
    want = F.cross_entropy(logits[:, :-1].reshape(-1, 13), batch["input_ids"][:, 1:].reshape(-1)).item()
    assert problem.evaluate() == pytest.approx(want, rel=1e-12)
    assert not problem.loss.chunked(model, batch)
    model.config.final_logit_softcapping = None
    assert Problem(model, None, batch, "causal_lm").loss.chunked(model, batch)


def test_a_frozen_batch_of_ids_and_labels():
    model = llama()
    ids = batches()[0]["input_ids"]
    labels = ids.clone()
    labels[:, :3] = -100
    logits = model(ids).logits[:, :-1].reshape(-1, 13)
    want = F.cross_entropy(logits, labels[:, 1:].reshape(-1)).item()
    assert Problem(model, None, [(ids, labels)], "causal_lm").evaluate() == pytest.approx(want, rel=1e-12)


PROGRAM = """
import json, resource, sys
import torch, transformers, lowtide as lt

torch.set_num_threads(2)
model = transformers.AutoModelForCausalLM.from_pretrained(lt.assets.fetch("smollm2-135m"), dtype=torch.float32)
tokenizer = transformers.AutoTokenizer.from_pretrained(lt.assets.fetch("smollm2-135m"))
text = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings and arrows of outrageous fortune. "
ids = tokenizer(text * 8, return_tensors="pt").input_ids[:, :128]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
fd_step = 0.64
H = lt.curvature.HessianOperator(model, None, ids, "causal_lm", method="fd", fd_step=fd_step)
out = {"loss": H.problem.evaluate(), "parameters": H.n, "evaluated": peak()}
out["quads"] = H.quad_seeded(0, 0).tolist()
out["quad"] = peak()
hz = H.hvp_seeded(0, 0)
out["hvp"] = peak()
out["dots"] = H.layout.probe_dots(hz, 0, 0).tolist()
G = lt.curvature.GGNOperator(model, None, ids, "causal_lm")
del hz
out["ggn_quad"] = float(G.quad_seeded(0, 0).sum())
out["ggn"] = peak()
out["chunked"] = H.problem.loss.chunked(model, ids) and bool(G._chunks)
json.dump(out, sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.skipif(
    os.environ.get("LOWTIDE_TEST_OFFLINE") == "1", reason="LOWTIDE_TEST_OFFLINE=1: no downloads"
)
def test_a_135m_model_with_its_real_loss_in_bounded_memory():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout[done.stdout.index("{") :])
    print({k: v for k, v in out.items() if not isinstance(v, list)})
    vector = 4 * out["parameters"] / 2**20  # MiB
    assert out["chunked"]
    assert 1 < out["loss"] < 6
    # One scratch vector, and the gradient of the tied embedding (a fifth of a vector) up to four times on its way through autograd.
    assert out["quad"] - out["evaluated"] < 2 * vector
    assert out["hvp"] - out["quad"] < 1.25 * vector
    assert out["ggn_quad"] > 0
    total = sum(out["dots"])
    assert sum(out["quads"]) == pytest.approx(total, rel=1e-3, abs=1e-3 * sum(map(abs, out["dots"])))
