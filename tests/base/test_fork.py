# SPDX-License-Identifier: Apache-2.0
"""The thread pool of the NumPy surface survives os.fork(): the child starts with a fresh one."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

# In a process of its own: no other library may have started threads before the fork.
FORK = """
import hashlib, os, signal, sys
import numpy as np
import lowtide as lt

lt.set_num_threads(2)

def digest():
    return hashlib.sha256(lt.random.sample(200_000, seed=7).tobytes()).digest()

want = digest()  # the pool has workers now
def child(depth):
    signal.alarm(30)  # a deadlock ends the child
    ok = digest() == want and lt.num_threads() == 2
    if depth:
        ok = fork(depth - 1) == 0 and digest() == want and ok
    os._exit(0 if ok else 1)

def fork(depth):
    pid = os.fork()
    if pid == 0:
        child(depth)
    return os.waitpid(pid, 0)[1]

status = [fork(1), fork(0)]
assert status == [0, 0], status
assert digest() == want
"""

POOL = """
import multiprocessing, signal
import numpy as np
import lowtide as lt

lt.set_num_threads(2)
signal.alarm(60)

def norm(seed):
    return float(lt.random.dot(np.ones(100_000, np.float32), seed=seed))

want = [norm(s) for s in range(4)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(norm, range(4)) == want
"""


@pytest.mark.parametrize("script", [FORK, POOL], ids=["os.fork", "multiprocessing"])
def test_numpy_kernels_work_in_forked_children(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
