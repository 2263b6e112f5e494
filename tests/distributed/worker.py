# SPDX-License-Identifier: Apache-2.0
"""One of the processes of tests/distributed: joins the others and runs the cases it is told to, one JSON line each.

python worker.py RANK PROCESSES RENDEZVOUS_FILE
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist


def main(rank: int, processes: int, rendezvous: str) -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints
    sys.path.insert(0, str(Path(__file__).parent))
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    for line in sys.stdin:
        module, case, arguments = json.loads(line)
        try:
            getattr(importlib.import_module(module), case)(*arguments)
            error = None
        except BaseException:
            error = traceback.format_exc()
        print(json.dumps(error), file=answers, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
