# SPDX-License-Identifier: Apache-2.0
"""Formulas as MathML, which browsers draw themselves: pages need no script from elsewhere, and no LaTeX to be built."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

#: What Git forges' MathJax understands and docutils does not, and does without.
_UNKNOWN = re.compile(r"\\(?:textstyle|displaystyle|[bB]igg?[lr]?)(?![a-zA-Z])\s*")


def render(tex: str, *, block: bool) -> str:
    """A ``<math>`` element. Raises MathError for LaTeX that docutils does not know."""
    tex = re.sub(r"\\cr(?![a-zA-Z])", r"\\\\", _UNKNOWN.sub("", tex))
    return str(tex2mathml(tex.strip(), as_block=block))


def _visit(self: Any, node: nodes.Element) -> None:
    block = isinstance(node, nodes.math_block)
    try:
        math = render(node.astext(), block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("cannot draw %r: %s", node.astext(), error, location=node)
        math = f"<code>{self.encode(node.astext())}</code>"
    self.body.append(f'<div class="math">{math}</div>' if block else math)
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_visit, None), (_visit, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
