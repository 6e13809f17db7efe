"""Instruction set -> LLVM text of a run's entries: ask for registers, then run.

Some registers a process has only when it asks the system for them (`Isa.permission`). The code
itself asks, before its first run, so whoever calls it need not know; later runs read one word.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.artifact.abi import REFUSED
from qcompiler.hardware.isa import Isa


def text(isa: Isa, refused_at: int) -> str:
    """An instruction set, and which word of the table tells of a refusal -> the functions, for
    `pragma_import_llvm`; beside those of the team.
    """
    asks = _ASKS.replace("@CALL", _call(isa.permission)) if isa.permission else _NEED_NOT
    made = asks + _ENTRIES
    return made.replace("@WORD", str(refused_at)).replace("@REFUSED", str(REFUSED))


def _call(permission: Sequence[int]) -> str:
    """A system call by way of the C library, which has one function for all of them."""
    numbers = ", ".join(f"i64 {n}" for n in permission)
    return f"call i64 (i64, ...) @syscall({numbers})"


_NEED_NOT = """
define internal i1 @entry_granted(ptr %table) alwaysinline {
  ret i1 true
}
"""

_ASKS = """
declare i64 @syscall(i64, ...)

@entry_known = internal global i32 0

define internal i1 @entry_granted(ptr %table) alwaysinline {
entry:
  %known = load atomic i32, ptr @entry_known monotonic, align 4
  %before = icmp ne i32 %known, 0
  br i1 %before, label %yes, label %ask
ask:
  %answer = @CALL
  %given = icmp eq i64 %answer, 0
  br i1 %given, label %keep, label %no
keep:
  store atomic i32 1, ptr @entry_known monotonic, align 4
  br label %yes
yes:
  ret i1 true
no:
  %word = getelementptr i64, ptr %table, i32 @WORD
  store i64 @REFUSED, ptr %word, align 8
  ret i1 false
}
"""
"""A refusal is not kept: what was in the way, such as a small stack for signals, may go."""

_ENTRIES = """
define internal void @entry_run(ptr %table) alwaysinline {
  %granted = call i1 @entry_granted(ptr %table)
  br i1 %granted, label %run, label %done
run:
  call void @team_alone(ptr %table)
  br label %done
done:
  ret void
}

define internal void @entry_launch(ptr %team, ptr %table, i32 %threads) alwaysinline {
  %granted = call i1 @entry_granted(ptr %table)
  br i1 %granted, label %run, label %done
run:
  call void @team_launch(ptr %team, ptr %table, i32 %threads)
  br label %done
done:
  ret void
}
"""
