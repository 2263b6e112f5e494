# SPDX-License-Identifier: Apache-2.0
"""Methods that keep a number for each weight: HiZOO's curvature and ConMeZO's momentum.

Both change the direction itself, so they read and write their state in chunks of plain torch, where other methods regenerate z
in a kernel. The state follows from the commits like the weights do: a replay makes it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lowtide import random
from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.spsa._manifest import Entry, Manifest
from lowtide.spsa._method import Method
from lowtide.spsa._schedule import StepUpdate, float32

#: Elements taken at a time.
CHUNK = 1 << 18


def _spans(n: int) -> Iterator[tuple[int, int]]:
    for start in range(0, n, CHUNK):
        yield start, min(start + CHUNK, n)


class Elementwise:
    """State of a method with one float32 for each weight.

    Args:
        tensors: the masters, float32.
        manifest, seed, method: of the run.
    """

    def __init__(self, tensors: Sequence[Tensor], manifest: Manifest, seed: int, method: Method) -> None:
        for e, t in zip(manifest, tensors, strict=True):
            if t.dtype != torch.float32:
                raise LowtideTypeError(
                    f"params: {e.name} must be float32 for {method.kind}, got {t.dtype}; pass masters='float32'"
                )
        self.manifest, self.seed, self.method = manifest, seed, method
        start = 1.0 if method.kind == "hizoo" else 0.0
        self.state = [torch.full((t.numel(),), start) for t in tensors]
        #: ConMeZO: root mean square of the momentum, followed on the host.
        self.rms = 0.0

    # ------------------------------------------------------------------ directions

    def _z(self, e: Entry, a: int, b: int, step: int, slot: int) -> Tensor:
        z: Tensor = random.sample(
            b - a,
            seed=self.seed,
            step=step,
            slot=slot,
            param=e.param,
            offset=a,
            dist=self.method.dist,
            like="torch",
        )
        return z

    def direction(self, e: Entry, a: int, b: int, step: int, slot: int) -> Tensor:
        """Elements [a, b) of what tensor ``e`` is moved along."""
        z = self._z(e, a, b, step, slot)
        state = self.state[e.param][a:b]
        if self.method.kind == "hizoo":
            return z.div_(state.sqrt())
        if self.rms == 0.0:
            return z
        angle = self.method.alpha
        return z.mul_(float32(math.sin(angle))).add_(state * float32(math.cos(angle) / self.rms))

    def perturb(self, out: Tensor, w: Tensor, e: Entry, scale: float, step: int, slot: int) -> None:
        """out = w + scale * direction, rounded to out's dtype."""
        flat_out, flat = out.view(-1), w.view(-1)
        for a, b in _spans(flat.numel()):
            flat_out[a:b] = flat[a:b] + self.direction(e, a, b, step, slot) * float32(scale)

    # ------------------------------------------------------------------ updates

    def apply(self, tensors: Sequence[Tensor], update: StepUpdate) -> None:
        """One step of weights and state."""
        if not update.directions:
            return
        for e in self.manifest:
            decay, coeffs = update.of_group(e.group)
            flat = tensors[e.param].view(-1)
            for a, b in _spans(flat.numel()):
                w = flat[a:b]
                if self.method.kind == "hizoo":
                    delta = self._hizoo(e, a, b, update, coeffs)
                else:
                    delta = self._conmezo(e, a, b, update, coeffs)
                if e.decay and decay != 1.0:
                    w.mul_(decay)
                w.add_(delta)
                if not math.isinf(e.floor):
                    w.clamp_(min=e.floor)
        if self.method.kind == "conmezo":
            self._follow(update)

    def _hizoo(self, e: Entry, a: int, b: int, update: StepUpdate, coeffs: Sequence[float]) -> Tensor:
        """HiZOO, algorithm 1: first the curvature, then a step along z / sqrt(H) with the new one."""
        h, alpha = self.state[e.param][a:b], self.method.alpha
        curvature = update.scalars[1::2]
        zs = [self._z(e, a, b, step, slot) for step, slot, _ in update.directions]
        growth = torch.zeros_like(h)
        for z, q in zip(zs, curvature, strict=True):
            growth.add_(z.square().mul_(float32(alpha * q / len(zs))))
        h.mul_(growth.add_(float32(1.0 - alpha)))
        delta = torch.zeros_like(h)
        for z, c in zip(zs, coeffs, strict=True):
            delta.add_(z.mul_(float32(c * e.scale)))
        return delta.div_(h.sqrt())

    def _conmezo(self, e: Entry, a: int, b: int, update: StepUpdate, coeffs: Sequence[float]) -> Tensor:
        """ConMeZO, algorithm 1: a step along the cone's direction, which then joins the momentum."""
        (step, slot, _), (c,), (g,) = update.directions[0], coeffs, update.scalars
        z = self.direction(e, a, b, step, slot)
        delta = z * float32(c * e.scale)
        beta = self._beta(update.step)
        self.state[e.param][a:b].mul_(float32(beta)).add_(z.mul_(float32((1.0 - beta) * g)))
        return delta

    def _beta(self, step: int) -> float:
        """The authors' warm-up: 0.1 for a tenth of it, then linear to beta."""
        m = self.method
        begin = m.interval // 10
        if step >= m.interval or m.interval <= 1:
            return m.beta
        return 0.1 if step < begin else 0.1 + (m.beta - 0.1) * (step - begin) / (m.interval - begin)

    def _follow(self, update: StepUpdate) -> None:
        """The momentum's root mean square after this step. u is orthogonal to m but for 1/sqrt(d), so no sum over
        weights is needed and every machine finds the same number."""
        beta, g = self._beta(update.step), update.scalars[0]
        angle = self.method.alpha if self.rms else math.pi / 2
        along = beta * self.rms + (1.0 - beta) * g * math.cos(angle)
        across = (1.0 - beta) * g * math.sin(angle)
        self.rms = math.sqrt(along * along + across * across)

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """Tensors and one number."""
        return {"tensors": [t.clone() for t in self.state], "rms": self.rms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave.

        Raises:
            LowtideValueError: other shapes; nothing was changed.
        """
        tensors = state["tensors"]
        if [(t.shape, t.dtype) for t in tensors] != [(t.shape, t.dtype) for t in self.state]:
            raise LowtideValueError(f"state_dict: the states of {self.method.kind} are of other tensors")
        self.state = [t.clone() for t in tensors]
        self.rms = float(state["rms"])

    def nbytes(self) -> int:
        """Bytes of the state."""
        return sum(t.nbytes for t in self.state)
