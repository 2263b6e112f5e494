# SPDX-License-Identifier: Apache-2.0
"""SPSA: training by evaluations of the loss alone, as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowtide._arrays import check_uint
from lowtide._compile import uncompiled
from lowtide.errors import LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.spsa import _codec, _run_log
from lowtide.spsa._commit import Commit
from lowtide.spsa._estimators import Measured, difference, measure
from lowtide.spsa._manifest import Manifest
from lowtide.spsa._masters import Masters
from lowtide.spsa._method import Hyper, Method, SeedWindow
from lowtide.spsa._packed import quant_of
from lowtide.spsa._privacy import Privacy
from lowtide.spsa._probe_fused import FusedProbe
from lowtide.spsa._probe_scratch import ScratchProbe
from lowtide.spsa._probes import InplaceLegacy, Probe, Snapshot
from lowtide.spsa._run_log import RunLog
from lowtide.spsa._schedule import Schedule, StepUpdate, address
from lowtide.spsa._tensors import build_manifest, check_group, master_tensors, names_of, trained
from lowtide.spsa.comm import Local

PROBES: dict[str, type[Probe]] = {
    "scratch": ScratchProbe,
    "fused": FusedProbe,
    "snapshot": Snapshot,
    "inplace_legacy": InplaceLegacy,
}


class SPSA(Optimizer):
    """Simultaneous perturbation (Spall 1992) as in MeZO (2305.17333), without its drift: probes never touch the weights,
    which are a pure function of their start, the seed and one committed number a direction.

    ``step(closure)`` evaluates the closure at ``w + eps z`` and ``w - eps z`` for each direction z and adds
    ``-lr g z`` to the weights, g the slope found. Gradients are neither needed nor stored. The closure must use the same data
    each time it is called within a step; it may loop over micro-batches and return their mean. Every probe of a step runs
    under the same torch random state, so dropout is common noise; switch it off with ``model.eval()`` as the papers do.

    Args:
        params: ``model.named_parameters()``, parameters, or groups of them with keys ``lr``, ``weight_decay``, ``scale`` (layer
            scale: probes and updates go along scale z; ``"rms"``: the weight's root mean square; ``"norm"``: proportional to it, 1 on average), ``keep``
            (fraction of smallest elements that may move: Sparse-MeZO), ``floor`` (least value), ``packed`` (INT8 and INT4 codes of :class:`lowtide.quant.Linear` move too: QuZO). Frozen parameters are left alone.
        lr: learning rate, >= 0.
        eps: distance of the probes, > 0.
        directions: directions a step (slots).
        dist: ``"rademacher"`` (least variance), ``"gaussian"``, ``"ih4"``, ``"lut8"``.
        estimator: ``"central"`` (two evaluations a direction), ``"forward"`` (one, and one shared), ``"fzoo"`` (as forward,
            divided by the spread of the directions; FZOO).
        probe: ``"scratch"`` (memory: the largest module, 16 MB of a linear layer), ``"fused"`` (both ends in one forward on a doubled batch), ``"snapshot"`` (one
            more model, for models whose weights are read outside of modules), ``"inplace_legacy"`` (MeZO's, drifts), or a subclass
            of ``Probe``.
        weight_decay: decoupled, of matrices only, >= 0.
        clip: largest magnitude of g; None: no limit.
        momentum: a :class:`SeedWindow`, or None.
        rounding: ``"auto"``: bfloat16 and float16 masters are rounded stochastically.
        seed: of all directions, 63 bits.
        log: a path, or a ``LogWriter``: the run's commits, from which :func:`lowtide.spsa.replay` makes the weights again.
        comm: a communicator from ``lowtide.spsa.comm``: the directions are shared by several processes. None: this one has all.
        codec: how g is committed: ``"f32"`` (default without comm), ``"log8"`` (one byte; default with comm), ``"sign1"``, ``"f16"``.
        module: the model; needed by the scratch probe, names tensors.
        masters: ``"model"`` (the model's own tensors), ``"float32"`` (float32 weights beside a model in 16 bit, which becomes their
            rounded copy), or a mapping from names to tensors.
        nonfinite: what a NaN or infinite loss does: ``"skip"`` (no contribution, counted in :attr:`skipped`) or ``"raise"``.
        lr_factor: factor of all learning rates by step, a pure function: what a worker that joins late needs, where a scheduler of torch
            would know the present rate only.
        privacy: a :class:`Privacy`: the closure returns per-sample losses, each slope is clipped by sample and gets noise.
        method: a :class:`Method` in place of estimator, dist and momentum (presets use it).

    Raises:
        LowtideValueError, LowtideTypeError: a bad argument, named.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        eps: float = 1e-3,
        *,
        directions: int = 1,
        dist: str = "rademacher",
        estimator: str = "central",
        probe: str | type[Probe] = "scratch",
        weight_decay: float = 0.0,
        clip: float | None = None,
        momentum: SeedWindow | None = None,
        rounding: str = "auto",
        seed: int = 0,
        log: Any = None,
        comm: Any = None,
        codec: str | None = None,
        module: nn.Module | None = None,
        masters: str | Mapping[str, Tensor] = "model",
        nonfinite: str = "skip",
        method: Method | None = None,
        privacy: Privacy | None = None,
        scale: float | str = 1.0,
        keep: float | None = None,
        floor: float = -math.inf,
        packed: bool = False,
        lr_factor: Callable[[int], float] | None = None,
    ) -> None:
        if rounding != "auto":
            raise LowtideValueError(
                f"rounding must be 'auto': 16-bit masters need stochastic rounding to move at all, got {rounding!r}"
            )
        if nonfinite not in ("skip", "raise"):
            raise LowtideValueError(f"nonfinite must be 'skip' or 'raise', got {nonfinite!r}")
        if not 0.0 < float(eps) < math.inf:
            raise LowtideValueError(f"eps must be a finite number > 0, got {eps!r}")
        if type(directions) is not int or not 1 <= directions <= 1 << 15:
            raise LowtideValueError(f"directions must be an integer in [1, {1 << 15}], got {directions!r}")
        if clip is not None and not 0.0 < float(clip) < math.inf:
            raise LowtideValueError(f"clip must be a finite number > 0 or None, got {clip!r}")
        if method is None:
            window, beta = (momentum.n, momentum.beta) if momentum else (1, 0.0)
            method = Method(estimator=estimator, dist=dist, window=window, beta=beta)
        if method.estimator == "fzoo" and directions < 2 and comm is None:
            raise LowtideValueError(
                "directions must be >= 2 for estimator='fzoo': it divides by their spread"
            )
        if not isinstance(probe, str) and not (isinstance(probe, type) and issubclass(probe, Probe)):
            raise LowtideTypeError(f"probe must be a name or a subclass of Probe, got {probe!r}")
        if isinstance(probe, str) and probe not in PROBES:
            raise LowtideValueError(f"probe must be one of {', '.join(PROBES)}, got {probe!r}")
        probe_type = PROBES[probe] if isinstance(probe, str) else probe
        if not probe_type.replayable:
            if log is not None or comm is not None:
                raise LowtideValueError(
                    f"probe={probe!r} changes the weights by rounding errors, so the run could not be replayed; "
                    "leave log and comm out or use probe='scratch'"
                )
            if masters != "model":
                raise LowtideValueError(f"probe={probe!r} works on the model's weights; leave masters out")
            warnings.warn(
                f"probe={probe!r}: weights drift by rounding errors, in bfloat16 by more than training moves them; "
                "probe='scratch' does not",
                RuntimeWarning,
                stacklevel=2,
            )
        self._lr_factor = lr_factor
        self.seed = check_uint(seed, "seed", 63)
        self.method, self.eps, self.clip = method, float(eps), None if clip is None else float(clip)
        self.directions = directions
        self._module, self._nonfinite, self._masters_arg = module, nonfinite, masters
        self._probe_type = probe_type
        #: Slots without contribution so far, because a loss was NaN or infinite.
        self.skipped = 0
        #: Steps made.
        self.t = 0
        if privacy is not None and method.kind != "plain":
            raise LowtideValueError(
                f"privacy cannot be used with {method.kind}: its curvature would be released without noise"
            )
        self.privacy = privacy
        self._reduce = difference if privacy is None else privacy.reduce
        self._ready = False
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "scale": scale, "keep": keep, "floor": floor,
            "packed": packed,
        }  # fmt: skip
        super().__init__(params, defaults)
        if comm is not None and method.kind != "plain":
            raise LowtideValueError(
                f"comm cannot be used with {method.kind}: it commits more than one value a slot"
            )
        self._codec_name = codec or ("f32" if comm is None else "log8")
        self.schedule = Schedule(method, self._codec_name, self.seed)
        self.comm: Any = comm if comm is not None else Local(directions * method.codes_per_direction)
        #: The run's log, or None.
        self.run_log: RunLog | None = None
        self._started = self._measured = False
        self._build()
        self._ready = True
        if log is not None:
            self.run_log = RunLog(log)

    # ------------------------------------------------------------------ tensors

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its tensors get the next ids. Not while a log or a communicator fixes the manifest."""
        if self._ready and (self.run_log is not None or not isinstance(self.comm, Local)):
            raise LowtideRuntimeError(
                "the tensors of a logged or shared run are fixed; start a new run to add a group"
            )
        known = param_group if isinstance(param_group, dict) else {}
        check_group(known, self.defaults)
        super().add_param_group(param_group)
        if self._ready:
            if self._masters_arg != "model":
                raise LowtideRuntimeError("groups can be added only with masters='model'")
            self._build()

    def _build(self) -> None:
        rows = trained(self.param_groups)
        if not rows:
            raise LowtideValueError("params: nothing to train, every parameter is frozen")
        if self.method.rank and any(g["keep"] or g["floor"] > -math.inf for g in self.param_groups):
            raise LowtideValueError(
                "keep and floor cannot be used with directions of low rank; leave them out"
            )
        by_id = names_of(self._module)
        names = [n or by_id.get(id(p), [f"param{i}"])[0] for i, (_, p, n) in enumerate(rows)]
        tensors = master_tensors(rows, self._masters_arg, names)
        self.manifest: Manifest = build_manifest(self.param_groups, tensors, self._module)
        self.masters = Masters(
            {
                e.name: p if quant_of(p) is not None else t
                for e, t, (_, p, _) in zip(self.manifest, tensors, rows, strict=True)
            },
            self.manifest, seed=self.seed, method=self.method,
        )  # fmt: skip
        self._live = [p for _, p, _ in rows]
        self._probe = self._probe_type(self.masters, self._live, self._module)
        self._sync()

    def _sync(self) -> None:
        """The model's weights are the masters, rounded to its dtype."""
        if self._masters_arg != "model":
            with torch.no_grad():
                for p, master in zip(self._live, self.masters.tensors, strict=True):
                    p.copy_(master)

    def _rebind(self) -> None:
        """Follow tensors that were replaced since (``model.to``, ``load_state_dict(assign=True)``)."""
        if self._masters_arg == "model":
            for i, p in enumerate(self._live):
                if p.data_ptr() != self.masters.tensors[i].data_ptr():
                    self.masters.tensors[i] = p.detach()

    # ------------------------------------------------------------------ stepping

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> float:  # type: ignore[override]
        """One step.

        Args:
            closure: returns the loss at the model's present weights: a number or a tensor with one element in float32 or
                float64, or per-sample losses (1-D). Called under ``no_grad``, twice a direction (central).

        Returns:
            The mean of the losses seen.

        Raises:
            LowtideError: a bad closure or loss. Whatever is raised, by the closure too: weights are as before.
        """
        if closure is None:
            raise LowtideTypeError("closure must be given: SPSA evaluates the loss several times a step")
        self.start()
        hyper = self.hyper()
        slots = self.comm.slots(self.t)
        if self.privacy is not None:
            closure = self.privacy.guard(closure)
            self.privacy.begin(self.t, len(slots))
        measured = self._measure(closure, slots)
        commit = self.comm.exchange(self.t, self._encode(measured))
        self.apply(commit, hyper)
        return measured.loss

    @torch.no_grad()
    def start(self) -> None:
        """Open the log and join the others; :meth:`step` does it when it is called first. Steps that the others made already
        are applied, with the learning rates of now times ``lr_factor`` of those steps."""
        if self._started:
            return
        self._rebind()
        if self.run_log is not None:
            self.run_log.open(self)
        if not isinstance(self.comm, Local):
            from lowtide.spsa._join import join

            for commit in join(self):
                self.apply(commit)
        self._started = True

    def apply(self, commit: Commit, hyper: Hyper | None = None) -> StepUpdate:
        """Log the commit of step :attr:`t`, apply it to the weights, and go to the next step."""
        if commit.step != self.t:
            raise LowtideRuntimeError(f"commit is of step {commit.step}, this optimizer is at step {self.t}")
        hyper = hyper or self.hyper()
        if self.run_log is not None:  # first: a full disk must not leave weights that no log explains
            self.run_log.append(self, commit, hyper)
        update = self.schedule.update(commit, hyper)
        self.masters.apply([update])
        self._sync()
        self.t += 1
        if self.run_log is not None:
            self.run_log.applied(self)
        early = self.t & (self.t - 1) == 0  # 1, 2, 4, ...: workers with other settings show soon
        if not isinstance(self.comm, Local) and (early or self.t % _run_log.DIGEST_EVERY == 0):
            self.comm.digest(self.t, self.masters.digest())
        return update

    def hyper(self) -> Hyper:
        """Learning rates and decays of step :attr:`t`, as doubles."""
        factor = 1.0 if self._lr_factor is None else float(self._lr_factor(self.t))
        groups = self.param_groups[: self.manifest.groups]
        return Hyper(
            tuple(float(g["lr"]) * factor for g in groups), tuple(float(g["weight_decay"]) for g in groups)
        )

    def _measure(self, closure: Callable[[], Any], slots: list[int]) -> Measured:
        self._rebind()
        if self.method.kind != "plain":
            slots = list(range(self.directions))
        chosen = [(s, address(self.method, self.seed, self.t, s)) for s in slots]
        without = [p for p in self._live if p.grad is None] if not self._measured else []
        self._probe.begin()
        try:
            measured = measure(self._probe, closure, self.method, self.eps, chosen, self._reduce)
        finally:
            self._probe.end()
        self._measured = True
        if any(p.grad is not None for p in without):
            warnings.warn(
                f"the closure of {type(self).__name__} ran a backward pass, whose gradients nobody uses: return the loss alone (in "
                "Lightning: with automatic_optimization = False)",
                RuntimeWarning,
                stacklevel=3,
            )
        return measured

    def _encode(self, measured: Measured) -> dict[int, int]:
        bad = [s for s, g in measured.values.items() if not math.isfinite(g)]
        if bad and self._nonfinite == "raise":
            raise LowtideRuntimeError(
                f"a loss of step {self.t} was NaN or infinite (slots {bad[:8]}); nothing was changed. Lower lr or eps, "
                "or pass nonfinite='skip'"
            )
        self.skipped += len(bad)
        codes: dict[int, int] = {}
        codec = self.schedule.codec
        for slot, g in measured.values.items():
            limited = g if self.clip is None else min(max(g, -self.clip), self.clip)
            code = codec.encode(limited, self.schedule.exponent, _codec.draw(self.seed, self.t, slot))
            if slot not in bad and code != codec.none:
                codes[slot] = code
        return codes

    @contextmanager
    def probe(self, step: int | None = None, slot: int = 0, sign: float = 1.0) -> Iterator[None]:
        """Within this context the model runs at ``w + sign eps z`` of one direction.

        Args:
            step: default: the present one. slot: the direction's. sign: +1, -1, or any multiple of eps.
        """
        where = address(self.method, self.seed, self.t if step is None else step, slot)
        self._rebind()
        self._probe.begin()
        try:
            with torch.no_grad(), self._probe.at(sign * self.eps, where):
                yield
        finally:
            self._probe.end()
        if getattr(self._probe, "unfinished", False):
            raise LowtideRuntimeError(
                "the model reads one module's weight in another, which became known only now; repeat the probe"
            )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """There are no gradients; drops any that a backward pass left."""
        super().zero_grad(set_to_none)

    # ------------------------------------------------------------------ state

    def account(self, slopes: tuple[tuple[int, float], ...], update: StepUpdate) -> None:
        """Told the (slot, value) and the update of every step that :meth:`catch_up` applied; for subclasses that count."""

    def catch_up(self) -> int:
        """Apply the steps that the log has beyond the optimizer's own: after a crash, from the base weights or an older state.

        Returns:
            How many steps were applied; the data of as many must be skipped.

        Raises:
            LogError: the log is of another run, or damaged; weights are as before.
        """
        self._rebind()
        steps = 0 if self.run_log is None else self.run_log.catch_up(self)
        self._sync()
        return steps

    def snapshot(self, path: str | Path) -> None:
        """Save the state before step :attr:`t` in a safetensors file beside the log, and name it there: a place where
        ``replay(..., base=path)`` can begin.

        Raises:
            LowtideRuntimeError: there is no log. LowtideValueError: the path is elsewhere.
        """
        if self.run_log is None:
            raise LowtideRuntimeError("snapshot: this run has no log; use state_dict(), or give log=")
        self.run_log.snapshot(self, Path(path))

    def close(self) -> None:
        """Close the log and leave the communicator."""
        if self.run_log is not None:
            self.run_log.finish(self)
        self.comm.close()

    def state_bytes(self) -> dict[str, int]:
        """Bytes held now beside the model, by kind."""
        apart = self._masters_arg != "model"
        elements = self.masters.elements
        return {
            "masters": sum(t.nbytes for t in self.masters.tensors) if apart else 0,
            "probe": self._probe.nbytes(),
            "states": elements.nbytes() if elements is not None else 0,
        }

    def state_dict(self) -> dict[str, Any]:
        """A few KB: groups, step, exponent, window. The weights are the model's, or the masters' where they are apart."""
        state: dict[str, Any] = super().state_dict()
        state["spsa"] = {
            "version": 1,
            "step": self.t,
            "seed": self.seed,
            "skipped": self.skipped,
            "codec": self._codec_name,
            "method": self.method.to_json(),
            "manifest": self.manifest.to_json(),
            "schedule": self.schedule.state_dict(),
        }
        if self.masters.elements is not None:
            state["spsa"]["elements"] = self.masters.elements.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; with the same weights and closures bit for bit as if uninterrupted.

        Raises:
            LowtideValueError: it is of another run; nothing was changed.
        """
        own = state_dict.get("spsa")
        if not isinstance(own, dict) or own.get("version") != 1:
            raise LowtideValueError("state_dict must be one of SPSA, version 1")
        method = Method.from_json(own["method"])
        if (method, own["codec"], own["seed"]) != (self.method, self._codec_name, self.seed):
            raise LowtideValueError(
                f"state_dict is of a run with {method}, codec {own['codec']!r} and seed {own['seed']}, this one has "
                f"{self.method}, {self._codec_name!r} and {self.seed}"
            )
        saved = Manifest.from_json(own["manifest"])
        if [(e.name, e.shape, e.dtype) for e in saved] != [(e.name, e.shape, e.dtype) for e in self.manifest]:
            raise LowtideValueError(
                f"state_dict is of other tensors: {'; '.join(self.manifest.differences(saved))}"
            )
        if self.masters.elements is not None:
            self.masters.elements.load_state_dict(own["elements"])
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "spsa"})
        self.schedule.load_state_dict(own["schedule"])
        self.t, self.skipped = int(own["step"]), int(own["skipped"])
        # Thresholds and scales were measured when the run began.
        self.manifest = saved
        self.masters.take(saved)
