# SPDX-License-Identifier: Apache-2.0
"""Windows of tokens: the split and the order of batches, as a pure function of the seed and the step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowtide.train.errors import DataError

Tokens = NDArray[np.uint32]
Batch = NDArray[np.int64]


class Windows:
    """The consecutive windows of `seq_len` tokens of a token array; a shorter tail is left out."""

    def __init__(self, tokens: Tokens, seq_len: int) -> None:
        self.tokens = tokens
        self.seq_len = seq_len

    def __len__(self) -> int:
        return len(self.tokens) // self.seq_len

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """Windows by index, shape `[len(indices), seq_len]`."""
        starts = indices[:, None] * self.seq_len
        batch: Batch = self.tokens[starts + np.arange(self.seq_len)].astype(np.int64)
        return batch


def split(tokens: Tokens, *, seq_len: int, val_fraction: float) -> tuple[Windows, Windows]:
    """Training windows from the front, validation windows from the last `val_fraction` of the tokens.

    Raises DataError when either side has no whole window.
    """
    held_out = int(len(tokens) * val_fraction)
    train, val = (
        Windows(tokens[: len(tokens) - held_out], seq_len),
        Windows(tokens[len(tokens) - held_out :], seq_len),
    )
    if not len(train):
        raise DataError(
            f"data: {len(train.tokens)} tokens for training are shorter than one window of {seq_len}; "
            "give more text or a smaller --seq-len"
        )
    if val_fraction > 0 and not len(val):
        raise DataError(
            f"data: {held_out} tokens for validation are shorter than one window of {seq_len}; "
            "give more text, a larger --val-fraction, a smaller --seq-len, or --val-fraction 0 for none"
        )
    return train, val


class BatchOrder:
    """Which windows each training step sees.

    Sample `k` of the run is window `perm_e[k mod n]` of epoch `e = k // n`, where `perm_e` sorts the first n words
    of Philox keyed by (seed, e): nothing to save, nothing to replay, the same on every machine.
    """

    def __init__(self, windows: Windows, *, batch_size: int, seed: int) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Window indices of 0-based `step`, shape `[batch_size]`."""
        samples = step * self.batch_size + np.arange(self.batch_size)
        result = np.empty(self.batch_size, dtype=np.int64)
        for row, sample in enumerate(samples):
            epoch, place = divmod(int(sample), len(self.windows))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self._permutation(epoch)
            result[row] = self._order[place]
        return result

    def __call__(self, step: int) -> Batch:
        """Token ids of 0-based `step`, shape `[batch_size, seq_len]`."""
        return self.windows.take(self.indices(step))

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        key = np.array([self.seed % 2**64, epoch], dtype=np.uint64)
        words = np.random.Philox(key=key).random_raw(len(self.windows))
        return np.argsort(words, kind="stable").astype(np.int64)


def validation_batches(windows: Windows, *, batch_size: int, batches: int) -> list[NDArray[np.int64]]:
    """Indices of at most `batches * batch_size` windows, spread evenly over the validation part, in batches."""
    count = min(len(windows), batches * batch_size)
    chosen = np.arange(count, dtype=np.int64) * len(windows) // max(1, count)
    return [chosen[i : i + batch_size] for i in range(0, count, batch_size)]
