# SPDX-License-Identifier: Apache-2.0
"""Models with packed and low-rank layers in one safetensors file.

The header's metadata has one entry, ``lowtide``: a JSON document with the format's version, the packed layers
(bits, group, scheme, sizes), the low-rank ones (rank, sizes), dtype, shape and BLAKE2b of every tensor, names that share one tensor, and the BLAKE2b
of the document itself. Digests find damage; they are no signature.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lowtide._files import sync_directory, sync_file
from lowtide.errors import LowtideImportError, LowtideRuntimeError, LowtideTypeError, LowtideValueError
from lowtide.lowrank._linear import LowRankLinear, check_rank
from lowtide.quant._format import check_linear
from lowtide.quant._linear import Linear

FORMAT = "lowtide-model"
VERSION = 1
#: Of files with low-rank layers.
VERSION_LOW_RANK = 2
_KEY = "lowtide"
_LAYER_KEYS = {"bits", "group", "scheme", "in_features", "out_features"}
_LOW_RANK_KEYS = {"rank", "in_features", "out_features"}


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the ``state_dict`` of ``model``, packed layers included, to one safetensors file.

    The file appears whole or not at all. Parameters and persistent buffers are written as they are, shared ones once;
    gradients are not. The same model gives the same bytes.

    Args:
        model: any module, usually one that :func:`quantize_model_` packed or :func:`lowtide.lowrank.welore_compress_` factored.
        path: the file; an existing one is replaced at the end.

    Raises:
        LowtideTypeError: ``model`` is no module, or its state holds something other than tensors.
        LowtideValueError: parameters on the meta device.
        LowtideRuntimeError: the disk refuses; a file that was there before is untouched.
        LowtideImportError: the package ``safetensors`` is not installed.
    """
    safetensors = _safetensors()
    from safetensors.torch import save_file

    if not isinstance(model, nn.Module):
        raise LowtideTypeError(f"model must be an nn.Module, got {type(model).__name__}")
    path = Path(path)
    tensors, aliases = _plain_state(model)
    layers = {
        name: {key: getattr(m, key) for key in (_LAYER_KEYS if isinstance(m, Linear) else _LOW_RANK_KEYS)}
        for name, m in model.named_modules(remove_duplicate=False)
        if isinstance(m, (Linear, LowRankLinear))
    }
    low_rank = any("rank" in entry for entry in layers.values())
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION_LOW_RANK if low_rank else VERSION,
        "layers": layers,
        "aliases": aliases,
        "tensors": {name: _describe(t) for name, t in tensors.items()},
    }
    document["digest"] = _digest(document)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()  # safetensors makes files that only their owner may read
        mode = (path if path.is_file() else temporary).stat().st_mode & 0o777
        save_file(tensors, temporary, metadata={_KEY: json.dumps(document, sort_keys=True)})
        os.chmod(temporary, mode)
        sync_file(temporary)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        raise LowtideRuntimeError(
            f"path: cannot write {path} ({_line(error)}); nothing was replaced, choose a writable place with enough space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def load_model(model: nn.Module | Callable[[], nn.Module], path: str | os.PathLike[str]) -> nn.Module:
    """Load what :func:`save_model` wrote, bit for bit.

    Args:
        model: a module of the same architecture, or a function that makes one. Its ``nn.Linear`` layers that are packed
            or of low rank in the file are replaced by :class:`Linear` or :class:`lowtide.lowrank.LowRankLinear`; layers that
            are already must have the same format.
            Parameters on the meta device are allocated, so that dense weights need never exist::

                with torch.device("meta"):
                    model = Model()
                lt.quant.load_model(model, "model.safetensors")

        path: the file.

    Returns:
        ``model``, or what it made.

    Raises:
        LowtideRuntimeError: the file cannot be read, is damaged, truncated, or was not written by ``save_model``.
        LowtideValueError, LowtideTypeError: the file does not fit the model. Whatever is raised, the model is unchanged.
        LowtideImportError: the package ``safetensors`` is not installed.
    """
    safetensors = _safetensors()
    path = Path(path)
    if not isinstance(model, nn.Module) and not callable(model):
        raise LowtideTypeError(
            f"model must be an nn.Module or a function that makes one, got {type(model).__name__}"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            document = _document(path, file.metadata(), file.keys())
            for name, entry in document["tensors"].items():
                if _describe(file.get_tensor(name)) != entry:
                    _damaged(path, f"tensor {name} does not match its digest")
            target = model if isinstance(model, nn.Module) else model()
            if not isinstance(target, nn.Module):
                raise LowtideTypeError(f"model() must return an nn.Module, got {type(target).__name__}")
            for name, entry in document["layers"].items():
                if "rank" in entry:
                    continue
                scale = file.get_tensor(_stored(document, f"{name}.weight_scale")).float()
                if not bool((scale.isfinite() & (scale >= 0)).all()):
                    _damaged(path, f"{name}.weight_scale has values that are not finite and >= 0")
            plan = _Plan(target, document, path)  # nothing fails from here on but the machine itself
            plan.apply(lambda name: file.get_tensor(_stored(document, name)))
    except FileNotFoundError:
        raise LowtideRuntimeError(f"path: there is no file {path}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise LowtideRuntimeError(
            f"path: {path} cannot be read as safetensors ({_line(error)}); it is damaged, truncated or another kind of "
            "file: copy it again, or write it with lt.quant.save_model"
        ) from error
    return target


def _safetensors() -> Any:
    try:
        import safetensors
    except ImportError:
        raise LowtideImportError(
            "saving and loading models needs safetensors; run: pip install safetensors (part of lowtide[demo])"
        ) from None
    return safetensors


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def _damaged(path: Path, what: str) -> NoReturn:
    raise LowtideRuntimeError(f"path: {path} is damaged: {what}; the model is unchanged, copy the file again")


# ---- writing


def _plain_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """CPU tensors without shared storage, and names that stand for another name's tensor."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise LowtideTypeError(
                f"model: {name} is a {type(value).__name__} and only tensors can be saved; override get_extra_state"
            )
        if value.is_meta:
            raise LowtideValueError(f"model: {name} is on the meta device; load the weights first")
        if value.layout != torch.strided:
            raise LowtideTypeError(f"model: {name} is {value.layout}; only strided tensors can be saved")
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        plain = value.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        # safetensors refuses two tensors, and a part, of one storage.
        if plain.numel() and (storage.data_ptr() in storages or storage.nbytes() != plain.nbytes):
            plain = plain.clone()
        storages.add(plain.untyped_storage().data_ptr())
        tensors[name] = plain
    return tensors, aliases


def _describe(t: Tensor) -> dict[str, Any]:
    raw: Any = t.contiguous().reshape(-1).view(torch.uint8).numpy() if t.numel() else b""
    return {
        "dtype": str(t.dtype).removeprefix("torch."),
        "shape": list(t.shape),
        "blake2b": hashlib.blake2b(memoryview(raw), digest_size=20).hexdigest(),
    }


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


# ---- reading


def _document(path: Path, metadata: Any, keys: Any) -> dict[str, Any]:
    """The checked metadata of a file. Raises LowtideRuntimeError."""
    if not metadata or _KEY not in metadata:
        raise LowtideRuntimeError(
            f"path: {path} is a safetensors file of another origin (no {_KEY!r} entry in its metadata): load it with its "
            "own library, quantize the model, and write that with lt.quant.save_model"
        )
    try:
        document = json.loads(metadata[_KEY])
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}")
        if document["version"] not in (VERSION, VERSION_LOW_RANK):
            raise LowtideRuntimeError(
                f"path: {path} has format version {document['version']!r} and this lowtide reads versions {VERSION} and "
                f"{VERSION_LOW_RANK}; "
                "read it with the lowtide that wrote it"
            )
        if document.pop("digest") != _digest(document):
            raise ValueError("its metadata were changed after it was written")
        for layer in document["layers"].values():
            if set(layer) not in (_LAYER_KEYS, _LOW_RANK_KEYS) or not all(
                isinstance(layer[k], int) and 0 <= layer[k] < 1 << 31 for k in ("in_features", "out_features")
            ):
                raise ValueError("a layer's entry is incomplete")
            if "rank" in layer:
                check_rank(layer["rank"], (layer["out_features"], layer["in_features"]))
            else:
                check_linear(layer["bits"], layer["group"], layer["scheme"])
        tensors = document["tensors"]
        if set(tensors) != set(keys):
            raise ValueError("its tensors are not those that were written")
        if any(to not in tensors for to in document["aliases"].values()):
            raise ValueError("a shared tensor is missing")
    except LowtideRuntimeError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _damaged(path, _line(error))
    result: dict[str, Any] = document
    return result


def _stored(document: Mapping[str, Any], name: str) -> str:
    """The name under which the tensor of ``name`` lies in the file."""
    result: str = document["aliases"].get(name, name)
    return result


class _Plan:
    """Which layers to replace and where each tensor goes; everything is checked when it has been made."""

    def __init__(self, model: nn.Module, document: Mapping[str, Any], path: Path) -> None:
        self.model, self.document, self.path = model, document, path
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.replaced: dict[str, Linear | LowRankLinear] = {}
        new: dict[int, Linear | LowRankLinear] = {}
        for name, entry in document["layers"].items():
            old = self.modules.get(name)
            if type(old) is nn.Linear and name:
                self._same(name, "features", (old.in_features, old.out_features), self._features(entry))
                if id(old) not in new:
                    new[id(old)] = _like(old, entry)
                self.replaced[name] = new[id(old)]
                self._same(name, "format", _format(new[id(old)]), _format_of(entry))
            elif isinstance(old, (Linear, LowRankLinear)):
                self._same(name, "features", (old.in_features, old.out_features), self._features(entry))
                self._same(name, "format", _format(old), _format_of(entry))
            else:
                what = "nothing" if old is None else f"a {type(old).__name__}"
                kind = "of low rank" if "rank" in entry else "packed"
                self._refuse(f"layer {name!r} is {kind} in the file and the model has {what} there")
        for name, module in self.modules.items():
            if isinstance(module, (Linear, LowRankLinear)) and name not in document["layers"]:
                kind = "packed" if isinstance(module, Linear) else "of low rank"
                self._refuse(f"layer {name!r} is {kind} in the model and dense in the file")
        self.targets = self._targets()
        self._check_names()
        self._check_tensors()

    def apply(self, read: Callable[[str], Tensor]) -> None:
        for name, layer in self.replaced.items():
            parent, _, attribute = name.rpartition(".")
            setattr(self.modules[parent], attribute, layer)
        made: dict[int, Tensor] = {}
        with torch.no_grad():
            for name, old in self.targets.items():
                if not old.is_meta:
                    old.copy_(read(name))
                    continue
                owner_name, _, attribute = name.rpartition(".")
                owner = self.model.get_submodule(owner_name)
                if id(old) not in made:
                    value = read(name).clone()
                    made[id(old)] = (
                        nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
                    )
                setattr(owner, attribute, made[id(old)])
        for module in self.modules.values():
            if isinstance(module, Linear):
                module._attach()

    def _targets(self) -> dict[str, Tensor]:
        """Each tensor of the model's state as it will be, by name; parameters themselves, not views."""
        owned: dict[str, Tensor] = dict(self.model.named_parameters(remove_duplicate=False))
        owned.update(self.model.named_buffers(remove_duplicate=False))
        keys = self.model.state_dict().keys()
        for name in sorted(set(keys) - set(owned)):
            self._refuse(f"{name} of the model is not a tensor")
        targets: dict[str, Tensor] = {name: owned[name] for name in keys}
        for name, layer in self.replaced.items():
            targets.pop(f"{name}.weight", None)
            for leaf, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                targets[f"{name}.{leaf}"] = tensor
        for name, tensor in owned.items():
            if tensor.is_meta and name not in targets and name.rpartition(".")[0] not in self.replaced:
                self._refuse(
                    f"buffer {name} is on the meta device and not part of the state; make the model on the CPU"
                )
        return targets

    def _check_names(self) -> None:
        there = {*self.document["tensors"], *self.document["aliases"]}
        missing, extra = sorted(set(self.targets) - there), sorted(there - set(self.targets))
        if missing or extra:
            parts = [f"the file lacks {_few(missing)}"] if missing else []
            parts += [f"the model lacks {_few(extra)}"] if extra else []
            self._refuse(" and ".join(parts))

    def _check_tensors(self) -> None:
        sources: dict[int, str] = {}
        for name, tensor in self.targets.items():
            stored = _stored(self.document, name)
            entry = self.document["tensors"][stored]
            self._same(name, "shape", tuple(tensor.shape), tuple(entry["shape"]))
            self._same(name, "dtype", str(tensor.dtype).removeprefix("torch."), entry["dtype"])
            first = sources.setdefault(id(tensor), stored)
            if self.document["tensors"][first] != entry:
                self._refuse(
                    f"{name} shares its tensor with {first} in the model, and they differ in the file"
                )

    @staticmethod
    def _features(entry: Mapping[str, Any]) -> tuple[int, int]:
        return entry["in_features"], entry["out_features"]

    def _same(self, name: str, what: str, model: Any, file: Any) -> None:
        if model != file:
            self._refuse(f"{name} has {what} {model} in the model and {file} in the file")

    def _refuse(self, what: str) -> NoReturn:
        raise LowtideValueError(
            f"model: {self.path} does not fit: {what}; make the model as it was when it was saved (it is unchanged)"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _format(layer: Linear | LowRankLinear) -> tuple[Any, ...]:
    if isinstance(layer, LowRankLinear):
        return ("rank", layer.rank)
    return layer.bits, layer.group, layer.scheme


def _format_of(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    if "rank" in entry:
        return ("rank", entry["rank"])
    return entry["bits"], entry["group"], entry["scheme"]


def _like(dense: nn.Linear, entry: Mapping[str, Any]) -> Linear | LowRankLinear:
    """A layer of the entry's format in the place of a dense one."""
    device = None if dense.weight.is_meta else dense.weight.device
    if "rank" in entry:
        with torch.device("cpu"):
            low = LowRankLinear(
                dense.in_features, dense.out_features, entry["rank"], bias=False, device=device,
                dtype=dense.weight.dtype,
            )  # fmt: skip
        low.bias = dense.bias
        return low.train(dense.training)
    with torch.device("cpu"):
        layer = Linear(
            dense.in_features, dense.out_features, bias=False, bits=entry["bits"], group=entry["group"],
            scheme=entry["scheme"], device=device,
        )  # fmt: skip
    layer.bias = dense.bias
    if layer.scheme != "nf4":
        layer.weight.requires_grad_(dense.weight.requires_grad)
    return layer.train(dense.training)
