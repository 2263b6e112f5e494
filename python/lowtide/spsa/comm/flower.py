# SPDX-License-Identifier: Apache-2.0
"""FedKSeed (2312.06353) on Flower: a round is K sums down and K sums up, 4 bytes each, whatever the model's size.

The server holds one number a seed and no model. Each round it sends them; a client makes the global weights from its copy of the
base weights, trains some steps on its own data, and sends what its steps added to each number. Messages hold bytes
in a ``ConfigRecord``; no arrays and no pickles travel. Needs ``pip install lowtide[flower]``.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lowtide.errors import LowtideImportError, LowtideRuntimeError, LowtideValueError

if TYPE_CHECKING:
    from lowtide.spsa.presets import FedKSeed

try:
    from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp.strategy import Strategy
except ImportError as error:
    _MISSING = str(error)
    Strategy = object
else:
    _MISSING = ""

#: Name of the record in a message.
RECORD = "lowtide.fedkseed"
_VERSION = 1
_MAX_SEEDS = 1 << 20
_MAX_ROUNDS = 1 << 15
_MAX_STEPS = 1 << 16


@dataclass(frozen=True)
class Task:
    """What a client needs to train.

    Attributes:
        optimizer: a fresh ``lt.spsa.FedKSeed`` on a model at the base weights; equal on all clients but for the model's device.
        closure: returns the loss on the next batch of this client's data, the same one for all calls within a step;
            called as ``closure(step)``.
        examples: size of this client's data: its share in the average.
    """

    optimizer: FedKSeed
    closure: Callable[[int], Any]
    examples: int


def _require() -> None:
    if _MISSING:
        raise LowtideImportError(f"FedKSeed on Flower needs flwr ({_MISSING}); pip install lowtide[flower]")


def pack(sums: NDArray[np.float64]) -> bytes:
    """Sums as little-endian float32."""
    return sums.astype("<f4").tobytes()


def unpack(data: object, seeds: int, what: str) -> NDArray[np.float64]:
    """The opposite of :func:`pack`, checked.

    Raises:
        LowtideValueError: not ``seeds`` finite numbers.
    """
    if not isinstance(data, bytes) or len(data) != 4 * seeds:
        size = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise LowtideValueError(f"{what} must be {seeds} float32 numbers ({4 * seeds} bytes), got {size}")
    sums = np.frombuffer(data, "<f4").astype(np.float64)
    if not np.isfinite(sums).all():
        raise LowtideValueError(f"{what} must be finite")
    return sums


def _integer(record: Mapping[str, Any], name: str, most: int, least: int = 0) -> int:
    value = record.get(name)
    if type(value) is not int or not least <= value <= most:
        raise LowtideValueError(f"{name} must be an integer in [{least}, {most}], got {value!r}")
    return value


class FedKSeedStrategy(Strategy):  # type: ignore[misc]
    """The server's part: ``strategy.start(grid, ArrayRecord(), num_rounds=...)`` in a ``ServerApp``.

    Args:
        seeds: K, as of the clients' optimizers.
        steps: local steps a round. fraction: share of the nodes that train in a round. min_nodes: waits for as many.
        clip: largest magnitude of what one client may add to one number; None: no limit.
        seed: of the choice of nodes.

    Attributes:
        sums: float64, (K,): with the base weights they are the global model (``FedKSeed.rebuild``).
        traffic: for each round (bytes down, bytes up) of payload a node, the largest.
        rejected: replies that were left out, with the reason.
    """

    def __init__(
        self, seeds: int = 4096, *, steps: int = 200, fraction: float = 1.0, min_nodes: int = 2,
        clip: float | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        _require()
        if not 1 <= seeds <= _MAX_SEEDS:
            raise LowtideValueError(f"seeds must be in [1, {_MAX_SEEDS}], got {seeds!r}")
        if not 1 <= steps < _MAX_STEPS:
            raise LowtideValueError(f"steps must be in [1, {_MAX_STEPS}), got {steps!r}")
        if not 0.0 < fraction <= 1.0:
            raise LowtideValueError(f"fraction must be in (0, 1], got {fraction!r}")
        if clip is not None and not 0.0 < clip < math.inf:
            raise LowtideValueError(f"clip must be a finite number > 0 or None, got {clip!r}")
        self.seeds, self.steps, self.fraction, self.min_nodes = seeds, steps, fraction, max(1, min_nodes)
        self.clip, self._random = clip, np.random.default_rng(seed)
        self.sums: NDArray[np.float64] = np.zeros(seeds)
        self.traffic: list[tuple[int, int]] = []
        self.rejected: list[str] = []

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Message]:
        """Send the sums to some nodes."""
        if server_round >= _MAX_ROUNDS:
            raise LowtideRuntimeError(f"server_round must be below {_MAX_ROUNDS}, got {server_round}")
        nodes = sorted(self._nodes(grid))
        count = max(1, round(self.fraction * len(nodes)))
        chosen = self._random.choice(len(nodes), size=count, replace=False)
        # What is sent is what counts, so that server and clients start from the same float32 numbers.
        payload = pack(self.sums)
        self.sums = unpack(payload, self.seeds, "sums")
        self._down = len(payload)
        record = {
            "version": _VERSION, "round": server_round, "seeds": self.seeds, "steps": self.steps, "sums": payload,
        }  # fmt: skip
        return [
            Message(RecordDict({RECORD: ConfigRecord(dict(record))}), nodes[i], "train")
            for i in sorted(chosen)
        ]

    def _nodes(self, grid: Any) -> list[int]:
        while True:
            nodes = list(grid.get_node_ids())
            if len(nodes) >= self.min_nodes:
                return nodes
            time.sleep(0.5)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[None, MetricRecord | None]:
        """Add the clients' sums, weighted by the sizes of their data; bad replies are left out."""
        parts: list[tuple[int, NDArray[np.float64], float]] = []
        up = 0
        for reply in replies:
            try:
                if reply.has_error():
                    raise LowtideValueError(f"the client failed: {reply.error.reason}")
                record = reply.content.config_records[RECORD]
                if _integer(record, "round", _MAX_ROUNDS) != server_round:
                    raise LowtideValueError("a reply to another round")
                sums = unpack(record.get("sums"), self.seeds, "sums")
                up = max(up, 4 * self.seeds)
                loss = record.get("loss")
                if not isinstance(loss, float):
                    raise LowtideValueError(f"loss must be a float, got {type(loss).__name__}")
                if self.clip is not None:
                    sums = np.clip(sums, -self.clip, self.clip)
                parts.append((_integer(record, "examples", 1 << 48, 1), sums, loss))
            except (KeyError, LowtideValueError) as error:
                self.rejected.append(f"round {server_round}, node {reply.metadata.src_node_id}: {error}")
        self.traffic.append((self._down, up))
        if not parts:
            return None, None
        total = sum(n for n, _, _ in parts)
        for n, sums, _ in parts:
            self.sums = self.sums + (n / total) * sums
        loss = math.fsum(n * x for n, _, x in parts) / total
        return None, MetricRecord({"loss": loss, "clients": len(parts)})

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Message]:
        """Nothing: the sums are evaluated where there is a model (``FedKSeed.rebuild``)."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing was asked."""
        return None

    def summary(self) -> None:
        """Log what a round is."""
        from flwr.common.logger import log

        log(
            20,
            "FedKSeed: %d seeds, %d bytes a round each way, %d local steps",
            self.seeds,
            4 * self.seeds,
            self.steps,
        )


def train(task: Task, record: Mapping[str, Any], node: int) -> dict[str, Any]:
    """A client's round: from the sums that came to the reply's values.

    Raises:
        LowtideValueError: the message does not fit the optimizer.
    """
    optimizer = task.optimizer
    if _integer(record, "version", 1 << 16) != _VERSION:
        raise LowtideValueError("version: use the same release of lowtide everywhere")
    seeds = _integer(record, "seeds", _MAX_SEEDS, 1)
    if seeds != optimizer.method.seeds:
        raise LowtideValueError(
            f"seeds: the server has {seeds}, this client's optimizer {optimizer.method.seeds}"
        )
    rounds, steps = _integer(record, "round", _MAX_ROUNDS), _integer(record, "steps", _MAX_STEPS, 1)
    sums = unpack(record.get("sums"), seeds, "sums")
    base = [t.clone() for t in optimizer.masters.tensors]
    optimizer.rebuild(base, sums)
    # A step's number decides which seed it draws: other numbers for each client and round.
    optimizer.t = ((rounds << 16) + zlib.crc32(node.to_bytes(8, "little", signed=False)) % (1 << 16)) << 16
    first = optimizer.accumulators.copy()
    loss = 0.0
    for step in range(steps):
        loss += optimizer.step(lambda step=step: task.closure(step)) / steps  # type: ignore[misc]
    added = optimizer.accumulators - first
    return {"round": rounds, "sums": pack(added), "loss": float(loss), "examples": int(task.examples)}


def client_app(make: Callable[[Context], Task]) -> ClientApp:
    """A Flower ``ClientApp`` whose training is a FedKSeed round.

    Args:
        make: builds the task of a node from its context (``context.node_config["partition-id"]`` says which data).
    """
    _require()
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]
    def _train(message: Message, context: Context) -> Message:
        reply = train(make(context), message.content.config_records[RECORD], context.node_id)
        return Message(RecordDict({RECORD: ConfigRecord(reply)}), reply_to=message)

    return app
