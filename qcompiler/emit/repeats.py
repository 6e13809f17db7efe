"""Loops among the sections of a run -> LLVM text that says which section comes next.

A run does its sections in order. Where one ends with which a loop begins or ends, a byte of the
workspace says whether the loop goes on: if so the first section of its body is next, else the one
behind the last. A thread team runs the sections between two such places without interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.artifact.abi import Table


@dataclass(frozen=True)
class Jump:
    """A loop: its first section, the one after its last, where in the workspace a byte says whether
    it goes on, and its first step and the one after its last. A run of some of these steps only, as
    timing has, does not repeat them.
    """

    first: int
    last: int
    going: int
    steps: tuple[int, int]


def text(jumps: Sequence[Jump], table: Table) -> str:
    """Loops, the outer before the inner, of runs with such a table -> the functions `repeats_next`
    and `repeats_stop`, which call those that read the table (team.py).
    """
    stops = sorted({at for j in jumps for at in (j.first, j.last)})
    blocks = "".join(_block(at, jumps) for at in stops)
    cases = " ".join(f"i32 {at}, label %at{at}" for at in stops)
    least, selects = "2147483647", ""  # there is none
    for at in reversed(stops):
        selects += f"  %below{at} = icmp slt i32 %section, {at}\n"
        selects += f"  %stop{at} = select i1 %below{at}, i32 {at}, i32 {least}\n"
        least = f"%stop{at}"
    made = _TEXT.replace("@CASES", cases).replace("@BLOCKS", blocks)
    made = made.replace("@SELECTS", selects).replace("@LEAST", least)
    for word in ("WORKSPACE", "FIRST", "LAST"):
        made = made.replace(f"@{word}_AT", str(getattr(table, word.lower())))
    return made


def _block(at: int, jumps: Sequence[Jump]) -> str:
    """What is next where loops end, the inner ones first, and others begin."""
    lines = [f"at{at}:\n"]
    ends = [(j, f"i32 {j.first}", True) for j in reversed(jumps) if j.last == at]
    begins = [(j, f"label %at{j.last}", False) for j in jumps if j.first == at]
    for i, (jump, target, back) in enumerate([*ends, *begins]):
        name = f"{at}_{i}"
        lines.append(
            f"  %inside{name} = call i1 @repeats_inside(ptr %table, i32 {jump.steps[0]},"
            f" i32 {jump.steps[1]})\n"
            f"  br i1 %inside{name}, label %look{name}, label %else{name}\n"
            f"look{name}:\n"
            f"  %byte_at{name} = getelementptr i8, ptr %workspace, i64 {jump.going}\n"
            f"  %byte{name} = load i8, ptr %byte_at{name}\n"
            f"  %on{name} = icmp ne i8 %byte{name}, 0\n"
        )
        if back:
            lines.append(
                f"  br i1 %on{name}, label %back{name}, label %else{name}\n"
                f"back{name}:\n  ret {target}\n"
            )
        else:
            lines.append(f"  br i1 %on{name}, label %else{name}, {target}\n")
        lines.append(f"else{name}:\n")
    return "".join([*lines, f"  ret i32 {at}\n"])


_TEXT = """
define internal i1 @repeats_inside(ptr %table, i32 %first, i32 %last) alwaysinline {
  %from = call i32 @team_number(ptr %table, i32 @FIRST_AT)
  %to = call i32 @team_number(ptr %table, i32 @LAST_AT)
  %begun = icmp sle i32 %from, %first
  %ended = icmp sle i32 %last, %to
  %inside = and i1 %begun, %ended
  ret i1 %inside
}

define internal i32 @repeats_next(ptr %table, i32 %section) noinline {
entry:
  %workspace = call ptr @team_pointer(ptr %table, i32 @WORKSPACE_AT)
  switch i32 %section, label %other [ @CASES ]
@BLOCKSother:
  ret i32 %section
}

define internal i32 @repeats_stop(i32 %section) noinline {
@SELECTS  ret i32 @LEAST
}
"""
"""`repeats_next`: the section behind another -> what is next. `repeats_stop`: a section -> the next
place behind it where a loop begins or ends.
"""
