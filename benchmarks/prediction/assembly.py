"""Assembly text -> its basic blocks and loops, and the same text counting how often each runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

COUNTS = "prediction_counts"
"""The exported array of 64-bit counts, one a block."""

ASKED = "prediction_asked"
"""The exported pointer to where the next prefetched address is noted."""

_HERE = ".Lprediction_counts"
_ASKED_HERE = ".Lprediction_asked"
_BELOW_RED_ZONE = -136
_LABEL = re.compile(r"^(\.?[\w$.]+):")
_PREFETCH = re.compile(r"^prefetch(t0|t1|t2|nta)\s+(.*)$")
_JUMP = re.compile(r"^j\w+\s+(\.L\w+)$")


@dataclass(eq=False)
class Block:
    """Instructions that run one after the other; `targets` are the labels it may jump to."""

    number: int
    labels: list[str] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Loop:
    """Blocks first..last of a function, and the loops within; a function is the outermost one."""

    first: int
    last: int
    inner: list[Loop] = field(default_factory=list)
    own: list[Block] = field(default_factory=list)
    """Blocks that are in no inner loop."""


def instrument(text: str) -> tuple[str, list[list[Block]]]:
    """Assembly (AT&T, x86-64) -> the same that counts blocks in `COUNTS`, functions' blocks."""
    out: list[str] = []
    functions: list[list[Block]] = []
    number = 0
    fresh = False  # does a new block begin at the next instruction?
    labels: list[str] = []
    in_code = in_debug = False
    for raw in text.splitlines():
        line = raw.split("#")[0].strip() if '"' not in raw else raw.strip()
        if label := _LABEL.match(line):
            name = label.group(1)
            if not name.startswith(".L"):
                functions.append([])
                fresh, labels = True, [name]
            elif name.startswith((".LBB", ".L__tvm")):
                if name.startswith(".L__tvm"):
                    functions.append([])
                fresh = True
                labels.append(name)
        elif line.startswith("."):
            if line.startswith((".section", ".text", ".data", ".bss")):
                in_debug = ".debug" in line
                in_code = line.startswith((".text", ".section\t.text", ".section .text"))
        elif line and in_code and functions:
            if fresh:
                functions[-1].append(Block(number, labels))
                out += _count(number)
                number, fresh, labels = number + 1, False, []
            block = functions[-1][-1]
            block.instructions.append(line)
            if jump := _JUMP.match(line.replace("\t", " ")):
                block.targets.append(jump.group(1))
            if line.startswith(("j", "ret")):
                fresh = True
        if prefetch := _PREFETCH.match(line):
            out += _note(prefetch.group(2), near=prefetch.group(1) == "t0")
        elif not in_debug and not line.startswith((".loc", ".file", ".cfi")):
            out.append(raw)
    out += [".bss", f".globl {COUNTS}", ".p2align 6", f".globl {ASKED}", f"{COUNTS}:", f"{_HERE}:"]
    out += [f".zero {8 * max(number, 1)}"]
    out += [f".size {COUNTS}, {8 * max(number, 1)}"]
    out += [f"{ASKED}:", f"{_ASKED_HERE}:", ".zero 8", f".size {ASKED}, 8", ""]
    return "\n".join(out), [f for f in functions if f]


def _count(number: int) -> list[str]:
    """One more, without a register or a flag changed."""
    place = f"{_HERE}+{8 * number}(%rip)"
    return [
        f"\tmovq %rax, {_BELOW_RED_ZONE}(%rsp)",
        f"\tmovq {place}, %rax",
        "\tleaq 1(%rax), %rax",
        f"\tmovq %rax, {place}",
        f"\tmovq {_BELOW_RED_ZONE}(%rsp), %rax",
    ]


def _note(address: str, *, near: bool) -> list[str]:
    """What a prefetch asks for, noted instead, and a zero after it unless it is to come into the
    nearest cache; without a register or a flag changed.
    """
    return [
        f"\tmovq %rax, {_BELOW_RED_ZONE}(%rsp)",
        f"\tmovq %rcx, {_BELOW_RED_ZONE - 8}(%rsp)",
        f"\tleaq {address}, %rax",
        f"\tmovq {_ASKED_HERE}(%rip), %rcx",
        "\tmovq %rax, (%rcx)",
        *([] if near else ["\tmovq $0, 8(%rcx)"]),
        f"\tleaq {8 if near else 16}(%rcx), %rcx",
        f"\tmovq %rcx, {_ASKED_HERE}(%rip)",
        f"\tmovq {_BELOW_RED_ZONE}(%rsp), %rax",
        f"\tmovq {_BELOW_RED_ZONE - 8}(%rsp), %rcx",
    ]


def loops(blocks: list[Block]) -> Loop:
    """A function's blocks -> its loops, as intervals from a jump's target back up to the jump."""
    place = {label: i for i, b in enumerate(blocks) for label in b.labels}
    spans: list[list[int]] = []
    for i, b in enumerate(blocks):
        for target in b.targets:
            if place.get(target, i + 1) <= i:
                spans.append([place[target], i])
    merged = _nested(spans)
    root = Loop(0, len(blocks) - 1)
    for first, last in sorted(merged, key=lambda s: (s[0], -s[1])):
        _innermost(root, first, last).inner.append(Loop(first, last))
    for i, b in enumerate(blocks):
        _innermost(root, i, i).own.append(b)
    return root


def _nested(spans: list[list[int]]) -> set[tuple[int, int]]:
    """Intervals -> the same, those that overlap in part or begin alike as one."""
    found = sorted({(a, b) for a, b in spans})
    again = True
    while again:
        again = False
        for i, (a, b) in enumerate(found):
            for c, d in found[i + 1 :]:
                if a == c or a < c <= b < d:
                    found = sorted({*found} - {(a, b), (c, d)} | {(a, max(b, d))})
                    again = True
                    break
            if again:
                break
    return set(found)


def _innermost(loop: Loop, first: int, last: int) -> Loop:
    for inner in loop.inner:
        if inner.first <= first and last <= inner.last:
            return _innermost(inner, first, last)
    return loop


def everything(loop: Loop) -> Iterator[Block]:
    """All blocks of a loop."""
    yield from loop.own
    for inner in loop.inner:
        yield from everything(inner)
