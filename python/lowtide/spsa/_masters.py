# SPDX-License-Identifier: Apache-2.0
"""The weights that a run defines. Only committed updates change them; probes read them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowtide import ops
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.spsa._elementwise import Elementwise
from lowtide.spsa._manifest import Entry, Manifest
from lowtide.spsa._method import Method
from lowtide.spsa._packed import check_packed, perturb_codes, quant_of, replay_codes, schedule_of
from lowtide.spsa._schedule import StepUpdate

if TYPE_CHECKING:
    from lowtide.quant._weight import QuantWeight

#: (dir_step, dir_slot) of a direction in the random streams.
Address = tuple[int, int]
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_master(name: str, t: Tensor) -> None:
    """Refuse a tensor that cannot be a master."""
    if hasattr(t, "placements"):
        raise LowtideTypeError(
            f"params: {name} is sharded (a DTensor); zeroth-order training keeps weights whole on each process and sends a byte a "
            "direction instead (comm=), so leave fully_shard out"
        )
    if t.dtype not in FLOATS:
        raise LowtideTypeError(
            f"params: {name} must be float32, bfloat16 or float16, got {t.dtype}; freeze it, or convert it with .float()"
        )
    if not t.is_contiguous():
        raise LowtideValueError(
            f"params: {name} must be contiguous (its elements are addressed in C order), got strides {t.stride()}; "
            "make it so with p.data = p.data.contiguous()"
        )


@dataclass(frozen=True)
class _Plan:
    """Arguments of a probe that stay the same from step to step: places among the outputs, and one value for each."""

    places: list[int]
    ids: list[int]
    scales: list[float]
    thresholds: list[float]


class Masters:
    """Tensors by name, in the manifest's order.

    Args:
        tensors: name -> tensor of the manifest's shape and dtype; changed in place. Packed codes (uint8): the parameter of
            their :class:`lowtide.quant.Linear`.
        manifest: what they are.
        seed: of the run, 63 bits.
        method: constants of the run.

    Raises:
        LowtideValueError, LowtideTypeError: a tensor is missing or differs from its entry; nothing was changed.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], manifest: Manifest, *, seed: int, method: Method | None = None
    ) -> None:
        self.manifest, self.seed, self.method = manifest, seed, method or Method()
        self.tensors: list[Tensor] = []
        #: What the codes of packed weights mean, by id.
        self.packed: dict[int, QuantWeight] = {}
        for e in manifest:
            t = tensors.get(e.name)
            if t is None:
                raise LowtideValueError(f"tensors: {e.name} of the manifest is missing")
            if tuple(t.shape) != e.shape or str(t.dtype).removeprefix("torch.") != e.dtype:
                raise LowtideValueError(
                    f"tensors: {e.name} must be {e.dtype} of shape {e.shape}, got {t.dtype} of shape {tuple(t.shape)}"
                )
            if e.dtype == "uint8":
                self.packed[e.param] = check_packed(e, quant_of(t))
            else:
                check_master(e.name, t)
            self.tensors.append(t.detach())
        self._plans: dict[tuple[int, ...], _Plan] = {}
        #: State of methods that keep a number for each weight.
        self.elements: Elementwise | None = None
        if self.method.kind != "plain":
            self.elements = Elementwise(self.tensors, manifest, seed, self.method)

    def take(self, manifest: Manifest) -> None:
        """Go on under a manifest of the same tensors with other scales and thresholds: those of a saved run."""
        self.manifest = manifest
        self._plans.clear()
        if self.elements is not None:
            self.elements.manifest = manifest

    # ------------------------------------------------------------------ probes

    def low_rank(self, e: Entry) -> bool:
        """Whether LOZO's factors, and not a dense direction, move this tensor."""
        return self.method.rank > 0 and len(e.shape) >= 2 and e.dtype != "uint8"

    def _dense(self, e: Entry) -> bool:
        return not self.low_rank(e) and e.param not in self.packed

    def perturb(self, outs: Sequence[Tensor], ids: Sequence[int], eps: float, address: Address) -> None:
        """outs[i] = master + eps s z of the tensors ``ids``.

        Args:
            outs: contiguous tensors of the masters' shapes, any float dtype; may be the masters themselves.
            ids: their positions in the manifest.
            eps: signed size of the step; eps s is rounded to float32.
            address: (dir_step, dir_slot) of the direction.
        """
        step, slot = address
        if self.elements is not None:
            for out, i in zip(outs, ids, strict=True):
                e = self.manifest.entries[i]
                self.elements.perturb(out, self.tensors[i], e, eps * e.scale, step, slot)
            return
        which = tuple(ids)
        for out, i in zip(outs, which, strict=True):
            e = self.manifest.entries[i]
            if (quant := self.packed.get(i)) is not None:
                perturb_codes(out, self.tensors[i], quant, e, eps, self.seed, self.method.dist_id, address)
            elif self.low_rank(e):
                ops.spsa_low_rank_perturb(
                    out,
                    self.tensors[i],
                    eps * e.scale,
                    self.seed,
                    step,
                    self._v_step(step),
                    slot,
                    e.param,
                    self.method.rank,
                )
        plan = self._plans.get(which)
        if plan is None:
            plan = self._plans[which] = self._plan(which)
        if not plan.places:
            return
        targets = outs if len(plan.places) == len(which) else [outs[k] for k in plan.places]
        ops.spsa_perturb_list(
            targets, [self.tensors[i] for i in plan.ids], [eps * s for s in plan.scales], self.seed, step, slot,
            plan.ids, self.method.dist_id, plan.thresholds,
        )  # fmt: skip

    def _plan(self, which: Sequence[int]) -> _Plan:
        entries = [self.manifest.entries[i] for i in which]
        dense = [(k, e) for k, e in enumerate(entries) if self._dense(e)]
        return _Plan(
            [k for k, _ in dense],
            [e.param for _, e in dense],
            [e.scale for _, e in dense],
            [e.threshold for _, e in dense],
        )

    def by_rows(self, i: int) -> bool:
        """Whether the method can perturb some rows of a matrix and leave the others."""
        e = self.manifest.entries[i]
        return self.elements is None and self._dense(e) and len(e.shape) == 2

    def perturb_rows(self, parts: Sequence[tuple[Tensor, int]], i: int, eps: float, address: Address) -> None:
        """:meth:`perturb` of parts of one matrix: outputs, of one row or of consecutive ones, each with its first row."""
        e, w, n = self.manifest.entries[i], self.tensors[i], len(parts)
        width = w.shape[1]
        sources = [w[r] if out.dim() == 1 else w[r : r + len(out)] for out, r in parts]
        ops.spsa_perturb_list(
            [out for out, _ in parts], sources, [eps * e.scale] * n, self.seed, *address, [e.param] * n,
            self.method.dist_id, [e.threshold] * n, [r * width for _, r in parts],
        )  # fmt: skip

    def _v_step(self, step: int) -> int:
        """Step at which LOZO drew the V in use."""
        return step - step % self.method.interval

    # ------------------------------------------------------------------ updates

    def apply(self, updates: Sequence[StepUpdate]) -> None:
        """Apply steps in order; bit for bit what one call for each of them gives."""
        if not updates:
            return
        with torch.no_grad():
            if self.elements is not None:
                for update in updates:
                    self.elements.apply(self.tensors, update)
                return
            key = lambda e: (e.group, e.decay)  # noqa: E731
            for (group, decay), entries in groupby(sorted(self.manifest, key=key), key):
                self._apply(list(entries), group, decay, updates)

    def _apply(self, entries: list[Entry], group: int, decays: bool, updates: Sequence[StepUpdate]) -> None:
        steps = []
        for update in updates:
            decay, coeffs = update.of_group(group)
            decay = decay if decays else 1.0
            if coeffs or decay != 1.0:
                steps.append((update, decay, coeffs))
        if not steps:
            return
        dense = [e for e in entries if self._dense(e)]
        schedule = schedule_of(
            [
                (u.step, d, [(a, b, c) for (a, b, _), c in zip(u.directions, coeffs, strict=True)])
                for u, d, coeffs in steps
            ]
        )
        if dense:
            ops.spsa_replay_list_(
                [self.tensors[e.param] for e in dense],
                [e.param for e in dense],
                [e.scale for e in dense],
                [e.threshold for e in dense],
                [e.floor for e in dense],
                self.seed,
                self.method.dist_id,
                *schedule,
            )
        for e in entries:
            w, dist = self.tensors[e.param], self.method.dist_id
            if (quant := self.packed.get(e.param)) is not None:
                replay_codes(w, quant, e, self.seed, dist, schedule)
            elif self.low_rank(e):
                v_steps = torch.tensor([self._v_step(s) for s in schedule[3].tolist()], dtype=torch.int64)
                ops.spsa_low_rank_replay_(
                    w, e.scale, self.seed, e.param, self.method.rank, *schedule[:4], v_steps, *schedule[4:]
                )

    # ------------------------------------------------------------------ digests

    def tensor_digests(self) -> list[int]:
        """A 64-bit digest of each tensor's bits, of its elements and their places."""
        return [int(ops.spsa_digest(t)) & ((1 << 64) - 1) for t in self.tensors]

    def digest(self) -> bytes:
        """16 bytes that change with any bit of any tensor: BLAKE2b-128 over the tensors' digests."""
        whole = b"".join(d.to_bytes(8, "little") for d in self.tensor_digests())
        return hashlib.blake2b(whole, digest_size=16).digest()
