# SPDX-License-Identifier: Apache-2.0
"""The fused probe: one forward on a doubled batch evaluates both ends of a direction.

Inputs are doubled along their first dimension; the first half runs at w + eps z, the second at w - eps z. Linear layers
perturb a panel of rows of the weight at a time, both signs from one reading and one z, and multiply it while it is in cache;
all other modules that own parameters run once for each half. The closure's first call gets the plus half, its second call, with
the same inputs, the minus half that was kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lowtide.errors import LowtideRuntimeError, LowtideValueError
from lowtide.spsa._masters import Address, Masters
from lowtide.spsa._probe_scratch import ScratchProbe

T = TypeVar("T")
#: Bytes of a panel of perturbed rows, and of its twin.
PANEL_BYTES = 1 << 21
_REMEDY = "use probe='scratch'"


def _fail(what: str) -> LowtideRuntimeError:
    return LowtideRuntimeError(f"probe='fused': {what}; {_REMEDY}")


def _same(a: Any, b: Any) -> bool:
    """Whether two calls have the same arguments."""
    x, x_spec = tree_flatten(a)
    y, y_spec = tree_flatten(b)
    if x_spec != y_spec:
        return False
    for p, q in zip(x, y, strict=True):
        if isinstance(p, Tensor) and isinstance(q, Tensor):
            if p is not q and (p.shape != q.shape or p.dtype != q.dtype or not torch.equal(p, q)):
                return False
        elif p is not q and p != q:
            return False
    return True


def _norm(x: Tensor) -> float:
    return math.sqrt(float(x.square().sum()))


class FusedProbe(ScratchProbe):
    """Both ends of a direction in one forward. Peak memory: a batch twice as large, a panel of each linear layer, the largest other module.

    For models whose first dimension is the batch everywhere and whose layers draw no random numbers. Each new set of input shapes is
    checked once against the scratch probe.
    """

    def __init__(self, masters: Masters, live: Sequence[Tensor], module: nn.Module | None) -> None:
        if module is None:
            raise LowtideValueError("probe='fused' needs module=model; without one use probe='snapshot'")
        super().__init__(masters, live, module)
        self._pending: tuple[float, Address] | None = None
        self._kept: list[tuple[Any, Any]] = []  # arguments and minus halves of the first closure's calls
        self._checked: set[Any] = set()
        self._mode = ""  # "", "doubled", or within a module that runs once a half: "half"
        self._sign = 1.0  # of that half
        self._rows = 0  # of the doubled batch
        self._panels: dict[torch.dtype, Tensor] = {}

    # ------------------------------------------------------------------ evaluations

    def begin(self) -> None:
        """See :meth:`Probe.begin`."""
        super().begin()
        self._pending = None
        self._kept.clear()

    def end(self) -> None:
        """See :meth:`Probe.end`."""
        super().end()
        self._pending = None
        self._kept.clear()

    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return super().nbytes() + sum(p.nbytes for p in self._panels.values())

    def evaluate(self, closure: Callable[[], T], eps: float, address: Address) -> T:
        """See :meth:`Probe.evaluate`."""
        if eps == 0.0:
            return super().evaluate(closure, eps, address)
        if self._pending is not None:
            if self._pending != (-eps, address):
                raise LowtideRuntimeError(
                    "probe='fused' evaluates w + eps z and w - eps z together, as estimator='central' asks for them; "
                    f"for other estimators {_REMEDY}"
                )
            return self._second(closure)
        self._check_random()
        if not self._known:
            state = torch.get_rng_state()
            super().evaluate(closure, eps, address)
            torch.set_rng_state(state)
        result = self._first(closure, eps, address)
        self._pending = (eps, address)
        return result

    def _first(self, closure: Callable[[], T], eps: float, address: Address) -> T:
        self._eps, self._address = eps, address
        self._kept.clear()
        try:
            with self._forwards(self._root):
                result = closure()
        except BaseException:
            self._kept.clear()
            raise
        if not self._kept:
            raise _fail("the closure did not call the model that was passed as module=")
        return result

    def _second(self, closure: Callable[[], T]) -> T:
        kept = iter(self._kept)

        def root(_: Any, args: Any, kwargs: Any) -> Any:
            before, minus = next(kept, (None, None))
            if before is None or not _same(before, (args, kwargs)):
                raise _fail("the closure's second call of a step has other inputs than its first")
            return minus

        try:
            with self._forwards(root):
                result = closure()
        finally:
            self._kept.clear()
            self._pending = None
        return result

    def _check_random(self) -> None:
        assert self.module is not None
        for name, m in self.module.named_modules():
            noisy = isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0
            if m.training and (noisy or isinstance(m, nn.modules.batchnorm._BatchNorm)):
                raise LowtideRuntimeError(
                    f"probe='fused': {name or 'the model'} ({type(m).__name__}) is in training mode, and its two halves would differ "
                    f"by more than the weights; call model.eval() or {_REMEDY}"
                )

    # ------------------------------------------------------------------ forwards

    @contextmanager
    def _forwards(self, root: Callable[[Any, Any, Any], Any]) -> Iterator[None]:
        """Replace the forwards of the model (by ``root``) and of each module that owns parameters."""
        assert self.module is not None
        patched: list[tuple[nn.Module, Any]] = []

        def patch(m: nn.Module, run: Callable[[Any, Any, Any], Any]) -> None:
            own = m.__dict__.get("forward")
            original = m.forward
            patched.append((m, own))
            object.__setattr__(m, "forward", lambda *args, **kwargs: run(original, args, kwargs))

        try:
            for m in self._units:
                patch(m, partial(self._unit, m))
            patch(self.module, root)
            yield
        finally:
            for m, own in reversed(patched):
                if own is None:
                    object.__delattr__(m, "forward")
                else:
                    object.__setattr__(m, "forward", own)
            self._mode = ""
            self.restore()
            self._swapped.clear()
            self._frames.clear()
            self._arena.reset(self.home[0].device if self.home else torch.device("cpu"))

    def _root(self, original: Any, args: Any, kwargs: Any) -> Any:
        if self._mode:
            raise _fail("the model calls itself")
        if kwargs.get("labels") is not None:
            raise _fail(
                "labels= makes the model return one loss of both halves. Leave labels out and compute the loss from the logits in the closure"
            )
        leaves, spec = tree_flatten((args, kwargs))
        batch = next((t.shape[0] for t in leaves if isinstance(t, Tensor) and t.dim() > 0), 0)
        if batch == 0:
            raise _fail("no input of the model has a batch dimension")
        doubled = [
            torch.cat((t, t)) if isinstance(t, Tensor) and t.dim() > 0 and t.shape[0] == batch else t
            for t in leaves
        ]
        a, k = tree_unflatten(doubled, spec)
        self._mode, self._rows = "doubled", 2 * batch
        state = torch.get_rng_state()
        try:
            output = original(*a, **k)
        finally:
            self._mode = ""
        if not torch.equal(state, torch.get_rng_state()):
            raise _fail("the model draws random numbers, such as dropout, which differ between the halves")
        plus, minus = self._halves(output)
        shapes = tuple((tuple(t.shape), t.dtype) if isinstance(t, Tensor) else None for t in leaves)
        if shapes not in self._checked:
            self._compare(original, args, kwargs, plus, minus)
            self._checked.add(shapes)
        self._kept.append(((args, kwargs), minus))
        return plus

    def _halves(self, output: Any) -> tuple[Any, Any]:
        for t in tree_leaves(output):
            if isinstance(t, Tensor):
                if t.dim() == 0:
                    raise _fail(
                        "the model returns a tensor without dimensions, such as a loss of both halves. Return outputs a sample and "
                        "compute the loss in the closure"
                    )
                if t.shape[0] % self._rows:
                    raise _fail(
                        f"an output of shape {tuple(t.shape)} has no batch of {self._rows} in its first dimension"
                    )
            elif t is not None and not isinstance(t, (bool, int, float, str)):
                raise _fail(
                    f"the model returns a {type(t).__name__}, which cannot be cut in halves (transformers: pass use_cache=False)"
                )

        def half(second: bool) -> Any:
            def cut(t: Any) -> Any:
                if not isinstance(t, Tensor):
                    return t
                return t[t.shape[0] // 2 :] if second else t[: t.shape[0] // 2]

            return tree_map(cut, output)

        return half(False), half(True)

    def _compare(self, original: Any, args: Any, kwargs: Any, plus: Any, minus: Any) -> None:
        """The halves must be what the scratch probe gives, up to the order of sums: far closer than to each other."""
        self._mode = "half"
        try:
            want = []
            for sign in (1.0, -1.0):
                self._sign = sign
                want.append(original(*args, **kwargs))
        finally:
            self._mode = ""
        tensors = [
            [t.detach().double() for t in tree_leaves(o) if isinstance(t, Tensor) and t.is_floating_point()]
            for o in (plus, minus, *want)
        ]
        for p, m, wp, wm in zip(*tensors, strict=True):
            error = max(_norm(p - wp), _norm(m - wm))
            spread, size = _norm(wp - wm), _norm(wp)
            # A sign applied to the wrong half shows as a good part of the spread; the rest is rounding.
            floats = [torch.finfo(t.dtype).eps for t in self.live if t.is_floating_point()]
            rounding = max(floats, default=2.0**-23) * size * 4
            if math.isfinite(size) and error > 0.02 * spread + rounding:
                raise _fail(
                    f"the doubled batch gives outputs that are off by {error:.3g} (the two ends differ by {spread:.3g}), so the "
                    "batch is not the first dimension everywhere in the model"
                )

    # ------------------------------------------------------------------ modules that own parameters

    def _unit(self, m: nn.Module, original: Any, args: Any, kwargs: Any) -> Any:
        ids = [i for i in self._units[m] if i not in self._swapped]
        if not self._mode:
            raise _fail(f"{type(m).__name__} is called outside of the model's forward")
        if not ids:
            return original(*args, **kwargs)
        if self._mode == "half":
            return self._at_sign(m, self._sign, ids, original, args, kwargs)
        if type(m) is nn.Linear and self._fusable(m, ids) and len(args) == 1 and not kwargs:
            return self._linear(m, args[0])
        leaves, spec = tree_flatten((args, kwargs))
        if not any(isinstance(t, Tensor) and self._is_doubled(t) for t in leaves):
            raise _fail(f"{type(m).__name__} has no input whose first dimension is the batch")
        halves = []
        self._mode = "half"
        try:
            for second, sign in ((False, 1.0), (True, -1.0)):
                self._sign = sign
                cut = [self._cut(t, second) for t in leaves]
                a, k = tree_unflatten(cut, spec)
                halves.append(self._at_sign(m, sign, ids, original, a, k))
        finally:
            self._mode = "doubled"
        plus, plus_spec = tree_flatten(halves[0])
        minus, minus_spec = tree_flatten(halves[1])
        if plus_spec != minus_spec:
            raise _fail(f"{type(m).__name__} returns other things for the other half")
        joined = [
            torch.cat((p, q)) if isinstance(p, Tensor) and p.dim() > 0 else p
            for p, q in zip(plus, minus, strict=True)
        ]
        return tree_unflatten(joined, plus_spec)

    def _is_doubled(self, t: Tensor) -> bool:
        return t.dim() > 0 and t.shape[0] > 0 and t.shape[0] % self._rows == 0

    def _cut(self, t: Any, second: bool) -> Any:
        if not isinstance(t, Tensor) or not self._is_doubled(t):
            return t
        n = t.shape[0] // 2
        return t[n:] if second else t[:n]

    def _at_sign(
        self, m: nn.Module, sign: float, ids: list[int], original: Any, args: Any, kwargs: Any
    ) -> Any:
        """A module's own forward at one end, its weights in the scratch buffer."""
        mark = self._arena.mark()
        try:
            views = [self._arena.take(i, self.home[i]) for i in ids]
            at = sign * self._eps
            if kwargs or not self._looked_up(m, args, ids, views, at):
                self.masters.perturb(views, ids, at, self._address)
            for i, view in zip(ids, views, strict=True):
                self.live[i].data = view
            self._swapped.update(ids)
            try:
                output = original(*args, **kwargs)
            finally:
                for i in ids:
                    self.live[i].data = self.home[i]
                self._swapped.difference_update(ids)
            held = self._arena.holds
            return tree_map(lambda t: t.clone() if isinstance(t, Tensor) and held(t) else t, output)
        finally:
            self._arena.release(mark)

    # ------------------------------------------------------------------ linear layers

    def _fusable(self, m: nn.Linear, ids: list[int]) -> bool:
        weight = next((i for i in ids if self.live[i] is m.weight), None)
        others = [i for i in ids if i != weight]
        return (
            weight is not None
            and self.masters.elements is None
            and all(self.live[i] is m.bias for i in others)
            and not self.masters.low_rank(self.masters.manifest.entries[weight])
            and m.weight.device.type == "cpu"
        )

    def _linear(self, m: nn.Linear, x: Tensor) -> Tensor:
        from lowtide import ops

        if not self._is_doubled(x):
            raise _fail(
                f"a Linear has an input of shape {tuple(x.shape)}, whose first dimension is not the batch"
            )
        ids = {id(t): i for i, t in enumerate(self.live)}
        w = ids[id(m.weight)]
        entry, master = self.masters.manifest.entries[w], self.masters.tensors[w]
        rows, cols = m.weight.shape
        plus_bias: Tensor | None = m.bias
        minus_bias: Tensor | None = m.bias
        if m.bias is not None and id(m.bias) in ids:
            pair = [torch.empty_like(m.bias, requires_grad=False) for _ in range(2)]
            for out, eps in zip(pair, (self._eps, -self._eps), strict=True):
                self.masters.perturb([out], [ids[id(m.bias)]], eps, self._address)
            plus_bias, minus_bias = pair
        flat = x.reshape(-1, cols)
        n = flat.shape[0] // 2
        y = flat.new_empty(2 * n, rows)
        most = min(rows, max(16, PANEL_BYTES // (m.weight.element_size() * max(cols, 1))))
        panel = self._panel(m.weight, 2 * most * cols)
        plus, minus = panel[: most * cols].view(most, cols), panel[most * cols :].view(most, cols)
        step, slot = self._address
        for first in range(0, rows, most):
            last = min(rows, first + most)
            p, q = plus[: last - first], minus[: last - first]
            ops.spsa_perturb_pair(
                p, q, master[first:last], self._eps * entry.scale, self.masters.seed, step, slot, entry.param,
                first * cols, self.masters.method.dist_id, entry.threshold,
            )  # fmt: skip
            for part, weight, bias in ((slice(0, n), p, plus_bias), (slice(n, 2 * n), q, minus_bias)):
                b = None if bias is None else bias[first:last]
                y[part, first:last] = nn.functional.linear(flat[part], weight, b)
        return y.view(*x.shape[:-1], rows)

    def _panel(self, like: Tensor, n: int) -> Tensor:
        panel = self._panels.get(like.dtype)
        if panel is None or panel.numel() < n:
            panel = self._panels[like.dtype] = torch.empty(n, dtype=like.dtype, device=like.device)
        return panel[:n]
