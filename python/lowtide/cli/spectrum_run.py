# SPDX-License-Identifier: Apache-2.0
"""What `lowtide spectrum` computes: which parameters, on which text, and the probes kept on disk between runs."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowtide
from lowtide.curvature import GGNOperator, HessianOperator, LinearOperator, Spectrum, eigsh, slq
from lowtide.curvature._progress import progress_bar
from lowtide.quant._report_plot import pyplot
from lowtide.train import batches, files, loader, text, tokens
from lowtide.train.errors import ConfigError, DataError, OutputError, output_error

#: Models up to this many parameters are taken whole.
_SMALL = 5_000_000
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")
#: Eigenvalues closer to 0 than this share of the largest are not called negative.
_ZERO = 1e-3
_LARGEST_FILE = 1 << 26


def check(arguments: argparse.Namespace) -> None:
    """Refuse settings before anything is loaded."""
    for name, least in (
        ("batches", 1),
        ("batch_size", 1),
        ("seq_len", 2),
        ("probes", 1),
        ("steps", 1),
        ("top", 0),
    ):
        value = getattr(arguments, name)
        if value < least:
            raise ConfigError(f"--{name.replace('_', '-')}: got {value}, takes {least} or more")
    if arguments.threads is not None and arguments.threads < 1:
        raise ConfigError(f"--threads: got {arguments.threads}, takes 1 or more")
    if arguments.params is not None:
        try:
            re.compile(arguments.params)
        except re.error as error:
            raise ConfigError(f"--params: {arguments.params!r} is no regular expression ({error})") from error


def located(name: str) -> Path:
    """A path, or where the asset of that name is."""
    from lowtide import assets

    path = Path(name).expanduser()
    return assets.fetch(name) if not path.exists() and name in assets.names() else path


def chosen(model: nn.Module, pattern: str | None) -> list[str]:
    """Names of the parameters to look at; see ``--params``.

    Raises:
        ConfigError: the pattern matches nothing, or there is no pattern and no block to choose.
    """
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    if pattern is not None:
        found = [name for name in sizes if re.search(pattern, name)]
        if not found:
            example = ", ".join(list(sizes)[:3])
            raise ConfigError(f"--params: {pattern!r} matches no parameter; their names look like {example}")
        return found
    if sum(sizes.values()) <= _SMALL:
        return list(sizes)
    numbers = [int(match[1]) if (match := _BLOCK.search(name)) else -1 for name in sizes]
    last = max(numbers)
    if last < 0:
        raise ConfigError("--params: this model has no numbered blocks to choose the last of; give a REGEX")
    return list(sizes)[numbers.index(last) :]


def windows(
    arguments: argparse.Namespace, model: nn.Module, source: Path, data: Path, store: Store
) -> list[dict[str, Tensor]]:
    """Batches of windows spread over the text, as the model takes them."""
    key = tokens.tokens_key(data, source, arguments.text_key)
    ids = tokens.load_tokens(data, source, store.path, text_key=arguments.text_key, key=key)
    every = batches.Windows(ids, arguments.seq_len)
    need = arguments.batches * arguments.batch_size
    if len(every) < need:
        raise DataError(
            f"data: {data} has {len(every)} windows of {arguments.seq_len} tokens, {need} are asked for; "
            "give more text or smaller --batches, --batch-size, --seq-len"
        )
    taken = [
        every.take(rows)
        for rows in batches.validation_batches(
            every, batch_size=arguments.batch_size, batches=arguments.batches
        )
    ]
    loader.check_fit(model, seq_len=arguments.seq_len, largest_token=max(int(b.max()) for b in taken))
    return [{"input_ids": rows, "labels": rows} for rows in map(torch.from_numpy, taken)]


@dataclass(frozen=True)
class Store:
    """Finished parts of a run in its directory, each with the digest of the settings that it was made with."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Store:
        """Make the directory if need be. Raises OutputError."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(path, error) from error
        return cls(path)

    def claim(self, settings: dict[str, Any]) -> None:
        """Write the settings, or compare them with those there. Raises OutputError where they differ."""
        there = self.read("settings")
        if there is None:
            self.write("settings", settings)
        elif there != settings:
            keys = sorted(k for k in settings.keys() | there.keys() if settings.get(k) != there.get(k))
            raise OutputError(
                f"out: {self.path} holds a spectrum with another {', '.join(keys)}; give another --out, or remove it"
            )

    def read(self, name: str) -> dict[str, Any] | None:
        """What was written under ``name``; None if nothing was, or what is there is damaged (it is then made again)."""
        file = self.path / f"{name}.json"
        try:
            if file.stat().st_size > _LARGEST_FILE:
                return None
            record = json.loads(file.read_text(encoding="utf-8"))
            value = record["value"]
            return value if isinstance(value, dict) and record["sha256"] == _digest(value) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Keep ``value``, with its checksum, whole or not at all."""
        files.write_json(self.path / f"{name}.json", {"sha256": _digest(value), "value": value})


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


class _Watched(LinearOperator):
    """An operator whose products move a bar."""

    def __init__(self, operator: LinearOperator, bar: Any) -> None:
        super().__init__(operator.layout)
        self.positive = operator.positive
        self._operator, self._bar = operator, bar

    def _product(self, v: Tensor, out: Tensor) -> None:
        self._operator.hvp(v, out)
        self._bar.update(1)


def measure(arguments: argparse.Namespace, out: Path, *, show: bool) -> dict[str, Any]:
    """All that the command finds; written to spectrum.json and spectrum.png in ``out``."""
    pyplot()  # said now, and not after an hour
    source, data = located(arguments.model), located(arguments.data)
    loader.check_directory(source)
    text.check_file(data)
    model = loader.load_model(source).eval()
    names = chosen(model, arguments.params)
    settings = {
        "model": loader.identity(source),
        "data": tokens.tokens_key(data, source, arguments.text_key),
        "params": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        **{
            k: getattr(arguments, k)
            for k in ("operator", "batches", "batch_size", "seq_len", "steps", "seed")
        },
    }
    store = Store.open(out)
    taken = windows(arguments, model, source, data, store)
    store.claim(settings)
    kind: Any = HessianOperator if arguments.operator == "hessian" else GGNOperator
    operator = kind(model, names, taken, "causal_lm")
    start = time.perf_counter()
    probes = [_kept(store, f"probe-{k:04d}", operator.n) for k in range(arguments.probes)]
    top = store.read("top") if arguments.top else {}
    if top is not None and (top.get("k"), top.get("basis")) != (arguments.top, arguments.basis):
        top = {} if not arguments.top else None
    steps = min(arguments.steps, operator.n)
    total = probes.count(None) * steps + (0 if top is not None else 2 * arguments.top + 17)
    with progress_bar(show, total, "spectrum") as bar:
        watched = _Watched(operator, bar)
        for k, known in enumerate(probes):
            if known is None:
                probes[k] = found = slq(watched, probes=1, steps=steps, seed=arguments.seed + k)
                store.write(f"probe-{k:04d}", found.to_dict())
        if top is None:
            eigen = eigsh(
                watched,
                min(arguments.top, operator.n),
                tol=1e-2,
                verify=False,  # a trained network has no repeated outliers
                basis_dtype=arguments.basis,
                seed=arguments.seed,
            )
            top = {"k": arguments.top, "basis": arguments.basis, **eigen.to_dict()}
            store.write("top", top)
    spectrum = _together([p for p in probes if p is not None])
    result = _summary(arguments, operator, spectrum, top, names)
    result["settings"] = settings
    result["products"], result["seconds"] = watched.products, round(time.perf_counter() - start, 1)
    files.write_json(store.path / "spectrum.json", _plain(result))
    what = "Hessian" if arguments.operator == "hessian" else "Gauss-Newton matrix"
    # The kernel for what lies between nodes would hide the tail of the bulk.
    spectrum.plot(
        store.path / "spectrum.png",
        title=f"{what} of {Path(arguments.model).name}, {_place(names)}",
        sigma=spectrum.sigma() / 4,
    )
    return result


def _kept(store: Store, name: str, n: int) -> Spectrum | None:
    value = store.read(name)
    if value is None:
        return None
    spectrum = Spectrum.from_dict(value)
    return spectrum if spectrum.n == n else None


def _together(parts: list[Spectrum]) -> Spectrum:
    """One spectrum of all probes; rows that ended early are padded with nodes of weight 0."""
    pad = torch.nn.utils.rnn.pad_sequence
    rows = [(p.nodes[0], p.weights[0], p.errors[0]) for p in parts]
    nodes, weights, errors = (pad(list(column), batch_first=True) for column in zip(*rows, strict=True))
    return Spectrum(nodes, weights, errors, parts[0].n)


def _summary(
    arguments: argparse.Namespace, operator: Any, spectrum: Spectrum, top: dict[str, Any], names: list[str]
) -> dict[str, Any]:
    trace = spectrum.trace_of(lambda t: t)
    criteria = spectrum.criteria()
    outliers = spectrum.outliers()
    # Half of the eigenvalues that are 0 but for rounding come out negative.
    near = _ZERO * max(abs(b) for b in spectrum.bounds)
    return {
        "lowtide": lowtide.__version__,
        "model": arguments.model,
        "data": arguments.data,
        "operator": arguments.operator,
        "loss": operator.problem.evaluate(),
        "parameters": {"n": operator.n, "tensors": len(names), "names": names},
        "probes": arguments.probes,
        "steps": arguments.steps,
        "bounds": list(spectrum.bounds),
        "trace": {
            "value": trace.value,
            "stderr": trace.stderr,
            "ci_low": trace.ci[0],
            "ci_high": trace.ci[1],
        },
        "negative": {"below": -near, "share": spectrum.negative_mass(-near)},
        "effective_rank": spectrum.effective_rank(),
        "criteria": {"r_e": criteria.r_e, "k_h": criteria.k_h},
        "outliers": {"values": list(outliers.values), "edge": outliers.edge},
        "top": top,
        "spectrum": spectrum.to_dict(),
    }


def _short(names: list[str]) -> str:
    """The first and the last of the parameters."""
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"


def _place(names: list[str]) -> str:
    """The same for a heading: the block that the first one is in."""
    match = _BLOCK.search(names[0])
    first = names[0][: match.end() - 1] if match else names[0]
    return first if all(name.startswith(first) for name in names) else f"{first} and on"


def _plain(value: Any) -> Any:
    """JSON has no inf: an error bar that one probe cannot give is null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(result: dict[str, Any], out: Path) -> str:
    """What the command prints."""
    parameters, trace, top = result["parameters"], result["trace"], result["top"]
    which = _short(parameters["names"])
    bar = f" ± {trace['stderr']:.3g}" if math.isfinite(trace["stderr"]) else " (one probe: no error bar)"
    rows = [
        ("loss", f"{result['loss']:.4f}"),
        ("parameters", f"{parameters['n']:,} in {parameters['tensors']} tensors: {which}"),
        ("trace", f"{trace['value']:.5g}{bar}"),
    ]
    if math.isfinite(trace["stderr"]):
        rows.append(("  95 % interval", f"{trace['ci_low']:.5g} to {trace['ci_high']:.5g}"))
    for i, value in enumerate(top.get("values", [])):
        note = "" if top["converged"][i] else "  (not converged)"
        rows.append((f"eigenvalue {i + 1}", f"{value:.5g}  residual {top['residuals'][i]:.1e}{note}"))
    rows += [
        ("smallest node", f"{result['bounds'][0]:.5g}"),
        (f"share below {result['negative']['below']:.2g}", f"{100 * result['negative']['share']:.2g} %"),
        ("effective rank", f"{result['effective_rank']:.4g}"),
        ("r_e, K_H", f"{result['criteria']['r_e']:.4g}, {result['criteria']['k_h']:.4g}"),
        ("products now", f"{result['products']} in {result['seconds']:.1f} s"),
        ("written", f"{out / 'spectrum.json'}, spectrum.png"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
