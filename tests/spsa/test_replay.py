# SPDX-License-Identifier: Apache-2.0
"""A replayed run has the bits of the live one."""

from __future__ import annotations

import gc

import pytest

pytest.importorskip("torch")

import torch

import lowtide as lt
from lowtide.spsa._log import LogError, LogReader
from lowtide.spsa._log_writer import LogWriter

X = torch.linspace(-2, 2, 96).reshape(12, 8).sin()
Y = X[:, :1] * X[:, 1:2]


@pytest.fixture(autouse=True)
def one_thread():
    """These models are tiny: waking a second thread takes longer than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(dtype=torch.float32, seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    layers = (torch.nn.Linear(8, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1))
    return torch.nn.Sequential(*layers).to(dtype).eval()


def closure_of(model):
    dtype = next(model.parameters()).dtype
    return lambda: (model(X.to(dtype)).float() - Y).square().mean()


def bits(model) -> list:
    return [p.detach().clone().view(torch.uint8) for p in model.parameters()]


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


def train(model, path, steps: int = 40, *, schedule: bool = True, params=None, **options):
    options = {"lr": 3e-2, "weight_decay": 1e-2, "directions": 2, "seed": 5, **options}
    opt = lt.spsa.SPSA(params or model.named_parameters(), module=model, log=path, **options)
    lrs = torch.optim.lr_scheduler.StepLR(opt, 7, 0.8) if schedule else None
    states = []
    for _ in range(steps):
        states.append([p.detach().clone() for p in model.parameters()])
        opt.step(closure_of(model))
        if lrs:
            lrs.step()
    opt.close()
    states.append([p.detach().clone() for p in model.parameters()])
    return opt, states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"codec": "log8"},
        {"codec": "sign1"},
        {"momentum": lt.spsa.SeedWindow(5, 0.8)},
        {"estimator": "fzoo", "directions": 4},
        {"dist": "gaussian", "estimator": "forward", "clip": 0.5},
        {"keep": 0.5, "scale": "norm"},
    ],
    ids=lambda o: "-".join(map(str, o)) or "central",
)
def test_replay_is_the_live_run_bit_for_bit(tmp_path, dtype, options, monkeypatch):
    monkeypatch.setattr("lowtide.spsa._run_log.DIGEST_EVERY", 16)
    live, again = make(dtype), make(dtype)
    _, states = train(live, tmp_path / "a.ltlog", **options)
    assert not equal(live, again)
    done = lt.spsa.replay(again, tmp_path / "a.ltlog")
    assert equal(live, again)
    assert (done.step, done.verified) == (40, 4)  # the base, steps 16 and 32, the end
    part = make(dtype)
    assert lt.spsa.replay(part, tmp_path / "a.ltlog", upto=23).step == 23
    assert all(torch.equal(p, s) for p, s in zip(part.parameters(), states[23], strict=True))


@pytest.mark.parametrize("name", ["MeZO", "FZOO", "SparseMeZO", "LOZO", "HiZOO", "ConMeZO", "FedKSeed"])
def test_named_methods_replay(tmp_path, name):
    live, again = make(), make()
    opt = getattr(lt.spsa, name)(
        live.named_parameters(), lr=1e-2, module=live, log=tmp_path / "a.ltlog", seed=3
    )
    for _ in range(20):
        opt.step(closure_of(live))
    opt.close()
    assert lt.spsa.replay(again, tmp_path / "a.ltlog").step == 20
    assert equal(live, again)


def test_scales_of_a_quantized_model_replay(tmp_path):
    """QZO moves buffers, with a floor."""

    def quantized():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)).eval()
        lt.quant.quantize_model_(model, weights="int4", group=32, skip=())
        return model

    live, again = quantized(), quantized()
    opt = lt.spsa.QZO(live, lr=1.0, log=tmp_path / "a.ltlog", codec="log8")
    for _ in range(15):
        opt.step(lambda: (live(X) - Y).square().mean())
    opt.close()
    before = {n: b.clone() for n, b in again.named_buffers()}
    lt.spsa.replay(again, tmp_path / "a.ltlog")
    moved = 0
    for (name, p), q in zip(live.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(p, q), name
        moved += not torch.equal(q, before[name])
    assert moved == 2


def test_masters_apart(tmp_path):
    """float32 masters beside a bfloat16 model."""
    live, again = make(torch.bfloat16), make(torch.bfloat16)
    train(live, tmp_path / "a.ltlog", masters="float32")
    lt.spsa.replay(again, tmp_path / "a.ltlog")
    assert equal(live, again)


def test_groups_tied_and_frozen_parameters(tmp_path):
    def tied():
        model = make()
        model.append(torch.nn.Linear(1, 9, bias=False))
        model[3].weight = torch.nn.Parameter(torch.linspace(-1, 1, 9).reshape(9, 1))
        model.register_parameter("again", model[3].weight)
        model[0].bias.requires_grad_(False)
        return model

    def groups(model):
        named = dict(model.named_parameters())
        first = [("0.weight", named["0.weight"])]
        rest = [(n, p) for n, p in named.items() if n != "0.weight"]
        return [{"params": first, "lr": 1e-3}, {"params": rest, "weight_decay": 0.0}]

    live, again = tied(), tied()
    closure = lambda m: lambda: (m(X) - Y).square().mean()  # noqa: E731
    opt = lt.spsa.SPSA(groups(live), lr=1e-2, module=live, log=tmp_path / "a.ltlog", probe="snapshot")
    for _ in range(20):
        opt.step(closure(live))
    opt.close()
    lt.spsa.replay(again, tmp_path / "a.ltlog")
    assert equal(live, again)
    assert "3.weight" in {a for e in LogReader(tmp_path / "a.ltlog").header.manifest for a in e.aliases}


class TestRefuses:
    @pytest.fixture
    def log(self, tmp_path, monkeypatch):
        monkeypatch.setattr("lowtide.spsa._run_log.DIGEST_EVERY", 10)
        train(make(), tmp_path / "a.ltlog")
        return tmp_path / "a.ltlog"

    def refuse(self, model, log, match, **options):
        before = bits(model)
        with pytest.raises(lt.LowtideError, match=match):
            lt.spsa.replay(model, log, **options)
        assert all(torch.equal(a, b) for a, b in zip(before, bits(model), strict=True))

    def test_other_models(self, log):
        self.refuse(make(seed=1), log, "not those the run started from.*load the base weights")
        self.refuse(make().to(torch.float64), log, "is torch.float64, the run's was float32")
        self.refuse(torch.nn.Linear(8, 9), log, "another model: 0.weight is missing")
        wide = make()
        wide[2] = torch.nn.Linear(9, 2)
        self.refuse(wide, log, r"2.weight has shape \(2, 9\)")
        self.refuse(make(), log, "upto", upto=41)
        with pytest.raises(lt.LowtideTypeError, match="module or a mapping"):
            lt.spsa.replay(3, log)

    def test_weights_that_the_log_does_not_explain(self, log):
        """A digest on the way differs: the model is as before, and the message says up to where it is good."""
        reader = LogReader(log)
        marks = [m for m in reader.marks if isinstance(m.frame, lt.spsa._frames.Digest)]
        object.__setattr__(marks[1].frame, "digest", b"?" * 16)
        self.refuse(make(), reader, "before step 20.*upto=10")
        again = make()
        assert lt.spsa.replay(again, reader, upto=10).verified == 2
        assert lt.spsa.replay(make(), reader, verify=False).verified == 0

    def test_base_apart(self, log):
        base = {n: p.detach().clone() for n, p in make().named_parameters()}
        model, live = make(seed=3), make()
        lt.spsa.replay(live, log)
        lt.spsa.replay(model, log, base=base)
        assert equal(model, live)
        tensors = {n: t.clone() for n, t in base.items()}
        lt.spsa.replay(tensors, log)
        assert torch.equal(tensors["0.weight"], live[0].weight)


class TestSnapshot:
    @pytest.mark.parametrize("name", ["SPSA", "HiZOO", "ConMeZO"])
    def test_replay_begins_there(self, tmp_path, name):
        options = (
            {"codec": "log8"} if name != "SPSA" else {"codec": "log8", "momentum": lt.spsa.SeedWindow(4, 0.9)}
        )
        model = make()
        opt = getattr(lt.spsa, name)(
            model.named_parameters(), 1e-2, module=model, log=tmp_path / "a.ltlog", **options
        )
        for t in range(20):
            if t == 9:
                opt.snapshot(tmp_path / "nine.safetensors")
            opt.step(closure_of(model))
        opt.close()
        again = make(seed=8)  # its weights do not count
        done = lt.spsa.replay(again, tmp_path / "a.ltlog", base=tmp_path / "nine.safetensors")
        assert done.step == 20
        assert equal(again, model)
        with pytest.raises(lt.LowtideValueError, match=r"upto must be in \[9, 20\]"):
            lt.spsa.replay(again, tmp_path / "a.ltlog", base=tmp_path / "nine.safetensors", upto=5)

    def test_foreign_and_changed_files_are_refused(self, tmp_path):
        model = make()
        opt = lt.spsa.SPSA(model.named_parameters(), 1e-2, module=model, log=tmp_path / "a.ltlog")
        path = tmp_path / "s.safetensors"
        opt.snapshot(path)
        opt.step(closure_of(model))
        with pytest.raises(lt.LowtideValueError, match="beside the log"):
            opt.snapshot("/tmp/elsewhere.safetensors")
        opt.close()
        before = bits(model)
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(bytes(raw))
        with pytest.raises(LogError, match="SHA-256"):
            lt.spsa.replay(model, tmp_path / "a.ltlog", base=path)
        (tmp_path / "t.safetensors").write_bytes(b"")
        with pytest.raises(LogError, match=r"no snapshot t.safetensors; it names s.safetensors \(step 0\)"):
            lt.spsa.replay(model, tmp_path / "a.ltlog", base=tmp_path / "t.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(before, bits(model), strict=True))
        plain = lt.spsa.SPSA(model.named_parameters(), module=model)
        with pytest.raises(lt.LowtideRuntimeError, match="no log"):
            plain.snapshot(path)


class TestContinue:
    def test_after_a_crash_from_the_base(self, tmp_path):
        """The weights are gone; base and log are there."""
        path = tmp_path / "a.ltlog"
        whole = make()
        train(whole, tmp_path / "b.ltlog", schedule=False)
        model = make()
        opt = lt.spsa.SPSA(
            model.named_parameters(), module=model, log=path, lr=3e-2, weight_decay=1e-2, directions=2, seed=5
        )
        for _ in range(17):
            opt.step(closure_of(model))
        del opt  # not closed
        gc.collect()
        again = make()
        opt = lt.spsa.SPSA(
            again.named_parameters(), module=again, log=path, lr=3e-2, weight_decay=1e-2, directions=2, seed=5
        )
        with pytest.raises(LogError, match="catch_up"):
            opt.step(closure_of(again))
        assert opt.catch_up() == 17
        assert opt.t == 17
        for _ in range(23):
            opt.step(closure_of(again))
        opt.close()
        assert equal(again, whole)
        fresh = make()
        lt.spsa.replay(fresh, path)
        assert equal(fresh, whole)

    @pytest.mark.parametrize("name", ["HiZOO", "ConMeZO", "FedKSeed"])
    def test_methods_with_states_catch_up(self, tmp_path, name):
        def start(model):
            return getattr(lt.spsa, name)(
                model.named_parameters(), 1e-2, module=model, log=tmp_path / "a.ltlog"
            )

        model, again = make(), make()
        opt = start(model)
        for _ in range(12):
            opt.step(closure_of(model))
        opt.close()
        other = start(again)
        assert other.catch_up() == 12
        assert equal(model, again)
        if name == "FedKSeed":
            assert (other.accumulators == opt.accumulators).all()
        opt.run_log = None
        for o, m in ((opt, model), (other, again)):
            o.step(closure_of(m))
        assert equal(model, again)

    def test_from_a_checkpoint_older_than_the_log(self, tmp_path):
        path = tmp_path / "a.ltlog"
        options = {"lr": 3e-2, "directions": 2, "codec": "log8", "momentum": lt.spsa.SeedWindow(4, 0.9)}
        model = make()
        opt = lt.spsa.SPSA(model.named_parameters(), module=model, log=path, **options)
        for t in range(30):
            if t == 12:
                saved = [p.detach().clone() for p in model.parameters()], opt.state_dict()
            opt.step(closure_of(model))
        opt.close()
        again = make(seed=9)
        with torch.no_grad():
            for p, old in zip(again.parameters(), saved[0], strict=True):
                p.copy_(old)
        opt = lt.spsa.SPSA(again.named_parameters(), module=again, log=path, **options)
        opt.load_state_dict(saved[1])
        assert opt.catch_up() == 18
        assert equal(again, model)
        opt.close()

    def test_a_log_that_begins_later(self, tmp_path):
        options = {"lr": 3e-2, "codec": "log8", "momentum": lt.spsa.SeedWindow(4, 0.9), "seed": 5}
        first, _ = train(model := make(), tmp_path / "a.ltlog", 15, schedule=False, **options)
        base = {n: p.detach().clone() for n, p in model.named_parameters()}
        opt = lt.spsa.SPSA(
            model.named_parameters(),
            module=model,
            weight_decay=1e-2,
            directions=2,
            log=tmp_path / "b.ltlog",
            **options,
        )
        opt.load_state_dict(first.state_dict())
        for _ in range(10):
            opt.step(closure_of(model))
        opt.close()
        again = make()
        assert lt.spsa.replay(again, tmp_path / "b.ltlog", base=base).step == 25
        assert equal(again, model)

    def test_other_runs_and_other_steps_are_refused(self, tmp_path):
        path = tmp_path / "a.ltlog"
        train(make(), path, 5)
        raw = path.read_bytes()
        for options, named in (({"seed": 6}, "seed"), ({"estimator": "forward"}, "method")):
            model = make()
            other = lt.spsa.SPSA(model.named_parameters(), module=model, log=path, **{"seed": 5, **options})
            with pytest.raises(LogError, match=named):
                other.step(closure_of(model))
        model = make(seed=4)
        other = lt.spsa.SPSA(model.named_parameters(), module=model, log=path, seed=5)
        with pytest.raises(LogError, match="base_digest"):
            other.step(closure_of(model))
        assert path.read_bytes() == raw
        with pytest.raises(lt.LowtideTypeError, match="log must be"):
            lt.spsa.SPSA(model.named_parameters(), module=model, log=3)

    def test_a_full_disk_changes_no_weight(self, tmp_path, monkeypatch):
        model = make()
        opt = lt.spsa.SPSA(model.named_parameters(), lr=0.1, module=model, log=tmp_path / "a.ltlog")
        opt.step(closure_of(model))
        before = bits(model)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.pwrite", full)
        with pytest.raises(LogError, match="No space"):
            opt.step(closure_of(model))
        assert all(torch.equal(a, b) for a, b in zip(before, bits(model), strict=True))
        monkeypatch.undo()
        opt.step(closure_of(model))
        opt.close()
        assert LogReader(tmp_path / "a.ltlog").step == 2


def test_an_open_writer(tmp_path):
    """A writer of one's own: batch sizes, fsync."""
    model = make()
    plain = lt.spsa.SPSA(model.named_parameters(), module=model)
    head = lt.spsa._run_log.header_of(plain)
    writer = LogWriter(tmp_path / "a.ltlog", lt.spsa.Header(**{**vars(head), "codec": "f32"}), fsync="step")
    train(model, writer, 3, seed=0)
    assert LogReader(tmp_path / "a.ltlog").step == 3
