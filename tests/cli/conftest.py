# SPDX-License-Identifier: Apache-2.0
"""A tiny random LLaMA with a byte-level tokenizer, a text, and the command line in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .helpers import command, environment, make_model

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("torch", "transformers", "tokenizers"):
        pytest.importorskip(package)
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "tides.txt"
    words = [
        "the",
        "tide",
        "goes",
        "out",
        "and",
        "in",
        "while",
        "a",
        "small",
        "boat",
        "waits",
        "on",
        "the",
        "sand",
    ]
    lines = [" ".join(words[(i * k) % len(words)] for k in range(1, 12)) for i in range(1, 120)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run `lowtide ARGUMENTS` in a process and return it, finished."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), capture_output=True, text=True, timeout=120, env=environment(), check=False
        )

    return run


@pytest.fixture(autouse=True)
def _threads() -> object:
    """The runs of these tests set torch's threads; put them back."""
    import sys

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    yield
    if torch and before:
        torch.set_num_threads(before)
