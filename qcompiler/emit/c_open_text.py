"""LLVM text of what a run of open sizes from C calls (c_open.py)."""

ROUND = """
define internal void @c_round(ptr %table, ptr %bases, i32 %at, i32 %first, i32 %last) noinline {
entry:
  %samples = zext i32 %at to i64
  br label %next
next:
  %i = phi i32 [ 0, %entry ], [ %after, %move ]
  %more = icmp slt i32 %i, @ARRAYS
  br i1 %more, label %move, label %run
move:
  %base_at = getelementptr i64, ptr %bases, i32 %i
  %base = load i64, ptr %base_at, align 8
  %bytes_at = getelementptr i64, ptr @c_bytes, i32 %i
  %bytes = load i64, ptr %bytes_at, align 8
  %offset = mul i64 %bytes, %samples
  %address = add i64 %base, %offset
  %slot = getelementptr i64, ptr %table, i32 %i
  store i64 %address, ptr %slot, align 8
  %after = add i32 %i, 1
  br label %next
run:
  %first_at = getelementptr i64, ptr %table, i32 @FIRST_AT
  %last_at = getelementptr i64, ptr %table, i32 @LAST_AT
  %first_word = zext i32 %first to i64
  %last_word = zext i32 %last to i64
  store i64 %first_word, ptr %first_at, align 8
  store i64 %last_word, ptr %last_at, align 8
  %result = call i32 @qcompiler_run(ptr %table)
  ret void
}
"""
"""Steps for the samples from `at` on."""

QUOTIENT = """
define internal i32 @c_quotient(i32 %a, i32 %b) alwaysinline {
  %near = sdiv i32 %a, %b
  %back = mul i32 %near, %b
  %above = icmp sgt i32 %back, %a
  %one = zext i1 %above to i32
  %down = sub i32 %near, %one
  ret i32 %down
}
"""
"""A quotient by a positive number, rounded down."""

BOX = """
declare void @llvm.memcpy.p0.p0.i32(ptr, ptr, i32, i1)
declare void @llvm.memset.p0.i32(ptr, i8, i32, i1)

define internal void @c_box(ptr %to, ptr %from, ptr %n, ptr %to_dims, ptr %from_dims, i32 %rank,
                            i32 %item) noinline {
entry:
  %last = sub i32 %rank, 1
  %width_at = getelementptr i32, ptr %n, i32 %last
  %width = load i32, ptr %width_at, align 4
  %row = mul i32 %width, %item
  %to_width_at = getelementptr i32, ptr %to_dims, i32 %last
  %to_width = load i32, ptr %to_width_at, align 4
  %from_width_at = getelementptr i32, ptr %from_dims, i32 %last
  %from_width = load i32, ptr %from_width_at, align 4
  %item64 = zext i32 %item to i64
  br label %count
count:
  %d = phi i32 [ 0, %entry ], [ %d_next, %multiply ]
  %rows = phi i32 [ 1, %entry ], [ %rows_next, %multiply ]
  %outer = icmp slt i32 %d, %last
  br i1 %outer, label %multiply, label %next
multiply:
  %n_at = getelementptr i32, ptr %n, i32 %d
  %n_d = load i32, ptr %n_at, align 4
  %rows_next = mul i32 %rows, %n_d
  %d_next = add i32 %d, 1
  br label %count
next:
  %r = phi i32 [ 0, %count ], [ %r_next, %copy ]
  %more = icmp slt i32 %r, %rows
  br i1 %more, label %place, label %done
place:
  %k = phi i32 [ %last, %next ], [ %k_next, %digit ]
  %rest = phi i32 [ %r, %next ], [ %rest_next, %digit ]
  %a = phi i32 [ 0, %next ], [ %a_next, %digit ]
  %b = phi i32 [ 0, %next ], [ %b_next, %digit ]
  %a_step = phi i32 [ %to_width, %next ], [ %a_step_next, %digit ]
  %b_step = phi i32 [ %from_width, %next ], [ %b_step_next, %digit ]
  %left = icmp sgt i32 %k, 0
  br i1 %left, label %digit, label %copy
digit:
  %k_next = sub i32 %k, 1
  %n_k_at = getelementptr i32, ptr %n, i32 %k_next
  %n_k = load i32, ptr %n_k_at, align 4
  %rest_next = udiv i32 %rest, %n_k
  %even = mul i32 %rest_next, %n_k
  %index = sub i32 %rest, %even
  %a_more = mul i32 %index, %a_step
  %a_next = add i32 %a, %a_more
  %b_more = mul i32 %index, %b_step
  %b_next = add i32 %b, %b_more
  %to_at = getelementptr i32, ptr %to_dims, i32 %k_next
  %to_k = load i32, ptr %to_at, align 4
  %a_step_next = mul i32 %a_step, %to_k
  %from_at = getelementptr i32, ptr %from_dims, i32 %k_next
  %from_k = load i32, ptr %from_at, align 4
  %b_step_next = mul i32 %b_step, %from_k
  br label %place
copy:
  %a64 = zext i32 %a to i64
  %a_bytes = mul i64 %a64, %item64
  %a_place = getelementptr i8, ptr %to, i64 %a_bytes
  %b64 = zext i32 %b to i64
  %b_bytes = mul i64 %b64, %item64
  %b_place = getelementptr i8, ptr %from, i64 %b_bytes
  call void @llvm.memcpy.p0.p0.i32(ptr %a_place, ptr %b_place, i32 %row, i1 false)
  %r_next = add i32 %r, 1
  br label %next
done:
  ret void
}
"""
"""The box of shape `n` at the begin of an array -> the begin of another; `rank` at least 1."""
