# SPDX-License-Identifier: Apache-2.0
"""Handlers by opcode. A pattern must match the whole opcode, so a modifier nobody thought of is an error."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..emitter import Emitter, Instruction
from ..errors import PtxError

Handler = Callable[[Emitter, Instruction, "re.Match[str]"], None]
_HANDLERS: list[tuple[re.Pattern[str], int, Handler]] = []


def opcode(pattern: str, operands: int = -1) -> Callable[[Handler], Handler]:
    """Register a handler for every opcode that the pattern matches in full; -1: any number of operands."""

    def add(handler: Handler) -> Handler:
        _HANDLERS.append((re.compile(pattern), operands, handler))
        return handler

    return add


def translate(e: Emitter, i: Instruction) -> None:
    for pattern, count, handler in _HANDLERS:
        if m := pattern.fullmatch(i.opcode):
            if count >= 0 and len(i.operands) != count:
                raise PtxError(f"{i.opcode} takes {count} operands, got {len(i.operands)}")
            return handler(e, i, m)
    raise PtxError(f"instruction {i.opcode} is not supported by the emulator")
