# SPDX-License-Identifier: Apache-2.0
"""Run directories as the writers make them, with all that they can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .browser import Browser

Make = Callable[..., Path]


def records(steps: int = 120, shift: float = 0.0) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = [{"step": 0, "val_loss": 4.0 + shift}]
    for step in range(1, steps + 1):
        record: dict[str, Any] = {
            "step": step, "loss": 2 + shift + 2 * math.exp(-step / 40) + 0.2 * math.sin(step * 1.7), "lr": 1e-4 * (1 - step / steps),
            "grad_norm": 1.0 + math.cos(step), "my": {"metric": step % 5}, "seconds": 0.2 + 0.01 * (step % 7), "tokens_per_second": 2400 - 10 * (step % 7),
            "rss": 900_000_000, "peak_rss": 1_000_000_000 + step * 1000,
            "bytes": {"weights": 222_000_000, "gradients": 113_000_000, "states": 84_000_000, "basis": 3_300_000},
        }  # fmt: skip
        if step % 20 == 0:
            record["val_loss"] = 2.1 + shift + 2 * math.exp(-step / 40)
        if step % 10 == 0:
            energy = 0.6 + 0.3 * math.exp(-(step % 40) / 10)
            names = {f"model.layers.{i}.mlp.up_proj.weight": {"rank": 64, "refreshes": 1 + step // 40, "gap": 40, "energy": energy}
                     for i in range(3)}  # fmt: skip
            record["subspace"] = {"matrices": 3, "refreshes": 3 * (1 + step // 40), "gap": 40.0, "energy": energy,
                                  "energy_min": energy / 2, "by_name": names}  # fmt: skip
            record["quantization"] = {
                "tensors": 3,
                "stalled": 0.99 - step / 1e4,
                "sqnr_db": 55 - step / 100,
                "sqnr_db_min": 45,
            }
            record["curvature"] = {"lambda_max": 30 + step / 10, "trace": 900.0}
        out.append(record)
    return out


SETTINGS = {
    "method": "qgalore",
    "rank": 64,
    "lr": 1e-4,
    "steps": 120,
    "betas": [0.9, 0.999],
    "freeze": None,
    "schedule": "cosine",
}


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    def make_run(name: str = "run", **changes: Any) -> Path:
        path = tmp_path_factory.mktemp("runs") / name
        path.mkdir()
        settings = {**SETTINGS, **changes.pop("settings", {})}
        run = {"settings": settings, "versions": {"lowtide": "0.1.0", "torch": "2.13.0"}, "model": "/models/tiny", "data": "tides.txt",
               **changes.pop("run", {})}  # fmt: skip
        (path / "run.json").write_text(json.dumps(run))
        lines = changes.pop("records", None) or records(**changes)
        (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
        return path

    return make_run


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    folder = tmp_path / "browser"
    folder.mkdir()
    return Browser(folder)
