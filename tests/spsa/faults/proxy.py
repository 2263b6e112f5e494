# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy that knows where frames begin, and drops, repeats, swaps or delays some of them."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time

from lowtide.spsa.comm._session import OVERHEAD, PREAMBLE_BYTES


class Proxy:
    """Listens on a port of its own and carries to ``target``; ``faults`` is the share of frames something happens to."""

    def __init__(self, target: tuple[str, int], seed: int) -> None:
        self.target, self.faults = target, 0.0
        self.happened = 0
        self._random = random.Random(seed)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed = True
        for s in [self._socket, *self._open]:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self.target, timeout=2.0)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(a, b), daemon=True).start()

    def _carry(self, a: socket.socket, b: socket.socket) -> None:
        try:
            with a.makefile("rb") as stream:
                b.sendall(stream.read(PREAMBLE_BYTES))
                while True:
                    head = stream.read(2)
                    if len(head) < 2:
                        break
                    frame = head + stream.read(int.from_bytes(head, "little") + OVERHEAD - 2)
                    for out in self._spoil(frame):
                        b.sendall(out)
        except (OSError, ValueError):
            pass
        for s in (a, b):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    _held: bytes | None = None

    def _spoil(self, frame: bytes) -> list[bytes]:
        if self._random.random() >= self.faults:
            return [frame]
        self.happened += 1
        kind = self._random.randrange(4)
        if kind == 0:
            return []
        if kind == 1:
            return [frame, frame]
        if kind == 2:  # the frame that was held back comes after a later one
            held, self._held = self._held, frame
            return [frame, held] if held else []
        time.sleep(self._random.uniform(0.0, 0.3))
        return [frame]
