"""Sections of a run -> LLVM text of the thread team, whose threads claim the units of one section
after the other.

A run is a list of sections; a section has up to 32 independent units. artifact/abi.py describes the
team's memory.

A thread claims a unit by clearing its bit in one word: first the unit of its own number, for its
caches, then units that nobody has claimed. Clearing is one atomic operation, which need not be
repeated where many threads claim at once; who found the bit set has the unit, of whichever section
is open by then, and reads number and job only afterwards, when they stay as they are until it has
finished. So a thread that comes late claims what is there or nothing, and only the holder of a
claim touches a run's memory and code. The thread that finishes a section's last unit opens the next
section and claims a unit of it; it runs sections of one unit without publishing them. So the
calling thread does all work that no worker has claimed, and waits only for claimed units. A waiting
thread spins as often as the team's memory says, yields its core meanwhile, then sleeps until a
section is opened or the run ends. Waking costs the thread that opens a section microseconds. So
where woken workers come too late to claim anything, run after run, only every second, fourth, ...
64th run wakes them. Workers return when the team's memory says that it ends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.artifact.abi import TEAM
from qcompiler.emit.team_loop import LOOP, WAIT
from qcompiler.hardware.isa import Isa

_YIELD_MASK = 127
"""A thread yields its core after every 128 looks."""


@dataclass(frozen=True)
class Sections:
    """A run's sections: the units of each, as bits; for every step its first section and the one
    after its last; number of parts of the batch; which word of the table holds the first step to
    run (the one after the last follows it).
    """

    masks: Sequence[int]
    begins: Sequence[int]
    ends: Sequence[int]
    parts: int
    first_at: int
    parts_at: int = 0
    """Which word holds the number of parts, if the batch is open."""
    repeats: str = ""
    """LLVM text: the functions that say how loops go on (repeats.py), if there are any."""

    @property
    def loops(self) -> str:
        """LLVM text: where loops over parts %p, and over their sections %s from %first to before
        %end, go on, and where they end.
        """
        return _END_OF_LOOPS.replace("@NEXT", _JUMPS if self.repeats else _NEXT)


def text(isa: Isa, sections: Sections) -> str:
    """An instruction set and the sections -> the functions, for `pragma_import_llvm`."""
    pause = isa.intrinsics["pause"]() if "pause" in isa.intrinsics else ""
    values = {
        **{name: str(offset) for name, offset in TEAM.items()},
        "LOOPS": sections.loops,
        "ENTRY": _STRETCHES if sections.repeats else _WHOLE,
        "INLINE": "" if sections.repeats else " alwaysinline",
        "PAUSE": pause,
        "YIELD_MASK": str(_YIELD_MASK),
        "MASKS": array(sections.masks),
        "BEGINS": array(sections.begins),
        "ENDS": array(sections.ends),
        "STEPS": str(max(len(sections.begins), 1)),
        "PARTS": "%parts" if sections.parts_at else str(sections.parts),
        "COUNT": _COUNT.replace("@AT", str(sections.parts_at)) if sections.parts_at else "",
        "FIRST_AT": str(sections.first_at),
    }
    made = TABLE + _JOB + sections.repeats + _ALONE + _LAUNCH + _READ + LOOP + WAIT
    return re.sub("@([A-Z_]+)", lambda found: values[found[1]], made)


def array(values: Sequence[int]) -> str:
    """An array as LLVM writes it; never empty."""
    kept = list(values) or [0]
    return f"[{len(kept)} x i32] [{', '.join(f'i32 {v}' for v in kept)}]"


TABLE = """
define internal ptr @team_pointer(ptr %table, i32 %i) alwaysinline {
  %at = getelementptr i64, ptr %table, i32 %i
  %value = load ptr, ptr %at, align 8
  ret ptr %value
}

define internal i32 @team_number(ptr %table, i32 %i) alwaysinline {
  %at = getelementptr i64, ptr %table, i32 %i
  %value = load i32, ptr %at, align 8
  ret i32 %value
}
"""
"""Reads words of a run's table."""

_JOB = """
%team_job = type { i64, i64, i64, i32, i32, i32, i32 }

@team_masks = internal constant @MASKS
@team_begins = internal constant @BEGINS
@team_ends = internal constant @ENDS

declare dso_local i32 @qcompiler_section(ptr, i32, i32, i32)
declare i32 @sched_yield()
declare i32 @sem_init(ptr, i32, i32)
declare i32 @sem_wait(ptr)
declare i32 @sem_post(ptr)
declare i32 @llvm.ctlz.i32(i32, i1)
declare i32 @llvm.cttz.i32(i32, i1)
declare i32 @llvm.ctpop.i32(i32)

define internal i32 @team_pick(i32 %mask, i32 %thread) alwaysinline {
  %bit = shl i32 1, %thread
  %own = and i32 %mask, %bit
  %mine = icmp ne i32 %own, 0
  %above = call i32 @llvm.ctlz.i32(i32 %mask, i1 true)
  %last = sub i32 31, %above
  %unit = select i1 %mine, i32 %thread, i32 %last
  ret i32 %unit
}

define internal i32 @team_first(ptr %table) alwaysinline {
  %step = call i32 @team_number(ptr %table, i32 @FIRST_AT)
  %at = getelementptr i32, ptr @team_begins, i32 %step
  %section = load i32, ptr %at, align 4
  ret i32 %section
}

define internal i32 @team_length(ptr %table) alwaysinline {
entry:
  %from = call i32 @team_number(ptr %table, i32 @FIRST_AT)
  %next_at = add i32 @FIRST_AT, 1
  %to = call i32 @team_number(ptr %table, i32 %next_at)
  %some = icmp slt i32 %from, %to
  br i1 %some, label %count, label %none
count:
  %last = sub i32 %to, 1
  %at = getelementptr i32, ptr @team_ends, i32 %last
  %end = load i32, ptr %at, align 4
  %first = call i32 @team_first(ptr %table)
  %length = sub i32 %end, %first
  ret i32 %length
none:
  ret i32 0
}

define internal i32 @team_mask(ptr %masks, i32 %section) alwaysinline {
  %at = getelementptr i32, ptr %masks, i32 %section
  %mask = load i32, ptr %at, align 4
  ret i32 %mask
}

define internal ptr @team_place(ptr %team, i32 %thread) alwaysinline {
  %offset = mul i32 %thread, @PLACE_BYTES
  %at = add i32 %offset, @PLACES
  %place = getelementptr i8, ptr %team, i32 %at
  ret ptr %place
}
"""

_END_OF_LOOPS = """
section_done:
@NEXT  br label %section
part_done:
  %next_part = add i32 %p, 1
  br label %part
done:
"""

_NEXT = """  %next_section = add i32 %s, 1
"""
_JUMPS = """  %behind = add i32 %s, 1
  %next_section = call i32 @repeats_next(ptr %table, i32 %behind)
"""

_COUNT = "  %parts = call i32 @team_number(ptr %table, i32 @AT)\n"
"""How an open batch's number of parts is read."""

_ALONE = """
define internal void @team_alone(ptr %table) alwaysinline {
entry:
  %first = call i32 @team_first(ptr %table)
  %length = call i32 @team_length(ptr %table)
  %end = add i32 %first, %length
  br label %part
part:
  %p = phi i32 [ 0, %entry ], [ %next_part, %part_done ]
@COUNT  %more_parts = icmp slt i32 %p, @PARTS
  br i1 %more_parts, label %section, label %done
section:
  %s = phi i32 [ %first, %part ], [ %next_section, %section_done ]
  %more_sections = icmp slt i32 %s, %end
  br i1 %more_sections, label %begin, label %part_done
begin:
  %all = call i32 @team_mask(ptr @team_masks, i32 %s)
  br label %unit
unit:
  %mask = phi i32 [ %all, %begin ], [ %rest, %call ]
  %some = icmp ne i32 %mask, 0
  br i1 %some, label %call, label %section_done
call:
  %u = call i32 @llvm.cttz.i32(i32 %mask, i1 true)
  %result = call i32 @qcompiler_section(ptr %table, i32 %p, i32 %s, i32 %u)
  %less = sub i32 %mask, 1
  %rest = and i32 %mask, %less
  br label %unit
@LOOPS  ret void
}
"""
"""All sections by one thread, without a team."""

_LAUNCH = """
define internal void @team_stretch(
    ptr %team, ptr %table, i32 %threads, i32 %first, i32 %length)@INLINE {
entry:
@COUNT  %total = mul i32 %length, @PARTS
  %some = icmp sgt i32 %total, 0
  br i1 %some, label %look, label %done
look:
  %word = load atomic i64, ptr %team acquire, align 8
  %fresh = icmp eq i64 %word, 0
  br i1 %fresh, label %init, label %set
init:
  %place = call ptr @team_place(ptr %team, i32 0)
  %semaphore = getelementptr i8, ptr %place, i64 @SEMAPHORE
  %made = call i32 @sem_init(ptr %semaphore, i32 0, i32 0)
  br label %set
set:
  call void @team_decide(ptr %team)
  %number = lshr i64 %word, 32
  %before = trunc i64 %number to i32
  %base = add i32 %before, 1
  %job = getelementptr i8, ptr %team, i64 @JOB
  %f1 = getelementptr %team_job, ptr %job, i32 0, i32 1
  %f2 = getelementptr %team_job, ptr %job, i32 0, i32 2
  %f3 = getelementptr %team_job, ptr %job, i32 0, i32 3
  %f4 = getelementptr %team_job, ptr %job, i32 0, i32 4
  %f5 = getelementptr %team_job, ptr %job, i32 0, i32 5
  %f6 = getelementptr %team_job, ptr %job, i32 0, i32 6
  %f7 = getelementptr i8, ptr %job, i64 40
  store atomic ptr @qcompiler_section, ptr %job monotonic, align 8
  store atomic ptr @team_masks, ptr %f1 monotonic, align 8
  store atomic ptr %table, ptr %f2 monotonic, align 8
  store atomic i32 %first, ptr %f3 monotonic, align 4
  store atomic i32 %length, ptr %f4 monotonic, align 4
  store atomic i32 %total, ptr %f5 monotonic, align 4
  store atomic i32 %base, ptr %f6 monotonic, align 4
  store atomic i32 %threads, ptr %f7 monotonic, align 4
  call void @team_loop(ptr %team, i32 0)
  br label %done
done:
  ret void
}
@ENTRY
define internal void @team_decide(ptr %team) alwaysinline {
  %launches_at = getelementptr i8, ptr %team, i64 @LAUNCHES
  %useless_at = getelementptr i8, ptr %team, i64 @USELESS
  %posted_at = getelementptr i8, ptr %team, i64 @POSTED
  %helped_at = getelementptr i8, ptr %team, i64 @HELPED
  %may_at = getelementptr i8, ptr %team, i64 @MAY
  %base_at = getelementptr i8, ptr %team, i64 @BASE
  %last = load atomic i32, ptr %base_at monotonic, align 4
  %helped = load atomic i32, ptr %helped_at monotonic, align 4
  %posted = load atomic i32, ptr %posted_at monotonic, align 4
  %useless = load atomic i32, ptr %useless_at monotonic, align 4
  %full = icmp uge i32 %useless, 6
  %more = add i32 %useless, 1
  %capped = select i1 %full, i32 6, i32 %more
  %in_vain = icmp ne i32 %posted, 0
  %grown = select i1 %in_vain, i32 %capped, i32 %useless
  %help = icmp eq i32 %helped, %last
  %now = select i1 %help, i32 0, i32 %grown
  store atomic i32 %now, ptr %useless_at monotonic, align 4
  store atomic i32 0, ptr %posted_at monotonic, align 4
  %count = load atomic i32, ptr %launches_at monotonic, align 4
  %next = add i32 %count, 1
  store atomic i32 %next, ptr %launches_at monotonic, align 4
  %period = shl i32 1, %now
  %mask = sub i32 %period, 1
  %rest = and i32 %next, %mask
  %may = icmp eq i32 %rest, 0
  %flag = zext i1 %may to i32
  store atomic i32 %flag, ptr %may_at monotonic, align 4
  ret void
}

define internal void @team_work(ptr %team, i32 %thread) alwaysinline {
  %place = call ptr @team_place(ptr %team, i32 %thread)
  %semaphore = getelementptr i8, ptr %place, i64 @SEMAPHORE
  %made = call i32 @sem_init(ptr %semaphore, i32 0, i32 0)
  call void @team_loop(ptr %team, i32 %thread)
  ret void
}
"""
"""The entries of callers and workers."""

_WHOLE = """
define internal void @team_launch(ptr %team, ptr %table, i32 %threads) alwaysinline {
  %first = call i32 @team_first(ptr %table)
  %length = call i32 @team_length(ptr %table)
  call void @team_stretch(ptr %team, ptr %table, i32 %threads, i32 %first, i32 %length)
  ret void
}
"""
_STRETCHES = """
define internal void @team_launch(ptr %team, ptr %table, i32 %threads) noinline {
entry:
  %first = call i32 @team_first(ptr %table)
  %length = call i32 @team_length(ptr %table)
  %end = add i32 %first, %length
  br label %look
look:
  %s = phi i32 [ %first, %entry ], [ %next, %run ]
  %more = icmp slt i32 %s, %end
  br i1 %more, label %run, label %done
run:
  %stop = call i32 @repeats_stop(i32 %s)
  %sooner = icmp slt i32 %stop, %end
  %to = select i1 %sooner, i32 %stop, i32 %end
  %some = sub i32 %to, %s
  call void @team_stretch(ptr %team, ptr %table, i32 %threads, i32 %s, i32 %some)
  %next = call i32 @repeats_next(ptr %table, i32 %to)
  br label %look
done:
  ret void
}
"""
"""A launch: of all sections, or of those between the places where loops begin and end, in turn."""

_FIELDS = (("ptr", 8),) * 3 + (("i32", 4),) * 4
_COPIES = "".join(
    f"""  %a{i} = getelementptr %team_job, ptr %from, i32 0, i32 {i}
  %v{i} = load atomic {kind}, ptr %a{i} monotonic, align {size}
  %b{i} = getelementptr %team_job, ptr %job, i32 0, i32 {i}
  store {kind} %v{i}, ptr %b{i}, align {size}
"""
    for i, (kind, size) in enumerate(_FIELDS)
)
_READ = f"""
define internal void @team_read(ptr %team, ptr %job) alwaysinline {{
  %from = getelementptr i8, ptr %team, i64 @JOB
{_COPIES}  ret void
}}
"""
"""How a thread reads the job of the unit that it has claimed."""
