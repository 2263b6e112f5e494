# SPDX-License-Identifier: Apache-2.0
"""The page: sections of figures and tables, what is missing, and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from lowtide.report import _figures as figures
from lowtide.report._read import Run, clean, finite
from lowtide.train.progress import human_bytes

MAX_OTHERS = 24
MAX_SETTINGS = 200
_MEASURE = "log lt.optim.measure and lt.optim.statistics, as lowtide finetune --measure-every N does"


class Part(NamedTuple):
    """One figure of a section: how it is drawn, and how a run gets it ("": no word about it)."""

    title: str
    draw: Callable[[Sequence[Run]], figures.Figure | None]
    remedy: str


class Section(NamedTuple):
    """Parts under one headline; ``names`` are the series it uses up."""

    id: str
    title: str
    lead: str
    parts: tuple[Part, ...]
    names: tuple[str, ...]


def _curvature(runs: Sequence[Run]) -> figures.Figure | None:
    return next((f for run in runs if (f := figures.spectrum(run))), None)


SECTIONS = (
    Section("loss", "Loss", "", (Part("losses", figures.losses, "log loss and val_loss"),), ("loss", "val_loss")),
    Section(
        "memory", "Memory",
        "Counted sizes of tensors, by kind. The resident set (RSS) holds activations, code and the allocator's slack as well.",
        (
            Part("memory by kind", figures.memory, "log bytes, as lt.optim.statistics gives them, and rss or peak_rss"),
            Part("largest of each kind", figures.kinds, ""),
        ),
        ("bytes/", "rss", "peak_rss"),
    ),
    Section(
        "subspace", "Subspaces",
        "The share of a gradient's energy that its subspace holds, ‖BG‖² / ‖G‖², and how often subspaces were replaced.",
        (
            Part("subspace energy", figures.energy, f"train with a low-rank method and {_MEASURE}"),
            Part("subspace refreshes", figures.refreshes, f"train with a low-rank method and {_MEASURE}"),
        ),
        ("subspace/",),
    ),
    Section(
        "quantization", "Low bit",
        "SQNR: the weight that a step called for, against what rounding made of it. Stalls: elements whose code the step left as it "
        "was; stochastic rounding makes up for them on average, rounding to nearest loses them.",
        (
            Part("quantization SQNR", figures.sqnr, f"train packed weights (--weights int8) and {_MEASURE}"),
            Part("rounding stalls", figures.stalls, f"train packed or bf16 weights and {_MEASURE}"),
        ),
        ("quantization/",),
    ),
    Section(
        "time", "Time and rate", "",
        (
            Part("time of a step", figures.seconds, "log seconds"),
            Part("tokens a second", figures.tokens, ""),
            Part("learning rate", figures.rate, ""),
            Part("norm of gradients", figures.norm, ""),
        ),
        ("seconds", "tokens_per_second", "lr", "grad_norm"),
    ),
    Section(
        "curvature", "Curvature", "",
        (Part("curvature", _curvature, "lowtide spectrum MODEL DATA --out RUN, or log \"curvature\": {\"lambda_max\": ...}"),), (),
    ),
    Section(
        "zeroth-order", "Zeroth order", "",
        (Part("projected gradients", figures.slopes, "train with mezo or qzo: the run's log, run.ltlog, has them"),), (),
    ),
)  # fmt: skip


def render(runs: Sequence[Run], title: str | None = None) -> str:
    """The page as HTML."""
    import jinja2
    from markupsafe import Markup

    import lowtide

    template = resources.files("lowtide.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    sections, missing = [], []
    for section in SECTIONS:
        drawn = []
        for part in section.parts:
            figure = part.draw(runs)
            if figure is None and not (section.id == "curvature" and _names(runs, "curvature/")):
                missing += [(part.title, part.remedy)] if part.remedy else []
            elif figure is not None:
                drawn.append((figure[0], Markup(figure[1])))
        if section.id == "curvature":
            drawn += _scalars(runs, _names(runs, "curvature/")[:MAX_OTHERS], 100)
        tables = list(_tables(runs, section.id))
        if drawn or tables:
            sections.append({"id": section.id, "title": section.title, "lead": section.lead, "figures": drawn, "tables": tables,
                             "wide": section.id == "loss"})  # fmt: skip
    others = _others(runs)
    if others:
        sections.append({"id": "others", "title": "Other numbers", "lead": "", "figures": _scalars(runs, others[:MAX_OTHERS], 0),
                         "tables": [], "wide": False, "small": True})  # fmt: skip
    notes = [(run.name, note) for run in runs for note in run.notes]
    if len(others) > MAX_OTHERS:
        notes.append(
            (runs[0].name, f"{len(others) - MAX_OTHERS} more numbers are in the table of all numbers only.")
        )
    return environment.from_string(template).render(
        title=clean(title or (runs[0].name if len(runs) == 1 else "Comparison of runs")),
        subtitle=_subtitle(runs[0]) if len(runs) == 1 else "",
        names=[run.name for run in runs],
        runs=len(runs),
        facts=_facts(runs),
        sections=sections,
        missing=missing,
        notes=notes,
        numbers=[(run.name, list(_numbers(run))) for run in runs],
        settings=_settings(runs),
        version=lowtide.__version__,
    )


def _scalars(runs: Sequence[Run], names: Sequence[str], first: int) -> list[Any]:
    from markupsafe import Markup

    drawn = [figures.scalar(runs, name, first + i) for i, name in enumerate(names)]
    return [(caption, Markup(svg)) for caption, svg in drawn]


def _names(runs: Sequence[Run], prefix: str = "") -> list[str]:
    return sorted({n for run in runs for n in run.series if n.startswith(prefix)})


def _others(runs: Sequence[Run]) -> list[str]:
    """Names that no section shows."""
    used = ("curvature/", *(n for s in SECTIONS for n in s.names if n.endswith("/")))
    exact = {n for s in SECTIONS for n in s.names}
    return [n for n in _names(runs) if n not in exact and not n.startswith(used)]


def _subtitle(run: Run) -> str:
    settings = _dict(run.summary, "settings") or _dict(run.run, "settings")
    model, data = (run.run.get(k) or settings.get(k) for k in ("model", "data"))
    words = []
    if isinstance(model, str) and model:
        words.append(clean(model.rstrip("/").rsplit("/", 1)[-1], 60))
    if isinstance(data, str) and data:
        words.append("on " + clean(data.rstrip("/").rsplit("/", 1)[-1], 60))
    method = settings.get("method") or run.run.get("method")
    if isinstance(method, str) and method:
        words.append(f"with {clean(method, 40)}" if words else clean(method, 40))
    return " ".join(words)


def _dict(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _facts(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """What a reader looks for first: (name, a text for each run), without those that no run has."""
    columns = [_facts_of(run) for run in runs]
    order = list(dict.fromkeys(name for column in columns for name in column))
    return [(name, [column.get(name, "–") for column in columns]) for name in order]


def _facts_of(run: Run) -> dict[str, str]:
    out: dict[str, str] = {}
    if "val_loss" in run.series:
        values = run.series["val_loss"][1]
        out["Validation loss"] = (
            f"{values[0]:.4g} → {values[-1]:.4g}" if len(values) > 1 else f"{values[-1]:.4g}"
        )
    if "loss" in run.series:
        mean = figures.smooth(run.series["loss"][1])
        out["Training loss"] = f"{mean[0]:.4g} → {mean[-1]:.4g}"
    steps = [points[0][-1] for points in run.series.values() if len(points[0])]
    if steps:
        total = finite(_dict(run.run, "settings").get("steps")) or finite(run.summary.get("steps"))
        last = int(max(steps))
        out["Steps"] = f"{last:,} of {int(total):,}" if total and total > last else f"{last:,}"
    if "seconds" in run.series:
        out["Time of a step"] = f"{np.median(run.series['seconds'][1]):.3g} s"
    if "peak_rss" in run.series or "rss" in run.series:
        out["Peak RSS"] = human_bytes(float(run.series.get("peak_rss", run.series.get("rss"))[1].max()))  # type: ignore[index]
    kinds = [n for n in run.series if n.startswith("bytes/")]
    if kinds:
        out["Counted tensors"] = human_bytes(sum(float(run.series[n][1].max()) for n in kinds))
    return out


def _numbers(run: Run) -> Iterator[tuple[str, str, str, str, str, str]]:
    for name in sorted(run.series):
        values = run.series[name][1]
        if len(values):
            ends = (values[0], values[-1], values.min(), values.max())
            yield (name, f"{len(values):,}", *(_number(name, float(v)) for v in ends))  # type: ignore[misc]


def _number(name: str, value: float) -> str:
    if name.startswith("bytes/") or name in ("rss", "peak_rss"):
        return human_bytes(value)
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e12 else f"{value:.5g}"


def _tables(runs: Sequence[Run], section: str) -> Iterator[dict[str, Any]]:
    for run in runs:
        where = f" in {run.name}" if len(runs) > 1 else ""
        if section in run.by_name:
            step, rows = run.by_name[section]
            columns = sorted({c for row in rows.values() for c in row})[:8]
            body = [
                [name, *(_number("", row[c]) if c in row else "–" for c in columns)]
                for name, row in rows.items()
            ]
            yield {
                "title": f"Each of {len(rows):,}{where} at step {step:,}",
                "head": ["tensor", *columns],
                "rows": body,
                "text": "",
            }
        if section == "curvature" and run.curvature:
            facts = [[name, text] for name, text in _curvature_facts(run.curvature)]
            yield {"title": f"Measured{where}", "head": ["", ""], "rows": facts, "text": "", "open": True}
        if section == "zeroth-order" and run.log:
            yield {
                "title": f"The log of the run{where}",
                "head": [],
                "rows": [],
                "text": run.log,
                "open": True,
            }


def _curvature_facts(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("operator", "model", "data"):
        if isinstance(found.get(name), str):
            yield name, clean(found[name])
    trace = _dict(found, "trace")
    value, error = finite(trace.get("value")), finite(trace.get("stderr"))
    if value is not None:
        yield "trace", f"{value:.5g}" + (f" ± {error:.2g}" if error is not None else "")
    top = _dict(found, "top").get("values")
    shown = [f"{n:.5g}" for v in (top if isinstance(top, list) else [])[:8] if (n := finite(v)) is not None]
    if shown:
        yield "largest eigenvalues", ", ".join(shown)
    share = finite(_dict(found, "negative").get("share"))
    if share is not None:
        yield "share of negative eigenvalues", f"{share:.2%}"
    rank = finite(found.get("effective_rank"))
    if rank is not None:
        yield "effective rank", f"{rank:.4g}"


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Tables of settings and versions; rows that differ between runs are marked and first."""
    out = []
    for title, key in (("Settings", "settings"), ("Versions", "versions")):
        columns = [dict(_flat(_dict(run.summary, key) or _dict(run.run, key))) for run in runs]
        names = sorted({n for column in columns for n in column})[:MAX_SETTINGS]
        rows = [(n, [c.get(n, "–") for c in columns]) for n in names]
        marked = [(n, cells, len(set(cells)) > 1) for n, cells in rows]
        if marked:
            out.append({"title": title, "rows": sorted(marked, key=lambda row: not row[2])})
    return out


def _flat(values: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    for key, value in list(values.items())[:MAX_SETTINGS]:
        name = clean(f"{prefix}{key}")
        if isinstance(value, dict) and depth < 4:
            yield from _flat(value, f"{name}.", depth + 1)
        elif value is not None and value != [] and value != {}:
            yield name, clean(value if isinstance(value, str) else _text(value), 160)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(clean(v, 40) for v in value[:16]) + (", …" if len(value) > 16 else "")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "…"
    number = finite(value)
    return "not a finite number" if number is None else f"{number:.8g}"
