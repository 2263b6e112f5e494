# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

import lowtide as lt
from lowtide import _core, ops

STRIDE = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def oracle(words: np.ndarray, offset: int = 0) -> int:
    """The definition, in Python integers."""
    total = 0
    for i, bits in enumerate(words.reshape(-1).tolist()):
        x = (bits + (offset + i) * STRIDE) & MASK
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
        total += x ^ (x >> 31)
    return total & MASK


@pytest.mark.parametrize(
    ("dtype", "unsigned"), [(np.float32, np.uint32), (np.float16, np.uint16), (np.int8, np.uint8)]
)
def test_is_its_definition(isa: str, dtype: type, unsigned: type) -> None:
    x = (np.random.default_rng(1).standard_normal(1031) * 50).astype(dtype)
    for offset in (0, 2**40 + 3):
        want = oracle(x.view(unsigned), offset)
        assert _core.spsa_digest(x, offset) == want
        assert int(ops.spsa_digest(torch.from_numpy(x), offset)) & MASK == want


def test_other_dtypes_and_layouts() -> None:
    x = torch.arange(60, dtype=torch.float64).reshape(5, 12)
    words = x.numpy().view(np.uint32)
    assert int(ops.spsa_digest(x, 7)) & MASK == oracle(words, 14)
    assert int(ops.spsa_digest(x.t())) & MASK == oracle(np.ascontiguousarray(x.numpy().T).view(np.uint32))
    b = torch.randn(33).bfloat16()
    assert int(ops.spsa_digest(b)) & MASK == oracle(b.view(torch.int16).numpy().view(np.uint16))
    assert int(ops.spsa_digest(torch.empty(0))) == 0
    assert int(ops.spsa_digest(torch.nn.Parameter(b.float()))) == int(ops.spsa_digest(b.float()))


def test_bad_input_is_named() -> None:
    with pytest.raises(lt.LowtideTypeError, match="w must be"):
        ops.spsa_digest(torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(lt.LowtideTypeError, match="list"):
        ops.spsa_digest([1.0])
    with pytest.raises(lt.LowtideValueError, match="offset"):
        ops.spsa_digest(torch.zeros(3), -1)
    with pytest.raises(lt.LowtideValueError, match="1, 2 or 4 bytes"):
        _core.spsa_digest(np.zeros(3), 0)


def test_opcheck_and_compile() -> None:
    x = torch.randn(70)
    torch.library.opcheck(torch.ops.lowtide.spsa_digest.default, (x, 3))
    f = torch.compile(lambda t: ops.spsa_digest(t * 2, 5), fullgraph=True, backend="aot_eager")
    assert int(f(x)) == int(ops.spsa_digest(x * 2, 5))
