# SPDX-License-Identifier: Apache-2.0
"""Fill the marked sections of docs/methods from the code, or with ``--check`` say whether they are up to date.

Between ``<!-- axes:NAMES -->`` and ``<!-- /axes -->`` goes what presets choose on each axis, likewise ``defaults`` their arguments, ``bytes`` what
they keep of a layer; ``index`` the list of all methods. NAMES are separated by commas.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

import lowtide as lt
import method_axes
import method_spsa
from lowtide.optim.engine import Composed
from method_catalogue import GROUPS, PAGES, Page

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "methods"
SECTION = re.compile(r"<!-- (axes|defaults|bytes|index)(?::([\w., ]*))? -->\n(.*?)<!-- /\1 -->", re.DOTALL)
#: Arguments of a base class that a subclass sets itself.
SET_BY = {"APOLLOMini": {"scale_type"}}


def resolve(name: str) -> Any:
    """What a name stands for: a preset, or a path below lowtide."""
    for family in (lt.optim, lt.spsa):
        if name in family.__all__:
            return getattr(family, name)
    found: Any = lt
    for part in name.split("."):
        if not hasattr(found, part):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


def is_engine(name: str) -> bool:
    """Whether a name is that of a preset of the engine."""
    found = resolve(name)
    return inspect.isclass(found) and issubclass(found, Composed)


def is_spsa(name: str) -> bool:
    """Whether a name is that of a zeroth-order preset."""
    found = resolve(name)
    return inspect.isclass(found) and issubclass(found, lt.spsa.SPSA)


def short(name: str) -> str:
    """The last part of a path."""
    return name.rsplit(".", 1)[-1]


def arguments(name: str) -> dict[str, Any]:
    """Arguments with their defaults, those of base classes that a subclass passes on too. No default: ``inspect.Parameter.empty``."""
    found = resolve(name)
    if not inspect.isclass(found):
        return _own(found)[0]
    own, passes_on = _own(found)
    base = found.__mro__[1]
    if passes_on and base is not Composed and base.__name__ in lt.optim.__all__:
        own = {**arguments(base.__name__), **own}
    return {key: value for key, value in own.items() if key not in SET_BY.get(name, ())}


def _own(found: Any) -> tuple[dict[str, Any], bool]:
    parameters = inspect.signature(found).parameters.values()
    plain = {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    first = next(iter(plain), "")
    if (
        plain.get(first, 0) is inspect.Parameter.empty
        and inspect.isclass(found)
        and issubclass(found, Optimizer)
    ):
        del plain[first]  # params
    plain.pop("self", None)
    return plain, len(plain) < len(parameters)


def cell(value: Any) -> str:
    """A default as a table shows it."""
    if value is inspect.Parameter.empty:
        return "required"
    return f"`{value.__name__ if inspect.isfunction(value) else repr(value)}`"


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def defaults(names: list[str]) -> str:
    """Arguments and group keys."""
    each = [_with_keys(name) for name in names]
    return columns("argument", "default", names, each)


def _with_keys(name: str) -> dict[str, str]:
    found = {f"`{key}`": cell(value) for key, value in arguments(name).items()}
    if is_engine(name) and method_axes.build(name)._low_rank:
        kind = resolve(name)
        for key in ("gap", "scale", "proj_type"):
            group = {"gap": "update_proj_gap"}.get(key, key)
            found[f"`{group}` of a group"] = cell(getattr(kind, f"default_{key}"))
    return found


def axes(names: list[str]) -> str:
    """What presets choose."""
    return columns("axis", "choice", names, [dict(_axes(name)) for name in names])


def columns(key: str, value: str, names: list[str], each: list[dict[str, str]]) -> str:
    """What all have in common, then the rest in one column a name."""
    keys = list(dict.fromkeys(k for found in each for k in found))
    common = [k for k in keys if all(found.get(k) == each[0].get(k) for found in each)]
    rest = [k for k in keys if k not in common]
    parts = []
    if common:
        parts.append(table([key, value if not rest else "all"], [[k, each[0][k]] for k in common]))
    if rest:
        rows = [[k, *(found.get(k, "–") for found in each)] for k in rest]
        parts.append(table([key, *(f"`{short(name)}`" for name in names)], rows))
    return "\n".join(parts)


def _axes(name: str) -> list[tuple[str, str]]:
    return method_spsa.rows(name) if is_spsa(name) else method_axes.rows(name)


def size(x: float) -> str:
    """Bytes a parameter, to three digits."""
    return f"{x:.0f}" if x >= 1000 else f"{x:.3g}"


def nbytes(names: list[str]) -> str:
    """What states and bases take of a layer."""
    rows, cols = method_axes.LAYER
    lines = []
    for name in names:
        states, basis = method_axes.per_parameter(name)
        low = method_axes.build(name)._low_rank
        lines.append(
            [
                f"`{name}`",
                *map(size, (states, basis, states + basis)),
                str(method_axes.RANK) if low else "–",
            ]
        )
    head = ["bytes a parameter", "states", "basis", "both", "rank"]
    return table(head, lines) + f"\nOf a weight of {rows} × {cols}, by `lt.optim.memory`.\n"


def index() -> str:
    """All methods, by group."""
    parts = []
    for group, pages in GROUPS:
        rows = [_index_row(page, name) for page in pages for name in page.names]
        head = ["method", "paper", "on the axes", "bytes of state a parameter"]
        if not any(_has_axes(name) for page in pages for name in page.names):
            head[2:] = ["what it does"]
            rows = [row[:3] for row in rows]
        parts.append(f"## {group}\n\n{table(head, rows)}")
    tree = "".join(f"{page.file}\n" for page in PAGES)
    return "\n".join([*parts, f"```{{toctree}}\n:hidden:\n\n{tree}```\n"])


def _has_axes(name: str) -> bool:
    return is_engine(name) or is_spsa(name)


def _index_row(page: Page, name: str) -> list[str]:
    what, state = page.word, "–"
    if is_spsa(name):
        what, state = method_spsa.brief(name), size(method_spsa.state_bytes(name))
    elif is_engine(name):
        what, state = method_axes.brief(name), size(sum(method_axes.per_parameter(name)))
    shown = (
        name
        if _has_axes(name)
        else name.replace("continual.", "").replace("curvature.", "").replace("quant.", "")
    )
    return [f"[{page.title}]({page.file}.md): `{shown}`", str(page.year), what, state]


MAKERS: dict[str, Callable[[list[str]], str]] = {
    "axes": axes, "defaults": defaults, "bytes": nbytes, "index": lambda _: index(),
}  # fmt: skip


def fill(text: str) -> str:
    """A page with its marked sections as the code has them."""

    def section(match: re.Match[str]) -> str:
        kind, names = match[1], match[2] or ""
        body = MAKERS[kind]([name.strip() for name in names.split(",") if name.strip()])
        colon = f":{names}" if names else ""
        return f"<!-- {kind}{colon} -->\n\n{body}\n<!-- /{kind} -->"

    return SECTION.sub(section, text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and show what differs")
    parser.add_argument("pages", nargs="*", help="names of pages; all unless given")
    args = parser.parse_args()
    chosen = args.pages or ["index", *(page.file for page in PAGES)]
    stale = 0
    for name in chosen:
        path = FOLDER / f"{name}.md"
        old = path.read_text()
        new = fill(old)
        if old == new:
            continue
        stale += 1
        if args.check:
            sys.stdout.writelines(
                difflib.unified_diff(old.splitlines(True), new.splitlines(True), str(path.name), "code")
            )
        else:
            path.write_text(new)
            print(f"wrote {path.relative_to(ROOT)}")
    if args.check and stale:
        print("docs/methods is not what the code says: python tools/method_pages.py")
    return int(bool(args.check and stale))


if __name__ == "__main__":
    sys.exit(main())
