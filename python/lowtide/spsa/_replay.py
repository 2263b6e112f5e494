# SPDX-License-Identifier: Apache-2.0
"""Making the weights of a run again from its log: bit for bit those of the live run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lowtide.errors import LowtideTypeError, LowtideValueError
from lowtide.spsa import _snapshot
from lowtide.spsa._log import LogError, LogReader
from lowtide.spsa._masters import FLOATS, Masters
from lowtide.spsa._packed import quant_of
from lowtide.spsa._schedule import Schedule, StepUpdate

#: (slot, value) of a step's contributions.
Slopes: TypeAlias = "tuple[tuple[int, float], ...]"
#: Directions in one call of the kernel: what a call costs beside its work is then nothing.
_CHUNK = 1 << 14


@dataclass(frozen=True)
class Replayed:
    """The state before step ``step``.

    Attributes:
        step: the next step. masters: the weights. schedule: the host's part of the state.
        verified: digests of the log that were compared, the base's included.
    """

    step: int
    masters: Masters
    schedule: Schedule
    verified: int


def replay(
    model: nn.Module | Mapping[str, Tensor],
    log: str | Path | LogReader,
    *,
    upto: int | None = None,
    verify: bool = True,
    base: Mapping[str, Tensor] | str | Path | None = None,
    progress: str = "auto",
) -> Replayed:
    """Bring a model from the weights a run started from to those it had before step ``upto``, bit for bit.

    The log's steps are applied tile by tile: the weights are read and written once for many steps.

    Args:
        model: a module, or a mapping from names to tensors; its weights are those before the log's first step, unless
            ``base`` has them. A 16-bit model of a run with ``masters="float32"`` becomes their rounded copy.
        log: a ``.ltlog`` file, or a reader of one.
        upto: step to stop before; None: all that are logged.
        verify: compare the weights with every digest in the log on the way. Needs one copy of the weights, from which they
            are restored if a digest differs. Without it only the model's names and shapes are compared.
        base: the weights to start from by name; or the path of a snapshot that the log names (``SPSA.snapshot``), to start at
            its step; None: the model's.
        progress: ``"on"``, ``"off"`` or ``"auto"`` (a bar where stderr is a terminal and tqdm is there).

    Returns:
        Where the run then is.

    Raises:
        LogError: a damaged log, another model, other base weights, a digest that differs. The model is as before.

    >>> import torch, lowtide as lt
    >>> model, same = (torch.nn.Linear(2, 1).requires_grad_(True) for _ in range(2))
    >>> _ = same.load_state_dict(model.state_dict())
    >>> opt = lt.spsa.SPSA(model.named_parameters(), lr=0.1, module=model, log="doc.ltlog")
    >>> for _ in range(3):
    ...     _ = opt.step(lambda: (model(torch.ones(1, 2)) - 1).square().mean())
    >>> opt.close()
    >>> lt.spsa.replay(same, "doc.ltlog").step
    3
    >>> torch.equal(model.weight, same.weight)
    True
    """
    reader = log if isinstance(log, LogReader) else LogReader(log)
    header = reader.header
    stop = reader.step if upto is None else upto
    start, state, elements = header.first_step, header.state, None
    source: Mapping[str, Tensor] | None
    if isinstance(base, (str, Path)):
        start, source, state, elements = _snapshot.load(Path(base), reader)
    else:
        source = base
    if not start <= stop <= reader.step:
        raise LowtideValueError(
            f"upto must be in [{start}, {reader.step}], the steps in the log, got {upto!r}"
        )
    live = _tensors(model)
    tensors, apart = _masters(reader, live, live if source is None else source)
    masters = Masters(tensors, header.manifest, seed=header.seed, method=header.method)
    if masters.elements is not None and isinstance(base, (str, Path)):
        if elements is None:
            raise LogError(
                f"{base}: lacks the state of {header.method.kind} for each weight; replay from the base weights"
            )
        masters.elements.load_state_dict(elements)
    schedule = Schedule(header.method, header.codec, header.seed)
    if state is not None:
        schedule.load_state_dict(state)
    backup = [t.clone() for t in masters.tensors] if verify and not apart else []
    try:
        verified = advance(masters, schedule, reader, start, stop, verify=verify, progress=progress)
    except BaseException:
        for t, old in zip(masters.tensors, backup, strict=False):
            t.copy_(old)
        raise
    if apart:
        with torch.no_grad():
            for e, t in zip(header.manifest, masters.tensors, strict=True):
                live[e.name].copy_(t)
    return Replayed(stop, masters, schedule, verified)


def advance(
    masters: Masters,
    schedule: Schedule,
    reader: LogReader,
    start: int,
    stop: int,
    *,
    verify: bool = True,
    progress: str = "off",
    account: Callable[[Slopes, StepUpdate], None] | None = None,
) -> int:
    """Apply the log's steps ``start`` .. ``stop`` - 1 to ``masters`` and ``schedule``, which are before ``start``.

    ``account`` is told the decoded slopes and the update of each step.

    Returns:
        Number of digests that were compared.

    Raises:
        LogError: a digest differs; ``masters`` are then of no use.
    """
    header = reader.header
    digests = reader.digests() if verify else {}
    expected = header.base_digest if start == header.first_step else digests.get(start)
    if verify and expected is not None and masters.digest() != expected:
        raise LogError(
            f"{reader.path}: the model's weights are not those the run started from (digest {masters.digest().hex()}, "
            f"the log has {expected.hex()}); load the base weights first, or pass them as base"
        )
    verified = int(verify and expected is not None)
    good, directions = start, 0
    chunk: list[StepUpdate] = []
    with _bar(progress, stop - start) as bar:
        for step in reader.steps(stop):
            t = step.commit.step
            if t < start:
                continue
            slopes = schedule.decode(step.commit) if account else ()
            chunk.append(schedule.update(step.commit, step.hyper))
            if account:
                account(slopes, chunk[-1])
            directions += len(chunk[-1].directions)
            checked = t + 1 in digests and t + 1 <= stop
            if directions >= _CHUNK or checked:
                masters.apply(chunk)
                bar.update(len(chunk))
                chunk, directions = [], 0
            if checked:
                _compare(masters, digests[t + 1], reader, good, t + 1)
                good, verified = t + 1, verified + 1
        masters.apply(chunk)
        bar.update(len(chunk))
    return verified


def _compare(masters: Masters, expected: bytes, reader: LogReader, good: int, step: int) -> None:
    if masters.digest() != expected:
        raise LogError(
            f"{reader.path}: the weights before step {step} are not those of the live run (they were before step {good}): its "
            f"weights were changed from outside, or a machine is at fault; keep the state with upto={good}"
        )


def _tensors(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(model, Mapping):
        return dict(model)
    if isinstance(model, nn.Module):
        named = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        return {name: t if quant_of(t) is not None else t.detach() for name, t in named}
    raise LowtideTypeError(
        f"model must be a module or a mapping from names to tensors, got {type(model).__name__}"
    )


def _masters(
    reader: LogReader, live: Mapping[str, Tensor], source: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], bool]:
    """The tensors to change, by name, and whether they are copies."""
    manifest = reader.header.manifest
    for e in manifest:
        for tensors in (live, source):
            if e.name not in tensors:
                raise LogError(
                    f"{reader.path}: is of another model: {e.name} is missing; give the model of the run"
                )
            if (shape := tuple(tensors[e.name].shape)) != e.shape:
                raise LogError(
                    f"{reader.path}: is of another model: {e.name} has shape {shape}, the log has {e.shape}; "
                    "give the model of the run"
                )
    same = all(str(live[e.name].dtype) == f"torch.{e.dtype}" for e in manifest)
    wide = all(e.dtype == "float32" and live[e.name].dtype in FLOATS for e in manifest)
    if not same and not wide:
        e = next(e for e in manifest if str(live[e.name].dtype) != f"torch.{e.dtype}")
        raise LogError(
            f"{reader.path}: {e.name} is {live[e.name].dtype}, the run's was {e.dtype}; convert the base weights first"
        )
    if same and source is live:
        return {e.name: live[e.name] for e in manifest}, False
    types = {e.name: getattr(torch, e.dtype) for e in manifest}
    return {name: source[name].detach().to(t, copy=True).contiguous() for name, t in types.items()}, True


@contextmanager
def _bar(when: str, steps: int) -> Iterator[Any]:
    if when not in ("on", "off", "auto"):
        raise LowtideValueError(f"progress must be 'on', 'off' or 'auto', got {when!r}")
    bar: Any = _NoBar()
    if when == "on" or (when == "auto" and sys.stderr.isatty()):
        try:
            from tqdm import tqdm

            bar = tqdm(total=steps, unit="step", desc="replay", dynamic_ncols=True, file=sys.stderr)
        except ImportError:
            pass
    try:
        yield bar
    finally:
        bar.close()


class _NoBar:
    def update(self, steps: int) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Nothing to close."""
