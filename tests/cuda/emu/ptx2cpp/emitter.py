# SPDX-License-Identifier: Apache-2.0
"""Turn the statements of one kernel into a C++ function."""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import lint
from .errors import PtxError
from .ptx_types import C_TYPE, bits, storage
from .syntax import Entry, Module, Statement, Variable

SPECIAL = {
    f"%{ptx}.{d}": f"machine.{cpp}.{d}"
    for ptx, cpp in (
        ("tid", "current->id"),
        ("ntid", "block_dim"),
        ("ctaid", "block_index"),
        ("nctaid", "grid_dim"),
    )
    for d in "xyz"
}
SPECIAL["%laneid"] = "(machine.current->linear & 31u)"
SPECIAL["%warpid"] = "(machine.current->linear >> 5)"
SPECIAL["WARP_SZ"] = "32u"

# Room between shared variables in the emulated window: overruns then hit no other variable, and bank numbers stay.
SHARED_GAP = 128


def split_operands(text: str) -> list[str]:
    """Split at commas outside {...} and [...]."""
    out, depth, current = [], 0, ""
    for c in text:
        depth += (c in "{[") - (c in "}]")
        if c == "," and depth == 0:
            out.append(current.strip())
            current = ""
        else:
            current += c
    return [*out, current.strip()] if current.strip() else out


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: list[str]
    site: str  # C++ expression of its Site

    @property
    def type(self) -> str:
        return self.opcode.rsplit(".", 1)[-1]


class Emitter:
    """Writes one kernel. Handlers in `opcodes` call `value`, `assign` and `emit`."""

    def __init__(self, module: Module, entry: Entry) -> None:
        self.entry = entry
        self.lines: list[str] = []
        self.sites: list[str] = []
        self.errors: list[str] = []
        self.used: set[str] = set()
        self.params = {p.name: (i, p.size) for i, p in enumerate(entry.params)}
        self.shared: dict[str, int] = {}
        self.shared_ranges: list[tuple[int, int]] = []
        self.static_shared = 0
        self.window = 0
        self.locals = [v for v in entry.body.variables if v.space == "local"]
        self.module_variables = {v.name: v for v in module.variables if v.space in ("global", "const")}
        self._place_shared([v for v in entry.body.variables if v.space == "shared"])
        # Module-level shared variables belong to the kernels that name them.
        text = " ".join(s.text for s in entry.body.statements)
        outer = [
            v
            for v in module.variables
            if v.space == "shared" and re.search(rf"(?<![\w$%]){re.escape(v.name)}(?![\w$])", text)
        ]
        self._place_shared([v for v in outer if v.size])
        for v in outer:
            if not v.size:
                self.shared[v.name] = self.window

    def _place_shared(self, variables: list[Variable]) -> None:
        for v in variables:
            self.static_shared = -(-self.static_shared // v.align) * v.align + v.size
            self.shared[v.name] = self.window
            self.shared_ranges.append((self.window, v.size))
            self.window = -(-(self.window + v.size) // SHARED_GAP) * SHARED_GAP + SHARED_GAP

    # ---- operands ----------------------------------------------------------------------------------------
    def bits(self, operand: str) -> str:
        """C++ expression of an operand's bits."""
        if operand in SPECIAL:
            return SPECIAL[operand]
        if operand in self.entry.body.registers:
            self.used.add(operand)
            return variable(operand)
        if m := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", operand):
            return f"0x{m[1]}u"
        if m := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", operand):
            return f"0x{m[1]}ull"
        if re.fullmatch(r"-?\d+|-?0x[0-9a-fA-F]+U?", operand):
            value = int(operand.rstrip("U"), 0) % (1 << 64)
            return f"0x{value:x}ull"
        if operand in self.shared:
            return f"{self.shared[operand]}u"
        if operand in self.module_variables:
            return f"reinterpret_cast<uint64_t>(v_{operand})"
        if operand in self.params:
            return f"reinterpret_cast<uint64_t>(args[{self.params[operand][0]}])"
        if any(v.name == operand for v in self.locals):
            return f"reinterpret_cast<uint64_t>(v_{operand})"
        raise PtxError(f"operand {operand} is not known")

    def value(self, operand: str, ptx_type: str) -> str:
        """C++ expression of an operand as a value of a PTX type."""
        register = self.entry.body.registers.get(operand)
        if register is not None and (
            bits(register) < bits(ptx_type) or (register == "pred") != (ptx_type == "pred")
        ):
            raise PtxError(f"register {operand} (.{register}) read as .{ptx_type}")
        return f"As<{C_TYPE[ptx_type]}>({self.bits(operand)})"

    def condition(self, operand: str) -> str:
        """C++ expression of a predicate, possibly negated as !%p."""
        if operand.startswith("!"):
            return "!" + self.condition(operand[1:])
        return self.value(operand, "pred")

    def address(self, operand: str) -> str:
        """C++ expression of `[register+offset]` or `[variable+offset]`."""
        m = re.fullmatch(r"\[\s*([^+\]\s]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if m is None:
            raise PtxError(f"address {operand} is not understood")
        offset = int(m[2] or 0) % (1 << 64)
        return f"{self.bits(m[1])} + {offset}ull" if offset else self.bits(m[1])

    # ---- output ------------------------------------------------------------------------------------------
    def emit(self, line: str) -> None:
        self.lines.append(line)

    def assign(self, destination: str, expression: str) -> None:
        """Write a typed C++ value into a register."""
        if destination == "_":
            self.emit(f"(void)({expression});")
            return
        target = self.bits(destination)
        if destination not in self.entry.body.registers:
            raise PtxError(f"{destination} cannot be written")
        kind = storage(self.entry.body.registers[destination])
        self.emit(f"{target} = Reg<{kind}>({expression});")

    def statement(self, s: Statement) -> None:
        from .opcodes import translate

        if s.text.endswith(":"):
            self.emit(f"{label(s.text[:-1])}:;")
            return
        m = re.fullmatch(r"(?:@(!?)([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", s.text, re.S)
        if m is None:
            raise PtxError("not understood")
        negated, predicate, opcode, rest = m.groups()
        if (why := lint.finding(opcode)) is not None:
            raise PtxError(why)
        file, line = s.source or ("", 0)
        self.sites.append(f'{{"{opcode}", "{file}", {line}, {s.ptx_line}}}')
        start = len(self.lines)
        translate(self, Instruction(opcode, split_operands(rest), f"kSites[{len(self.sites) - 1}]"))
        if predicate:
            body = " ".join(self.lines[start:])
            self.lines[start:] = [f"if ({self.condition(negated + predicate)}) {{ {body} }}"]
        if s.source and self.lines[start:]:
            self.lines.insert(start, f'#line {line} "{file}"')

    def run(self) -> None:
        for s in self.entry.body.statements:
            try:
                self.statement(s)
            except PtxError as e:
                self.errors.append(f"{self.entry.name}, PTX line {s.ptx_line}{_at(s)}: {s.text}: {e}")

    def function(self, index: int) -> str:
        """The C++ text: sites, local variables, registers, instructions."""
        registers: dict[str, list[str]] = {}
        for name in sorted(self.used):
            registers.setdefault(storage(self.entry.body.registers[name]), []).append(f"{variable(name)} = 0")
        out = [
            f"const Site kSites{index}[] = {{",
            *[f"    {s}," for s in self.sites or ['{"", "", 0, 0}']],
            "};",
        ]
        ranges = self.shared_ranges or [(0, 0)]
        out.append(
            f"const Range kShared{index}[] = {{" + ", ".join(f"{{{a}, {b}}}" for a, b in ranges) + "};"
        )
        sizes = ", ".join(str(p.size) for p in self.entry.params) or "0"
        out.append(f"const unsigned kParams{index}[] = {{{sizes}}};")
        out.append(f"void Kernel{index}([[maybe_unused]] void** args) {{")
        out.append(f"  [[maybe_unused]] const Site* const kSites = kSites{index};")
        out += [f"  alignas({max(v.align, 16)}) unsigned char v_{v.name}[{v.size}];" for v in self.locals]
        out += [f"  {t} {', '.join(v)};" for t, v in registers.items()]
        out += [x if x.startswith("#") else "  " + x for x in self.lines]
        out.append("}")
        return "\n".join(out)


def variable(register: str) -> str:
    """C++ name of a register; %x and x are different registers."""
    return "r_" + register[1:] if register.startswith("%") else "n_" + register.replace("$", "_")


def label(name: str) -> str:
    return "L" + name.replace("$", "_")


def _at(s: Statement) -> str:
    return f" ({s.source[0]}:{s.source[1]})" if s.source else ""
