# SPDX-License-Identifier: Apache-2.0
"""The check of docs/conf.py that every exported name is in the API reference finds what is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("sphinx", reason="the documentation's tools are installed by `tools/setup.sh docs`")
CONF = Path(__file__).resolve().parents[2] / "docs" / "conf.py"


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lowtide_docs_conf", CONF)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_families_are_what_users_import(conf: ModuleType) -> None:
    names = {module.__name__ for module in conf._families()}
    assert {"lowtide.random", "lowtide.optim", "lowtide.spsa.comm", "lowtide.curvature.regularizers"} <= names
    assert not {"lowtide.optim.presets", "lowtide.cli"} & names


def test_missing_names_are_found_and_aliases_are_not_missing(conf: ModuleType) -> None:
    import lowtide.lowrank
    import lowtide.ops
    import lowtide.random

    names = [f"lowtide.random.{name}" for name in lowtide.random.__all__]
    assert conf._undocumented([lowtide.random], names) == []
    assert conf._undocumented([lowtide.random], names[1:]) == names[:1]
    assert lowtide.ops.Packed is lowtide.lowrank.Packed
    assert "lowtide.ops.Packed" not in conf._undocumented([lowtide.ops], ["lowtide.lowrank.Packed"])


def test_only_what_looks_like_markup_is_escaped(conf: ModuleType) -> None:
    lines = ["|x| of **common, clip_grad_norm_ and ``|y|``", ">>> f(**options)"]
    conf._plain_text(None, "function", "f", None, None, lines)
    assert lines == [r"\|x\| of \*\*common, clip_grad_norm\_ and ``|y|``", ">>> f(**options)"]


def test_links_above_docs_go_to_pages(conf: ModuleType) -> None:
    source = ["[a](../HACKING.md#numerics) [b](../bench/results/x.json) [c](training.md)"]
    conf._link_to_pages(None, "page", source)
    assert source == ["[a](hacking.md#numerics) [b](../bench/results/x.json) [c](training.md)"]
    source = ["[a](../../CHANGELOG.md)"]
    conf._link_to_pages(None, "folder/page", source)
    assert source == ["[a](../changelog.md)"]


def test_formulas_are_drawn_without_scripts(conf: ModuleType) -> None:
    import mathml  # docs/_ext, which conf.py puts on the path

    drawn = mathml.render(r"\frac{1}{m} \textstyle\sum_k \big( z_k \big)", block=True)
    assert drawn.startswith("<math")
    assert "mfrac" in drawn
    with pytest.raises(mathml.MathError):
        mathml.render(r"\nosuchcommand", block=False)
