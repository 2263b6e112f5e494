# SPDX-License-Identifier: Apache-2.0
"""What README, HACKING and docs/ show works: Python blocks run, commands parse, make targets and links exist.

Blocks of one file run in order and share their names. A block is Python if its fence says ``python``; lines that
start with ``$`` in a ``console`` fence are commands.
"""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

from lowtide.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    p for p in (ROOT / "README.md", ROOT / "HACKING.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.exists()
]
FENCE = re.compile(r"^```([\w{}-]*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(path.read_text()) if language in languages]


def commands(path: Path) -> list[str]:
    text = "".join(blocks(path, "console")).replace("\\\n", " ")
    lines = [line[2:].split("  #")[0] for line in text.splitlines() if line.startswith("$ ")]
    return [part.strip() for line in lines for part in line.split("&&")]


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in FILES if blocks(p, "python")], ids=label)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(path, "python"):
        if block.lstrip().startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(block, names, label(path), str(path), 0)
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, clear_globs=False)
            assert result.failed == 0
            names.update(test.globs)
        else:
            exec(compile(block, label(path), "exec"), names)


@pytest.mark.parametrize("path", [p for p in FILES if commands(p)], ids=label)
def test_commands_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in commands(path):
        words = [w for w in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
        if words[0] == "lowtide" or words[:3] == ["python", "-m", "lowtide"]:
            arguments = words[1:] if words[0] == "lowtide" else words[3:]
            try:
                build_parser().parse_args(arguments)
            except SystemExit as stop:
                assert stop.code == 0, f"{label(path)}: '{command}' is not a command of lowtide"  # noqa: PT017
        elif words[0] == "make":
            for target in words[1:]:
                assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"no target: {command}"
        elif words[0].startswith(("tools/", "examples/", ".ci/")):
            assert (ROOT / words[0]).exists(), f"{label(path)}: {words[0]} does not exist"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_links_inside_the_repository_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", FENCE.sub("", path.read_text())):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{label(path)} links to {target}, which does not exist"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_named_files_exist(path: Path) -> None:
    """Paths in backticks, such as `csrc/base/simd.h`; those with a placeholder (<stem>, *) are patterns."""
    folders = "csrc|python|tests|bench|tools|cmake|docs|examples|requirements"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", path.read_text()):
        assert (ROOT / name.rstrip("/")).exists(), f"{label(path)} names {name}, which does not exist"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_no_conflict_was_left(path: Path) -> None:
    assert not re.search(r"^(<<<<<<<|>>>>>>>)", path.read_text(), re.MULTILINE)
