# SPDX-License-Identifier: Apache-2.0
"""The versions in requirements/, constraints, pyproject.toml and pre-commit agree with one another."""

from __future__ import annotations

import re
import sys

from check_spdx import ROOT

PIN = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)$")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str) -> dict[str, str]:
    found = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        match = PIN.match(line.strip())
        if match:
            found[normal(match[1])] = match[2]
        elif line.strip() and not line.startswith(("#", "-r ")):
            raise SystemExit(f"requirements/{name}: '{line}' is not pinned with ==")
    return found


def extras() -> dict[str, list[str]]:
    """The optional dependencies of pyproject.toml, package names only (Python 3.10 has no TOML reader)."""
    text = (ROOT / "pyproject.toml").read_text()
    table = text.split("[project.optional-dependencies]", 1)[1].split("\n[", 1)[0]
    return {
        key: [normal(n) for n in re.findall(r'"([A-Za-z0-9_.-]+)', value) if n != "lowtide"]
        for key, value in re.findall(r"^(\w+) = \[(.*?)\]$", table, re.MULTILINE | re.DOTALL)
    }


def main() -> int:
    constraints = pins("constraints.txt")
    faults = []
    checked = 0
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        for name, version in pins(path.name).items():
            checked += 1
            if constraints.get(name, version) != version:
                faults.append(f"{path.name}: {name}=={version}, constraints.txt has {constraints[name]}")
            if path.name not in ("build.txt", "wheel.txt") and name not in constraints:
                faults.append(f"{path.name}: {name} is missing from constraints.txt")
    for extra, names in extras().items():
        # Flower asks for older packages than ours: it is for an environment of its own.
        if extra in ("torch", "flower"):
            continue
        listed = pins(f"{extra}.txt") | (pins("demo.txt") if extra in ("test", "bench") else {})
        faults += [
            f"pyproject.toml: {n} of [{extra}] is not in requirements/{extra}.txt"
            for n in names
            if n not in listed
        ]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for name, version in re.findall(r'"([a-z-]+)==([\d.]+)"', hooks):
        checked += 1
        if pins("test.txt").get(name) != version:
            faults.append(f".pre-commit-config.yaml: {name}=={version} differs from requirements/test.txt")
    for fault in faults:
        print(fault)
    print(f"pins: {checked} checked, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
