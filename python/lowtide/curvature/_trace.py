# SPDX-License-Identifier: Apache-2.0
"""The trace of an operator with a confidence interval, from products, or from values of the loss alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from lowtide.curvature._confidence import Moments, Sampling
from lowtide.curvature._linear_operator import LinearOperator
from lowtide.curvature._low_rank_trace import hutch_plus_plus, xnystrace, xtrace
from lowtide.curvature._progress import progress_bar
from lowtide.errors import LowtideValueError

METHODS = ("hutchinson", "hutch++", "xtrace", "xnystrace", "zo")


class BlockTrace(NamedTuple):
    """The trace of one tensor's diagonal block, and its standard error."""

    value: float
    stderr: float


@dataclass(frozen=True)
class TraceResult:
    """A trace and how well it is known.

    Attributes:
        value: the estimate.
        ci_low, ci_high: the interval that holds the trace at the ``confidence`` asked for.
        stderr: standard error of ``value``.
        samples: values averaged (Hutch++: of the remainder; XTrace, XNysTrace: test vectors).
        per_tensor: by name, where asked for.
        converged: whether the interval is as narrow as ``rtol`` or ``atol`` wanted.
        seed: of the probes.
        method: the one used.
        confidence: of the interval.
        products: products with the operator; loss evaluations for "zo".
    """

    value: float
    ci_low: float
    ci_high: float
    stderr: float
    samples: int
    per_tensor: dict[str, BlockTrace] | None
    converged: bool
    seed: int
    method: str
    confidence: float
    products: int

    def __repr__(self) -> str:
        state = "" if self.converged else ", not converged"
        return (
            f"TraceResult({self.value:.6g}, {100 * self.confidence:g} % in [{self.ci_low:.6g}, {self.ci_high:.6g}], "
            f"{self.method}, {self.samples} samples, {self.products} products{state})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, as JSON takes them."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.per_tensor is not None:
            fields["per_tensor"] = {name: block._asdict() for name, block in self.per_tensor.items()}
        return fields


def trace(
    op: LinearOperator,
    *,
    method: str = "hutchinson",
    rtol: float = 0.05,
    atol: float = 0.0,
    confidence: float = 0.95,
    min_probes: int = 10,
    max_probes: int = 100,
    seed: int = 0,
    per_tensor: bool = False,
    fd_step: float | None = None,
    progress: bool = False,
) -> TraceResult:
    """The trace of ``op``, drawing probes until its confidence interval is narrow enough.

    Stops when the half-width of the interval is at most ``max(atol, rtol * |value|)``, or after ``max_probes``
    products. The interval is Student's, widened for the skewness of such samples (``HACKING.md``, Decisions). A trace
    near zero cannot meet ``rtol``: pass ``atol``.

    ==========  ==============================================================  ======================
    method      what it is                                                      memory, numbers
    ==========  ==============================================================  ======================
    hutchinson  mean of z'Hz (Hutchinson 1989); variance 2 sum_{i!=j} H_ij^2    2 n
    hutch++     exact on a subspace, the rest sampled (Meyer et al. 2021)       (m/3 + 4) n
    xtrace      leave-one-out over m/2 vectors (Epperly et al. 2024)            (m + 2) n
    xnystrace   the same on a Nystrom approximation; positive operators only    4 m n
    zo          (L(w + hz) + L(w - hz) - 2 L(w)) / h^2: no gradient at all      2 n
    ==========  ==============================================================  ======================

    The low-rank methods win where eigenvalues decay and lose to Hutchinson where they do not: use them after a look
    at the spectrum. Intervals of XTrace and XNysTrace treat their dependent leave-one-out values as independent.

    Args:
        op: the operator; for "zo" one with a ``problem``, such as ``HessianOperator``.
        method: one of the table.
        rtol, atol: half-width wanted, relative to the value and absolute.
        confidence: of the interval.
        min_probes: the least number of products before stopping, at least 2.
        max_probes: the most products (pairs of loss evaluations for "zo").
        seed: of the probes; the result is a function of it, the layout and the order of the data.
        per_tensor: also the trace of each tensor's diagonal block, from the same products ("hutchinson").
        fd_step: h of "zo", for each parameter; chosen with the first probe if left out.
        progress: show a bar (needs tqdm).

    Raises:
        LowtideValueError: an impossible argument, or a method that ``op`` does not allow.
        LowtideRuntimeError: a product is not finite.

    >>> import torch
    >>> from lowtide.curvature import MatrixOperator, trace
    >>> trace(MatrixOperator(torch.diag(torch.arange(5.0)))).value
    10.0
    """
    rule = Sampling(rtol, atol, confidence, min_probes, max_probes)
    if method not in METHODS:
        raise LowtideValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if per_tensor and method != "hutchinson":
        raise LowtideValueError(
            f"per_tensor=True needs method='hutchinson', got {method!r}; the other methods have no sums by tensor"
        )
    if fd_step is not None and method != "zo":
        raise LowtideValueError(f"fd_step is an option of method='zo', got it with {method!r}; leave it out")
    if method == "xnystrace" and not op.positive:
        raise LowtideValueError(
            "method='xnystrace' needs an operator without negative eigenvalues (GGNOperator, FisherOperator, or "
            "MatrixOperator(positive=True)); use 'xtrace' for this one"
        )
    before = op.products
    blocks: dict[str, BlockTrace] | None = None
    with progress_bar(progress, max_probes, f"trace, {method}") as bar:
        advance = bar.update
        if method == "hutchinson":
            whole, parts = Moments(), Moments()
            for k in range(max_probes):
                dots = op.quad_seeded(seed, k)
                advance(1)
                whole.add(dots.sum())
                if per_tensor:
                    parts.add(dots)
                if whole.count >= min_probes and rule.met(
                    float(whole.mean), float(whole.stderr), whole.count
                ):
                    break
            value, stderr, samples = float(whole.mean), float(whole.stderr), whole.count
            if per_tensor:
                pairs = zip(parts.mean.tolist(), parts.stderr.tolist(), strict=True)
                blocks = dict(zip(op.layout.names, (BlockTrace(*p) for p in pairs), strict=True))
        elif method == "zo":
            from lowtide.curvature._zeroth_order_trace import zeroth_order

            value, stderr, samples, products = zeroth_order(op, rule, seed, fd_step, advance)
        else:
            run = {"hutch++": hutch_plus_plus, "xtrace": xtrace, "xnystrace": xnystrace}[method]
            value, stderr, samples = run(op, rule, seed, advance)
    if method != "zo":
        products = op.products - before
    half = rule.half_width(stderr, samples) if stderr else 0.0
    return TraceResult(
        value=value,
        ci_low=value - half,
        ci_high=value + half,
        stderr=stderr,
        samples=samples,
        per_tensor=blocks,
        converged=half <= max(atol, rtol * abs(value)),
        seed=seed,
        method=method,
        confidence=confidence,
        products=products,
    )
