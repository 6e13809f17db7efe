"""The loop of a team's threads: claim a unit, run it, open the next section, wait if there is none.

LLVM text, in which team.py fills in the words that begin with @.
"""

LOOP = """
define internal void @team_loop(ptr %team, i32 %thread) noinline {
entry:
  %job = alloca %team_job, align 8
  %index = alloca i32, align 4
  %chosen = alloca i32, align 4
  %unshared = alloca i32, align 4
  %looks = alloca i32, align 4
  %table_at = getelementptr %team_job, ptr %job, i32 0, i32 2
  %masks_at = getelementptr %team_job, ptr %job, i32 0, i32 1
  %first_at = getelementptr %team_job, ptr %job, i32 0, i32 3
  %length_at = getelementptr %team_job, ptr %job, i32 0, i32 4
  %total_at = getelementptr %team_job, ptr %job, i32 0, i32 5
  %base_at = getelementptr %team_job, ptr %job, i32 0, i32 6
  %remaining_at = getelementptr i8, ptr %team, i64 @REMAINING
  %sleepers_at = getelementptr i8, ptr %team, i64 @SLEEPERS
  %threads_at = getelementptr i8, ptr %team, i64 @THREADS
  store i32 0, ptr %looks, align 4
  store i32 -1, ptr %index, align 4
  %caller = icmp eq i32 %thread, 0
  br i1 %caller, label %start, label %look
start:
  call void @team_read(ptr %team, ptr %job)
  br label %advance

look:
  %word = load atomic i64, ptr %team acquire, align 8
  %mask = trunc i64 %word to i32
  %some = icmp ne i32 %mask, 0
  br i1 %some, label %claim, label %idle
claim:
  %unit = call i32 @team_pick(i32 %mask, i32 %thread)
  %unit64 = zext i32 %unit to i64
  %bit64 = shl i64 1, %unit64
  %keep64 = xor i64 %bit64, -1
  %before64 = atomicrmw and ptr %team, i64 %keep64 acq_rel
  %had = and i64 %before64, %bit64
  %won = icmp ne i64 %had, 0
  br i1 %won, label %mine, label %look
mine:
  call void @team_read(ptr %team, ptr %job)
  %now = load atomic i64, ptr %team monotonic, align 8
  %number64 = lshr i64 %now, 32
  %number = trunc i64 %number64 to i32
  %base = load i32, ptr %base_at, align 4
  %here = sub i32 %number, %base
  store i32 %here, ptr %index, align 4
  store i32 %unit, ptr %chosen, align 4
  store i32 0, ptr %unshared, align 4
  store i32 0, ptr %looks, align 4
  br i1 %caller, label %run, label %helps
helps:
  %helped_at = getelementptr i8, ptr %team, i64 @HELPED
  %noted = load atomic i32, ptr %helped_at monotonic, align 4
  %known = icmp eq i32 %noted, %base
  br i1 %known, label %run, label %note
note:
  store atomic i32 %base, ptr %helped_at monotonic, align 4
  br label %run

run:
  %i = load i32, ptr %index, align 4
  %u = load i32, ptr %chosen, align 4
  %length = load i32, ptr %length_at, align 4
  %first = load i32, ptr %first_at, align 4
  %part = udiv i32 %i, %length
  %within = urem i32 %i, %length
  %section = add i32 %first, %within
  %function = load ptr, ptr %job, align 8
  %table = load ptr, ptr %table_at, align 8
  %result = call i32 %function(ptr %table, i32 %part, i32 %section, i32 %u)
  %private = load i32, ptr %unshared, align 4
  %single = icmp ne i32 %private, 0
  br i1 %single, label %advance, label %finish
finish:
  %before = atomicrmw sub ptr %remaining_at, i32 1 acq_rel
  %last = icmp eq i32 %before, 1
  br i1 %last, label %advance, label %look

advance:
  %old = load i32, ptr %index, align 4
  %next = add i32 %old, 1
  store i32 %next, ptr %index, align 4
  %total = load i32, ptr %total_at, align 4
  %over = icmp eq i32 %next, %total
  br i1 %over, label %end, label %open
open:
  %olength = load i32, ptr %length_at, align 4
  %ofirst = load i32, ptr %first_at, align 4
  %owithin = urem i32 %next, %olength
  %osection = add i32 %ofirst, %owithin
  %masks = load ptr, ptr %masks_at, align 8
  %units = call i32 @team_mask(ptr %masks, i32 %osection)
  %taken = call i32 @team_pick(i32 %units, i32 %thread)
  %takenbit = shl i32 1, %taken
  %others = xor i32 %units, %takenbit
  store i32 %taken, ptr %chosen, align 4
  %alone = icmp eq i32 %others, 0
  %flag = zext i1 %alone to i32
  store i32 %flag, ptr %unshared, align 4
  br i1 %alone, label %run, label %publish
publish:
  %count = call i32 @llvm.ctpop.i32(i32 %units)
  store atomic i32 %count, ptr %remaining_at monotonic, align 4
  %obase = load i32, ptr %base_at, align 4
  %onumber = add i32 %obase, %next
  %onumber64 = zext i32 %onumber to i64
  %ohigh = shl i64 %onumber64, 32
  %olow = zext i32 %others to i64
  %opened = or i64 %ohigh, %olow
  %oldword = atomicrmw xchg ptr %team, i64 %opened seq_cst
  %sleepers = load atomic i32, ptr %sleepers_at seq_cst, align 4
  %anyone = icmp ne i32 %sleepers, 0
  br i1 %anyone, label %wake, label %run
wake:
  %everybody = load atomic i32, ptr %threads_at monotonic, align 4
  call void @team_wake(ptr %team, i32 %everybody)
  br label %run
end:
  %ebase = load i32, ptr %base_at, align 4
  %enumber = add i32 %ebase, %next
  %enumber64 = zext i32 %enumber to i64
  %ended = shl i64 %enumber64, 32
  %eoldword = atomicrmw xchg ptr %team, i64 %ended seq_cst
  br i1 %caller, label %done, label %notify
notify:
  %esleepers = load atomic i32, ptr %sleepers_at seq_cst, align 4
  %esome = icmp ne i32 %esleepers, 0
  br i1 %esome, label %wake_caller, label %look
wake_caller:
  call void @team_wake(ptr %team, i32 1)
  br label %look

idle:
  br i1 %caller, label %is_over, label %is_ended
is_ended:
  %leave_at = getelementptr i8, ptr %team, i64 @END
  %leaves = load atomic i32, ptr %leave_at acquire, align 4
  %leave = icmp ne i32 %leaves, 0
  br i1 %leave, label %done, label %wait
is_over:
  %ibase = load i32, ptr %base_at, align 4
  %itotal = load i32, ptr %total_at, align 4
  %inumber = add i32 %ibase, %itotal
  %inumber64 = zext i32 %inumber to i64
  %iend = shl i64 %inumber64, 32
  %iover = icmp eq i64 %word, %iend
  br i1 %iover, label %done, label %wait
wait:
  %seen = load i32, ptr %looks, align 4
  %more = call i32 @team_wait(ptr %team, i32 %thread, i64 %word, i32 %seen)
  store i32 %more, ptr %looks, align 4
  br label %look
done:
  ret void
}
"""
"""A thread's work, from its first look for a unit to the end of the run."""

WAIT = """
define internal void @team_wake(ptr %team, i32 %all) noinline {
entry:
  %posted_at = getelementptr i8, ptr %team, i64 @POSTED
  %may_at = getelementptr i8, ptr %team, i64 @MAY
  %may = load atomic i32, ptr %may_at monotonic, align 4
  %allowed = icmp ne i32 %may, 0
  %threads = select i1 %allowed, i32 %all, i32 1
  br label %each
each:
  %thread = phi i32 [ 0, %entry ], [ %next, %check ], [ %next, %post ]
  %more = icmp slt i32 %thread, %threads
  br i1 %more, label %check, label %done
check:
  %next = add i32 %thread, 1
  %place = call ptr @team_place(ptr %team, i32 %thread)
  %asleep = atomicrmw xchg ptr %place, i32 0 seq_cst
  %sleeps = icmp ne i32 %asleep, 0
  br i1 %sleeps, label %post, label %each
post:
  %semaphore = getelementptr i8, ptr %place, i64 @SEMAPHORE
  store atomic i32 %thread, ptr %posted_at monotonic, align 4
  %posted = call i32 @sem_post(ptr %semaphore)
  br label %each
done:
  ret void
}

define internal i32 @team_wait(ptr %team, i32 %thread, i64 %word, i32 %looks) alwaysinline {
entry:
  @PAUSE
  %more = add i32 %looks, 1
  %step = and i32 %more, @YIELD_MASK
  %often = icmp eq i32 %step, 0
  br i1 %often, label %yield, label %back
yield:
  %yielded = call i32 @sched_yield()
  %spins_at = getelementptr i8, ptr %team, i64 @SPINS
  %spins = load atomic i32, ptr %spins_at monotonic, align 4
  %long = icmp ugt i32 %more, %spins
  br i1 %long, label %rest, label %back
rest:
  call void @team_sleep(ptr %team, i32 %thread, i64 %word)
  br label %back
back:
  %found = phi i32 [ %more, %entry ], [ %more, %yield ], [ 0, %rest ]
  ret i32 %found
}

define internal void @team_sleep(ptr %team, i32 %thread, i64 %word) noinline {
entry:
  %sleepers_at = getelementptr i8, ptr %team, i64 @SLEEPERS
  %place = call ptr @team_place(ptr %team, i32 %thread)
  %semaphore = getelementptr i8, ptr %place, i64 @SEMAPHORE
  %others = atomicrmw add ptr %sleepers_at, i32 1 seq_cst
  store atomic i32 1, ptr %place seq_cst, align 4
  %now = load atomic i64, ptr %team seq_cst, align 8
  %same = icmp eq i64 %now, %word
  br i1 %same, label %sleep, label %cancel
cancel:
  %mine = atomicrmw xchg ptr %place, i32 0 seq_cst
  %unposted = icmp ne i32 %mine, 0
  br i1 %unposted, label %done, label %sleep
sleep:
  %woken = call i32 @sem_wait(ptr %semaphore)
  %failed = icmp ne i32 %woken, 0
  br i1 %failed, label %sleep, label %done
done:
  %left = atomicrmw sub ptr %sleepers_at, i32 1 seq_cst
  ret void
}
"""
"""Waking, spinning, and falling asleep until a section is opened, or the run or the team ends."""
