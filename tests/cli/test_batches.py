# SPDX-License-Identifier: Apache-2.0
"""The split and the order of batches."""

from __future__ import annotations

import numpy as np
import pytest

from lowtide.train.batches import BatchOrder, Windows, split, validation_batches
from lowtide.train.errors import DataError
from lowtide.train.schedule import learning_rate


def windows(count: int, seq_len: int = 4, tail: int = 3) -> Windows:
    return Windows(np.arange(count * seq_len + tail, dtype=np.uint32), seq_len)


def test_each_epoch_sees_every_window_once_in_another_order() -> None:
    order = BatchOrder(windows(12), batch_size=4, seed=1)
    epochs = [np.concatenate([order.indices(step) for step in range(e * 3, e * 3 + 3)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert not np.array_equal(epochs[0], epochs[1])


def test_order_is_a_pure_function_of_seed_and_step() -> None:
    forward = BatchOrder(windows(10), batch_size=7, seed=5)
    backward = BatchOrder(windows(10), batch_size=7, seed=5)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            [forward(s) for s in range(9)], [backward(s) for s in reversed(range(9))][::-1], strict=True
        )
    )
    assert not np.array_equal(forward.indices(0), BatchOrder(windows(10), batch_size=7, seed=6).indices(0))


def test_order_known_answer() -> None:
    # Written down once: a change of these numbers breaks the resuming of every run before it.
    order = BatchOrder(windows(8), batch_size=8, seed=2**63 - 1)
    assert order.indices(0).tolist() == [1, 6, 3, 2, 7, 4, 0, 5]
    assert order.indices(10**9).tolist() == [3, 4, 1, 5, 2, 6, 0, 7]


def test_a_batch_holds_the_tokens_of_its_windows() -> None:
    batch = windows(5).take(np.array([4, 0]))
    assert batch.tolist() == [[16, 17, 18, 19], [0, 1, 2, 3]]
    assert batch.dtype == np.int64


def test_batches_larger_than_the_text_go_round() -> None:
    order = BatchOrder(windows(1), batch_size=5, seed=0)
    assert order.indices(3).tolist() == [0] * 5


def test_validation_is_the_tail_and_apart() -> None:
    train, val = split(np.arange(1000, dtype=np.uint32), seq_len=16, val_fraction=0.1)
    assert train.tokens[-1] == 899
    assert val.tokens[0] == 900
    assert len(val) == 6
    assert [i.tolist() for i in validation_batches(val, batch_size=2, batches=2)] == [[0, 1], [3, 4]]
    assert [i.tolist() for i in validation_batches(val, batch_size=4, batches=9)] == [[0, 1, 2, 3], [4, 5]]
    train, val = split(np.arange(64, dtype=np.uint32), seq_len=16, val_fraction=0)
    assert len(train) == 4
    assert len(val) == 0


@pytest.mark.parametrize(("count", "fraction"), [(0, 0.1), (15, 0), (40, 0.01), (20, 0.5)])
def test_too_little_text_is_said(count: int, fraction: float) -> None:
    with pytest.raises(DataError, match="shorter than one window of 16"):
        split(np.zeros(count, dtype=np.uint32), seq_len=16, val_fraction=fraction)


def test_learning_rate() -> None:
    def rate(step: int, schedule: str = "cosine", warmup: int = 4) -> float:
        return learning_rate(step, peak=2.0, steps=20, warmup=warmup, schedule=schedule)

    assert [rate(s) for s in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert rate(4) == 2.0
    assert rate(12) == pytest.approx(1.0)
    assert 0 < rate(19) < 0.05
    assert all(rate(s) >= rate(s + 1) for s in range(4, 19))
    assert rate(19, "constant") == 2.0
    assert rate(0, "constant", 0) == 2.0
    assert rate(0, warmup=20) == 0.1
