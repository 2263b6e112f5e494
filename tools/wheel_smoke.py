# SPDX-License-Identifier: Apache-2.0
"""Run by the Python of an environment that has a wheel installed: what runs is the wheel's, and it works.

    python -I wheel_smoke.py WHEEL [--torch VERSION]

Needs nothing but the wheel and NumPy; with --torch that torch too. Prints one line a check; a failure is an AssertionError.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

STREAM_DIGEST = "a8b2e7209325e727f1e0910ad053c0d1"  # of every distribution and dtype, on every processor


def same_code(wheel: Path) -> int:
    """Every file of the wheel lies unchanged beside the package that imports; the number of files."""
    import lowtide

    package = Path(lowtide.__file__).resolve().parent
    assert Path(sys.prefix).resolve() in package.parents, f"{package} is not in {sys.prefix}"
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith("lowtide/") and not n.endswith("/")]
        for name in names:
            installed = package.parent / name
            assert installed.is_file(), f"{name} of the wheel is not installed"
            assert installed.read_bytes() == archive.read(name), f"{name} differs from the wheel's"
    stray = {p.relative_to(package.parent).as_posix() for p in package.rglob("*.so")} - set(names)
    assert not stray, f"{sorted(stray)} are installed but not in the wheel"
    return len(names)


def all_from(package: Path) -> None:
    """No module of lowtide came from elsewhere."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.split(".")[0] == "lowtide" and file is not None:
            assert package in Path(file).resolve().parents, f"{name} is {file}"


def numpy_kernels() -> None:
    """The random stream has its known digest on every instruction set; a matrix goes to 4 bits and back."""
    import numpy as np

    import lowtide as lt

    for name in lt.available_isas():
        lt.set_isa(name)
        assert lt.random.self_test_digest().hex() == STREAM_DIGEST, name
    x = np.linspace(-1, 1, 24 * 70, dtype=np.float32).reshape(24, 70)
    back = np.asarray(lt.quant.dequantize(lt.quant.quantize(x, 4, 64)))
    step = 1 / 7  # of a symmetric 4-bit group whose largest magnitude is 1
    assert 0 < float(np.abs(back - x).max()) <= 0.5 * step * (1 + 1e-5)


def command(*arguments: str) -> str:
    """The console script of this environment."""
    script = Path(sys.executable).parent / "lowtide"
    return subprocess.run([script, *arguments], check=True, capture_output=True, text=True).stdout


def information(torch_version: str | None) -> None:
    """`lowtide info` tells this environment as it is."""
    facts = json.loads(command("info", "--json"))
    assert facts["python"] == ".".join(map(str, sys.version_info[:3])), facts["python"]
    assert torch_version == "any" or facts["packages"]["torch"] == torch_version, facts["packages"]
    assert facts["torch_ops"]["loaded"] == (torch_version is not None), facts["torch_ops"]
    if torch_version is None:
        assert "pip install 'torch>=2.10'" in facts["torch_ops"]["reason"]
    assert "instruction set" in command("info")


def optimizer_step() -> None:
    """Our fp32 AdamW equals torch's to rounding, and Q-GaLore lowers a loss."""
    import torch

    import lowtide as lt

    torch.manual_seed(0)
    start = torch.randn(40, 24)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    pairs = [(ours, lt.optim.AdamW([ours], lr=1e-2)), (theirs, torch.optim.AdamW([theirs], lr=1e-2))]
    for _ in range(10):
        for p, opt in pairs:
            opt.zero_grad()
            p.square().sum().backward()
            opt.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert not torch.equal(ours, start)

    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Tanh(), torch.nn.Linear(48, 16))
    opt = lt.optim.QGaLoreAdamW(lt.optim.param_groups(model, rank=4, update_proj_gap=5, scale=1.0), lr=1e-2)
    x, y = torch.randn(32, 64), torch.randn(32, 16)
    losses = []
    for _ in range(30):
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses


def opcheck() -> None:
    """Schema, fake kernel and autograd registration of a functional and of a list op."""
    import torch

    import lowtide.ops  # noqa: F401

    ops = torch.ops.lowtide
    torch.library.opcheck(ops.random_sample.default, (torch.empty(70), 1, 2, 3, 4, 0, 0, 1))
    torch.library.opcheck(
        ops.random_add_list_.default, ([torch.ones(3), torch.ones(4)], 0.5, 1, 2, 3, [4, 5], 0, 1)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument(
        "--torch", metavar="VERSION", help="this torch (or `any`) is installed; without it none may be"
    )
    args = parser.parse_args()
    wheel = args.wheel.resolve()
    os.chdir(tempfile.mkdtemp())  # not the source tree

    import lowtide

    print(f"wheel's code: {same_code(wheel)} files of {wheel.name}")
    numpy_kernels()
    print(f"NumPy kernels: {', '.join(lowtide.available_isas())}")
    if args.torch is None:
        assert importlib.util.find_spec("torch") is None, "torch is installed"
    information(args.torch)
    print("command: lowtide info")
    if args.torch is not None:
        import torch

        assert args.torch in ("any", torch.__version__), torch.__version__
        torch.set_num_threads(2)
        optimizer_step()
        opcheck()
        print(f"torch {torch.__version__}: steps, opcheck")
    all_from(Path(lowtide.__file__).resolve().parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
