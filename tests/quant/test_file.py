# SPDX-License-Identifier: Apache-2.0
"""save_model and load_model: bit for bit, or one clear error and an unchanged model."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import lowtide as lt
from lowtide.quant import Linear, load_model, model_bytes, quantize_model_, save_model


class Model(nn.Module):
    """Packed, dense, tied, shared, bf16, empty and scalar tensors."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(50, 96)
        self.up, self.down = nn.Linear(96, 75), nn.Linear(75, 96, bias=False)
        self.again = self.up
        self.norm = nn.LayerNorm(96, dtype=torch.bfloat16)
        self.lm_head = nn.Linear(96, 50, bias=False)
        self.lm_head.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor(seed))
        self.register_buffer("nothing", torch.empty(0, 3))
        self.register_buffer("part", torch.arange(10.0)[seed : seed + 4])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.down(self.up(self.embed(ids)).relu()))


def packed(seed: int = 0, **kwargs: object) -> Model:
    model = Model(seed)
    quantize_model_(model, **{"weights": "int4", "group": 32, **kwargs})
    return model


def packed_like(model: Model, weights: str, scheme: str) -> Model:
    """With packed layers that hold nothing yet."""
    for name in ("up", "down"):
        dense = getattr(model, name)
        kwargs = {"bits": 8 if weights == "int8" else 4, "group": 32, "scheme": scheme}
        setattr(
            model, name, Linear(dense.in_features, dense.out_features, bias=dense.bias is not None, **kwargs)
        )
    model.again = model.up
    return model


def bits(model: nn.Module) -> dict[str, tuple[str, bytes]]:
    return {
        name: (f"{t.dtype}{tuple(t.shape)}", t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in model.state_dict().items()
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(packed(), path)
    return path


@pytest.mark.parametrize(
    ("weights", "scheme"),
    [
        ("int8", "symmetric"),
        ("int8", "asymmetric"),
        ("int4", "symmetric"),
        ("int4", "asymmetric"),
        ("nf4", "nf4"),
    ],
)
def test_a_round_trip_keeps_every_bit(tmp_path: Path, weights: str, scheme: str) -> None:
    model, path = packed(weights=weights, scheme=scheme), tmp_path / "m.safetensors"
    save_model(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    ids = torch.arange(50)

    into_packed = packed(1, weights=weights, scheme=scheme)
    codes = into_packed.up.weight
    assert load_model(into_packed, path) is into_packed
    assert into_packed.up.weight is codes  # optimizers keep their references

    into_dense = Model(2)
    embedding = into_dense.embed.weight
    into_dense.up.weight.requires_grad_(False)
    trains = weights != "nf4"
    load_model(into_dense, path)
    assert into_dense.embed.weight is embedding
    assert not into_dense.up.weight.quant.trainable
    assert into_dense.down.weight.quant.trainable == trains

    with torch.device("meta"):
        meta = Model()
    meta.part = meta.part.contiguous()
    with torch.device("meta"):
        meta_packed = packed_like(Model(), weights, scheme)
    for other in (
        into_packed, into_dense, load_model(lambda: Model(3), path), load_model(meta, path),
        load_model(meta_packed, path),
    ):  # fmt: skip
        assert other.up.weight.quant.module is other.up
        assert bits(other) == bits(model)
        assert other.again is other.up
        assert other.lm_head.weight is other.embed.weight
        assert torch.equal(other(ids), model(ids))


def test_a_loaded_model_trains(file: Path) -> None:
    model = load_model(Model, file)
    model(torch.arange(50)).square().sum().backward()
    model.up.weight.quant.requant_add_(model.up.weight.quant.main_grad, -1e-3, seed=1, step=1, param=0)
    assert bits(model) != bits(packed())


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        save_model(packed(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    load = lt.quant.load_model(Model, tmp_path / "a")
    save_model(load, tmp_path / "a")  # replaces what it came from
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_is_plain_safetensors_and_holds_shared_tensors_once(file: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(file)
    assert "lm_head.weight" not in tensors or "embed.weight" not in tensors
    assert tensors["up.weight"].dtype == torch.uint8
    assert sum(t.nbytes for t in tensors.values()) == model_bytes(packed())


def header(raw: bytes) -> tuple[dict, bytes]:
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def with_header(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    """The file with a changed header, and the data as they were."""

    def run(raw: bytes) -> bytes:
        head, data = header(raw)
        change(head)
        text = json.dumps(head).encode()
        return struct.pack("<Q", len(text)) + text + data

    return run


def with_document(change: Callable[[dict], object], *, sign: bool = False) -> Callable[[bytes], bytes]:
    def run(head: dict) -> None:
        document = json.loads(head["__metadata__"]["lowtide"])
        change(document)
        if sign:
            from lowtide.quant._file import _digest

            document.pop("digest")
            document["digest"] = _digest(document)
        head["__metadata__"]["lowtide"] = json.dumps(document)

    return with_header(run)


def flip(at: int) -> Callable[[bytes], bytes]:
    def run(raw: bytes) -> bytes:
        changed = bytearray(raw)
        changed[at] ^= 16
        return bytes(changed)

    return run


DAMAGE = {
    "last byte": flip(-1),
    "a middle byte": lambda raw: flip(len(raw) // 2)(raw),
    "cut by one": lambda raw: raw[:-1],
    "cut in half": lambda raw: raw[: len(raw) // 2],
    "cut in its header": lambda raw: raw[:40],
    "empty": lambda raw: b"",
    "longer": lambda raw: raw + b"x",
    "a huge header": lambda raw: struct.pack("<Q", 1 << 62) + raw[8:],
    "no json": lambda raw: raw[:8] + b"#" + raw[9:],
    "pickle": lambda raw: b"\x80\x04K\x01.",
    "zip": lambda raw: b"PK\x03\x04" + raw,
    "foreign": with_header(lambda head: head.pop("__metadata__")),
    "foreign metadata": with_header(lambda head: head.update(__metadata__={"format": "pt"})),
    "metadata no json": with_header(lambda head: head.update(__metadata__={"lowtide": "{"})),
    "metadata a list": with_header(lambda head: head.update(__metadata__={"lowtide": "[]"})),
    "metadata deep": with_header(lambda head: head.update(__metadata__={"lowtide": "[" * 100_000})),
    "swapped names": with_header(
        lambda head: head.update({"up.weight": head["down.weight"], "down.weight": head["up.weight"]})
    ),
    "another dtype": with_header(lambda head: head["up.weight"].update(dtype="I8")),
    "another group": with_document(lambda d: d["layers"]["up"].update(group=64)),
    "bits signed": with_document(lambda d: d["layers"]["up"].update(bits=3), sign=True),
    "group signed": with_document(lambda d: d["layers"]["up"].update(group="32"), sign=True),
    "nf4 of 8 bits signed": with_document(
        lambda d: d["layers"]["up"].update(bits=8, scheme="nf4"), sign=True
    ),
    "scheme signed": with_document(lambda d: d["layers"]["up"].update(scheme="x"), sign=True),
    "layer signed": with_document(lambda d: d["layers"]["up"].pop("bits"), sign=True),
    "alias signed": with_document(lambda d: d["aliases"].update(a="b"), sign=True),
    "tensor signed": with_document(lambda d: d["tensors"].pop("up.weight"), sign=True),
    "version": with_document(lambda d: d.update(version=2)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_one_clear_error_and_the_model_is_unchanged(
    file: Path, damage: Callable[[bytes], bytes]
) -> None:
    file.write_bytes(damage(file.read_bytes()))
    model = packed(1)
    dense = Model(1)
    before, before_dense = bits(model), bits(dense)
    for target in (model, dense):
        with pytest.raises(lt.LowtideError, match=r"^path: .*model\.safetensors") as caught:
            load_model(target, file)
        assert "\n" not in str(caught.value)
    assert bits(model) == before
    assert bits(dense) == before_dense
    assert type(dense.up) is nn.Linear


def test_scales_that_no_codec_writes_are_refused(tmp_path: Path) -> None:
    model = packed()
    model.up.weight_scale[0, 0] = float("nan")
    save_model(model, tmp_path / "m")
    with pytest.raises(lt.LowtideRuntimeError, match=r"up\.weight_scale|again\.weight_scale"):
        load_model(Model, tmp_path / "m")


def other(change: Callable[[Model], object], build: Callable[[], Model] = Model) -> Callable[[], Model]:
    def make() -> Model:
        model = build()
        change(model)
        return model

    return make


MISFITS = {
    "bits": (lambda: packed(weights="int8"), "format"),
    "group": (lambda: packed(group=64), "format"),
    "scheme": (lambda: packed(scheme="symmetric"), "format"),
    "width": (other(lambda m: setattr(m, "down", nn.Linear(76, 96, bias=False))), "features"),
    "bias more": (other(lambda m: setattr(m, "down", nn.Linear(75, 96))), r"file lacks down\.bias"),
    "layer less": (other(lambda m: delattr(m, "down")), "nothing there"),
    "layer another": (other(lambda m: setattr(m, "down", nn.ReLU())), "a ReLU there"),
    "layer more": (other(lambda m: setattr(m, "more", nn.Linear(3, 3))), r"file lacks more\.bias"),
    "packed more": (
        lambda: quantize_model_(other(lambda m: setattr(m, "more", nn.Linear(3, 3)))(), "int4", 32),
        "'more' is packed in the model",
    ),
    "buffer less": (other(lambda m: delattr(m, "steps")), "model lacks steps"),
    "dtype": (other(lambda m: m.norm.float()), r"norm\.weight has dtype float32"),
    "shape": (other(lambda m: setattr(m, "embed", nn.Embedding(51, 96))), r"embed\.weight has shape"),
    "tied": (other(lambda m: setattr(m.norm, "bias", m.norm.weight)), "shares its tensor"),
}


@pytest.mark.parametrize(("make", "words"), MISFITS.values(), ids=MISFITS.keys())
def test_a_file_that_does_not_fit_changes_nothing(file: Path, make: Callable[[], Model], words: str) -> None:
    model = make()
    before = bits(model)
    with pytest.raises(lt.LowtideValueError, match=words) as caught:
        load_model(model, file)
    assert str(caught.value).startswith("model: ")
    assert bits(model) == before


def test_permissions_are_those_of_any_file_or_of_the_one_replaced(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain", tmp_path / "m"
    plain.write_bytes(b"")
    save_model(packed(), path)
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    save_model(packed(1), path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_bad_arguments_and_a_disk_that_refuses(tmp_path: Path, file: Path) -> None:
    with pytest.raises(lt.LowtideTypeError, match="model must be"):
        save_model("model", tmp_path / "m")
    with pytest.raises(lt.LowtideTypeError, match="model must be"):
        load_model("model", file)
    with pytest.raises(lt.LowtideTypeError, match=r"model\(\) must return"):
        load_model(lambda: 3, file)
    with pytest.raises(lt.LowtideRuntimeError, match="no file"):
        load_model(Model, tmp_path / "absent")
    with pytest.raises(lt.LowtideRuntimeError, match="cannot be read"):
        load_model(Model, tmp_path)
    before = file.read_bytes()
    with pytest.raises(lt.LowtideRuntimeError, match="cannot write"):
        save_model(packed(), tmp_path / "no" / "m")
    with torch.device("meta"):
        meta = Model()
    with pytest.raises(lt.LowtideValueError, match="meta device"):
        save_model(meta, file)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_write_that_fails_half_way_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lowtide.quant._file as module

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr(module, "sync_file", fail)
    with pytest.raises(lt.LowtideRuntimeError, match="No space left"):
        save_model(packed(1), file)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == ["model.safetensors"]


def test_without_safetensors_the_error_says_what_to_install() -> None:
    program = """
import sys
sys.modules["safetensors"] = None
import torch, lowtide as lt
for call in (lt.quant.save_model, lt.quant.load_model):
    try:
        call(torch.nn.Linear(3, 3), "/nowhere/m")
    except lt.LowtideError as error:
        assert isinstance(error, ImportError) and "pip install safetensors" in str(error), error
        print("ok")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ok", "ok"]


def test_layers_are_packed_layers(file: Path) -> None:
    model = load_model(Model, file)
    assert [type(m) for m in (model.up, model.down, model.lm_head)] == [Linear, Linear, nn.Linear]
