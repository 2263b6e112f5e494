# SPDX-License-Identifier: Apache-2.0
"""Workers over a ``torch.distributed`` store: elastic, without a process group, one key a commit.

The store decides: whoever writes the key of a step first (``compare_set``) has made its commit, and everybody reads that. The
first member proposes when all codes are there or time is up; if it does not, the next one does. So any worker may
die; the process that hosts the store may not. Values carry an HMAC of their key and contents.
"""

from __future__ import annotations

import hmac
import math
import os
import secrets
import time
from collections import Counter, deque
from datetime import timedelta
from typing import Any

from lowtide.errors import LowtideValueError
from lowtide.spsa._codec import Codec, get_codec
from lowtide.spsa._commit import Commit
from lowtide.spsa._wire import FormatError, Reader, varint
from lowtide.spsa.comm._config import MAX_TOTAL, Config, Member
from lowtide.spsa.comm._history import CHAIN, History
from lowtide.spsa.comm._messages import Submit, decode, encode
from lowtide.spsa.comm._node import Settings
from lowtide.spsa.comm._protocol import CommError, DivergedError, Hello, Joined, commit_of
from lowtide.spsa.comm._session import load_key

_TAG = 16
_MAX_VALUE = 1 << 20


class Store:
    """A worker over a store that all workers reach.

    Args:
        store: a ``torch.distributed.TCPStore`` (or another store with ``compare_set``).
        worker: a name. slots: directions it wants to evaluate a step.
        total: directions of a step, dealt to the workers; 0: what they want in sum. The first worker's value counts.
        key: shared key as for :class:`TCP`; None without a variable: values are checked against accidents only.
        patience: seconds without a commit until a call fails.
        settings: times of the protocol.

    Raises:
        LowtideValueError: a bad argument.
    """

    def __init__(
        self, store: Any, *, worker: str, slots: int = 1, total: int = 0,
        key: bytes | str | os.PathLike[str] | None = None, patience: float = 600.0, settings: Settings | None = None,
    ) -> None:  # fmt: skip
        if not 1 <= slots <= MAX_TOTAL or not 0 <= total <= MAX_TOTAL:
            raise LowtideValueError(
                f"slots must be in [1, {MAX_TOTAL}] and total in [0, {MAX_TOTAL}], got {slots}, {total}"
            )
        self._store, self._key = store, load_key(key)
        self._me = Member(secrets.randbits(62) + 1, worker, slots, "")
        self._total, self._patience, self._settings = total, patience, settings or Settings()
        self._config = Config()
        self._raw = b""
        self._misses: Counter[int] = Counter()
        self._times: deque[float] = deque(maxlen=64)
        self._began = 0.0
        self._digests: deque[tuple[int, bytes]] = deque(maxlen=2)
        self._agreed = 0
        self._run = ""
        self._history: History | None = None
        self._codec: Codec = get_codec("log8")

    # ------------------------------------------------------------------ values

    def _name(self, name: str) -> str:
        return f"lowtide/{self._run}/{name}"

    def _seal(self, name: str, payload: bytes) -> bytes:
        return hmac.digest(self._key, name.encode() + b"\0" + payload, "sha256")[:_TAG] + payload

    def _open(self, name: str, value: bytes) -> bytes:
        if len(value) > _MAX_VALUE or not hmac.compare_digest(value, self._seal(name, value[_TAG:])):
            raise CommError(f"{name}: the store's value is not from a worker with the same key")
        return value[_TAG:]

    def _get(self, name: str) -> bytes | None:
        """The value of a key, or None; does not wait."""
        try:
            if not self._store.check([self._name(name)]):
                return None
            return self._open(name, self._store.get(self._name(name)))
        except RuntimeError as error:
            raise _lost(error) from None

    def _put(self, name: str, payload: bytes, before: bytes = b"") -> bytes:
        """Write a key that still has the value ``before`` (b"": none yet); the value that it has then."""
        old = self._seal(name, before) if before else b""
        try:
            return self._open(name, self._store.compare_set(self._name(name), old, self._seal(name, payload)))
        except RuntimeError as error:
            raise _lost(error) from None

    def _wait(self, names: list[str], seconds: float) -> bool:
        """Wait until all keys exist."""
        try:
            self._store.wait([self._name(n) for n in names], timedelta(seconds=max(seconds, 0.001)))
        except RuntimeError as error:
            if "timeout" not in str(error).lower() and "timed out" not in str(error).lower():
                raise _lost(error) from None
            return False
        return True

    # ------------------------------------------------------------------ the run

    def join(self, hello: Hello) -> Joined:
        """Join the run, see ``Comm.join``."""
        hello.check()
        self._run, self._codec = hello.run_id.hex(), get_codec(hello.codec)
        fields = {n: getattr(hello, n) for n in ("codec", "rng", "manifest", "base")}
        for name, value in fields.items():
            mine = value.encode() if isinstance(value, str) else value
            if self._put(f"identity/{name}", b"=" + mine) != b"=" + mine:
                raise CommError(
                    f"the run refuses this worker: {name} differs from that of the first worker; all must start from the same model and settings"
                )
        history = History(hello.run_id, self._codec, hello.first, hello.chain)
        history.extend(hello.commits)
        base = self._put("base", varint(history.step) + history.chain)
        reader = Reader(base)
        first, chain = reader.varint("step", 1 << 48), reader.take(CHAIN, "chain")
        start = next((s for s, c in history.ladder() if self._chain_at(s, first, chain, hello) == c), None)
        if start is None:
            raise CommError(
                f"the run refuses this worker: its history up to step {history.step} is another one, or ends before step {first}, "
                "where the store's begins; start from a log or snapshot of that step"
            )
        history.cut(start)
        self._history = history
        while self._read(history.step) is not None:
            pass
        if self._get("config") is None:
            self._put("config", b"\0" + Config(total=self._total).to_bytes())
        self._load()
        self._began = time.monotonic()
        tail = tuple(history.commits[start - history.first :])
        return Joined(self._config.slots_total, start, tail)

    def _chain_at(self, step: int, first: int, chain: bytes, hello: Hello) -> bytes | None:
        if step == first:
            return chain
        if step == 0:
            return History(hello.run_id, self._codec).chain if first == 0 else None
        value = self._get(f"commit/{step - 1}")
        return value[:CHAIN] if value else None

    def _read(self, step: int) -> Commit | None:
        """Take a decided step into the history."""
        history = self._history
        assert history is not None
        if (known := history.at(step)) is not None:
            return known
        value = self._get(f"commit/{step}")
        if value is None:
            return None
        try:
            commit = Commit.from_bytes(value[CHAIN:], self._codec)
            history.append(commit)
        except (FormatError, LowtideValueError) as error:
            raise CommError(f"commit/{step}: the store's value is damaged: {error}") from None
        if history.chain != value[:CHAIN]:
            raise CommError(f"commit/{step}: the store's steps do not follow each other")
        return commit

    def _load(self) -> None:
        self._raw = self._get("config") or b""
        self._config = Config.read(Reader(self._raw[1:]))

    def _change(self, add: Member | None = None, remove: set[int] | None = None) -> None:
        """Add or remove members; again if somebody else was faster."""
        while True:
            self._load()
            new = self._config.changed(0, [add] if add else [], remove or set())
            if new == self._config:
                return
            raw = b"\0" + new.to_bytes()
            if self._put("config", raw, self._raw) == raw:
                self._config, self._raw = new, raw
                return

    def slots(self, step: int) -> list[int]:
        """The slots of this worker, see ``Comm.slots``."""
        if self._joined(step).step > step:
            return []
        if self._get(f"commit/{step}") is not None:
            return []
        self._load()
        if self._config.member(self._me.node) is None:
            if any(m.name == self._me.name for m in self._config.members):
                gone = {m.node for m in self._config.members if m.name == self._me.name}
                self._change(remove=gone)  # this worker's last life
            self._change(add=self._me)
        end = time.monotonic() + self._patience
        while step == 0 and len(self._config.workers) < self._settings.wait_for:
            if time.monotonic() > end:
                raise CommError(
                    f"only {len(self._config.workers)} of {self._settings.wait_for} workers came in {self._patience:g} s"
                )
            time.sleep(0.02)
            self._load()
        self._began = time.monotonic()
        return self._config.slots_of(self._me.node)

    def exchange(self, step: int, codes: dict[int, int]) -> Commit:
        """Give codes, wait for the commit, see ``Comm.exchange``."""
        self._joined(step)
        if (known := self._read(step)) is not None:
            return known
        name = f"code/{step}/{self._me.node}"
        value = self._seal(name, encode(Submit(0, step, tuple(sorted(codes.items()))), self._codec))
        try:
            self._store.set(self._name(name), value)
            self._store.delete_key(self._name(f"code/{step - 3}/{self._me.node}"))
        except RuntimeError as error:
            raise _lost(error) from None
        end = time.monotonic() + self._patience
        while (commit := self._read(step)) is None:
            if time.monotonic() > end:
                raise CommError(
                    f"no commit of step {step} in {self._patience:g} s; the members are {self._names()}"
                )
            self._round(step)
        self._times.append(time.monotonic() - self._began)
        return commit

    @property
    def roster(self) -> dict[str, range]:
        """The slots of each worker that takes part now."""
        return {m.name: self._config.own_slots(m.node) for m in self._config.workers}

    @property
    def epoch(self) -> int:
        """0: the store orders, no worker leads."""
        return 0

    def _names(self) -> str:
        return ", ".join(m.name for m in self._config.members) or "(none)"

    def _deadline(self) -> float:
        times, s = sorted(self._times), self._settings
        return (
            s.first_deadline
            if len(times) < 4
            else max(s.min_deadline, 1.5 * times[math.ceil(0.9 * len(times)) - 1])
        )

    def _round(self, step: int) -> None:
        """Wait for others, or commit the step when it is this worker's turn."""
        self._load()
        config, rank = self._config, self._config.rank(self._me.node)
        due = self._began + self._deadline()
        if rank:
            # The members before this one have their turn first.
            self._wait([f"commit/{step}"], due + rank * self._settings.stagger - time.monotonic())
            if self._read(step) is not None:
                return
        names = {m.node: f"code/{step}/{m.node}" for m in config.workers}
        whole = self._wait(list(names.values()), due - time.monotonic())
        if self._get(f"commit/{step}") is not None:
            return
        found: dict[int, int] = {}
        answered = set()
        for node, name in names.items():
            if (value := self._get(name)) is not None:
                answered.add(node)
                message = decode(value, self._codec)
                if isinstance(message, Submit) and message.step == step:
                    found.update({s: c for s, c in message.codes if s not in found})
        wanted = max(1, math.ceil(self._settings.quorum * len(names)))
        if not whole and len(answered) < wanted and not all(self._misses[n] for n in set(names) - answered):
            self._misses.update(set(names) - answered)
            self._began = time.monotonic()  # too few: once more, and then without those who stayed away
            return
        for node in names:
            self._misses[node] = 0 if node in answered else self._misses[node] + 1
        if gone := {n for n in names if self._misses[n] >= self._settings.misses}:
            self._change(remove=gone)
        commit = commit_of(step, config.slots_total, found, self._codec.name)
        ahead = (
            History(bytes.fromhex(self._run), self._codec, step, self._joined(step).chain) if step else None
        )
        after = ahead or History(bytes.fromhex(self._run), self._codec)
        after.append(commit)
        self._put(f"commit/{step}", after.chain + commit.to_bytes(self._codec))

    def digest(self, step: int, digest: bytes) -> None:
        """Compare weights, see ``Comm.digest``: those of the time before, which all have given by now."""
        self._joined(step)
        for when, mine in self._digests:
            votes = [v for m in self._config.workers if (v := self._get(f"digest/{when}/{m.node}"))]
            count = Counter(votes)
            best = max(count.values(), default=0)
            if count[mine] == best and 2 * best > len(votes):
                self._agreed = max(self._agreed, when)
            elif 2 * best > len(votes) or len(count) > 1:
                raise DivergedError(when, min(self._agreed, when))
        name = f"digest/{step}/{self._me.node}"
        try:
            self._store.set(self._name(name), self._seal(name, digest))
        except RuntimeError as error:
            raise _lost(error) from None
        self._digests.append((step, digest))

    def close(self) -> None:
        """Leave the run."""
        if self._history is not None and self._config.member(self._me.node) is not None:
            self._change(remove={self._me.node})

    def _joined(self, step: int) -> History:
        history = self._history
        if history is None:
            raise CommError("join must be called first")
        if not history.first <= step <= history.step:
            raise CommError(
                f"step {step} does not follow this worker's history, which ends at step {history.step}"
            )
        return history


def _lost(error: Exception) -> CommError:
    return CommError(
        f"the store does not answer ({str(error).splitlines()[0]}); the process that hosts it must live"
    )
