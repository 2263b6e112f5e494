# SPDX-License-Identifier: Apache-2.0
"""Sphinx: `make docs` builds these pages into build/docs, with warnings as errors and without the network."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.util import logging

import lowtide

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "lowtide"
author = "the lowtide authors"
copyright = "the lowtide authors, Apache-2.0"
version = release = lowtide.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "mathml"]
exclude_patterns = ["_build", "_ext"]
source_suffix = {".md": "markdown"}

# Pages read on a Git forge too: no directives in prose but the toctree, links relative, to files outside of docs/ as well
# (MyST makes downloads of those).
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]  # what forges render whole; between $$ they drop backslashes before commas
myst_heading_anchors = 4
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch's own, with references into torch's pages
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 160
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False  # one entry for "seed, step", not two with the same text
napoleon_custom_sections = [("Attributes", "params_style")]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"lowtide {version}"
html_static_path = ["_static"]
html_css_files = ["lowtide.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

#: Files above docs/ that have a page here.
_PAGES = {"README.md": "index.md", "HACKING.md": "hacking.md", "CHANGELOG.md": "changelog.md"}


def _link_to_pages(app: Any, docname: str, source: list[str]) -> None:
    """Links to a file above docs/ that has a page here go to the page."""
    up = "../" * docname.count("/")
    for name, page in _PAGES.items():
        source[0] = re.sub(
            rf"\]\({re.escape(up)}\.\./{re.escape(name)}(#[^)]*)?\)",
            lambda found, page=page: f"]({up}{page}{found[1] or ''})",
            source[0],
        )


#: What stays as it is in a docstring: literals, roles and named references.
_MARKUP = re.compile(r"(``.+?``|:[a-z:]+:`[^`]+`|`[^`]+`_)")
#: What is no markup there: |x| is a magnitude, clip_grad_norm_ a name, **common arguments.
_PLAIN = re.compile(r"\||(?<=\w)_(?!\w)|\*\*(?=\w)")


def _escape(found: re.Match[str]) -> str:
    return "".join(f"\\{c}" for c in found[0])


def _plain_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written to be read in terminals; this escapes what only looks like markup."""
    example = False
    for i, line in enumerate(lines):
        text = line.strip()
        example = text.startswith(">>>") or (example and bool(text))
        if example or text.startswith(("..", "==")):
            continue
        parts = _MARKUP.split(line)
        parts[::2] = [_PLAIN.sub(_escape, part) for part in parts[::2]]
        lines[i] = "".join(parts)


#: Modules with an __all__ that are not for users: the parts of a family, which the family exports.
_PARTS = ("lowtide.cli", "lowtide.ops.", "lowtide.optim.", "lowtide.train.")


def _families() -> Iterator[ModuleType]:
    """The public modules that say what they export."""
    for found in pkgutil.walk_packages(lowtide.__path__, "lowtide."):
        if not any(part.startswith("_") for part in found.name.split(".")) and not found.name.startswith(
            _PARTS
        ):
            module = importlib.import_module(found.name)
            if hasattr(module, "__all__"):
                yield module


def _undocumented(modules: Iterable[ModuleType], documented: Iterable[str]) -> list[str]:
    """Exported names that the reference has neither under this name nor, as the same object, under another."""
    names = set(documented)
    objects = {id(_resolve(name)) for name in names}
    return [
        f"{module.__name__}.{name}"
        for module in modules
        for name in module.__all__
        if f"{module.__name__}.{name}" not in names
        and not isinstance(getattr(module, name), ModuleType)
        and id(getattr(module, name)) not in objects
    ]


def _resolve(name: str) -> Any:
    """The class or function of a dotted name; None for other things, which may be equal by accident."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError):  # a member of a class, a module
        return None
    return found if callable(found) else None


def _check_reference(app: Any, env: Any) -> None:
    documented = [name for name, entry in env.domains["py"].objects.items() if not entry.aliased]
    for name in _undocumented([lowtide, *_families()], documented):
        logging.getLogger(__name__).warning("%s is exported and not in docs/api", name)


def setup(app: Any) -> None:
    """Hooks."""
    app.connect("env-check-consistency", _check_reference)
    app.connect("source-read", _link_to_pages)
    app.connect("autodoc-process-docstring", _plain_text, priority=400)
