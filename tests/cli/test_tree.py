# SPDX-License-Identifier: Apache-2.0
"""State trees through JSON and tensors, and back."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")

from lowtide.train.errors import CheckpointError  # noqa: E402
from lowtide.train.tree import flatten, unflatten  # noqa: E402


def there_and_back(tree: object) -> object:
    skeleton, tensors = flatten(tree)
    return unflatten(json.loads(json.dumps(skeleton, allow_nan=False)), tensors)


def test_plain_values_keep_type_and_value() -> None:
    tree = {
        "betas": (0.9, 0.999), "step": 3, "big": 2**77, "on": True, "none": None, "name": "x", "list": [1, (2, [3])],
        "tiny": 5e-324, "third": 1 / 3, "inf": -math.inf, 7: {"a": 1}, "$tensor": "not a tensor", "empty": {},
    }  # fmt: skip
    assert there_and_back(tree) == tree
    back = there_and_back({"nan": math.nan})
    assert isinstance(back, dict)
    assert math.isnan(back["nan"])


def test_tensors_keep_bits_dtype_and_layout() -> None:
    tensors = {
        "packed": torch.arange(256, dtype=torch.uint8), "half": torch.randn(3, 5).bfloat16(), "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 4), "column": torch.randn(4, 6).t(), "holes": torch.randn(4, 6)[:, ::2],
    }  # fmt: skip
    back = there_and_back({"state": {0: tensors}})
    assert isinstance(back, dict)
    for name, tensor in tensors.items():
        other = back["state"][0][name]
        assert other.dtype == tensor.dtype
        assert other.shape == tensor.shape
        assert torch.equal(other, tensor)
    assert back["state"][0]["column"].stride() == tensors["column"].stride()


def test_a_tied_tensor_is_stored_once_and_names_never_collide() -> None:
    shared = torch.randn(4)
    _, tensors = flatten({"embed": shared, "head": shared})
    assert list(tensors) == ["embed"]
    _, tensors = flatten({"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}})
    assert len(tensors) == 2


@pytest.mark.parametrize("bad", [{"x": object()}, {"x": {1.5: 2}}, {"x": b"bytes"}, {"x": {True: 1}}])
def test_what_json_cannot_keep_is_refused(bad: object) -> None:
    with pytest.raises(TypeError):
        flatten(bad)


def test_endless_nesting_is_refused() -> None:
    loop: dict[str, object] = {}
    loop["again"] = loop
    with pytest.raises(TypeError, match="deeper"):
        flatten(loop)
    deep: object = 0
    for _ in range(300):
        deep = [deep]
    with pytest.raises(CheckpointError):
        unflatten(deep, {})


@pytest.mark.parametrize(
    "skeleton",
    [
        {"$tensor": "missing"}, {"$tensor": 3}, {"$tuple": 4}, {"$pairs": [[1]]}, {"$pairs": {"a": 1}},
        {"$pairs": [[[1], 2]]}, {"$float": "0"}, {"$float": []}, {},
        {"$tensor": "x", "stride": [1]}, {"$tensor": "x", "stride": [0, 0]}, {"$tensor": "x", "stride": [10**18, 1]},
        {"$tensor": "x", "stride": [-3, 1]}, {"$tensor": "x", "stride": "31"},
    ],
)  # fmt: skip
def test_a_hostile_skeleton_is_refused(skeleton: object) -> None:
    with pytest.raises(CheckpointError):
        unflatten(skeleton, {"x": torch.zeros(2, 3)})
