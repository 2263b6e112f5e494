# SPDX-License-Identifier: Apache-2.0
"""The fused linear op, and the probe that evaluates both ends of a direction in one forward."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import lowtide as lt
from lowtide import ops
from lowtide.spsa._probe_fused import FusedProbe

ADDRESS = (5, 6, 7, 8)
TAIL = (3, 1, 0.9)  # offset, dist, threshold


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 19])
def test_op_equals_perturb_then_matmul(isa: str, rows: int, dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(37, 70, generator=g)
    xp, xm = (torch.randn(rows, 70, generator=g).to(x_dtype) for _ in range(2))
    bp, bm = torch.randn(37, generator=g), torch.randn(37, generator=g)
    plus, minus = torch.empty(37, 70, dtype=dtype), torch.empty(37, 70, dtype=dtype)
    ops.spsa_perturb_pair(plus, minus, w, 1e-2, *ADDRESS, *TAIL)
    got = ops.spsa_fused_linear(xp, xm, w, bp, bm, 1e-2, *ADDRESS, *TAIL, dtype)
    bare = ops.spsa_fused_linear(xp, xm, w, None, None, 1e-2, *ADDRESS, *TAIL, dtype)
    for x, p, b, y, z in [(xp, plus, bp, got[0], bare[0]), (xm, minus, bm, got[1], bare[1])]:
        product = ops.matmul(x, p, tb=True)
        assert torch.equal(y, (product + b).to(x_dtype))
        assert torch.equal(z, product.to(x_dtype))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_minus": torch.ones(2, 3)}, "x_minus must have shape"),
        ({"x_plus": torch.ones(2, 4, dtype=torch.float16)}, "x_plus must be float32 or bfloat16"),
        ({"w": torch.ones(4)}, "w must have shape"),
        ({"bias_plus": torch.ones(5)}, "or neither"),
        ({"bias_plus": torch.ones(4), "bias_minus": torch.ones(4)}, r"bias_plus must have shape \(5,\)"),
        ({"dtype": torch.float16}, "dtype must be float32 or bfloat16"),
        ({"dist": 4}, "dist must be 0, 1, 2 or 3"),
    ],
)
def test_op_names_bad_arguments(change: dict[str, Any], words: str) -> None:
    args: dict[str, Any] = {
        "x_plus": torch.ones(2, 4), "x_minus": torch.ones(2, 4), "w": torch.ones(5, 4), "bias_plus": None,
        "bias_minus": None, "scale": 0.1, "seed": 1, "step": 2, "slot": 3, "param": 4,
    }  # fmt: skip
    with pytest.raises(lt.LowtideError, match=words):
        ops.spsa_fused_linear(**{**args, **change})


def test_opcheck_and_compile() -> None:
    x, w = torch.ones(3, 40), torch.ones(20, 40)
    args = (x, x + 1, w, None, None, False, 0.5, *ADDRESS, 0, 1, math.inf)
    torch.library.opcheck(torch.ops.lowtide.spsa_fused_linear.default, args)

    def f(x: torch.Tensor) -> torch.Tensor:
        p, m = ops.spsa_fused_linear(x, x, w, None, None, 0.5, *ADDRESS)
        return p - m

    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


class Block(nn.Module):
    """What real models are made of: a lookup, positions, a gate of its own, attention, a tied head."""

    def __init__(self, vocab: int = 23, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(16, width)
        self.gate = nn.Parameter(torch.ones(width) * 0.5)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, width))
        self.inner = Gated(width)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embed(ids) + self.positions(torch.arange(ids.shape[1]).expand_as(ids))
        x = x + self.attention(self.norm(x), self.norm(x), self.norm(x), need_weights=False)[0]
        x = self.inner(x + self.mlp(x))
        return {"logits": self.head(x)}


class Gated(nn.Module):
    """Owns a parameter and a layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.full((width,), 0.5))
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gate * self.proj(x)


def model_and_data(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = Block().to(dtype).eval()
    del model.gate  # read in no forward
    return model, torch.randint(0, 23, (6, 9))


def slope(probe: str, model: nn.Module, closure: Any, **kwargs: Any) -> tuple[float, lt.spsa.SPSA]:
    opt = lt.spsa.SPSA(
        model.named_parameters(), lr=1e-3, eps=1e-2, module=model, probe=probe, seed=3, **kwargs
    )
    opt.start()
    measured = opt._measure(closure, [0])
    return measured.values[0], opt


def lm_loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids)["logits"].float()
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("dist", ["rademacher", "gaussian"])
def test_probe_agrees_with_scratch_in_half_the_forwards(dist: str) -> None:
    model, ids = model_and_data()
    before = copy.deepcopy(model.state_dict())
    want, _ = slope("scratch", model, lambda: lm_loss(model, ids), dist=dist)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    got, opt = slope("fused", model, lambda: lm_loss(model, ids), dist=dist)
    # Sums of products in another order: 1e-7 of a loss of 3, over 2 eps.
    assert got == pytest.approx(want, abs=5e-5)
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name
    assert all("forward" not in m.__dict__ for m in model.modules())
    handle = model.mlp[0].register_forward_hook(count)
    opt._measure(lambda: lm_loss(model, ids), [0])
    handle.remove()
    assert calls == 1


def test_probe_in_bfloat16() -> None:
    model, ids = model_and_data(torch.bfloat16)
    closure = lambda: lm_loss(model, ids)  # noqa: E731
    # Activations round to 2^-8; another order of sums moves some to their neighbour.
    assert slope("fused", model, closure)[0] == pytest.approx(slope("scratch", model, closure)[0], abs=0.3)


def test_ten_steps_on_panels_go_where_scratch_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowtide.spsa._probe_fused.PANEL_BYTES", 2048)  # several panels a layer
    models = []
    for probe in ("scratch", "fused"):
        model, ids = model_and_data()
        opt = lt.spsa.SPSA(model.named_parameters(), lr=1e-5, eps=1e-2, module=model, probe=probe)
        for t in range(10):
            opt.step(partial(lm_loss, model, ids[t % 2 :]))  # two shapes
        models.append(model)
    start = model_and_data()[0]
    for a, b, c in zip(*(m.parameters() for m in (*models, start)), strict=True):
        assert float((a - c).abs().max()) > 1e-5
        assert float((a - b).abs().max()) < 1e-7


def test_a_closure_may_call_the_model_several_times() -> None:
    model, ids = model_and_data()
    closure = lambda: sum(lm_loss(model, part) for part in ids.split(2)) / 3  # noqa: E731
    want, _ = slope("scratch", model, closure)
    got, _ = slope("fused", model, closure)
    assert got == pytest.approx(want, abs=5e-5)


def test_a_transformers_model_with_padding_and_a_tied_head() -> None:
    transformers = pytest.importorskip("transformers", reason="the test runs one of its models")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 128, (4, 17))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0

    def closure(use_cache: bool = False) -> torch.Tensor:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=use_cache).logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    want = slope("scratch", model, closure)[0]
    assert slope("fused", model, closure)[0] == pytest.approx(want, abs=5e-5)
    with pytest.raises(lt.LowtideError, match="use_cache=False"):
        slope("fused", model, lambda: closure(True))


def test_a_model_that_is_one_linear_layer() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3), torch.randn(4, 5)
    closure = lambda: model(x).square().mean()  # noqa: E731
    assert slope("fused", model, closure)[0] == pytest.approx(slope("scratch", model, closure)[0], abs=1e-5)


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear, self.drop = kind, nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, labels: Any = None) -> Any:
        y = self.linear(x)
        if self.kind == "loss":
            return y.square().mean()
        if self.kind == "sequence first":
            return self.linear(x.transpose(0, 1).contiguous()).transpose(0, 1)
        if self.kind == "no batch":
            return x + self.linear(torch.ones(4))
        if self.kind == "object":
            return [y, object()]
        if self.kind == "functional dropout":
            return nn.functional.dropout(y, 0.5, training=True)
        return self.drop(y) if self.kind == "dropout" else y


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("loss", "without dimensions"),
        ("labels", "labels="),
        ("sequence first", "not the first dimension everywhere|whose first dimension"),
        ("no batch", "whose first dimension is not the batch"),
        ("object", "cannot be cut in halves"),
        ("functional dropout", "draws random numbers"),
        ("dropout", r"drop \(Dropout\) is in training mode"),
        ("changed", "other inputs than its first"),
        ("forward", "estimator='central'"),
        ("submodule", "outside of the model's forward"),
    ],
)
def test_what_cannot_be_doubled_is_an_error_that_names_the_remedy(kind: str, words: str) -> None:
    torch.manual_seed(0)
    model = Odd(kind)
    model.train(kind == "dropout")
    shape = (2, 8, 4) if kind == "sequence first" else (3, 4)
    x = torch.randn(shape)
    before = copy.deepcopy(model.state_dict())

    def closure() -> torch.Tensor:
        nonlocal x
        if kind == "changed":
            x = x + 1
        if kind == "submodule":
            return model.linear(model(x)).square().mean()
        y = model(x, labels=torch.ones(3)) if kind == "labels" else model(x)
        return (y[0] if isinstance(y, list) else y).square().mean()

    kwargs = {"estimator": "forward", "directions": 2} if kind == "forward" else {}
    opt = lt.spsa.SPSA(model.parameters(), lr=0.1, module=model, probe="fused", **kwargs)
    with pytest.raises(lt.LowtideError, match=words) as caught:
        opt.step(closure)
    assert "probe='scratch'" in str(caught.value)
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name
    assert "forward" not in model.__dict__
    assert "forward" not in model.linear.__dict__


def test_an_exception_in_the_closure_leaves_nothing_behind() -> None:
    model, ids = model_and_data()
    opt = lt.spsa.SPSA(model.named_parameters(), lr=1e-3, module=model, probe="fused")

    def bad() -> torch.Tensor:
        model(ids)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        opt.step(bad)
    assert all("forward" not in m.__dict__ for m in model.modules())
    assert math.isfinite(opt.step(lambda: lm_loss(model, ids)))
    assert isinstance(opt._probe, FusedProbe)
    assert opt._probe.nbytes() > 0
