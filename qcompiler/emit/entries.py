"""Instruction set -> LLVM text of a run's entries: request registers, then run.

The system grants a process some registers only on request (`Isa.permission`). The code itself makes
the request before its first run with a table, so callers need not know; later runs read one word of
the table.
"""

from __future__ import annotations

from qcompiler.artifact.abi import GRANTED, REFUSED
from qcompiler.hardware.isa import Isa


def text(isa: Isa, permission_at: int) -> str:
    """An instruction set, and which word of the table holds its permission -> the functions, for
    `pragma_import_llvm`, next to those of the team.
    """
    made = _NO_REQUEST
    if isa.permission:
        call = isa.intrinsics["system_call"](isa.permission)
        made = _REQUEST.replace("@CALL", call).replace("@WORD", str(permission_at))
        made = made.replace("@REFUSED", str(REFUSED)).replace("@GRANTED", str(GRANTED))
    return made + _ENTRIES


_NO_REQUEST = """
define internal i1 @entry_granted(ptr %table) alwaysinline {
  ret i1 true
}
"""

_REQUEST = """
define internal i1 @entry_granted(ptr %table) alwaysinline {
entry:
  %word = getelementptr i64, ptr %table, i32 @WORD
  %known = load i64, ptr %word, align 8
  %granted = icmp eq i64 %known, @GRANTED
  br i1 %granted, label %yes, label %ask
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
"""A refusal is not final: its reason, such as a small signal stack, may disappear."""

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
