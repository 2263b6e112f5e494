# SPDX-License-Identifier: Apache-2.0
"""The command line itself: help, info, what it imports, how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

import lowtide as lt
from lowtide.cli import main
from lowtide.cli.main import COMMANDS, build_parser

from .helpers import environment

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
NAMES = [command.__name__.rsplit(".", 1)[1].replace("_", "-") for command in COMMANDS]
# As if only NumPy were installed: every import of an optional package fails.
NUMPY_ONLY = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "safetensors", "tokenizers", "tqdm", "matplotlib", "psutil"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from lowtide.cli import main
sys.exit(main(sys.argv[1:]))
"""


def numpy_only(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NUMPY_ONLY, *arguments],
        capture_output=True, text=True, timeout=60, env=environment(), check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", [[], *([name] for name in NAMES)])
def test_help_says_what_every_option_does(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    parser = build_parser()
    if command:
        parser = parser._subparsers._group_actions[0].choices[command[0]]  # type: ignore[union-attr,index]
        assert all(action.help for action in parser._actions), "an option without help"
    else:
        assert all(name in out for name in NAMES)


@pytest.mark.parametrize(
    "arguments", [("--help",), ("info",), ("info", "--json"), *((name, "--help") for name in NAMES)]
)
def test_help_and_info_need_numpy_only(arguments: tuple[str, ...]) -> None:
    done = numpy_only(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    if arguments == ("info",):
        assert "not loaded: lowtide.ops needs torch" in done.stdout


def test_finetune_without_torch_says_what_to_install(tmp_path: object) -> None:
    from pathlib import Path

    root = Path(str(tmp_path))
    (root / "data.txt").write_text("text")
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text("{}")
    (root / "model" / "model.safetensors").write_text("")
    done = numpy_only("finetune", str(root / "model"), str(root / "data.txt"), "--out", str(root / "run"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'lowtide[demo]'" in done.stderr
    assert not (root / "run").exists()


def test_info_as_a_process(cli: Cli) -> None:
    done = cli("info", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    facts = json.loads(done.stdout)
    assert facts["lowtide"] == lt.__version__
    assert facts["native"]["isa"] in facts["native"]["available_isas"]
    assert set(facts["cuda"]) == {"ops_built", "ops_missing", "torch_cuda", "devices"}


def test_info_shows_a_forced_instruction_set(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTIDE_ISA", "scalar")
    out = cli("info").stdout
    assert "scalar (forced by LOWTIDE_ISA=scalar)" in out


@pytest.mark.parametrize("arguments", [[], ["train"], ["info", "--jsn"], ["finetune"], ["info", "--js"]])
def test_a_wrong_command_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "--help" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"lowtide {lt.__version__}\n"


def test_output_into_a_closed_pipe(cli: Cli) -> None:
    done = subprocess.run(
        f"{sys.executable} -m lowtide info | true; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=60, env=environment(), check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
