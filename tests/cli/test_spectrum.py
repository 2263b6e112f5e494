# SPDX-License-Identifier: Apache-2.0
"""`lowtide spectrum`: numbers against the dense Hessian, probes that are kept, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

import torch

from lowtide.cli import main, spectrum_run
from lowtide.curvature import HessianOperator, Spectrum
from lowtide.train import batches
from lowtide.train.loader import load_model

SMALL = ["--batches", "2", "--batch-size", "2", "--seq-len", "16", "--steps", "20", "--threads", "1"]
NORMS = ["--params", "norm"]


def spectrum(model: Path, data: Path, out: Path, *extra: str) -> int:
    return main(["spectrum", str(model), str(data), "--out", str(out), *SMALL, *extra])


def test_numbers_are_those_of_the_dense_hessian(model: Path, data: Path, tmp_path: Path) -> None:
    assert spectrum(model, data, tmp_path, *NORMS, "--probes", "4", "--top", "2") == 0
    got = json.loads((tmp_path / "spectrum.json").read_text())
    assert (tmp_path / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    network = load_model(model).eval()
    names = [name for name, _ in network.named_parameters() if "norm" in name]
    assert got["parameters"]["names"] == names
    ids = torch.from_numpy(_windows(tmp_path))
    batches = [{"input_ids": rows, "labels": rows} for rows in ids.split(2)]
    truth = HessianOperator(network, names, batches, "causal_lm", method="double")
    values = torch.linalg.eigvalsh(truth.dense().double())
    # tol of the search is 1e-2 on residuals, whose squares are errors of eigenvalues.
    assert got["top"]["values"] == pytest.approx(values[[-1, -2]].tolist(), rel=1e-2)
    assert got["trace"]["ci_low"] < float(values.sum()) < got["trace"]["ci_high"]
    assert got["loss"] == pytest.approx(truth.problem.evaluate(), rel=1e-6)
    assert got["bounds"][0] == pytest.approx(float(values[0]), abs=0.05 * float(values.abs().max()))
    density = Spectrum.from_dict(got["spectrum"])
    assert (density.n, len(density.nodes)) == (len(values), 4)


def _windows(out: Path) -> object:
    [file] = out.glob("tokens-*.npy")
    every = batches.Windows(np.load(file), 16)
    return np.concatenate(
        [every.take(rows) for rows in batches.validation_batches(every, batch_size=2, batches=2)]
    )


def test_finished_probes_are_kept(
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = spectrum_run.slq, []

    def dies(op: object, **options: int) -> object:
        calls.append(options["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(op, **options)

    monkeypatch.setattr(spectrum_run, "slq", dies)
    arguments = [*NORMS, "--probes", "3", "--top", "1"]
    assert spectrum(model, data, tmp_path / "a", *arguments) == 130
    assert sorted(p.name for p in (tmp_path / "a").glob("probe*")) == ["probe-0000.json"]
    assert spectrum(model, data, tmp_path / "a", *arguments) == 0
    assert calls == [0, 1, 1, 2]
    assert spectrum(model, data, tmp_path / "b", *arguments) == 0
    results = [json.loads((tmp_path / name / "spectrum.json").read_text()) for name in "ab"]
    assert results[0]["spectrum"] == results[1]["spectrum"]
    assert results[0]["top"] == results[1]["top"]
    # A damaged part is made again; another number of eigenvalues needs no probe.
    (tmp_path / "a" / "probe-0001.json").write_text('{"value": {"n": 1}, "sha256": "0"}')
    (tmp_path / "a" / "probe-0002.json").write_text("[" * 100_000)
    calls[:] = [0, 0, 0]
    capsys.readouterr()
    assert spectrum(model, data, tmp_path / "a", *NORMS, "--probes", "3", "--top", "2") == 0
    assert calls[3:] == [1, 2]
    assert "eigenvalue 2" in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "spectrum.json").read_text())["spectrum"] == results[0]["spectrum"]


def test_another_spectrum_in_the_directory_is_refused(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spectrum(model, data, tmp_path, *NORMS, "--probes", "1", "--top", "0") == 0
    assert "one probe: no error bar" in capsys.readouterr().out
    assert json.loads((tmp_path / "spectrum.json").read_text())["trace"]["stderr"] is None
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert spectrum(model, data, tmp_path, *NORMS, "--probes", "1", "--top", "0", "--seed", "3") == 2
    assert "another seed" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_gauss_newton_has_no_negative_share(model: Path, data: Path, tmp_path: Path) -> None:
    assert spectrum(model, data, tmp_path, *NORMS, "--operator", "ggn", "--probes", "2", "--top", "1") == 0
    got = json.loads((tmp_path / "spectrum.json").read_text())
    assert got["negative"]["share"] == 0
    assert got["top"]["values"][0] > 0


def test_last_block_of_a_large_model_is_chosen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_model(model)
    assert spectrum_run.chosen(network, None) == [name for name, _ in network.named_parameters()]
    monkeypatch.setattr(spectrum_run, "_SMALL", 100)
    names = spectrum_run.chosen(network, None)
    assert names[0].startswith("model.layers.1.")
    assert names[-1] == "model.norm.weight"
    assert not any("embed" in name or "layers.0" in name for name in names)


def test_bad_input_is_one_sentence(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra, words in (
        (["--params", "nothing"], "matches no parameter"),
        (["--params", "("], "no regular expression"),
        (["--probes", "0"], "--probes: got 0"),
        (["--batches", "9999"], "windows of 16 tokens"),
        (["--seq-len", "65"], "context"),
        (["--threads", "0"], "--threads"),
    ):
        assert spectrum(model, data, tmp_path / "out", *extra) == 2, extra
        err = capsys.readouterr().err
        assert words in err
        assert len(err.splitlines()) == 1
    assert main(["spectrum", str(tmp_path / "absent"), str(data), "--out", str(tmp_path / "new")]) == 2
    assert "no directory" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
