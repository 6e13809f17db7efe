"""Instruction set -> LLVM text of a run's entries: ask for registers, then run.

Some registers a process has only when it asks the system for them (`Isa.permission`). The code
itself asks, before its first run with a table, so whoever calls it need not know; later runs read
one word of it.
"""

from __future__ import annotations

from qcompiler.artifact.abi import GRANTED, REFUSED
from qcompiler.hardware.isa import Isa


def text(isa: Isa, permission_at: int) -> str:
    """An instruction set, and which word of the table tells of its permission -> the functions, for
    `pragma_import_llvm`; beside those of the team.
    """
    made = _NEED_NOT
    if isa.permission:
        call = isa.intrinsics["system_call"](isa.permission)
        made = _ASKS.replace("@CALL", call).replace("@WORD", str(permission_at))
        made = made.replace("@REFUSED", str(REFUSED)).replace("@GRANTED", str(GRANTED))
    return made + _ENTRIES


_NEED_NOT = """
define internal i1 @entry_granted(ptr %table) alwaysinline {
  ret i1 true
}
"""

_ASKS = """
define internal i1 @entry_granted(ptr %table) alwaysinline {
entry:
  %word = getelementptr i64, ptr %table, i32 @WORD
  %known = load i64, ptr %word, align 8
  %before = icmp eq i64 %known, @GRANTED
  br i1 %before, label %yes, label %ask
ask:
  %answer = @CALL
  %given = icmp eq i64 %answer, 0
  %found = select i1 %given, i64 @GRANTED, i64 @REFUSED
  store i64 %found, ptr %word, align 8
  br i1 %given, label %yes, label %no
yes:
  ret i1 true
no:
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
