# SPDX-License-Identifier: Apache-2.0
"""The state-store and basis-store axes: how moments and bases lie in memory.

State is plain: tensors, ints, floats and strings in a dict. A stored moment ``name`` is either one tensor
``name`` or the pair ``name.codes`` (uint8) and ``name.absmax`` (float32, one a block of 256, or of 128 in 4 bits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideValueError
from lowtide.ops.matmul import Packed
from lowtide.ops.optim import STATE_BLOCK
from lowtide.optim.shards import Rows
from lowtide.quant._format import group_count, row_bytes

#: Bits of a code and the bytes that code zero in a moment of both signs; in a positive one they are 0.
STATE_BITS = {"fp32": 32, "int8": 8, "int4": 4}
#: Tensors below this size keep fp32 moments by default, as in bitsandbytes and torchao.
MIN_CODED = 4096
_ZERO = {8: 127, 4: 0x77}
#: The code map of a moment, by bits and whether it takes both signs.
_MAPS = {
    (8, True): "dynamic8", (8, False): "dynamic8_unsigned", (4, True): "dynamic", (4, False): "linear_nozero",
}  # fmt: skip


@dataclass(frozen=True)
class StateStore:
    """How optimizer moments are kept.

    Attributes:
        kind: ``"fp32"``; ``"int8"`` (8-bit dynamic map, Dettmers et al. 2022, blocks of 256 with an fp32 absmax;
            1.016 bytes an element); ``"int4"`` (Li et al. 2023: the signed 4-bit dynamic map for first moments, a linear one
            without zero for second ones, blocks of 128; 0.531 bytes an element).
        min_numel: smaller tensors stay fp32. Decided on the tensor's own size, never on a shard's.
    """

    kind: str = "fp32"
    min_numel: int = MIN_CODED

    def __post_init__(self) -> None:
        if self.kind not in STATE_BITS:
            raise LowtideValueError(f"state must be 'fp32', 'int8' or 'int4', got {self.kind!r}")
        if self.min_numel < 0:
            raise LowtideValueError(f"min_numel must be >= 0, got {self.min_numel!r}")

    def bits(self, numel: int) -> int:
        """Bits a moment of ``numel`` elements is stored in: 32, 8 or 4."""
        return STATE_BITS[self.kind] if numel >= self.min_numel else 32

    @property
    def code_bits(self) -> int:
        """Bits of a code, 32 where there are none."""
        return STATE_BITS[self.kind]

    def nbytes(self, numel: int) -> int:
        """Bytes a moment of ``numel`` elements takes."""
        bits = self.bits(numel)
        if bits == 32:
            return 4 * numel
        return row_bytes(numel, bits) + 4 * group_count(numel, STATE_BLOCK[bits])

    def create(
        self, state: dict[str, Any], name: str, shape: torch.Size, signed: bool, rows: Rows | None = None
    ) -> None:
        """Add a zero moment to ``state``; with ``rows`` one that is sharded like the tensor these are of."""
        numel = shape.numel()
        bits = self.bits(numel)
        if bits == 32:
            state[name] = (
                torch.zeros(shape, dtype=torch.float32) if rows is None else rows.like(shape).zeros()
            )
            return
        zero = _ZERO[bits] if signed else 0
        if rows is not None:
            state[f"{name}.codes"], state[f"{name}.absmax"] = rows.like(shape).coded(bits, zero)
            return
        state[f"{name}.codes"] = torch.full((row_bytes(numel, bits),), zero, dtype=torch.uint8)
        state[f"{name}.absmax"] = torch.zeros(group_count(numel, STATE_BLOCK[bits]), dtype=torch.float32)

    def load(self, state: dict[str, Any], name: str, shape: torch.Size, signed: bool) -> Tensor:
        """A copy of a moment in fp32, of the gradient's ``shape``."""
        if name in state:
            return state[name].reshape(shape).clone()  # type: ignore[no-any-return]
        if shape.numel() == 0:
            return torch.zeros(shape)
        from lowtide import ops

        codes, absmax = state[f"{name}.codes"], state[f"{name}.absmax"]
        bits = STATE_BITS[self.kind]
        flat = ops.dequantize_map(
            codes[None], absmax[None], map=_MAPS[bits, signed], group=STATE_BLOCK[bits], cols=shape.numel()
        )
        return flat.reshape(shape)

    def save(self, state: dict[str, Any], name: str, value: Tensor, signed: bool) -> None:
        """Overwrite a moment by ``value`` (fp32), rounding to nearest."""
        if name in state:
            state[name].copy_(value.reshape(state[name].shape))
            return
        if value.numel() == 0:
            return
        from lowtide import ops

        bits = STATE_BITS[self.kind]
        ops.quantize_map_list_(
            [value.reshape(1, -1)], [state[f"{name}.codes"][None]], [state[f"{name}.absmax"][None]],
            map=_MAPS[bits, signed], group=STATE_BLOCK[bits],
        )  # fmt: skip

    def reset(self, state: dict[str, Any], name: str, signed: bool) -> None:
        """Set a moment to zero in place."""
        if name in state:
            state[name].zero_()
        else:
            state[f"{name}.codes"].fill_(_ZERO[STATE_BITS[self.kind]] if signed else 0)
            state[f"{name}.absmax"].zero_()


@dataclass(frozen=True)
class BasisStore:
    """How a dense basis (r x d, orthonormal rows) or an error (m x n) is kept.

    Attributes:
        kind: ``"fp32"``, ``"bf16"``, ``"int8"`` or ``"int4"``. INT4 takes half a byte an element, dequantized
            per tile inside the projections (Q-GaLore, Zhang et al. 2024, section 3.2).
        group: columns that share a scale and a zero point, a multiple of 32.
    """

    kind: str = "fp32"
    group: int = 256

    def __post_init__(self) -> None:
        if self.kind not in ("fp32", "bf16", "int8", "int4"):
            raise LowtideValueError(f"basis must be 'fp32', 'bf16', 'int8' or 'int4', got {self.kind!r}")
        if self.group < 32 or self.group % 32:
            raise LowtideValueError(f"group must be a multiple of 32, got {self.group!r}")

    @property
    def bits(self) -> int:
        """Bits of a code; 0 for the unquantized kinds."""
        return {"int8": 8, "int4": 4}.get(self.kind, 0)

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes a matrix takes, scales and zero points included."""
        if self.bits == 0:
            return rows * cols * (2 if self.kind == "bf16" else 4)
        return rows * (row_bytes(cols, self.bits) + 5 * group_count(cols, self.group))

    def save(self, state: dict[str, Any], matrix: Tensor, name: str = "basis") -> None:
        """Put ``matrix`` (fp32) into ``state``."""
        if self.bits == 0:
            state[name] = matrix.to(torch.bfloat16) if self.kind == "bf16" else matrix
            return
        from lowtide import ops

        codes, scale, zero = ops.quantize_group(matrix, bits=self.bits, group=self.group, scheme="asymmetric")
        state[f"{name}.codes"], state[f"{name}.scale"], state[f"{name}.zero"] = codes, scale, zero
        state[f"{name}.cols"] = matrix.shape[1]

    def load(self, state: dict[str, Any], name: str = "basis") -> Tensor | Packed | None:
        """The stored matrix as a matmul operand, or None before the first :meth:`save`."""
        if name in state:
            return state[name]  # type: ignore[no-any-return]
        if f"{name}.codes" not in state:
            return None
        codes = state[f"{name}.codes"]
        return Packed(
            codes=codes,
            scale=state[f"{name}.scale"],
            zero=state[f"{name}.zero"],
            bits=self.bits,
            group=self.group,
            shape=(codes.shape[0], state[f"{name}.cols"]),
        )

    def dense(self, state: dict[str, Any], name: str = "basis") -> Tensor | None:
        """The stored matrix as an fp32 tensor (for refreshes, never for projections)."""
        stored = self.load(state, name)
        if stored is None or isinstance(stored, Tensor):
            return None if stored is None else stored.float()
        from lowtide import ops

        return ops.dequantize_group(
            stored.codes, stored.scale, stored.zero, bits=self.bits, group=self.group, cols=stored.shape[1]
        )
