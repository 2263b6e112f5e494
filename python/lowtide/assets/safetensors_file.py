# SPDX-License-Identifier: Apache-2.0
"""Write a safetensors file one tensor at a time.

The ``safetensors`` package wants all tensors in memory and may change its header's layout between versions.
Streaming keeps the peak at one tensor, and fixed bytes let the finished file be pinned by its SHA-256.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    produce: Callable[[str], npt.NDArray[np.float32]],
    wrote: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write float32 tensors in the order of ``shapes``.

    Args:
        path: the file to create.
        shapes: tensor name to shape.
        produce: called once per name, returns the tensor; its shape must be the announced one.
        wrote: told the size of each tensor once it is written, for a progress bar.

    Raises:
        ValueError: ``produce`` returned another shape than announced.
        OSError: the file cannot be written.
    """
    with open(path, "wb") as f:
        f.write(_header(shapes.items()))
        for name, shape in shapes.items():
            values = np.ascontiguousarray(produce(name), dtype="<f4")
            if values.shape != shape:
                raise ValueError(f"tensor {name!r} has shape {values.shape}, announced was {shape}")
            f.write(values.data)
            wrote(values.nbytes)


def _header(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes:
        start, end = end, end + 4 * math.prod(shape)
        table[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
