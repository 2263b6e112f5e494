# SPDX-License-Identifier: Apache-2.0
"""The Hessian of two networks trained on handwritten digits: bulk and outliers, a landscape, a barrier.

    python examples/digits_spectrum.py [--steps N] [--images N] [--probes P] [--lanczos M] [--grid G] [--dense] [--out DIR]

Sagun et al. (2017, arXiv 1706.04454) found that the spectrum of a trained network is a bulk at zero, which grows with the network, and a
few large eigenvalues, about as many as there are classes. This trains a multilayer perceptron and a convolutional network on
scikit-learn's 8x8 digits (1797 images, 10 classes), and draws the spectrum of the full-batch Hessian before and after
(stochastic Lanczos quadrature), the loss on the plane of its two leading eigenvectors, and the loss between two solutions.
``--dense`` adds the MLP's exact eigenvalues by forming its Hessian. Writes OUT/digits_spectrum.{json,md,png} and two more pictures.
Needs scikit-learn. About a minute.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowtide import curvature as lc

CLASSES = 10
COLOURS = {"start": "#9aa5b1", "trained": "#1f5a99", "outlier": "#c8501e"}


def digits(images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images of mean 0 and variance 1 and labels, for training (``images`` of 1500) and testing (297)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("digits_spectrum needs scikit-learn; run: pip install scikit-learn") from error
    bunch = load_digits()
    x = torch.tensor(bunch.data, dtype=torch.float32)
    y = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = ((x - x.mean()) / x.std())[order].reshape(-1, 1, 8, 8), y[order]
    return x[:images], y[:images], x[1500:], y[1500:]


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, CLASSES)
    )


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, seed: int) -> None:
    """Adam on batches of 100, the rate falling to zero."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        rows = torch.randint(len(x), (100,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def describe(operator: Any, spectrum: Any) -> dict[str, Any]:
    """The numbers of one network's table row."""
    trace = spectrum.trace_of(lambda t: t)
    gradient = operator.problem.gradient()
    top = lc.eigsh(operator, 2 * CLASSES, verify=False)
    share = float((top.vectors[:, :CLASSES].T @ gradient).square().sum() / gradient.square().sum())
    return {
        "n": operator.n,
        "loss": operator.problem.evaluate(),
        "trace": trace.value,
        "trace_stderr": trace.stderr,
        "top": top.values.tolist(),
        "residuals": top.residuals.tolist(),
        "above_a_tenth": int((top.values > 0.1 * top.values[0]).sum()),
        "negative_below_1e-3_top": spectrum.negative_mass(-1e-3 * float(top.values[0])),
        "bulk_within_1e-2_top": spectrum.bulk_mass(1e-2 * float(top.values[0])),
        "effective_rank": spectrum.effective_rank(),
        "gradient_in_top": share,
        "k_h": spectrum.criteria().k_h,
        "spectrum": spectrum.to_dict(),
    }


def study(name: str, model: nn.Module, options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """One network before and after training, and the operator of the trained one."""
    x, y, x_test, y_test = digits(options.images)
    result: dict[str, Any] = {}
    operator = lc.HessianOperator(model, None, (x, y), "cross_entropy")
    for moment in ("start", "trained"):
        if moment == "trained":
            train(model, x, y, options.steps, seed=0)
        start = time.perf_counter()
        spectrum = lc.slq(operator, probes=options.probes, steps=options.lanczos, reorth="cgs2")
        result[moment] = describe(operator, spectrum)
        result[moment] |= {"train": accuracy(model, x, y), "test": accuracy(model, x_test, y_test)}
        if options.dense and name == "MLP" and moment == "trained":
            result[moment]["dense"] = torch.linalg.eigvalsh(operator.dense().double()).tolist()
        seconds = time.perf_counter() - start
        print(f"{name:8s} {moment:8s} {spectrum} in {seconds:.1f} s", flush=True)
    return result, operator


def _count(r: dict[str, Any]) -> str:
    found: int = r["above_a_tenth"]
    return str(found) if found < len(r["top"]) else f"{found} or more"


def table(results: dict[str, Any]) -> str:
    lines = [
        "| network | parameters | | train, test accuracy, % | loss | trace | largest eigenvalue | tenth largest | above 1/10 of the largest | "
        "within 1 % of the largest, % | gradient in the top ten, % |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, moments in results.items():
        for moment, r in moments.items():
            lines.append(
                f"| {name} | {r['n']} | {moment} | {100 * r['train']:.1f}, {100 * r['test']:.1f} | {r['loss']:.4f} | "
                f"{r['trace']:.3g} ± {r['trace_stderr']:.2g} | {r['top'][0]:.4g} | {r['top'][CLASSES - 1]:.3g} | "
                f"{_count(r)} | {100 * r['bulk_within_1e-2_top']:.1f} | {100 * r['gradient_in_top']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, len(results), figsize=(11, 4), layout="constrained", sharey=True)
    for ax, (name, moments) in zip(axes, results.items(), strict=True):
        for moment, r in moments.items():
            spectrum = lc.Spectrum.from_dict(r["spectrum"])
            sigma = 0.01 * moments["trained"]["top"][0]
            t, phi = spectrum.density(sigma=sigma, points=4000)
            count = phi * r["n"] * sigma * (2 * torch.pi) ** 0.5  # one eigenvalue alone has height 1
            ax.semilogy(
                t,
                count,
                color=COLOURS[moment],
                label="before training" if moment == "start" else "trained",
                lw=1.3,
            )
        trained = moments["trained"]
        marks = trained["dense"][-CLASSES:] if "dense" in trained else trained["top"][:CLASSES]
        what = "exact" if "dense" in trained else "Lanczos"
        ax.plot(
            marks,
            [1.6] * len(marks),
            "v",
            color=COLOURS["outlier"],
            ms=5,
            label=f"ten largest, trained ({what})",
        )
        ax.set_ylim(0.03, 3 * trained["n"])
        low = min(min(map(min, r["spectrum"]["nodes"])) for r in moments.values())
        high = max(r["top"][0] for r in moments.values())
        ax.set_xlim(low - 0.05 * high, 1.06 * high)
        ax.set_title(
            f"{name}: {trained['n']:,} parameters, test accuracy {100 * trained['test']:.1f} %",
            loc="left",
            fontsize=10,
        )
        ax.set_xlabel("eigenvalue of the full-batch Hessian")
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("eigenvalues (one alone: height 1 on average)")
    fig.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=600, metavar="N", help="updates of training (default 600)"
    )
    parser.add_argument(
        "--images", type=int, default=1500, metavar="N", help="to train on, 1500 at most (default)"
    )
    parser.add_argument("--probes", type=int, default=4, metavar="P", help="default 4")
    parser.add_argument("--lanczos", type=int, default=100, metavar="M", help="steps a probe (default 100)")
    parser.add_argument(
        "--grid", type=int, default=41, metavar="G", help="points of a landscape's axis (default 41)"
    )
    parser.add_argument(
        "--dense", action="store_true", help="form the MLP's Hessian too and mark its exact eigenvalues"
    )
    parser.add_argument("--out", type=Path, default=Path("digits-spectrum-out"), metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)  # networks this small are slower on more
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    torch.manual_seed(0)
    first = mlp()
    results["MLP"], operator = study("MLP", first, options)
    torch.manual_seed(0)
    results["conv net"], _ = study("conv net", convnet(), options)

    distance = 3.0  # where the quadratic no longer holds
    scape = lc.landscape(operator, axes="hessian", steps=options.grid, span=distance)
    scape.plot(
        options.out / "digits_landscape.png",
        title="Digits MLP, full-batch loss along the two leading eigenvectors of its Hessian",
    )
    print(scape)
    x, y, _, _ = digits(options.images)
    torch.manual_seed(1)
    second = mlp()
    train(second, x, y, options.steps, seed=1)
    line = lc.barrier(operator.problem, second, points=max(3, options.grid // 2 * 2 + 1), curvature=True)
    line.plot(
        options.out / "digits_barrier.png", title="Digits MLP: the straight line between two training runs"
    )
    print(line)

    about = {
        "steps": options.steps,
        "probes": options.probes,
        "lanczos": options.lanczos,
        "torch": torch.__version__,
    }
    extra = {"landscape": scape.to_dict(), "barrier": line.to_dict()}
    (options.out / "digits_spectrum.json").write_text(
        json.dumps({**about, "results": results, **extra}) + "\n"
    )
    (options.out / "digits_spectrum.md").write_text(table(results))
    figure(results, options.out / "digits_spectrum.png")
    print("\n" + table(results))


if __name__ == "__main__":
    main()
