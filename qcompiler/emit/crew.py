"""Nothing -> LLVM text of the crew: threads that run one function together, and the barrier that
keeps them in step.

A crew is 64-byte aligned memory, zeros at first, that one run uses at a time:

    0   i32 arrived       4  i32 generation                      the barrier
    32  i32 left                                                 workers that are done with the job
    64  i32 epoch         8 bytes on: ptr function, ptr table, i32 count      the job
    128 + 64 * task:      i32 asleep       16 bytes on: a POSIX semaphore     one for each worker
                                           (there is a place for task 0, unused)

`launch` counts the epoch up; workers wait for that, spinning for a while and then asleep, call
function(table, task, count), say that they have left it, and wait again. `launch` returns when all
have, so that the function may be unloaded. A job without a function ends them (the runtime
never sends one: its crews live as long as the process). The barrier is the
central one with a generation for a sense (Mellor-Crummey and Scott, "Algorithms for Scalable
Synchronization on Shared-Memory Multiprocessors", 1991): whoever arrives last opens it.

The functions are inlined where TIR calls them, so their atomic accesses stand in the caller, and
LLVM moves no access of the caller's memory across them.
"""

from __future__ import annotations

from qcompiler.isa import Isa

_BARRIER_SPINS = 1_000
"""So often a task looks at the barrier before it offers its core to others, at every look then."""

_IDLE_SPINS = 30_000
"""So often a worker looks for a job (about a millisecond) before it falls asleep."""


def text(isa: Isa) -> str:
    """An instruction set -> the functions, for `pragma_import_llvm`."""
    pause = isa.intrinsics["pause"]() if "pause" in isa.intrinsics else ""
    return (
        (TABLE + _TEXT)
        .replace("@PAUSE", pause)
        .replace("@BARRIER_SPINS", str(_BARRIER_SPINS))
        .replace("@IDLE_SPINS", str(_IDLE_SPINS))
    )


TABLE = """
define internal ptr @crew_pointer(ptr %table, i32 %i) alwaysinline {
  %at = getelementptr i64, ptr %table, i32 %i
  %value = load ptr, ptr %at, align 8
  ret ptr %value
}

define internal i32 @crew_number(ptr %table, i32 %i) alwaysinline {
  %at = getelementptr i64, ptr %table, i32 %i
  %value = load i32, ptr %at, align 8
  ret i32 %value
}
"""
"""How steps read the words of a run's table."""

_TEXT = """
declare i32 @sched_yield()
declare i32 @sem_init(ptr, i32, i32)
declare i32 @sem_wait(ptr)
declare i32 @sem_post(ptr)

define internal void @crew_barrier(ptr %crew, i32 %count) alwaysinline {
entry:
  %alone = icmp sle i32 %count, 1
  br i1 %alone, label %done, label %arrive
arrive:
  %gate = getelementptr i8, ptr %crew, i64 4
  %generation = load atomic i32, ptr %gate monotonic, align 4
  %before = atomicrmw add ptr %crew, i32 1 acq_rel
  %arrived = add i32 %before, 1
  %last = icmp eq i32 %arrived, %count
  br i1 %last, label %open, label %look
open:
  store atomic i32 0, ptr %crew monotonic, align 4
  %next = add i32 %generation, 1
  store atomic i32 %next, ptr %gate release, align 4
  br label %done
look:
  %looks = phi i32 [ 0, %arrive ], [ %more, %wait ], [ @BARRIER_SPINS, %tired ]
  %now = load atomic i32, ptr %gate acquire, align 4
  %passed = icmp ne i32 %now, %generation
  br i1 %passed, label %done, label %wait
wait:
  @PAUSE
  %more = add i32 %looks, 1
  %long = icmp ugt i32 %more, @BARRIER_SPINS
  br i1 %long, label %tired, label %look
tired:
  %yielded = call i32 @sched_yield()
  br label %look
done:
  ret void
}

define internal void @crew_launch(ptr %crew, ptr %function, ptr %table, i32 %count) alwaysinline {
entry:
  %epoch_at = getelementptr i8, ptr %crew, i64 64
  %function_at = getelementptr i8, ptr %crew, i64 72
  %table_at = getelementptr i8, ptr %crew, i64 80
  %count_at = getelementptr i8, ptr %crew, i64 88
  store ptr %function, ptr %function_at, align 8
  store ptr %table, ptr %table_at, align 8
  store i32 %count, ptr %count_at, align 8
  %left_at = getelementptr i8, ptr %crew, i64 32
  store atomic i32 0, ptr %left_at monotonic, align 4
  %epoch = atomicrmw add ptr %epoch_at, i32 1 seq_cst
  br label %each
each:
  %task = phi i32 [ 1, %entry ], [ %next, %post ], [ %next, %check ]
  %more = icmp slt i32 %task, %count
  br i1 %more, label %check, label %run
check:
  %next = add i32 %task, 1
  %offset = mul i32 %task, 64
  %place = add i32 %offset, 128
  %asleep_at = getelementptr i8, ptr %crew, i32 %place
  %asleep = atomicrmw xchg ptr %asleep_at, i32 0 seq_cst
  %wake = icmp ne i32 %asleep, 0
  br i1 %wake, label %post, label %each
post:
  %semaphore = getelementptr i8, ptr %asleep_at, i64 16
  %posted = call i32 @sem_post(ptr %semaphore)
  br label %each
run:
  %ends = icmp eq ptr %function, null
  br i1 %ends, label %done, label %call
call:
  %result = call i32 %function(ptr %table, i32 0, i32 %count)
  %workers = sub i32 %count, 1
  br label %look
look:
  %looks = phi i32 [ 0, %call ], [ %more_looks, %wait ], [ @BARRIER_SPINS, %tired ]
  %left = load atomic i32, ptr %left_at acquire, align 4
  %all = icmp sge i32 %left, %workers
  br i1 %all, label %done, label %wait
wait:
  @PAUSE
  %more_looks = add i32 %looks, 1
  %long = icmp ugt i32 %more_looks, @BARRIER_SPINS
  br i1 %long, label %tired, label %look
tired:
  %yielded = call i32 @sched_yield()
  br label %look
done:
  ret void
}

define internal void @crew_work(ptr %crew, i32 %task) alwaysinline {
entry:
  %epoch_at = getelementptr i8, ptr %crew, i64 64
  %function_at = getelementptr i8, ptr %crew, i64 72
  %table_at = getelementptr i8, ptr %crew, i64 80
  %count_at = getelementptr i8, ptr %crew, i64 88
  %offset = mul i32 %task, 64
  %place = add i32 %offset, 128
  %asleep_at = getelementptr i8, ptr %crew, i32 %place
  %semaphore = getelementptr i8, ptr %asleep_at, i64 16
  %made = call i32 @sem_init(ptr %semaphore, i32 0, i32 0)
  br label %look
look:
  %seen = phi i32 [ 0, %entry ], [ %seen, %wait ], [ %seen, %yield ], [ %found, %call ],
    [ %seen, %sleep ], [ %seen, %cancel ], [ %seen, %late ]
  %looks = phi i32 [ 0, %entry ], [ %more, %wait ], [ %more, %yield ], [ 0, %call ],
    [ 0, %sleep ], [ 0, %cancel ], [ 0, %late ]
  %found = load atomic i32, ptr %epoch_at acquire, align 4
  %job = icmp ne i32 %found, %seen
  br i1 %job, label %take, label %wait
wait:
  @PAUSE
  %more = add i32 %looks, 1
  %step = and i32 %more, 127
  %often = icmp eq i32 %step, 0
  br i1 %often, label %yield, label %look
yield:
  %yielded = call i32 @sched_yield()
  %long = icmp ugt i32 %more, @IDLE_SPINS
  br i1 %long, label %rest, label %look
rest:
  store atomic i32 1, ptr %asleep_at seq_cst, align 4
  %again = load atomic i32, ptr %epoch_at seq_cst, align 4
  %same = icmp eq i32 %again, %seen
  br i1 %same, label %sleep, label %cancel
cancel:
  %mine = atomicrmw xchg ptr %asleep_at, i32 0 seq_cst
  %unposted = icmp ne i32 %mine, 0
  br i1 %unposted, label %look, label %late
late:
  %taken = call i32 @sem_wait(ptr %semaphore)
  %retry = icmp ne i32 %taken, 0
  br i1 %retry, label %late, label %look
sleep:
  %woken = call i32 @sem_wait(ptr %semaphore)
  %failed = icmp ne i32 %woken, 0
  br i1 %failed, label %sleep, label %look
take:
  %function = load ptr, ptr %function_at, align 8
  %ends = icmp eq ptr %function, null
  br i1 %ends, label %done, label %call
call:
  %table = load ptr, ptr %table_at, align 8
  %count = load i32, ptr %count_at, align 8
  %result = call i32 %function(ptr %table, i32 %task, i32 %count)
  %left_at = getelementptr i8, ptr %crew, i64 32
  %left = atomicrmw add ptr %left_at, i32 1 release
  br label %look
done:
  ret void
}
"""
