# SPDX-License-Identifier: Apache-2.0
"""How a tensor of a parameter that FSDP2 shards lies on the processes, and what each of them keeps of its moments.

``fully_shard`` makes parameters DTensors with placement Shard(0): process i has rows ``[i k, (i + 1) k)`` with ``k =
ceil(rows / processes)``. Results do not depend on that: random numbers are addressed by the index in the whole tensor, and blocks
of 256 elements begin where they begin in the whole tensor. A block that lies on two processes is computed by both of them.

Moments in fp32 are DTensors of the gradient's shape. Codes and absmax are DTensors too: of the shapes they have without sharding
where every process has as many whole blocks; otherwise of shape (processes, bytes of the blocks that a process touches).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lowtide.ops.optim import STATE_BLOCK, STEP_BLOCK
from lowtide.quant._format import group_count, row_bytes


def is_distributed(x: Any) -> bool:
    """Whether ``x`` is a DTensor. There is none before torch.distributed.tensor was imported, which takes a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """What this process has of ``x``; a plain tensor is all there."""
    if not is_distributed(x):
        return x
    with torch.no_grad():
        part: Tensor = x.to_local()  # type: ignore[attr-defined]
    return part


def rows_of(shape: torch.Size, world: int, rank: int) -> tuple[int, int]:
    """First and last row that process ``rank`` of ``world`` has (the latter is not among them)."""
    count = shape[0] if shape else 1
    each = -(-count // world)
    return min(rank * each, count), min((rank + 1) * each, count)


def windows(shape: torch.Size, world: int) -> list[tuple[int, int]]:
    """For each process the elements of the blocks of 256 that it touches."""
    width, found = shape[1:].numel() if shape else 1, []
    for first, last in (rows_of(shape, world, rank) for rank in range(world)):
        begin, end = first * width, last * width
        whole = begin - begin % STEP_BLOCK, min(-(-end // STEP_BLOCK) * STEP_BLOCK, shape.numel())
        found.append(whole if begin < end else (0, 0))
    return found


@dataclass(frozen=True)
class Rows:
    """The rows of a tensor that this process has.

    Attributes:
        mesh, placements: of the DTensor.
        mesh_dim: the dimension of the mesh that shards, None for none: then every process has all rows.
        shape: of the whole tensor.
    """

    mesh: Any
    placements: tuple[Any, ...]
    mesh_dim: int | None
    shape: torch.Size

    @staticmethod
    def of(x: Any) -> Rows:
        """Of a DTensor whose placements :func:`lowtide.optim.sharded.check` has seen."""
        sharded = [i for i, placement in enumerate(x.placements) if placement.is_shard()]
        return Rows(x.device_mesh, tuple(x.placements), sharded[0] if sharded else None, x.shape)

    def like(self, shape: torch.Size) -> Rows:
        """Of another tensor with as many rows."""
        return replace(self, shape=shape)

    @property
    def group(self) -> Any:
        """The processes that share the rows."""
        return None if self.mesh_dim is None else self.mesh.get_group(self.mesh_dim)

    @cached_property
    def world(self) -> int:
        """How many processes share the rows."""
        return 1 if self.mesh_dim is None else int(self.mesh.size(self.mesh_dim))

    @cached_property
    def rank(self) -> int:
        """Which of them this one is."""
        return 0 if self.mesh_dim is None else int(self.mesh.get_local_rank(self.mesh_dim))

    @property
    def numel(self) -> int:
        """Elements of the whole tensor."""
        return self.shape.numel()

    @cached_property
    def rows(self) -> tuple[int, int]:
        """First and last row of this process (the latter is not among them)."""
        return rows_of(self.shape, self.world, self.rank)

    @property
    def start(self) -> int:
        """Index of the first element of this process in the whole tensor."""
        return self.rows[0] * self._width

    @property
    def stop(self) -> int:
        """Index after its last element."""
        return self.rows[1] * self._width

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """First elements of the blocks of 256 that lie on more than one process, ascending."""
        ends = (rows_of(self.shape, self.world, rank)[1] * self._width for rank in range(self.world - 1))
        return tuple(
            sorted({end - end % STEP_BLOCK for end in ends if end % STEP_BLOCK and end < self.numel})
        )

    @cached_property
    def window(self) -> tuple[int, int]:
        """The elements of the blocks that this process touches."""
        return windows(self.shape, self.world)[self.rank]

    @property
    def even(self) -> bool:
        """Whether every process has as many whole blocks."""
        return self.world == 1 or (not self.cuts and (self.shape[0] if self.shape else 1) % self.world == 0)

    def zeros(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A DTensor of zeros of the whole tensor's shape."""
        part = (self.rows[1] - self.rows[0], *self.shape[1:]) if self.shape else ()
        return self.wrap(torch.zeros(part, dtype=dtype), self.shape)

    def coded(self, bits: int, zero: int) -> tuple[Tensor, Tensor]:
        """Codes and absmax of a zero moment, DTensors."""
        leading: tuple[int, ...]
        whole: tuple[int, ...]
        if self.even:
            n, leading, whole = self.stop - self.start, (), (self.numel,)
        else:
            n = max(end - begin for begin, end in windows(self.shape, self.world))
            leading, whole = (1,), (self.world, n)

        def sizes(*shape: int) -> tuple[torch.Size, torch.Size]:
            *first, count = shape
            return (
                torch.Size((*first, row_bytes(count, bits))),
                torch.Size((*first, group_count(count, STATE_BLOCK[bits]))),
            )

        (codes, absmax), (all_codes, all_absmax) = sizes(*leading, n), sizes(*whole)
        return (
            self.wrap(torch.full(codes, zero, dtype=torch.uint8), all_codes),
            self.wrap(torch.zeros(absmax), all_absmax),
        )

    def wrap(self, part: Tensor, shape: torch.Size) -> Tensor:
        """A DTensor of this shape of which this process has ``part``."""
        from torch.distributed.tensor import DTensor

        stride = torch.empty(shape, device="meta").stride()
        whole: Tensor = DTensor.from_local(
            part, self.mesh, self.placements, run_check=False, shape=shape, stride=stride
        )
        return whole

    @property
    def _width(self) -> int:
        return self.shape[1:].numel() if self.shape else 1


@dataclass(frozen=True)
class Piece:
    """A part of a shard that a kernel can step: it begins where a block does.

    Attributes:
        tensors: flat tensors by name: weight ``p``, gradient ``g``, moments. offset: index of its first element in the
            whole tensor. back: after the step: (to, from) of what was stepped in a copy.
    """

    tensors: dict[str, Tensor]
    offset: int
    back: tuple[tuple[Tensor, Tensor], ...] = ()

    def finish(self) -> None:
        """Copy back what was stepped elsewhere."""
        for to, source in self.back:
            to.copy_(source)


def pieces(
    rows: Rows, own: dict[str, Tensor], coded: dict[str, tuple[Tensor, int]], halo: dict[int, Tensor]
) -> Iterator[Piece]:
    """The parts of a shard.

    Args:
        rows: of the tensor.
        own: tensors of this process's elements, by name; ``g`` is read only unless there is no ``p``.
        coded: codes (with their bits) and absmax (with minus bits) of the window, by name.
        halo: whole blocks of the gradient (fp32) by :attr:`Rows.cuts`, where there are codes.
    """
    start, stop = rows.start, rows.stop
    if start == stop:
        return
    flat = {name: x.reshape(-1) for name, x in own.items()}
    begin, end = rows.window
    head = begin if start != begin else None
    tail = end - (end % STEP_BLOCK or STEP_BLOCK) if coded and stop != end else None
    if tail == head:
        tail = None
    for block in (b for b in (head, tail) if b is not None):
        yield _edge(rows, flat, coded, halo, block)
    first = start if head is None else min(head + STEP_BLOCK, stop)
    last = stop if tail is None else tail
    if first < last:
        body = {name: x[first - start : last - start] for name, x in flat.items()}
        yield Piece({**body, **_within(coded, first - begin, last - begin)}, first)


def _edge(
    rows: Rows,
    flat: dict[str, Tensor],
    coded: dict[str, tuple[Tensor, int]],
    halo: dict[int, Tensor],
    block: int,
) -> Piece:
    size = min(STEP_BLOCK, rows.numel - block)
    low, high = max(block, rows.start), min(block + STEP_BLOCK, rows.stop)
    tensors, back = {}, []
    for name, x in flat.items():
        part = x[low - rows.start : high - rows.start]
        if name == "g" and coded:
            tensors[name] = halo[block][:size].clone()
        else:
            tensors[name] = x.new_zeros(size)
            tensors[name][low - block : high - block] = part
        if name != "g" or "p" not in flat:
            back.append((part, tensors[name][low - block : high - block]))
    begin = rows.window[0]
    return Piece({**tensors, **_within(coded, block - begin, block - begin + size)}, block, tuple(back))


def _within(coded: dict[str, tuple[Tensor, int]], first: int, last: int) -> dict[str, Tensor]:
    """Codes and absmax of elements [first, last) of the window; first begins a block."""
    found = {}
    for name, (x, bits) in coded.items():
        if bits > 0:
            at, count = row_bytes(first, bits), row_bytes(last - first, bits)
        else:
            at, count = first // STATE_BLOCK[-bits], group_count(last - first, STATE_BLOCK[-bits])
        found[name] = x[at : at + count]
    return found


def exchange(work: list[tuple[Rows, Tensor]]) -> list[dict[int, Tensor]]:
    """For each gradient (what this process has of it) the blocks that other processes have a part of, whole, in fp32.

    One sum over all processes; bits of zero are added to the bits of each element, so that nothing is rounded.
    """
    import torch.distributed as dist

    found: list[dict[int, Tensor]] = [{} for _ in work]
    groups: dict[Any, list[int]] = {}
    for i, (rows, _) in enumerate(work):
        if rows.cuts:
            groups.setdefault(rows.group, []).append(i)
    for group, members in groups.items():
        count = sum(len(work[i][0].cuts) for i in members)
        bits = torch.zeros(count, STEP_BLOCK, dtype=torch.int32, device=work[members[0]][1].device)
        at = 0
        for i in members:
            rows, g = work[i]
            for block in rows.cuts:
                low, high = max(block, rows.start), min(block + STEP_BLOCK, rows.stop)
                if low < high:
                    part = g.reshape(-1)[low - rows.start : high - rows.start].float()
                    bits[at, low - block : high - block] = part.view(torch.int32)
                found[i][block] = bits[at].view(torch.float32)
                at += 1
        dist.all_reduce(bits, group=group)
    return found


def codes_of(state: dict[str, Any], bits: int) -> dict[str, tuple[Tensor, int]]:
    """What this process has of the codes and absmax in ``state``, flat, with the bits that :func:`pieces` wants."""
    found = {}
    for name, x in state.items():
        if name.endswith((".codes", ".absmax")) and not name.startswith("basis"):
            found[name] = local(x).reshape(-1), bits if name.endswith(".codes") else -bits
    return found
