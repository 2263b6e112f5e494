# SPDX-License-Identifier: Apache-2.0
"""The sinks: what arrives in the file, the event file and the offline run; and that offline is offline."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowtide as lt
from lowtide.integrations import loggers
from lowtide.integrations.loggers import JSONL, Many, Sink, TensorBoard, WandB, flatten

VALUES: dict[str, Any] = {
    "loss": np.float32(2.5),
    "bytes": {"states": 4096, "nested": {"deep": 1}},
    "lr": math.nan,
    "done": True,
    "note": "<script>",
    "none": None,
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    with JSONL(path) as sink:
        assert isinstance(sink, Sink)
        sink.log(3, {**VALUES, "step": "another", "list": [1, math.inf]})
        assert lines(path) == [  # on the disk before it is closed
            {"step": 3, "loss": 2.5, "bytes": {"states": 4096, "nested": {"deep": 1}}, "lr": None, "done": True,
             "note": "<script>", "none": None, "list": [1, None]}
        ]  # fmt: skip
    sink.close()
    with pytest.raises(lt.LowtideRuntimeError, match="closed"):
        sink.log(4, {})


def test_jsonl_resumes_without_writing_a_step_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JSONL(path) as sink:
        for step in range(5):
            sink.log(step, {"loss": step})
    with open(path, "a") as file:
        file.write('{"step": 5, "lo')  # a killed process
    with JSONL(path, resume_step=2) as sink:
        sink.log(3, {"loss": 33})
    assert [(r["step"], r["loss"]) for r in lines(path)] == [(0, 0), (1, 1), (2, 2), (3, 33)]


def test_tensors_are_numbers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with JSONL(tmp_path / "m.jsonl") as sink:
        sink.log(torch.tensor(1), {"loss": torch.tensor(0.5, dtype=torch.bfloat16)})
    assert lines(tmp_path / "m.jsonl") == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize(
    ("step", "values", "match"),
    [
        (-1, {}, "step"),
        (1.5, {}, "step"),
        (True, {}, "step"),
        (1, {"a": {"b": object()}}, "a/b"),
        (1, {"a": np.zeros(3)}, "a must be"),
        (1, {1: 2}, "names"),
        (1, [("a", 1)], "mapping"),
    ],
)
def test_refusals_write_nothing(tmp_path: Path, step: Any, values: Any, match: str) -> None:
    with JSONL(tmp_path / "m.jsonl") as sink, pytest.raises(lt.LowtideError, match=match):
        sink.log(step, values)
    assert (tmp_path / "m.jsonl").read_text() == ""


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(lt.LowtideError, match="file"):
        JSONL(tmp_path / "file" / "metrics.jsonl")
    with pytest.raises(lt.LowtideValueError, match="resume_step"):
        JSONL(tmp_path / "m.jsonl", resume_step=-1)


def test_many(tmp_path: Path) -> None:
    class Bad:
        closed = False

        def log(self, step: int, values: Any) -> None: ...

        def close(self) -> None:
            self.closed = True
            raise OSError("full")

    bad, good = Bad(), JSONL(tmp_path / "a.jsonl")
    sink = Many(bad, good, JSONL(tmp_path / "b.jsonl"))
    sink.log(1, {"loss": 1})
    with pytest.raises(OSError, match="full"):
        sink.close()
    assert bad.closed
    assert lines(tmp_path / "a.jsonl") == lines(tmp_path / "b.jsonl") == [{"step": 1, "loss": 1}]
    with pytest.raises(lt.LowtideRuntimeError, match="closed"):
        good.log(2, {})
    with pytest.raises(lt.LowtideTypeError, match="log"):
        Many(object())  # type: ignore[arg-type]


def test_flatten() -> None:
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": {}}) == {"a": 1, "b/c": 2, "b/d/e": 3}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the sink's own package")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoard(tmp_path / "tb") as sink:
        assert isinstance(sink, Sink)
        sink.log(1, VALUES)
        sink.log(2, {"loss": 2.0})
    sink.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "bytes/states", "bytes/nested/deep", "lr", "done"}
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 2.5), (2, 2.0)]
    assert events.Scalars("bytes/states")[0].value == 4096
    assert events.Tags()["tensors"] == ["note/text_summary"]
    with pytest.raises(lt.LowtideRuntimeError, match="closed"):
        sink.log(3, {})


class Listener:
    """Stands where the network would be, and counts who comes."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.visits = 0
        self.came = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.visits += 1
            self.came.set()
            connection.close()

    def environment(self, home: Path) -> dict[str, str]:
        keep = {k: v for k, v in os.environ.items() if not k.upper().startswith("WANDB_")}
        proxies = dict.fromkeys(
            ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), self.address
        )
        return {**keep, **proxies, "NO_PROXY": "", "no_proxy": "", "HOME": str(home), "WANDB_BASE_URL": self.address,
                "WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40}  # fmt: skip


OFFLINE = """
import sys
from lowtide.integrations.loggers import WandB
with WandB("p", folder=sys.argv[1], name="<script>", config={"rank": 4}) as sink:
    sink.log(1, {"loss": 2.5, "bytes": {"states": 4096}, "none": None, "lr": float("nan")})
    sink.log(2, {"loss": 2.25})
print(sink.folder)
"""


def records(data: bytes) -> Iterator[bytes]:
    """Of a LevelDB log that is one block long: 7 bytes of its own, then (checksum, length, kind, record)."""
    at = 7
    while at + 7 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        assert data[at + 6] == 1, "whole records only"
        yield data[at + 7 : at + 7 + length]
        at += 7 + length


def test_wandb_offline_opens_no_connection(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the sink's own package")
    from wandb.proto import wandb_internal_pb2

    listener = Listener()
    # The environment asks for online: the argument wins.
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path / "logs")],
        env=listener.environment(tmp_path), capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert listener.visits == 0
    # The listener stands where wandb would go: the same environment reaches it when asked to.
    control = "import os, urllib.request as u\ntry: u.urlopen('http://api.wandb.ai', timeout=9)\nexcept OSError: pass"
    subprocess.run(
        [sys.executable, "-c", control], env=listener.environment(tmp_path), check=True, timeout=60
    )
    assert listener.came.wait(10)
    listener.server.close()

    folder = Path(run.stdout.split()[-1])
    assert folder.parent == tmp_path / "logs" / "wandb"
    logged = []
    for data in records(next(folder.glob("*.wandb")).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            logged.append({k: v for k, v in items.items() if not k.startswith("_")})
    assert [json.loads(r["loss"]) for r in logged] == [2.5, 2.25]
    assert logged[0]["bytes/states"] == "4096"
    assert "none" not in logged[0]


def test_wandb_refuses_unknown_modes() -> None:
    with pytest.raises(lt.LowtideValueError, match="mode"):
        WandB(mode="dryrun")


@pytest.mark.parametrize(("package", "make"), [("tensorboard", TensorBoard), ("wandb", WandB)])
def test_a_missing_package_is_named(
    package: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        m for m in sys.modules if m == "torch.utils.tensorboard" or m.startswith("torch.utils.tensorboard.")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(lt.LowtideImportError, match=r"pip install 'lowtide\[loggers\]'"):
        make(folder=tmp_path)


def test_importing_the_sinks_imports_no_logger() -> None:
    code = "import sys, lowtide.integrations.loggers; sys.exit(any(m in sys.modules for m in ('torch', 'wandb', 'tensorboard')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_all_names_exist() -> None:
    assert all(hasattr(loggers, name) for name in loggers.__all__)
