# SPDX-License-Identifier: Apache-2.0
"""Landscapes and paths against losses known in closed form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowtide as lt
from lowtide.curvature import LossPath, MatrixOperator, barrier, bezier, landscape
from lowtide.curvature._directions import gaussian, rescale_
from lowtide.curvature._landscape import coordinates
from lowtide.curvature._layout import Layout

SHAPES = {"conv": (3, 2, 2, 2), "bias": (3,), "linear": (4, 5), "scale": (), "none": (0, 3)}


class Formula:
    """A loss given as a function of one flat vector: what landscapes and paths ask of a problem."""

    def __init__(self, tensors: dict[str, Tensor], loss: Callable[[Tensor], Tensor]) -> None:
        self.tensors = list(tensors.values())
        self.layout = Layout.of(tensors.items())
        self.loss = loss

    def _flat(self, tensors: Sequence[Tensor] | None) -> Tensor:
        return torch.cat([t.reshape(-1) for t in (self.tensors if tensors is None else tensors)])

    def evaluate(self, tensors: Sequence[Tensor] | None = None) -> float:
        return float(self.loss(self._flat(tensors)))

    def gradient(self, tensors: Sequence[Tensor] | None = None) -> Tensor:
        flat = self._flat(tensors).requires_grad_()
        return torch.autograd.grad(self.loss(flat), flat)[0]


def tensors(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=dtype) + 0.1 for name, shape in SHAPES.items()
    }


def quadratic(dtype: torch.dtype = torch.float64) -> tuple[Formula, Tensor]:
    named = tensors(dtype)
    n = sum(t.numel() for t in named.values())
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=dtype)
    a = (a + a.T) / 2
    return Formula(named, lambda x: 0.5 * x @ a @ x + x.sum()), a


def test_plane_of_a_quadratic_is_its_formula() -> None:
    problem, a = quadratic()
    before = [t.clone() for t in problem.tensors]
    generator = torch.Generator().manual_seed(3)
    d1, d2 = torch.randn(2, problem.layout.n, generator=generator, dtype=torch.float64)
    got = landscape(problem, axes=[d1, problem.layout.views(d2)], steps=5, span=(0.5, 2.0))
    theta = problem._flat(None)
    for i, s in enumerate(torch.linspace(-0.5, 0.5, 5, dtype=torch.float64)):
        for j, t in enumerate(torch.linspace(-2, 2, 5, dtype=torch.float64)):
            x = theta + s * d1 + t * d2
            want = float(0.5 * x @ a @ x + x.sum())
            assert float(got.losses[i, j]) == pytest.approx(want, rel=1e-12, abs=1e-12)
    assert got.axes == "given"
    assert got.norms == pytest.approx((float(d1.norm()), float(d2.norm())))
    # The middle is the model itself, without any rounding; nothing moved.
    assert float(got.losses[2, 2]) == problem.evaluate()
    assert all(torch.equal(b, t) for b, t in zip(before, problem.tensors, strict=True))
    line = landscape(problem, axes=[d1], steps=5, span=0.5)
    assert torch.equal(line.losses, got.losses[:, 2])
    assert line.b is None


@pytest.mark.parametrize("steps", [2, 3, 4, 41])
def test_coordinates_are_symmetric(steps: int) -> None:
    x = coordinates(steps, 0.3)
    assert x == [-v for v in reversed(x)]
    assert (x[0], x[-1]) == (-0.3, 0.3)
    assert len(x) == steps


def test_filter_norms() -> None:
    named = tensors()
    layout = Layout.of(named.items())
    drawn = gaussian(layout, 7, 1)
    d = dict(
        zip(
            SHAPES,
            layout.views(rescale_(layout, drawn.clone(), list(named.values()), "filter", "zero")),
            strict=True,
        )
    )
    z = dict(zip(SHAPES, layout.views(drawn), strict=True))
    for name in ("conv", "linear"):
        for got, weight, raw in zip(d[name], named[name], z[name], strict=True):
            # 1e-10 in the denominator is what is left of exactness.
            assert float(got.norm()) == pytest.approx(float(weight.norm()), rel=1e-9)
            assert torch.allclose(got / got.norm(), raw / raw.norm())
    assert not d["bias"].any()
    assert not d["scale"].any()
    copied = layout.views(rescale_(layout, drawn.clone(), list(named.values()), "filter", "copy"))
    assert torch.equal(copied[1], named["bias"])
    assert torch.equal(copied[3], named["scale"])
    scaled = layout.views(rescale_(layout, drawn.clone(), list(named.values()), "filter", "scale"))
    assert torch.allclose(scaled[1], named["bias"].abs() * z["bias"].sign())
    layers = layout.views(rescale_(layout, drawn.clone(), list(named.values()), "layer", "scale"))
    for got, weight in zip(layers, named.values(), strict=True):
        assert float(got.norm()) == pytest.approx(float(weight.norm()), rel=1e-9)
    model = rescale_(layout, drawn.clone(), list(named.values()), "model", "zero")
    whole = torch.cat([w.reshape(-1) for w in named.values()])
    assert float(model.norm()) == pytest.approx(float(whole.norm()), rel=1e-9)


def test_a_weight_of_zeros_keeps_its_filter_still() -> None:
    named = {"w": torch.zeros(2, 3)}
    layout = Layout.of(named.items())
    assert not rescale_(layout, gaussian(layout, 0, 0), list(named.values()), "filter", "zero").any()


@pytest.mark.parametrize("axes", ["random", "layer", "filter", "gradient"])
def test_drawn_axes_depend_on_the_seed_alone(axes: str) -> None:
    problem, _ = quadratic(torch.float32)
    first = landscape(problem, axes=axes, steps=3, span=0.1, seed=5)
    assert torch.equal(first.losses, landscape(problem, axes=axes, steps=3, span=0.1, seed=5).losses)
    assert not torch.equal(first.losses, landscape(problem, axes=axes, steps=3, span=0.1, seed=6).losses)


def test_gradient_axis_falls_by_its_norm() -> None:
    problem, _ = quadratic()
    norm = float(problem.gradient().norm())
    got = landscape(problem, axes="gradient", steps=3, span=1e-5)
    # Central difference of a quadratic is exact; what is left is the rounding of losses of size 10 over 2e-5.
    slope = float(got.losses[2, 1] - got.losses[0, 1]) / 2e-5
    assert slope == pytest.approx(norm, rel=1e-8)
    across = float(got.losses[1, 2] - got.losses[1, 0]) / 2e-5
    assert abs(across) < 1e-8 * norm


def test_low_precision_parameters_move_in_float32() -> None:
    seen = []

    def loss(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x.float().square().sum()

    landscape(Formula(tensors(torch.bfloat16), loss), steps=2, dims=1)
    assert set(seen) == {torch.float32}


def test_what_is_not_finite_is_kept_and_marked(tmp_path: Path) -> None:
    named = {"w": torch.tensor([[0.5, 0.5]], dtype=torch.float64)}
    problem = Formula(named, lambda x: x[0].log() + 1 / x[1].clamp(min=0) + 3)
    axes = [torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()]
    got = landscape(problem, axes=axes, steps=5)
    assert bool(got.losses[0].isnan().any())
    assert bool(got.losses[:, 0].isinf().any())
    value, at = got.minimum
    assert value == float(got.losses[got.losses.isfinite()].min())
    assert float(got.losses[got.a.tolist().index(at[0]), got.b.tolist().index(at[1])]) == value
    assert "not finite" in repr(got)
    assert math.isnan(got.to_dict()["losses"][0][4])
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'lowtide[demo]'")
    assert got.plot(tmp_path / "plane.png").stat().st_size > 20_000
    with pytest.raises(lt.LowtideValueError, match="no loss of this landscape is finite"):
        landscape(Formula(named, lambda x: x[0] * torch.nan), steps=2).plot(tmp_path / "x.png")


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'lowtide[demo]'")
    named = {"w": torch.tensor([[1.0, 2.0]])}
    steep = landscape(Formula(named, lambda x: (x * 4).square().sum().exp().clamp(max=1e6)), steps=7)
    for i, (scape, options) in enumerate([(steep, {}), (steep, {"cap": 2e5, "title": "A title"})]):
        assert scape.plot(tmp_path / f"{i}.png", **options).read_bytes().startswith(b"\x89PNG")
    line = landscape(Formula(named, lambda x: x.square().sum()), steps=7, dims=1)
    assert b"<svg" in line.plot(tmp_path / "line.svg").read_bytes()
    for bad, words in (({"path": "x.txt"}, "file name ending in"), ({"path": "x.png", "cap": -1.0}, "cap")):
        with pytest.raises(lt.LowtideValueError, match=words):
            line.plot(**bad)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 1}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"dims": 3}, "1 or 2 directions"),
        ({"span": 0.0}, "span"),
        ({"span": (1.0,)}, "span"),
        ({"span": math.inf}, "span"),
        ({"axes": "adam"}, "axes must be one of"),
        ({"axes": "hessian"}, "pass the HessianOperator"),
        ({"axes": [torch.ones(3)]}, r"axes\[0\] must have shape"),
        ({"axes": []}, "1 or 2 directions"),
        ({"vectors": "drop"}, "vectors"),
    ],
)
def test_bad_arguments_are_named(options: dict, words: str) -> None:
    problem, _ = quadratic()
    with pytest.raises(lt.LowtideError, match=words):
        landscape(problem, **options)


def test_what_is_no_problem_is_refused() -> None:
    with pytest.raises(lt.LowtideError, match="problem must be a Problem"):
        landscape(nn.Linear(2, 2))
    flat = Formula({"w": torch.zeros(2)}, lambda x: x.square().sum())
    with pytest.raises(lt.LowtideError, match="norm 0"):
        landscape(flat, axes="gradient")


def double_well(dtype: torch.dtype = torch.float64) -> Formula:
    """``(x^2 - 1)^2 + y^2 + x / 10`` at (-1, 0)."""
    named = {"p": torch.tensor([-1.0, 0.0], dtype=dtype)}
    return Formula(named, lambda v: (v[0] ** 2 - 1) ** 2 + v[1] ** 2 + v[0] / 10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_barrier_of_a_double_well(dtype: torch.dtype) -> None:
    problem = double_well(dtype)
    got = barrier(problem, torch.tensor([1.0, 0.0], dtype=dtype), points=21, curvature=True)
    # Between the ends, whose losses differ by the tilt, the well rises to 1 at x = 0.
    assert got.height == pytest.approx(1.0, abs=1e-6)
    assert got.at == 0.5
    assert got.distance == pytest.approx(2.0)
    assert got.mode_connectivity == pytest.approx(-1.0, abs=1e-6)
    x = 2 * got.t - 1
    # D'HD = 4 (12 x^2 - 4); float32: rounding of slopes of size 10 over a step of 5e-3 leaves 1e-3.
    want = 4 * (12 * x**2 - 4)
    assert torch.allclose(got.curvature, want, atol=1e-4 if dtype == torch.float64 else 2e-2)


def test_no_barrier_in_a_bowl() -> None:
    named = {"p": torch.tensor([3.0, -1.0], dtype=torch.float64)}
    problem = Formula(named, lambda v: v.square().sum())
    got = barrier(problem, [torch.tensor([-1.0, 2.0]).double()], curvature=True)
    assert got.height == 0
    assert bool((got.curvature > 0).all())
    same = barrier(problem, [named["p"]], points=3, curvature=True)
    assert same.distance == same.height == 0
    assert not same.curvature.any()


def test_barrier_to_a_model_and_what_it_refuses() -> None:
    torch.manual_seed(0)
    model, other = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    problem = Formula({k: v.detach() for k, v in model.named_parameters()}, lambda v: v.square().sum())
    got = barrier(problem, other, points=3)
    flat = torch.cat([p.detach().reshape(-1) for p in other.parameters()])
    assert torch.equal(got.losses, barrier(problem, flat, points=3).losses)
    assert float(got.losses[-1]) == pytest.approx(float(flat.square().sum()), rel=1e-12)
    for bad, words in ((nn.PReLU(), "no parameter"), (3, "other must be"), (torch.ones(2), "shape")):
        with pytest.raises(lt.LowtideError, match=words):
            barrier(problem, bad)
    with pytest.raises(lt.LowtideError, match="points"):
        barrier(problem, other, points=2)


def test_a_loss_that_is_not_finite_shows_in_the_barrier() -> None:
    problem = Formula({"p": torch.tensor([-1.0]).double()}, lambda v: 1 / v[0].square())
    assert barrier(problem, [torch.tensor([1.0]).double()], points=3).height == math.inf


def test_curve_goes_around_a_hill() -> None:
    named = {"p": torch.tensor([-1.0, 0.05], dtype=torch.float64)}
    problem = Formula(named, lambda v: torch.exp(-4 * v.square().sum()) + 0.01 * v.square().sum())
    end = torch.tensor([1.0, 0.05]).double()
    straight = bezier(problem, end, steps=0, points=21)
    assert torch.allclose(straight.losses, barrier(problem, end, points=21).losses)
    curve = bezier(problem, end, steps=200, lr=0.1, points=21, seed=1)
    assert straight.height > 0.9
    assert curve.height < 0.3 * straight.height
    assert abs(float(curve.control[1])) > 0.5
    assert float(curve.losses[0]) == problem.evaluate()
    assert torch.equal(curve.losses, bezier(problem, end, steps=200, lr=0.1, points=21, seed=1).losses)
    for options, words in (({"steps": -1}, "steps"), ({"lr": 0.0}, "lr"), ({"momentum": 1.0}, "momentum")):
        with pytest.raises(lt.LowtideValueError, match=words):
            bezier(problem, end, **options)


def test_paths_are_drawn_and_listed(tmp_path: Path) -> None:
    got = barrier(double_well(), torch.tensor([1.0, 0.0]).double(), curvature=True)
    assert isinstance(got, LossPath)
    assert "barrier 1" in repr(got)
    back = json.loads(json.dumps(got.to_dict()))
    assert back["losses"] == got.losses.tolist()
    assert back["height"] == got.height
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'lowtide[demo]'")
    assert got.plot(tmp_path / "line.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("axes", ["hessian", "hessian-ends"])
def test_hessian_axes_bend_by_their_eigenvalues(axes: str, tmp_path: Path) -> None:
    problem, a = quadratic()
    operator = MatrixOperator(a)
    operator.problem = problem
    got = landscape(operator, axes=axes, steps=3, span=0.5)
    truth = torch.linalg.eigvalsh(a)
    want = truth[[-1, -2]] if axes == "hessian" else truth[[-1, 0]]
    # eigsh stops at residuals of 1e-3; eigenvalues are off by the square of that over the gap.
    assert got.eigenvalues == pytest.approx(want.tolist(), rel=1e-4)
    second = (got.losses[2, 1] - 2 * got.losses[1, 1] + got.losses[0, 1]) / 0.25
    assert float(second) == pytest.approx(got.eigenvalues[0], rel=1e-6)
    assert max(got.residuals) < 1e-3 * float(truth.abs().max())
    if axes == "hessian-ends":
        assert got.criteria == {"r_e": pytest.approx(abs(float(truth[0] / truth[-1])), rel=1e-4)}
        with pytest.raises(lt.LowtideValueError, match="dims=1"):
            landscape(operator, axes=axes, dims=1)
    else:
        assert got.criteria == {}
        pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'lowtide[demo]'")
        line = landscape(operator, axes=axes, dims=1, steps=5)
        assert line.plot(tmp_path / "line.png").stat().st_size > 5000
