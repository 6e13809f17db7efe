"""Sections of a run -> LLVM text of a run by the caller's threads. The caller passes a function
that runs numbered units, in any order and on any threads, and returns when all are done.

    int qcompiler_parallel(table, parallel_for, pool)
    parallel_for(pool, units, unit, job)          calls unit(job, 0) to unit(job, units - 1)

The calling thread itself runs a section of one unit.
"""

from __future__ import annotations

import re

from qcompiler.emit.machine import text_object
from qcompiler.emit.native import section_facts
from qcompiler.emit.team import TABLE, array
from qcompiler.plan.plan import Plan


def parallel(plan: Plan) -> bytes:
    """Plan -> an object file of `qcompiler_parallel`."""
    facts = section_facts(plan)
    values = {
        "LOOPS": facts.loops,
        "MASKS": array(facts.masks),
        "SECTIONS": str(len(facts.masks)),
        "PARTS": str(facts.parts),
    }
    text = (TABLE + facts.repeats if facts.repeats else "") + _TEXT
    made = re.sub("@([A-Z]+)", lambda found: values[found[1]], text)
    return text_object(made, plan.device.isa)


_TEXT = """
%parallel_job = type { ptr, i32, i32, i32 }

@parallel_masks = internal constant @MASKS

declare i32 @qcompiler_section(ptr, i32, i32, i32)
declare i32 @llvm.ctlz.i32(i32, i1)
declare i32 @llvm.cttz.i32(i32, i1)
declare i32 @llvm.ctpop.i32(i32)

define internal void @parallel_unit(ptr %job, i32 %unit) {
entry:
  %part_at = getelementptr %parallel_job, ptr %job, i32 0, i32 1
  %section_at = getelementptr %parallel_job, ptr %job, i32 0, i32 2
  %mask_at = getelementptr %parallel_job, ptr %job, i32 0, i32 3
  %table = load ptr, ptr %job
  %part = load i32, ptr %part_at
  %section = load i32, ptr %section_at
  %mask = load i32, ptr %mask_at
  %bit = shl i32 1, %unit
  %found = and i32 %mask, %bit
  %mine = icmp ne i32 %found, 0
  br i1 %mine, label %work, label %done
work:
  %result = call i32 @qcompiler_section(ptr %table, i32 %part, i32 %section, i32 %unit)
  br label %done
done:
  ret void
}

define i32 @qcompiler_parallel(ptr %table, ptr %parallel_for, ptr %pool) {
entry:
  %first = add i32 0, 0
  %end = add i32 0, @SECTIONS
  %job = alloca %parallel_job
  %part_at = getelementptr %parallel_job, ptr %job, i32 0, i32 1
  %section_at = getelementptr %parallel_job, ptr %job, i32 0, i32 2
  %mask_at = getelementptr %parallel_job, ptr %job, i32 0, i32 3
  store ptr %table, ptr %job
  br label %part
part:
  %p = phi i32 [ 0, %entry ], [ %next_part, %part_done ]
  %more_parts = icmp slt i32 %p, @PARTS
  store i32 %p, ptr %part_at
  br i1 %more_parts, label %section, label %done
section:
  %s = phi i32 [ %first, %part ], [ %next_section, %section_done ]
  %more_sections = icmp slt i32 %s, %end
  br i1 %more_sections, label %look, label %part_done
look:
  %place = getelementptr i32, ptr @parallel_masks, i32 %s
  %mask = load i32, ptr %place
  %count = call i32 @llvm.ctpop.i32(i32 %mask)
  %few = icmp sle i32 %count, 1
  br i1 %few, label %alone, label %share
alone:
  %unit = call i32 @llvm.cttz.i32(i32 %mask, i1 false)
  %result = call i32 @qcompiler_section(ptr %table, i32 %p, i32 %s, i32 %unit)
  br label %section_done
share:
  store i32 %s, ptr %section_at
  store i32 %mask, ptr %mask_at
  %above = call i32 @llvm.ctlz.i32(i32 %mask, i1 false)
  %units = sub i32 32, %above
  call void %parallel_for(ptr %pool, i32 %units, ptr @parallel_unit, ptr %job)
  br label %section_done
@LOOPS  ret i32 0
}
"""
