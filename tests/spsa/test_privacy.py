# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import random

import pytest

pytest.importorskip("torch")

import torch

import lowtide as lt
from lowtide.spsa import LogReader, Privacy
from lowtide.spsa._discrete_gaussian import bernoulli_exp, discrete_gaussian, discrete_laplace

SETTINGS = {"clip": 2.0, "sample_rate": 0.1, "batch": 8, "steps": 20, "delta": 1e-5, "noise_multiplier": 1.0}


def privacy(**changes) -> Privacy:
    return Privacy(**{**SETTINGS, **changes})


class TestNoise:
    @pytest.mark.parametrize("sigma", [1, 2, 7])
    def test_is_the_discrete_gaussian(self, sigma):
        """Chi-square against the exact probabilities, a seeded source of integers."""
        below, n = random.Random(sigma).randrange, 20000
        counts: dict[int, int] = {}
        for _ in range(n):
            x = discrete_gaussian(sigma, below)
            counts[x] = counts.get(x, 0) + 1
        weights = {x: math.exp(-x * x / (2 * sigma * sigma)) for x in range(-8 * sigma, 8 * sigma + 1)}
        total = sum(weights.values())
        expected = {x: n * w / total for x, w in weights.items() if n * w / total >= 5}
        chi = sum((counts.get(x, 0) - e) ** 2 / e for x, e in expected.items())
        freedom = len(expected) - 1
        assert abs(chi - freedom) < 4 * math.sqrt(2 * freedom)  # z-score of 4

    def test_laplace_and_coins(self):
        below, n = random.Random(3).randrange, 20000
        xs = [discrete_laplace(5, below) for _ in range(n)]
        q = math.exp(-1 / 5)
        variance = 2 * q / (1 - q) ** 2
        assert abs(sum(xs)) / n < 4 * math.sqrt(variance / n)
        assert sum(x * x for x in xs) / n == pytest.approx(variance, rel=0.1)
        for num, den in ((0, 1), (1, 3), (1, 1), (7, 3)):
            p = math.exp(-num / den)
            got = sum(bernoulli_exp(num, den, below) for _ in range(n)) / n
            assert abs(got - p) <= 4 * math.sqrt(p * (1 - p) / n)

    def test_comes_from_the_operating_system(self):
        torch.manual_seed(0)
        random.seed(0)
        first = [discrete_gaussian(10**6) for _ in range(4)]
        torch.manual_seed(0)
        random.seed(0)
        assert first != [discrete_gaussian(10**6) for _ in range(4)]


class TestClipping:
    @pytest.fixture(autouse=True)
    def quiet(self, monkeypatch):
        monkeypatch.setattr("lowtide.spsa._privacy.discrete_gaussian", lambda sigma: 0)

    def test_each_sample_is_clipped_before_the_sum(self):
        plus = torch.tensor([1.0, 100.0, -100.0, 0.5], dtype=torch.float64)
        got = privacy().reduce(plus, torch.zeros(4, dtype=torch.float64), 1.0)
        assert got == pytest.approx((1.0 + 2.0 - 2.0 + 0.5) / 8, abs=1e-4)

    @pytest.mark.parametrize("value", [0.0, 1e300, -1e300, math.inf, -math.inf, math.nan, 1e-300, 1.2345])
    def test_one_sample_moves_the_result_by_the_bound_at_most(self, value):
        """The sensitivity that the accountant counts on, for whatever a sample may be."""
        p = privacy()
        torch.manual_seed(0)
        rest = torch.randn(7, dtype=torch.float64) * 3
        zero = torch.zeros(8, dtype=torch.float64)
        without = p.reduce(rest, zero[:7], 1.0)
        with_it = p.reduce(torch.cat((rest, torch.tensor([value], dtype=torch.float64))), zero, 1.0)
        assert math.isfinite(with_it)
        assert abs(with_it - without) <= 2.0 / 8 * (1 + 1e-12)

    def test_an_empty_batch_is_noise_alone(self):
        p = privacy()
        losses = p.guard(lambda: torch.zeros(0))()
        assert p.reduce(losses.double(), losses.double(), 1.0) == 0.0


def test_noise_has_the_size_that_was_accounted():
    p = privacy(noise_multiplier=3.0)
    p.begin(0, directions=4)
    zero = torch.zeros(5, dtype=torch.float64)
    draws = [p.reduce(zero, zero, 1.0) for _ in range(2000)]
    expected = 3.0 * math.sqrt(4) * 2.0 / 8
    spread = math.sqrt(sum(d * d for d in draws) / len(draws))
    assert spread == pytest.approx(expected, rel=4 / math.sqrt(2 * len(draws)))  # z-score of 4


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 1).eval()


X = torch.linspace(-1, 1, 64).reshape(16, 4).sin()
Y = X @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])


def losses_of(model):
    return lambda: (model(X) - Y).square().mean(1)


class TestSPSA:
    @pytest.mark.parametrize("estimator", ["central", "forward", "fzoo"])
    def test_learns_through_a_little_noise(self, estimator):
        model = linear()
        p = privacy(clip=50.0, batch=16, noise_multiplier=0.01, steps=200)
        opt = lt.spsa.SPSA(
            model.parameters(), lr=0.02, directions=4, estimator=estimator, module=model, privacy=p, seed=1
        )
        first = opt.step(losses_of(model))
        last = [opt.step(losses_of(model)) for _ in range(199)][-1]
        assert last < 0.2 * first
        assert p.released == 200

    def test_only_noised_slopes_are_logged(self, tmp_path):
        """Without noise the log would tell the data; with it no code is the raw one, and runs differ."""
        logs = []
        for name, options in (("raw", {}), ("a", {"privacy": privacy()}), ("b", {"privacy": privacy()})):
            model = linear()
            closure = losses_of(model)
            opt = lt.spsa.SPSA(model.parameters(), lr=0.0, module=model, log=tmp_path / name, **options)
            for _ in range(5):
                opt.step(closure)
            opt.close()
            logs.append([g for _, values in LogReader(tmp_path / name).values() for _, g in values])
        raw, a, b = logs
        assert not set(raw) & set(a)
        assert not set(a) & set(b)

    def test_replays(self, tmp_path):
        model, again = linear(), linear()
        opt = lt.spsa.SPSA(
            model.named_parameters(), lr=0.01, module=model, log=tmp_path / "a", privacy=privacy()
        )
        for _ in range(6):
            opt.step(losses_of(model))
        opt.close()
        lt.spsa.replay(again, tmp_path / "a")
        assert torch.equal(model.weight, again.weight)

    def test_the_budget_ends(self):
        model = linear()
        opt = lt.spsa.SPSA(model.parameters(), lr=0.01, module=model, privacy=privacy(steps=3))
        for _ in range(3):
            opt.step(losses_of(model))
        before = model.weight.clone()
        with pytest.raises(lt.LowtideRuntimeError, match="budget of 3 steps is spent"):
            opt.step(losses_of(model))
        assert torch.equal(before, model.weight)
        # A state of a later step has spent what is before it, whoever releases.
        other = linear()
        late = lt.spsa.SPSA(other.parameters(), lr=0.01, module=other, privacy=privacy(steps=3))
        late.load_state_dict(opt.state_dict())
        with pytest.raises(lt.LowtideRuntimeError, match="budget"):
            late.step(losses_of(other))

    def test_sums_are_refused(self):
        model = linear()
        opt = lt.spsa.SPSA(model.parameters(), lr=0.01, module=model, privacy=privacy())
        before = model.weight.clone()
        for closure in (lambda: losses_of(model)().mean(), lambda: 1.0, lambda: losses_of(model)()[:, None]):
            with pytest.raises(lt.LowtideTypeError, match="single samples"):
                opt.step(closure)
        assert torch.equal(before, model.weight)

    def test_methods_that_release_more_are_refused(self):
        model = linear()
        with pytest.raises(lt.LowtideValueError, match="privacy"):
            lt.spsa.HiZOO(model.parameters(), module=model, privacy=privacy())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"clip": 0.0}, "clip"),
        ({"batch": math.inf}, "batch"),
        ({"sample_rate": 1.5}, "sample_rate"),
        ({"delta": 0.0}, "delta"),
        ({"steps": 0}, "steps"),
        ({"epsilon": 1.0}, "not both"),
        ({"noise_multiplier": None}, "either"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"accountant": "x"}, "accountant"),
    ],
)
def test_bad_arguments_are_named(changed, named):
    with pytest.raises(lt.LowtideValueError, match=named):
        privacy(**changed)


class TestAccountant:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("dp_accounting", reason="needs lowtide[dp]")

    def test_a_known_budget(self):
        """The MNIST tutorial of TensorFlow Privacy: 60 epochs of 60,000 at 256, noise 1.1, delta 1e-5; its older
        accountant reports 2.92 to 3.01, tighter conversions since then less."""
        p = privacy(noise_multiplier=1.1, sample_rate=256 / 60000, steps=60 * 60000 // 256)
        assert p.epsilon() == 0.0
        assert 2.0 < p.epsilon(p.steps) < 3.01
        assert p.epsilon(1000) < p.epsilon(p.steps)

    def test_calibration_meets_the_budget(self):
        p = privacy(noise_multiplier=None, epsilon=3.0, steps=500)
        assert 2.9 < p.epsilon(500) <= 3.0 + 1e-3
        assert "of 500 steps released" in repr(p)

    def test_privacy_loss_distributions_are_tighter(self):
        rdp, pld = privacy(), privacy(accountant="pld")
        assert 0.7 * rdp.epsilon(20) < pld.epsilon(20) < rdp.epsilon(20)

    def test_directions_share_the_budget(self):
        """n releases with sqrt(n) times the noise compose to one: checked with the accountant itself."""
        import dp_accounting as dp

        one, four = dp.rdp.RdpAccountant(), dp.rdp.RdpAccountant()
        one.compose(dp.GaussianDpEvent(1.5), 1)
        four.compose(dp.GaussianDpEvent(1.5 * 2), 4)
        assert one.get_epsilon(1e-5) == pytest.approx(four.get_epsilon(1e-5), rel=1e-9)


def test_without_the_library_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(lt.LowtideImportError, match=r"lowtide\[dp\]"):
        privacy(noise_multiplier=None, epsilon=1.0)
