# SPDX-License-Identifier: Apache-2.0
"""The GGUF reader: decoding against a scalar reference, and files that lie."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowtide.assets import CorruptFileError
from lowtide.assets.gguf import ENCODINGS, GGUFFile, dequantize

F32, Q4_1, Q8_0 = 0, 3, 8


def half(raw: bytes) -> np.float32:
    return np.float32(struct.unpack("<e", raw)[0])


def scalar_q8_0(raw: bytes) -> list[np.float32]:
    out = []
    for start in range(0, len(raw), 34):
        block = raw[start : start + 34]
        d = half(block[:2])
        out += [d * np.float32(q) for q in struct.unpack("<32b", block[2:])]
    return out


def scalar_q4_1(raw: bytes) -> list[np.float32]:
    out = []
    for start in range(0, len(raw), 20):
        block = raw[start : start + 20]
        d, m = half(block[:2]), half(block[2:4])
        codes = [b & 15 for b in block[4:]] + [b >> 4 for b in block[4:]]
        out += [np.float32(d * np.float32(q)) + m for q in codes]
    return out


def random_blocks(kind: int, n: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (n, ENCODINGS[kind].nbytes), dtype=np.uint8)
    scales = 2 if kind == Q4_1 else 1
    raw[:, : 2 * scales] = rng.normal(size=(n, scales)).astype("<f2").view(np.uint8)
    return raw.tobytes()


@pytest.mark.parametrize("n", [0, 1, 2, 7, 64])
@pytest.mark.parametrize(("kind", "scalar"), [(Q4_1, scalar_q4_1), (Q8_0, scalar_q8_0)])
def test_dequantize_equals_the_scalar_reference_bit_for_bit(kind: int, scalar: Any, n: int) -> None:
    raw = random_blocks(kind, n, seed=n)
    values, finite = dequantize(np.frombuffer(raw, np.uint8), ENCODINGS[kind])
    expected = np.array(scalar(raw), dtype=np.float32)
    assert finite
    assert values.dtype == np.float32
    assert values.tobytes() == expected.tobytes()


def test_dequantize_known_blocks() -> None:
    # d = 0.5, m = -1; byte 0 is 0xF1: element 0 has code 1, element 16 code 15. All other codes are 0.
    raw = struct.pack("<ee", 0.5, -1.0) + bytes([0xF1]) + bytes(15)
    values, _ = dequantize(np.frombuffer(raw, np.uint8), ENCODINGS[Q4_1])
    expected = np.full(32, -1.0)
    expected[0], expected[16] = -0.5, 6.5
    assert values.tolist() == expected.tolist()
    # The extremes of int8 and the smallest subnormal scale are exact.
    raw = struct.pack("<e", 2.0**-24) + bytes([0x80, 0x7F, 0xFF]) + bytes(29)
    values, _ = dequantize(np.frombuffer(raw, np.uint8), ENCODINGS[Q8_0])
    assert values[:4].tolist() == [-128 * 2.0**-24, 127 * 2.0**-24, -(2.0**-24), 0.0]


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (F32, struct.pack("<f", float("nan"))),
        (Q8_0, struct.pack("<e", float("inf")) + bytes(32)),
        (Q4_1, struct.pack("<ee", 1.0, float("nan")) + bytes(16)),
        (Q4_1, struct.pack("<ee", float("-inf"), 0.0) + bytes(16)),
    ],
)
def test_values_that_are_not_finite_are_refused(gguf: Any, tmp_path: Path, kind: int, raw: bytes) -> None:
    path = gguf.tensor("w", (ENCODINGS[kind].block,), kind, raw).write(tmp_path / "a.gguf")
    with pytest.raises(CorruptFileError, match="'w' holds values that are not finite"):
        GGUFFile(path).tensor("w")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_reads_metadata_and_tensors(gguf: Any, tmp_path: Path, version: int, alignment: int) -> None:
    gguf.version, gguf.alignment = version, alignment
    gguf.pair("general.alignment", alignment).pair("name", "größe").pair("n", 7).pair("x", 0.5).pair(
        "flag", True
    )
    gguf.pair("words", ["a", "", "b c"]).pair("ids", np.array([3, -1])).pair("none", [])
    gguf.pair("long", struct.pack("<Iq", 11, -5))
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    blocks = random_blocks(Q8_0, 4, seed=1)
    gguf.f32("a", values).tensor("b", (2, 64), Q8_0, blocks)
    file = GGUFFile(gguf.write(tmp_path / "a.gguf"))
    ids = file.metadata.pop("ids")
    assert ids.tolist() == [3, -1]
    assert file.metadata == {
        "general.alignment": alignment,
        "name": "größe",
        "n": 7,
        "x": 0.5,
        "flag": True,
        "words": ["a", "", "b c"],
        "none": [],
        "long": -5,
    }
    np.testing.assert_array_equal(file.tensor("a"), values)
    assert file.tensors["b"].shape == (2, 64)
    assert file.tensor("b").ravel().tolist() == [float(v) for v in scalar_q8_0(blocks)]


def test_a_file_without_keys_and_tensors_is_valid(gguf: Any, tmp_path: Path) -> None:
    file = GGUFFile(gguf.write(tmp_path / "a.gguf"))
    assert (file.metadata, file.tensors) == ({}, {})
    with pytest.raises(CorruptFileError, match="tensor 'w' is missing"):
        file.tensor("w")


def test_every_truncation_is_refused(gguf: Any, tmp_path: Path) -> None:
    gguf.pair("name", "abc").pair("words", ["a", "b"]).pair("ids", np.arange(3))
    whole = gguf.f32("a", np.ones((2, 4), np.float32)).tensor("b", (32,), Q4_1, bytes(20)).build()
    path = tmp_path / "a.gguf"
    path.write_bytes(whole)
    assert len(GGUFFile(path).tensors) == 2
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(CorruptFileError):
            GGUFFile(path)


def test_single_byte_damage_is_refused_or_read_within_bounds(gguf: Any, tmp_path: Path) -> None:
    gguf.pair("name", "abc").pair("words", ["a", "b"]).pair("ids", np.arange(3))
    whole = gguf.f32("a", np.ones((2, 4), np.float32)).tensor("b", (32,), Q4_1, bytes(20)).build()
    path = tmp_path / "a.gguf"
    refused = 0
    for position in range(len(whole) - 52):  # all of the header
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            try:
                file = GGUFFile(path)
            except CorruptFileError:
                refused += 1
                continue
            for info in file.tensors.values():
                assert 0 <= info.offset <= info.offset + info.nbytes <= len(whole)
    assert refused > len(whole)


HUGE = 2**63


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": b"GGML"}, "does not start with the magic bytes GGUF"),
        ({"version": 1}, "version 1 is not 2 or 3"),
        ({"version": 3 << 24}, "little-endian"),
        ({"n_tensors": HUGE}, f"tensor count is {HUGE}, more than the"),
        ({"n_pairs": HUGE}, f"key count is {HUGE}, more than the"),
        ({"n_tensors": 2}, "damaged"),
        ({"n_pairs": 1}, "damaged"),
        ({"pairs": [("a", 1), ("a", 2)]}, "key 'a' occurs twice"),
        ({"pairs": [("a", struct.pack("<I", 77))]}, "unknown value type 77"),
        ({"pairs": [("a", struct.pack("<IQ", 8, HUGE))]}, f"length of key 'a' is {HUGE}"),
        ({"pairs": [("a", struct.pack("<IIQ", 9, 8, HUGE))]}, f"length of key 'a' is {HUGE}"),
        ({"pairs": [("a", struct.pack("<IIQ", 9, 12, 2**60))]}, "more than the"),
        ({"pairs": [("a", struct.pack("<IIQ", 9, 9, 1))]}, "unknown or nested"),
        ({"pairs": [("a", struct.pack("<IQ", 8, 2) + b"\xff\xfe")]}, "not UTF-8"),
        ({"pairs": [("general.alignment", 0)]}, "general.alignment is 0"),
        ({"pairs": [("general.alignment", 48)]}, "general.alignment is 48"),
        ({"pairs": [("general.alignment", 2**31)]}, "general.alignment is"),
        ({"pairs": [("general.alignment", "32")]}, "general.alignment is '32'"),
    ],
)
def test_a_header_that_lies_is_refused(
    gguf: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    gguf.f32("a", np.ones(8, np.float32))
    for name, value in change.items():
        setattr(gguf, name, value)
    with pytest.raises(CorruptFileError, match=message) as error:
        GGUFFile(gguf.write(tmp_path / "a.gguf"))
    assert str(tmp_path / "a.gguf") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"offset": 4096}, "ends at byte .* of a file of"),
        ({"offset": 2**64 - 32}, "ends at byte .* of a file of"),
        ({"offset": 33}, "not aligned to 32"),
        ({"offset": 0}, "tensor 'b' overlaps tensor 'a'|tensor 'a' overlaps tensor 'b'"),
        ({"dims": (9,)}, "ends at byte .* of a file of"),
        ({"dims": (2**62,)}, "ends at byte .* of a file of"),
        ({"dims": (2**63, 2**63), "n_dims": 2}, "ends at byte .* of a file of"),
        ({"dims": (0,)}, "rows are not blocks of 1"),
        ({"dims": (), "n_dims": 0}, "has 0 dimensions"),
        ({"dims": (1,) * 5, "n_dims": 5}, "has 5 dimensions"),
        ({"n_dims": 2**32 - 1}, "has 4294967295 dimensions"),
        ({"kind": 2}, "has type 2; this reader takes 0 \\(F32\\), 3 \\(Q4_1\\), 8 \\(Q8_0\\)"),
        ({"kind": 8}, "rows are not blocks of 32"),
        ({"name": "a"}, "tensor 'a' occurs twice"),
        ({"name": ""}, "name has 0 characters"),
        ({"name": "n" * 300}, "name has 300 characters"),
    ],
)
def test_a_tensor_table_that_lies_is_refused(
    gguf: Any, tmp_path: Path, entry: dict[str, Any], message: str
) -> None:
    gguf.f32("a", np.ones(8, np.float32))
    gguf.f32("b", np.ones(8, np.float32)).tensors[-1].update(entry)
    with pytest.raises(CorruptFileError, match=message):
        GGUFFile(gguf.write(tmp_path / "a.gguf"))


def test_require_names_the_key_and_the_type(gguf: Any, tmp_path: Path) -> None:
    file = GGUFFile(gguf.pair("n", "seven").write(tmp_path / "a.gguf"))
    assert file.require("n", str) == "seven"
    with pytest.raises(CorruptFileError, match="key 'n' is str, not int"):
        file.require("n", int)
    with pytest.raises(CorruptFileError, match="key 'm' is NoneType, not int"):
        file.require("m", int)
