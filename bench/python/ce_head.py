# SPDX-License-Identifier: Apache-2.0
"""The softmax head's closed-form Hessian beside double backward, and Hessian alignment beside its probe loop.

    python bench/python/ce_head.py [--rounds N] [--threads 1] [--no-save]

1. One Hessian product of mean cross entropy in a head's weight and bias, N samples, D features, C classes: torch's double
   backward (``double``: the gradient's graph built each time; ``cached``: built once and kept), ``CEHead.hvp`` (logits each
   time) and ``CEHead.as_operator()`` (logits once). Each is verified against float64 first.
2. The rows alone, ``r p (u - E[u])`` from N x C logits: double backward, eager torch, and the native op.
3. The Hessian-diagonal penalty of Hessian Alignment (ICCV 2023), value and gradient in the features, N 32, D 512, C 7: the official
   300-probe loop, the same number of seeded probes on closed-form products, and the closed form; and its Hessian-gradient
   products. Times, and relative errors against the closed form in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _timing import environment, race, save
from torch import Tensor

from lowtide import ops
from lowtide.curvature import CEHead
from lowtide.curvature.regularizers import HutchinsonAlign


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def flat(parts: Any) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


def shapes(n: int, d: int, c: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x, w, b, v, v_b = (torch.randn(*s, generator=g) for s in ((n, d), (c, d), (c,), (c, d), (c,)))
    return x, w * d**-0.5, b, torch.randint(0, c, (n,), generator=g), v, v_b


def double_backward(x: Tensor, w: Tensor, b: Tensor, y: Tensor) -> tuple[list[Tensor], Callable[[], Any]]:
    leaves = [w.clone().requires_grad_(), b.clone().requires_grad_()]
    return leaves, lambda: torch.autograd.grad(
        F.cross_entropy(F.linear(x, *leaves), y), leaves, create_graph=True
    )


def products(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for n, d, c in ((256, 64, 10), (4096, 512, 10), (1024, 768, 1000), (256, 576, 49152)):
        x, w, b, y, v, v_b = shapes(n, d, c)
        leaves, gradient = double_backward(x, w, b, y)
        kept = gradient()
        head = CEHead(x, w, b, y)
        operator, vector = head.as_operator(), flat((v, v_b))
        out = operator.layout.zeros()
        rivals: dict[str, Callable[[], Any]] = {
            "double": lambda leaves=leaves, gradient=gradient, v=v, v_b=v_b: torch.autograd.grad(
                gradient(), leaves, (v, v_b)
            ),
            "cached": lambda leaves=leaves, kept=kept, v=v, v_b=v_b: torch.autograd.grad(
                kept, leaves, (v, v_b), retain_graph=True
            ),
            "CEHead.hvp": lambda head=head, v=v, v_b=v_b: head.hvp(v, v_b),
            "as_operator": lambda operator=operator, vector=vector, out=out: (operator.hvp(vector, out),),
        }
        exact = CEHead(x.double(), w.double(), b.double(), y).hvp(v.double(), v_b.double())
        want = flat(exact)
        errors = {name: error(flat(run()), want) for name, run in rivals.items()}
        if max(errors.values()) > 1e-5:
            raise SystemExit(f"a product is wrong: {errors}")
        times = race(rivals, rounds=rounds, turn=0.1)
        for name, t in times.items():
            row = {"n": n, "d": d, "c": c, "name": name, "error": errors[name], **t}
            row["of_double"] = times["double"]["best"] / t["best"]
            rows.append(row)
            print(
                f"  {n:>5} x {d:<4} C {c:<6} {name:<12} {1e3 * t['best']:9.3f} ms  {row['of_double']:6.1f} x double  "
                f"error {errors[name]:.1e}",
                flush=True,
            )
    return rows


def logit_rows(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for n, c in ((100_000, 10), (4096, 1000), (64, 49152)):
        g = torch.Generator().manual_seed(0)
        z, u, r = torch.randn(n, c, generator=g), torch.randn(n, c, generator=g), torch.full((n,), 1 / n)

        def eager(z: Tensor = z, u: Tensor = u, r: Tensor = r) -> Tensor:
            p = torch.softmax(z, 1)
            return (p * u - p * (p * u).sum(1, keepdim=True)) * r[:, None]

        def double(z: Tensor = z, u: Tensor = u, n: int = n) -> Tensor:
            leaf = z.clone().requires_grad_()
            y = torch.zeros(n, dtype=torch.long)
            (gradient,) = torch.autograd.grad(F.cross_entropy(leaf, y), leaf, create_graph=True)
            return torch.autograd.grad(gradient, leaf, u)[0]

        rivals: dict[str, Callable[[], Tensor]] = {
            "double": double,
            "eager": eager,
            "native": lambda z=z, u=u, r=r: ops.curvature_ce_product(z, u, r),
        }
        want = eager(z.double(), u.double(), r.double())
        errors = {name: error(run(), want) for name, run in rivals.items()}
        if max(errors.values()) > 1e-5:
            raise SystemExit(f"rows are wrong: {errors}")
        times = race(rivals, rounds=rounds, turn=0.1)
        for name, t in times.items():
            row = {"n": n, "c": c, "name": name, "error": errors[name], **t}
            row["of_eager"] = times["eager"]["best"] / t["best"]
            rows.append(row)
            print(
                f"  rows {n:>6} x {c:<6} {name:<7} {1e3 * t['best']:9.3f} ms  {row['of_eager']:5.2f} x eager"
            )
    return rows


def alignment(rounds: int) -> list[dict[str, Any]]:
    n, d, c, probes = 32, 512, 7, 300
    torch.manual_seed(0)
    linear = torch.nn.Linear(d, c)
    x, y = torch.randn(n, d), torch.randint(0, c, (n,))

    def with_features(f: Callable[[Tensor], Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
        def run() -> tuple[Tensor, Tensor]:
            leaf = x.clone().requires_grad_()
            moment = f(leaf)
            return moment.detach(), torch.autograd.grad(moment.square().sum(), leaf)[0]

        return run

    def gradient(leaf: Tensor) -> Tensor:
        loss = F.cross_entropy(linear(leaf), y)
        return flat(torch.autograd.grad(loss, list(linear.parameters()), create_graph=True))

    def official_diagonal(leaf: Tensor) -> Tensor:
        g = gradient(leaf)
        total = torch.zeros_like(g)
        for _ in range(probes):
            z = torch.randint_like(g, 2) * 2 - 1
            total = total + z * flat(
                torch.autograd.grad(g @ z, list(linear.parameters()), retain_graph=True, create_graph=True)
            )
        return total / probes

    def official_product(leaf: Tensor) -> Tensor:  # |g| times the gradient of |g|
        norm = gradient(leaf).norm()
        return norm * flat(torch.autograd.grad(norm, list(linear.parameters()), create_graph=True))

    def head(leaf: Tensor) -> CEHead:
        return CEHead(leaf, linear.weight, linear.bias, y)

    sampled = HutchinsonAlign(exact=False, probes=probes)
    tasks: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
        "diagonal": {
            "probe loop": official_diagonal,
            "seeded probes": lambda leaf: sampled.diagonal(head(leaf)),
            "closed form": lambda leaf: flat(head(leaf).diag()),
        },
        "hessian x gradient": {"double": official_product, "closed form": lambda leaf: flat(head(leaf).hg())},
    }
    rows = []
    for task, rivals in tasks.items():
        leaf = x.double().requires_grad_()
        exact = CEHead(leaf, linear.weight.double(), linear.bias.double(), y)
        moment = flat(exact.diag() if task == "diagonal" else exact.hg())
        (features,) = torch.autograd.grad(moment.square().sum(), leaf)
        runs = {name: with_features(f) for name, f in rivals.items()}
        got = {name: run() for name, run in runs.items()}
        times = race(runs, rounds=rounds)
        for name, t in times.items():
            row = {"task": task, "name": name, **t}
            row["error"] = error(got[name][0], moment.detach())
            row["feature_gradient_error"] = error(got[name][1], features)
            rows.append(row)
            print(
                f"  {task:<18} {name:<14} {1e3 * t['best']:9.3f} ms  error {row['error']:.1e}, "
                f"of the feature gradient {row['feature_gradient_error']:.1e}",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = {**environment(), "torch": torch.__version__, "threads": args.threads}
    results = {
        "products": products(args.rounds),
        "rows": logit_rows(args.rounds),
        "alignment": alignment(args.rounds),
    }
    if not args.no_save:
        save("ce_head", {"bench": "ce_head", "environment": started, **results})


if __name__ == "__main__":
    main()
