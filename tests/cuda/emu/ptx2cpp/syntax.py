# SPDX-License-Identifier: Apache-2.0
"""Read PTX text: module variables, kernels, and the statements of each body with their source lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from os.path import basename

from .errors import PtxError
from .ptx_types import bits


@dataclass(frozen=True)
class Variable:
    """A variable of the module or of a kernel body, or a parameter."""

    space: str
    name: str
    align: int
    size: int  # bytes; 0 for `extern .shared x[]`
    data: tuple[int, ...] = ()


@dataclass(frozen=True)
class Statement:
    """A label (text ends in ':') or an instruction, and where it stands."""

    text: str
    ptx_line: int
    source: tuple[str, int] | None


@dataclass
class Body:
    statements: list[Statement] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # name as written, PTX type
    variables: list[Variable] = field(default_factory=list)
    tables: dict[str, list[str]] = field(default_factory=dict)  # .branchtargets


@dataclass
class Entry:
    name: str
    params: list[Variable]
    max_threads: int
    body: Body


@dataclass
class Module:
    arch: int = 0
    files: dict[int, str] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)


_NAME = r"[%\w$]+"
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(?P<space>global|const|shared|local|param)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>[busf]\d+)\s+(?:\.ptr[^%\w]*(?:\.\w+\s+)*(?:\.align\s+\d+\s+)?)?"
    rf"(?P<name>{_NAME})\s*(?:\[(?P<count>\d*)\])?(?:\s*=\s*(?P<init>.*))?",
    re.S,
)
_ENTRY = re.compile(
    r"(?:\.(?:visible|weak)\s+)?\.entry\s+(?P<name>[\w$]+)\s*\((?P<params>[^)]*)\)(?P<rules>[^{;]*)"
)


def parse_variable(text: str) -> Variable:
    m = _VARIABLE.fullmatch(text.strip())
    if m is None:
        raise PtxError(f"declaration not understood: {text.strip()[:120]}")
    width = bits(m["type"]) // 8
    count = 1 if m["count"] is None else int(m["count"] or 0)
    return Variable(
        m["space"], m["name"], int(m["align"] or width), width * count, _initial_bytes(m["init"], width)
    )


def _initial_bytes(text: str | None, width: int) -> tuple[int, ...]:
    if text is None:
        return ()
    out: list[int] = []
    for item in text.strip().strip("{}").split(","):
        item = item.strip()
        if m := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", item):
            value = int(m[1] or m[2], 16)
        elif re.fullmatch(r"-?(?:0x[0-9a-fA-F]+|\d+)", item):
            value = int(item, 0)
        else:
            raise PtxError(f"initial value not understood: {item}")
        out += (value % (1 << 8 * width)).to_bytes(width, "little")
    return tuple(out)


def strip_comments(text: str) -> str:
    """Remove comments, keeping line numbers."""
    text = re.sub(r"//[^\n]*", "", text)
    return re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)


def _closing_brace(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i
    raise PtxError("a brace is never closed")


def parse(text: str) -> Module:
    """Parse a whole PTX file. Raises PtxError on anything unknown."""
    text = strip_comments(text)
    module = Module()
    pos = 0
    while m := re.compile(r"\s*(?=\S)").match(text, pos):
        pos = m.end()
        if m := re.compile(r"\.(version|target|address_size)\s+([^\n]*)").match(text, pos):
            if m[1] == "target":
                arch = re.match(r"(?:sm|compute)_(\d+)", m[2])
                module.arch = int(arch[1]) if arch else 0
            if m[1] == "address_size" and m[2].strip() != "64":
                raise PtxError(f"address size {m[2].strip()}: only 64 is supported")
            pos = m.end()
        elif m := re.compile(r'\.file\s+(\d+)\s+"([^"]*)"[^\n]*').match(text, pos):
            module.files[int(m[1])] = basename(m[2])
            pos = m.end()
        elif m := re.compile(r"\.section\s+[^{]*").match(text, pos):
            pos = _closing_brace(text, m.end()) + 1
        elif m := re.compile(r"\.pragma[^;]*;").match(text, pos):
            pos = m.end()
        elif m := _ENTRY.match(text, pos):
            end = _closing_brace(text, m.end())
            line = text.count("\n", 0, m.end()) + 1
            module.entries.append(_entry(m, text[m.end() + 1 : end], line))
            pos = end + 1
        elif m := re.compile(r"(?:\.\w+\s+)*\.(?:global|const|shared)\s[^;]*;").match(text, pos):
            module.variables.append(parse_variable(m[0][:-1]))
            pos = m.end()
        elif re.compile(r"(?:\.\w+\s+)*\.func\b").match(text, pos):
            name = re.search(r"(\w+)\s*\(", text[pos + 5 :])
            raise PtxError(
                f"device function {name[1] if name else '?'} is not inlined: mark it __forceinline__"
            )
        else:
            raise PtxError(
                f"line {text.count(chr(10), 0, pos) + 1}: not understood: {text[pos : pos + 80]!r}"
            )
    for entry in module.entries:  # files may be declared after their use
        entry.body.statements = [_with_file(s, module.files) for s in entry.body.statements]
    return module


def _with_file(s: Statement, files: dict[int, str]) -> Statement:
    if s.source is None:
        return s
    return Statement(s.text, s.ptx_line, (files.get(int(s.source[0]), ""), s.source[1]))


def _entry(m: re.Match[str], body: str, line: int) -> Entry:
    params = [parse_variable(p) for p in m["params"].split(",") if p.strip()]
    threads = 1024
    for rule in re.findall(r"\.\w+[^.]*", m["rules"]):
        words = rule.replace(",", " ").split()
        if words[0] in (".maxntid", ".reqntid"):
            threads = 1
            for w in words[1:]:
                threads *= int(w)
        elif words[0] not in (".minnctapersm", ".maxnreg"):
            raise PtxError(f"{m['name']}: directive {words[0]} is not supported")
    return Entry(m["name"], params, threads, parse_body(body, line))


_DECLARED = re.compile(r"(?P<name>[%\w$]+)(?:<(?P<count>\d+)>)?")


def parse_body(text: str, first_line: int) -> Body:
    """Split a body into statements; registers of nested scopes (inline assembly) get names of their own."""
    body = Body()
    scopes: list[dict[str, str]] = []
    source: tuple[str, int] | None = None
    serial = 0

    def rename(t: str) -> str:
        def one(m: re.Match[str]) -> str:
            for scope in reversed(scopes):
                if m[0] in scope:
                    return scope[m[0]]
            return m[0]

        return re.sub(r"(?<![\w%$.])[%A-Za-z_$][\w$]*", one, t) if scopes else t

    for kind, t, line in _pieces(text, first_line):
        if kind == "{":
            scopes.append({})
        elif kind == "}":
            scopes.pop()
        elif kind == "loc":
            number, at = t.split()[1:3]
            source = (number, int(at)) if int(at) else source
        elif kind == "label":
            body.statements.append(Statement(rename(t) + ":", line, source))
        elif m := re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", t, re.S):
            for item in m[2].split(","):
                d = _DECLARED.fullmatch(item.strip())
                if d is None:
                    raise PtxError(f"line {line}: register declaration not understood: {t}")
                names = [f"{d['name']}{i}" for i in range(int(d["count"]))] if d["count"] else [d["name"]]
                for name in names:
                    if scopes:
                        serial += 1
                        scopes[-1][name] = f"%scope{serial}_{name.lstrip('%')}"
                        name = scopes[-1][name]
                    body.registers[name] = m[1]
        elif m := re.fullmatch(r"([\w$]+)\s*:\s*\.branchtargets\s+(.*)", t, re.S):
            body.tables[m[1]] = [x.strip() for x in m[2].split(",")]
        elif t.startswith((".shared", ".local")):
            body.variables.append(parse_variable(t))
        elif t.startswith(".pragma"):
            continue
        elif t.startswith("."):
            raise PtxError(f"line {line}: directive not supported: {t}")
        elif t:
            body.statements.append(Statement(re.sub(r"\s+", " ", rename(t)), line, source))
    return body


def _pieces(text: str, line: int) -> Iterator[tuple[str, str, int]]:
    """Yield (kind, text, line): '{' and '}' of scopes, 'loc', 'label', and ';'-terminated statements."""
    start, i, depth = 0, 0, 0
    while i < len(text):
        c = text[i]
        blank = not text[start:i].strip()
        if c == "\n":
            line += 1
        if blank and c in "{}":
            yield c, "", line
            start = i + 1
        elif blank and re.compile(r"\.loc\s").match(text, i):
            end = text.find("\n", i)
            end = len(text) if end < 0 else end
            yield "loc", text[i:end], line
            start = i = end
            continue
        elif c == "{":
            depth += 1
        elif c == "}":
            depth -= 1
        elif c == ":" and depth == 0 and re.fullmatch(r"[\w$]+", text[start:i].strip()):
            if not re.compile(r"\s*\.(branchtargets|calltargets|callprototype)").match(text, i + 1):
                yield "label", text[start:i].strip(), line
                start = i + 1
        elif c == ";":
            yield ";", text[start:i].strip(), line
            start = i + 1
        i += 1
    if text[start:].strip():
        raise PtxError(f"line {line}: statement is not terminated: {text[start:].strip()[:80]}")
