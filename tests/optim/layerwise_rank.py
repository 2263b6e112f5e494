# SPDX-License-Identifier: Apache-2.0
"""One of two ranks, run by test_in_backward_loops.py: RANK FOLDER."""

from __future__ import annotations

import sys

import torch
from layerwise_loops import METHODS, PARALLEL, loss_of, make_model, weights
from torch import nn

import lowtide as lt


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for i, options in enumerate(PARALLEL):
        model = make_model()
        handle = lt.optim.in_backward(
            METHODS["galore"], model, process_group=torch.distributed.group.WORLD, **options
        )
        n = options.get("accumulate", 1)
        for t in range(2 * 5 * n):
            if t % 2 == rank:
                handle.backward(loss_of(model, t) / n)
        torch.save(weights(model), f"{folder}/{i}{rank}.pt")
    try:
        lt.optim.in_backward(METHODS["galore"], nn.parallel.DistributedDataParallel(make_model()))
    except lt.LowtideValueError as error:
        assert "DistributedDataParallel" in str(error)  # noqa: PT017
    else:
        raise AssertionError("DistributedDataParallel was taken")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
