# SPDX-License-Identifier: Apache-2.0
"""A whole PTX module to one C++ file."""

from __future__ import annotations

from .emitter import Emitter
from .errors import PtxError
from .syntax import Module, parse


def translate_text(text: str) -> str:
    """C++ of a PTX module. Raises PtxError with every finding."""
    out, errors = translate_module(text)
    if errors:
        raise PtxError("\n".join(errors))
    return out


def translate_module(text: str) -> tuple[str, list[str]]:
    """Return (C++ text, findings); the text is only good when there are no findings."""
    module = parse(text)
    if not module.entries:
        return "", ["no kernel in this file"]
    out = [
        "// Generated from PTX by ptx2cpp.",
        '#include "ptx.h"',
        "namespace {",
        "using namespace lowtide::emu;",
    ]
    out += _module_variables(module)
    errors: list[str] = []
    table = []
    for i, entry in enumerate(module.entries):
        e = Emitter(module, entry)
        e.run()
        errors += e.errors
        out += [e.function(i), f'#line {sum(x.count(chr(10)) + 1 for x in out) + 2} "generated"']
        window = -(-e.window // 16) * 16
        table.append(
            f'    {{"{entry.name}", {module.arch}, Kernel{i}, {entry.max_threads}, {e.static_shared}, {window}, '
            f"kShared{i}, {len(e.shared_ranges)}, kVariables, kVariableCount, kParams{i}, {len(entry.params)}}},"
        )
    out += ["const Kernel kKernels[] = {", *table, "};"]
    out.append(
        "[[maybe_unused]] const bool registered = (RegisterKernels(kKernels, sizeof kKernels / sizeof kKernels[0]), true);"
    )
    out.append("}  // namespace")
    return "\n".join(out) + "\n", errors


def _module_variables(module: Module) -> list[str]:
    variables = [v for v in module.variables if v.space in ("global", "const") and v.size]
    out = []
    for v in variables:
        data = ", ".join(map(str, v.data))
        out.append(
            f"[[maybe_unused]] alignas({max(v.align, 16)}) unsigned char v_{v.name}[{v.size}] = {{{data}}};"
        )
    ranges = ", ".join(f"{{reinterpret_cast<uint64_t>(v_{v.name}), {v.size}}}" for v in variables) or "{0, 0}"
    out.append(f"const Range kVariables[] = {{{ranges}}};")
    out.append(f"constexpr unsigned kVariableCount = {len(variables)};")
    return out
