# SPDX-License-Identifier: Apache-2.0
"""Models and calls of bench/python/curvature_peers.py: each package behind the same few functions.

A peer is a class with ``product(model, batches, loss)`` that returns a function of a flat vector, and those of ``trace`` and ``top``
that it has. Nothing of a peer is imported before its rows are measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Batches = list[tuple[Tensor, Tensor]]
Product = Callable[[Tensor], Tensor]
LOSS = nn.CrossEntropyLoss()


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, activation="gelu")
            for _ in range(layers)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def model_of(size: str) -> tuple[nn.Module, Batches]:
    """A model by name, with two batches; equal ones, because not every peer weights batches."""
    torch.manual_seed(0)
    if size == "mlp":  # 399 000 parameters
        model: nn.Module = nn.Sequential(
            nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10)
        )
        data = [torch.randn(64, 256) for _ in range(2)]
    elif size == "conv":  # 76 000
        model = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.GELU(), nn.AvgPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.GELU(),
            nn.AvgPool2d(2), nn.Conv2d(64, 96, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10),
        )  # fmt: skip
        data = [torch.randn(16, 3, 32, 32) for _ in range(2)]
    elif size == "transformer":  # 404 000
        model = _Transformer(128, 2)
        data = [torch.randint(64, (8, 32)) for _ in range(2)]
    else:  # the report's 85 000 parameters
        model = nn.Sequential(
            nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)
        )
        data = [torch.randn(128, 64)]
    return model, [(x, torch.randint(10, (len(x),))) for x in data]


def small() -> nn.Module:
    """2 954 parameters: the dense Hessian fits."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 40), nn.Tanh(), nn.Linear(40, 32), nn.Tanh(), nn.Linear(32, 10))


def gradient(model: nn.Module, batches: Batches, *, graph: bool = False) -> Tensor:
    """Of the mean loss over all samples, flat."""
    total = sum(len(y) for _, y in batches)
    out: Any = 0
    for x, y in batches:
        parts = torch.autograd.grad(LOSS(model(x), y), list(model.parameters()), create_graph=graph)
        out = out + torch.cat([p.reshape(-1) for p in parts]) * (len(y) / total)
    return out


def exact_product(model: nn.Module, batches: Batches) -> Product:
    """By double backward in float64."""
    model = model.double()
    batches = [(x.double() if x.is_floating_point() else x, y) for x, y in batches]
    torch.backends.mha.set_fastpath_enabled(False)

    def product(v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            g = gradient(model, batches, graph=True)
            parts = torch.autograd.grad(g @ v.double(), list(model.parameters()))
        return torch.cat([p.reshape(-1) for p in parts])

    return product


def exact_ggn(model: nn.Module, batches: Batches) -> Product:
    """``J' H_out J v`` in float64: forward mode, the softmax's closed form, reverse mode."""
    model = model.double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    total = sum(len(y) for _, y in batches)
    torch.backends.mha.set_fastpath_enabled(False)

    def product(v: Tensor) -> Tensor:
        sizes = [p.numel() for p in params.values()]
        tangents = {
            n: t.view_as(p) for (n, p), t in zip(params.items(), v.double().split(sizes), strict=True)
        }
        out: Any = 0
        for x, _ in batches:
            x = x.double() if x.is_floating_point() else x

            def outputs(values: dict[str, Tensor], x: Tensor = x) -> Tensor:
                return torch.func.functional_call(model, values, (x,))  # type: ignore[no-any-return]

            with sdpa_kernel(SDPBackend.MATH):
                z, u = torch.func.jvp(outputs, (params,), (tangents,))
                pz = torch.softmax(z, 1)
                (parts,) = torch.func.vjp(outputs, params)[1](
                    pz * (u - (pz * u).sum(1, keepdim=True)) / total
                )
            out = out + torch.cat([parts[n].reshape(-1) for n in params])
        return out  # type: ignore[no-any-return]

    return product


def dense(model: nn.Module, batches: Batches) -> Tensor:
    """Row by row."""
    product = exact_product(model, batches)
    n = sum(p.numel() for p in model.parameters())
    return torch.stack([product(row) for row in torch.eye(n, dtype=torch.float64)])


# ---- packages ---------------------------------------------------------------------------------------------------


class Lowtide:
    """``lowtide fd``, ``lowtide double``, ..."""

    def __init__(self, method: str) -> None:
        import lowtide as lt

        self.curvature, self.method = lt.curvature, method

    def operator(self, model: nn.Module, batches: Batches) -> Any:
        if self.method == "ggn":
            return self.curvature.GGNOperator(model, None, batches, LOSS)
        method, _, cached = self.method.partition("+")
        return self.curvature.HessianOperator(
            model, None, batches, LOSS, method=method, cache_graph=bool(cached)
        )

    def product(self, model: nn.Module, batches: Batches) -> Product:
        return self.operator(model, batches).hvp  # type: ignore[no-any-return]

    def trace(self, model: nn.Module, batches: Batches, seed: int) -> tuple[float, int, Any]:
        got = self.curvature.trace(self.operator(model, batches), seed=seed)
        return got.value, got.products, got

    def estimates(self, model: nn.Module, batches: Batches, m: int) -> dict[str, Callable[[], Any]]:
        op = self.operator(model, batches)
        trace = self.curvature.trace
        return {
            method: lambda method=method: trace(op, method=method, rtol=0.0, max_probes=m)
            for method in ("hutchinson", "hutch++", "xtrace")
        }

    def top(self, model: nn.Module, batches: Batches) -> list[float]:
        found: list[float] = self.curvature.eigsh(self.operator(model, batches), k=3).values.tolist()
        return found


class PyHessian:
    def __init__(self, method: str) -> None:
        import pyhessian

        self.make = pyhessian.hessian

    def operator(self, model: nn.Module, batches: Batches) -> Any:
        source = {"data": batches[0]} if len(batches) == 1 else {"dataloader": batches}
        return self.make(model, LOSS, cuda=False, **source)

    def product(self, model: nn.Module, batches: Batches) -> Product:
        h = self.operator(model, batches)
        params = list(model.parameters())
        sizes = [p.numel() for p in params]

        def product(v: Tensor) -> Tensor:
            parts = [t.view_as(p) for t, p in zip(v.split(sizes), params, strict=True)]
            if len(batches) > 1:
                out = h.dataloader_hv_product(parts)[1]
            else:
                out = torch.autograd.grad(h.gradsH, h.params, grad_outputs=parts, retain_graph=True)
            return torch.cat([t.detach().reshape(-1) for t in out])

        return product

    def trace(self, model: nn.Module, batches: Batches, seed: int) -> tuple[float, int, Any]:
        torch.manual_seed(seed)
        samples = self.operator(model, batches).trace()
        return statistics.fmean(samples), len(samples), None

    def estimates(self, model: nn.Module, batches: Batches, m: int) -> dict[str, Callable[[], Any]]:
        h = self.operator(model, batches)
        return {"hutchinson": lambda: h.trace(maxIter=m, tol=-1.0)}

    def top(self, model: nn.Module, batches: Batches) -> list[float]:
        torch.manual_seed(0)
        return [float(v) for v in self.operator(model, batches).eigenvalues(top_n=3)[0]]


class Eigenthings:
    def __init__(self, method: str) -> None:
        import hessian_eigenthings

        self.he, self.method = hessian_eigenthings, method

    def operator(self, model: nn.Module, batches: Batches) -> Any:
        return self.he.HessianOperator(model, batches, self.he.supervised_loss(LOSS), method=self.method)

    def product(self, model: nn.Module, batches: Batches) -> Product:
        return self.operator(model, batches).matvec  # type: ignore[no-any-return]

    def trace(self, model: nn.Module, batches: Batches, seed: int) -> tuple[float, int, Any]:
        got = self.he.trace(self.operator(model, batches), num_matvecs=99, seed=seed)
        return float(got.estimate), 99, None

    def estimates(self, model: nn.Module, batches: Batches, m: int) -> dict[str, Callable[[], Any]]:
        op = self.operator(model, batches)
        return {
            method: lambda method=method: self.he.trace(op, num_matvecs=m, method=method, seed=0)
            for method in ("hutchinson", "hutch++")
        }

    def top(self, model: nn.Module, batches: Batches) -> list[float]:
        found = self.he.lanczos(self.operator(model, batches), k=3, which="LA", seed=0)
        return [float(v) for v in found.eigenvalues]


class Curvlinops:
    def __init__(self, method: str) -> None:
        import curvlinops

        self.cl, self.math = curvlinops, method == "math attention"

    def operator(self, model: nn.Module, batches: Batches) -> Any:
        return self.cl.HessianLinearOperator(
            model, LOSS, list(model.parameters()), batches, check_deterministic=False,
            num_data=sum(len(y) for _, y in batches),
        )  # fmt: skip

    def product(self, model: nn.Module, batches: Batches) -> Product:
        if self.math:
            torch.backends.mha.set_fastpath_enabled(False)

        def forced() -> Any:
            return sdpa_kernel(SDPBackend.MATH) if self.math else contextlib.nullcontext()

        with forced():
            op = self.operator(model, batches)

        def product(v: Tensor) -> Tensor:
            with forced():
                out: Tensor = op @ v
            return out

        return product

    def trace(self, model: nn.Module, batches: Batches, seed: int) -> tuple[float, int, Any]:
        torch.manual_seed(seed)
        return float(self.cl.hutchpp_trace(self.operator(model, batches), 99)), 99, None

    def estimates(self, model: nn.Module, batches: Batches, m: int) -> dict[str, Callable[[], Any]]:
        op = self.operator(model, batches)
        return {
            "hutchinson": lambda: self.cl.hutchinson_trace(op, m),
            "hutch++": lambda: self.cl.hutchpp_trace(op, m),
            "xtrace": lambda: self.cl.xtrace(op, m),
        }

    def top(self, model: nn.Module, batches: Batches) -> list[float]:
        import numpy as np
        from scipy.sparse.linalg import eigsh

        op = self.operator(model, batches).to_scipy(dtype=np.float32)
        return sorted(eigsh(op, k=3, which="LA", return_eigenvectors=False).tolist(), reverse=True)


MAKERS: dict[str, Callable[[str], Any]] = {
    "lowtide": Lowtide, "PyHessian": PyHessian, "eigenthings": Eigenthings, "curvlinops": Curvlinops
}  # fmt: skip


# ---- in the worker -----------------------------------------------------------------------------------------------


def _resident(field: str) -> int:
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )


def peak_of(call: Callable[[], Any]) -> int:
    """Bytes of resident memory that a call adds at its peak, after one that warmed up."""
    call()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    call()
    return max(_resident("VmHWM") - before, 0)


def prepare_product(package: str, method: str, size: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The timed call of a product, with its error and peak memory."""
    model, batches = model_of(size)
    n = sum(p.numel() for p in model.parameters())
    v = torch.randn(n, generator=torch.Generator().manual_seed(1))
    if package == "baseline":
        return lambda: gradient(model, batches), {
            "n": n,
            "peak_MB": peak_of(lambda: gradient(model, batches)) / 1e6,
        }
    product = MAKERS[package](method).product(model, batches)
    result = product(v).double()
    peak = peak_of(lambda: product(v))
    exact = exact_ggn if method == "ggn" else exact_product
    truth = exact(*model_of(size))(v)
    error = float((result - truth).norm() / truth.norm())
    return lambda: product(v), {"n": n, "error": error, "peak_MB": peak / 1e6}


def case(package: str, method: str, name: str, runs: int) -> dict[str, Any]:
    """One of the report's cases."""
    warnings.simplefilter("ignore")
    peer = MAKERS[package](method)
    if name == "trace":
        g = torch.Generator().manual_seed(1)
        batches = [(torch.randn(64, 32, generator=g), torch.randint(10, (64,), generator=g))]
        truth = float(dense(small(), batches).trace())
        found = [peer.trace(small(), batches, seed) for seed in range(runs)]
        errors = sorted(abs(value - truth) / abs(truth) for value, _, _ in found)
        row: dict[str, Any] = {
            "truth": truth,
            "median_error": statistics.median(errors),
            "worst_error": errors[-1],
            "median_products": statistics.median(products for _, products, _ in found),
        }
        if package == "lowtide":
            intervals = [got for *_, got in found]
            row["intervals_hold"] = sum(got.ci_low <= truth <= got.ci_high for got in intervals) / runs
            row["median_half_width"] = statistics.median(got.ci_high - got.value for got in intervals) / abs(
                truth
            )
            row["converged"] = sum(got.converged for got in intervals) / runs
        return row
    if name == "top3":
        model, batches = model_of("report")
        truth = _top(*model_of("report"))
        values = peer.top(model, batches)
        return {
            "truth": truth,
            "values": values,
            "worst_error": max(abs(a - b) / b for a, b in zip(values, truth, strict=True)),
        }
    if name == "memory":  # of a trace from 30 products, 48 MB of probes if all were stored
        calls = peer.estimates(*model_of("mlp"), 30)
        return {f"{method}_MB": peak_of(call) / 1e6 for method, call in calls.items()}
    assert name == "uneven"
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(32, 32, generator=g), torch.randint(10, (32,), generator=g)
    v = torch.randn(sum(p.numel() for p in small().parameters()), generator=g)
    truth_product = exact_product(small(), [(x, y)])(v)
    product = peer.product(small(), [(x[:24], y[:24]), (x[24:], y[24:])])
    return {"error": float((product(v).double() - truth_product).norm() / truth_product.norm())}


def _top(model: nn.Module, batches: Batches) -> list[float]:
    """Three largest eigenvalues by ARPACK on exact products."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    product = exact_product(model, batches)
    n = sum(p.numel() for p in model.parameters())
    op = LinearOperator((n, n), matvec=lambda v: product(torch.from_numpy(v)).numpy(), dtype="float64")
    return sorted(eigsh(op, k=3, which="LA", tol=1e-10, return_eigenvectors=False).tolist(), reverse=True)
