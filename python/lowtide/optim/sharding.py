# SPDX-License-Identifier: Apache-2.0
"""Steps of parameters that FSDP2 shards: which methods can, and how the engine's steps run on what a process has.

Elementwise rules step their shard. In a subspace, the projection of columns (``side="right"``) is local and its moments are
sharded as the weight is; the one of rows (``"left"``) is a sum over all processes, r x n, of which each keeps the moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowtide.errors import LowtideRuntimeError, LowtideTypeError
from lowtide.optim.axes import Axes, State, side_of
from lowtide.optim.full_rank import Item, step_full_rank
from lowtide.optim.low_rank import step_low_rank
from lowtide.optim.refresh import EveryT
from lowtide.optim.residuals import ErrorFeedback
from lowtide.optim.shards import Piece, Rows, codes_of, exchange, is_distributed, local, pieces

#: A sharded parameter, its id, its gradient and its state.
Whole = tuple[Tensor, int, Tensor, State]


def check(axes: Axes, group: dict[str, Any], p: Tensor, method: str, name: str) -> None:
    """Refuse a DTensor that ``method`` cannot step.

    Raises:
        LowtideTypeError: its placements are not those of FSDP2. LowtideRuntimeError: the method needs whole matrices. Both name
            method and parameter; nothing was changed.
    """
    if not is_distributed(p):
        return
    called = f"{method}: parameter {name} of shape {tuple(p.shape)}"
    placements: Any = p.placements  # type: ignore[attr-defined]
    cuts = [x for x in placements if x.is_shard()]
    strange = [
        x for x in placements if not (x.is_replicate() or (x.is_shard(0) and type(x).__name__ == "Shard"))
    ]
    if strange or len(cuts) > 1:
        raise LowtideTypeError(
            f"{called} is a DTensor with placements {placements}; one Shard(0), as fully_shard makes it, and Replicate() "
            "can be stepped. Leave tensor parallelism out for it, or redistribute it"
        )
    rows = Rows.of(p)
    reason = _needs_whole(axes, group, p)
    if reason is not None and rows.world > 1:
        raise LowtideRuntimeError(
            f"{called} is sharded over {rows.world} processes, and {reason}. Use DistributedDataParallel, or keep it whole with "
            "fully_shard(..., ignored_params={...}) and average its gradient yourself, or use an elementwise method (AdamW8bit, Lion8bit) or a seeded subspace "
            "(APOLLO, APOLLOMini, FRUGAL)"
        )
    if reason is not None:
        raise LowtideRuntimeError(
            f"{called} is a DTensor on one process, and {reason}. Use it without fully_shard"
        )


def _needs_whole(axes: Axes, group: dict[str, Any], p: Tensor) -> str | None:
    """Why a shard cannot be stepped alone, or None."""
    rule = type(axes.rule).__name__
    if axes.curvature is not None:
        return f"{type(axes.curvature).__name__} takes derivatives of whole weights"
    if axes.transform is not None:
        return f"{type(axes.transform).__name__} works on all gradients at once"
    if not axes.rule.fused:
        return f"{rule} takes statistics of whole matrices"
    if axes.constraint_of(p) is not None:
        return f"constraint {type(axes.constraint).__name__} needs inner products of the whole weight"
    if "rank" not in group or p.dim() < 2 or p.numel() == 0:
        return None
    subspace = type(axes.subspace).__name__
    if axes.parametrization is not None:
        return f"{type(axes.parametrization).__name__} needs the norms of its columns"
    if axes.subspace.needs_gradient:
        return f"subspace {subspace} is found from the whole gradient"
    if axes.subspace.varies or axes.subspace.kind == "elements":
        return f"subspace {subspace} has no form for shards"
    if not isinstance(axes.refresh, EveryT):
        return f"refresh {type(axes.refresh).__name__} measures the whole projected gradient"
    if isinstance(axes.residual, ErrorFeedback):
        return "ErrorFeedback keeps an error of the size of the whole matrix"
    cols = p.shape[1:].numel()
    if side_of((p.shape[0], cols), group["proj_type"]) == "full":
        return "proj_type 'full' projects rows and columns at once"
    return None


def check_gradient(p: Tensor, grad: Tensor) -> None:
    """Refuse a gradient that does not lie as its parameter does."""
    if not is_distributed(grad) or grad.placements != p.placements:  # type: ignore[attr-defined]
        got = grad.placements if is_distributed(grad) else "none"  # type: ignore[attr-defined]
        raise LowtideTypeError(
            f"the gradient of a parameter of shape {tuple(p.shape)} has placements {got}, the parameter {p.placements}; "  # type: ignore[attr-defined]
            "redistribute it"
        )


def agree(count: int, params: Sequence[Tensor]) -> int:
    """``count`` added up over all processes that share one of ``params``."""
    import torch.distributed as dist

    for p in params:
        if is_distributed(p):
            total = torch.tensor([count], dtype=torch.int64, device=local(p).device)
            dist.all_reduce(total, group=Rows.of(p).group)
            return int(total)
    return count


def step(axes: Axes, group: dict[str, Any], items: list[Whole]) -> None:
    """Step the sharded parameters of one group."""
    for item in items:
        if "side" in item[3]:
            _step_low_rank(axes, group, item)
    _step_full_rank(axes, group, [item for item in items if "side" not in item[3]])


def _step_full_rank(axes: Axes, group: dict[str, Any], items: list[Whole]) -> None:
    if not items:
        return
    work = [(Rows.of(p), p, param_id, local(grad), state) for p, param_id, grad, state in items]
    coded = [(rows, grad) for rows, _, _, grad, state in work if axes.is_coded(state)]
    halos = iter(exchange(coded))
    parts: list[Piece] = []
    stepped: list[Item] = []
    for rows, p, param_id, grad, state in work:
        halo = next(halos) if axes.is_coded(state) else {}
        step = int(state["step"])
        own = {name: local(state[name]) for name, _ in axes.rule.moments if name in state}
        codes = codes_of(state, axes.store.code_bits)
        for piece in pieces(rows, {"p": local(p), "g": grad, **own}, codes, halo):
            moments = {name: x for name, x in piece.tensors.items() if name not in ("p", "g")}
            view: State = {"step": step, **moments}
            stepped.append((piece.tensors["p"], param_id, piece.tensors["g"], view, piece.offset))
            parts.append(piece)
        state["step"] = step + 1
    step_full_rank(axes, group, stepped)
    for piece in parts:
        piece.finish()


# ------------------------------------------------------------------ subspaces


def _step_low_rank(axes: Axes, group: dict[str, Any], item: Whole) -> None:
    p, param_id, grad, state = item
    rows = Rows.of(p)
    here: State = {k: local(v) if isinstance(v, Tensor) else v for k, v in state.items()}
    for name, (x, _) in codes_of(state, axes.store.code_bits).items():
        here[name] = x
    part = local(grad)
    step_low_rank(
        axes, group, local(p), param_id, part.reshape(part.shape[0], rows.shape[1:].numel()), here, rows=rows
    )
    for name, value in here.items():
        kept = state.get(name)
        if kept is None or not is_distributed(kept):
            state[name] = value
        elif value.data_ptr() != local(kept).data_ptr():
            local(kept).copy_(value)
