# SPDX-License-Identifier: Apache-2.0
"""FedKSeed on Flower: the round's arithmetic, hostile messages, and a run under the real runtime (nightly)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lowtide as lt
from lowtide.errors import LowtideError, LowtideImportError, LowtideValueError
from lowtide.spsa.comm import flower

K = 64
needs_flower = pytest.mark.skipif(
    bool(flower._MISSING), reason="flwr is not installed (pip install lowtide[flower])"
)


def task(partition: int, seeds: int = K) -> flower.Task:
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 1).eval()
    generator = torch.Generator().manual_seed(partition)
    x = torch.randn(32, 6, generator=generator)
    opt = lt.spsa.FedKSeed(model.named_parameters(), lr=1e-2, eps=1e-3, seeds=seeds, seed=5, module=model)
    return flower.Task(opt, lambda step: (model(x) - x[:, :1]).square().mean(), 32)


def message(sums: np.ndarray[Any, Any], round_: int = 1) -> dict[str, Any]:
    return {"version": 1, "round": round_, "seeds": K, "steps": 10, "sums": flower.pack(sums)}


def test_a_round_of_two_clients_lowers_the_loss_and_rebuilds_the_same_weights() -> None:
    sums = np.zeros(K)
    losses = []
    for round_ in range(1, 7):
        sums = flower.unpack(flower.pack(sums), K, "sums")
        replies = [flower.train(task(p), message(sums, round_), node=p + 7) for p in (0, 1)]
        assert all(len(r["sums"]) == 4 * K for r in replies)
        assert replies[0]["sums"] != replies[1]["sums"]
        losses.append(sum(r["loss"] for r in replies) / 2)
        for r in replies:
            sums = sums + 0.5 * flower.unpack(r["sums"], K, "sums")
    assert losses[-1] < 0.8 * losses[0]
    digests = set()
    for p in (0, 1):
        t = task(p)
        t.optimizer.rebuild([w.clone() for w in t.optimizer.masters.tensors], sums)
        digests.add(t.optimizer.masters.digest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2}, {"seeds": K + 1}, {"seeds": "64"}, {"round": -1}, {"round": 1 << 20}, {"steps": 0}, {"steps": True},
        {"sums": b""}, {"sums": b"x" * (4 * K - 1)}, {"sums": "text"}, {"sums": np.full(K, np.nan, "<f4").tobytes()},
    ],
)  # fmt: skip
def test_a_client_refuses_what_does_not_fit(changes: dict[str, object]) -> None:
    with pytest.raises(LowtideValueError):
        flower.train(task(0), {**message(np.zeros(K)), **changes}, node=1)


@pytest.mark.skipif(not flower._MISSING, reason="flwr is installed")
def test_without_flower_the_remedy_is_said() -> None:
    with pytest.raises(LowtideImportError, match=r"pip install lowtide\[flower\]"):
        flower.FedKSeedStrategy(K)


class Grid:
    def get_node_ids(self) -> list[int]:
        return [3, 1, 2]


@needs_flower
def test_the_server_leaves_out_bad_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("run_id", "node_id", "task_id"):  # the runtime sets them
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)
    strategy = flower.FedKSeedStrategy(K, steps=10, clip=1.0)
    out = list(strategy.configure_train(1, None, None, Grid()))
    assert [m.metadata.dst_node_id for m in out] == [1, 2, 3]
    assert len(out[0].content.config_records[flower.RECORD]["sums"]) == 4 * K
    good = {"round": 1, "sums": flower.pack(np.full(K, 5.0)), "loss": 2.0, "examples": 10}
    replies = []
    for change in ({}, {"examples": 30}, {"sums": b"short"}, {"round": 9}, {"examples": 0}, {"loss": "low"},
                   {"sums": np.full(K, np.inf, "<f4").tobytes()}):  # fmt: skip
        content = RecordDict({flower.RECORD: ConfigRecord({**good, **change})})
        replies.append(Message(content, reply_to=out[0]))
    replies.append(Message(RecordDict({}), reply_to=out[0]))
    _, metrics = strategy.aggregate_train(1, replies)
    assert metrics is not None
    assert (metrics["clients"], metrics["loss"]) == (2, 2.0)
    assert strategy.sums.tolist() == [1.0] * K
    assert len(strategy.rejected) == 6
    assert strategy.traffic == [(4 * K, 4 * K)]
    with pytest.raises(LowtideError):
        flower.FedKSeedStrategy(0)


APP = {
    "pyproject.toml": """
[project]
name = "ltapp"
version = "1.0.0"
description = "test"
license = "Apache-2.0"
dependencies = []
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.flwr.app]
publisher = "lowtide"
[tool.flwr.app.components]
serverapp = "ltapp.server:app"
clientapp = "ltapp.client:app"
[tool.flwr.app.config]
out = "{out}"
""",
    "ltapp/__init__.py": "",
    "ltapp/client.py": """
import sys
sys.path.insert(0, "{tests}")
from lowtide.spsa.comm.flower import client_app
from test_flower import task
app = client_app(lambda context: task(int(context.node_config["partition-id"])))
""",
    "ltapp/server.py": """
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from lowtide.spsa.comm.flower import FedKSeedStrategy
app = ServerApp()
@app.main()
def main(grid, context):
    strategy = FedKSeedStrategy(64, steps=10, min_nodes=2)
    result = strategy.start(grid, ArrayRecord(), num_rounds=3, timeout=120)
    losses = [result.train_metrics_clientapp[r]["loss"] for r in (1, 2, 3)]
    with open(context.run_config["out"] + ".part", "wb") as file:
        np.savez(file, sums=strategy.sums, losses=losses, traffic=strategy.traffic, rejected=strategy.rejected)
    import os
    os.rename(context.run_config["out"] + ".part", context.run_config["out"])
""",
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


@pytest.mark.slow
@needs_flower
def test_three_rounds_under_the_real_runtime(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    for name, text in APP.items():
        path = tmp_path / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{out}", str(out)).replace("{tests}", str(Path(__file__).parent)))
    home = tmp_path / "home"
    home.mkdir()
    ports = [free_port() for _ in range(3)]
    link = f"127.0.0.1:{ports[0]}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "t"\n[superlink.t]\naddress = "{link}"\ninsecure = true\n'
    )
    environment = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    commands = [
        ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(ports[0])],
        *(
            ["flower-supernode", "--insecure", "--superlink", link, "--host", "127.0.0.1", "--port", str(ports[1 + i]),
             "--node-config", f"partition-id={i}"]
            for i in (0, 1)
        ),
    ]  # fmt: skip
    processes = []
    try:
        with open(tmp_path / "log", "wb") as log:
            for command in commands:
                program = shutil.which(command[0], path=environment["PATH"])
                assert program
                processes.append(
                    subprocess.Popen(
                        [program, *command[1:]],
                        env=environment,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        flwr = shutil.which("flwr", path=environment["PATH"])
        assert flwr
        end = time.monotonic() + 60
        submit = [flwr, "run", str(tmp_path / "app"), "t"]
        while (
            subprocess.run(submit, env=environment, capture_output=True).returncode and time.monotonic() < end
        ):
            time.sleep(1)
        end = time.monotonic() + 300
        while not out.exists():
            assert time.monotonic() < end, (tmp_path / "log").read_text()[-4000:]
            time.sleep(0.5)
        data = np.load(out)
        assert data["losses"][2] < data["losses"][0]
        assert data["rejected"].size == 0
        assert data["traffic"].tolist() == [[4 * K, 4 * K]] * 3
    finally:
        for process in processes:
            os.killpg(process.pid, 9)
            process.wait(10)
