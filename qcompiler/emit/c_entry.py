"""What a model takes -> LLVM text of the function that C calls: it fills the table of a run from
structs of addresses, after checking each, and calls `qcompiler_run`.

A run keeps nothing: the structs, the arrays, the workspace and weights in a file are the caller's,
so any number of runs may be active at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qcompiler.artifact.abi import ALIGN, REFUSED, Table
from qcompiler.emit import c_open
from qcompiler.emit.c_open import Open
from qcompiler.emit.machine import text_object
from qcompiler.hardware.isa import Isa

STATUS: Mapping[str, tuple[int, str]] = {
    "OK": (0, "the outputs are written"),
    "REFUSED": (REFUSED, "the system refuses registers that the code needs; nothing was run"),
    "BAD_POINTER": (2, "an address is null or not aligned; nothing was run"),
    "OTHER_WEIGHTS": (3, "the weights are not this model's; nothing was run"),
}
"""The values that `NAME_run` returns, and their meanings."""
BAD_SIZE = (4, "an open size is not one that the model takes; nothing was run")
"""One more, where sizes are open."""

SEAL_BYTES = 64
"""A file of weights has this many bytes after them, which begin with `seal`."""


def seal(digest: str) -> int:
    """SHA-256 of the weights -> the 8-byte word that follows them in a file."""
    return int(digest[:16], 16)


ENTRY, SHARED = "qcompiler_c_run", "qcompiler_c_run_threads"
"""The functions' names before they get the model's: run by the calling thread, and by the caller's
threads (emit/parallel.py), a struct of two addresses.
"""

WEIGHTS = "qcompiler_weights"
"""The symbol of weights in the object file."""


@dataclass(frozen=True)
class Taken:
    """What a run takes: numbers of inputs, outputs and steps; `file`: size of weights in a file and
    the word that follows them (None: they are in the object file); `threads`: whether there is a
    run by threads too; `opened`: of open sizes, which the caller says in words of so many `bits`.
    """

    inputs: int
    outputs: int
    steps: int
    file: tuple[int, int] | None = None
    threads: bool = False
    opened: Open | None = None
    bits: int = 64


def c_entry(taken: Taken, isa: Isa) -> bytes:
    """An object file of `ENTRY`, and of `SHARED` if wanted."""
    return text_object(_text(taken, bool(isa.permission)), isa)


def _text(taken: Taken, asks: bool) -> str:
    opened, word = taken.opened, f"i{taken.bits}"
    hidden = len(opened.sizes) if opened else 0
    table = Table(taken.inputs + hidden + taken.outputs)
    values: dict[str, object] = {
        "SIZES": f", {c_open.parameters(opened, word)}" if opened else "",
        "ONLY_SIZES": c_open.parameters(opened, word) if opened else "",
        "WORDS": table.words,
        "INPUTS": taken.inputs,
        "OUTPUTS": taken.outputs,
        "OUTPUTS_AT": taken.inputs + hidden,
        "ARRAYS": taken.inputs + hidden + taken.outputs,
        "WEIGHTS_AT": table.weights,
        "WORKSPACE_AT": table.workspace,
        "FIRST_AT": table.first,
        "LAST_AT": table.last,
        "PERMISSION_AT": table.permission,
        "REFUSED": REFUSED,
        "STEPS": taken.steps,
        "LOW": ALIGN - 1,
        "BAD": STATUS["BAD_POINTER"][0],
        "OTHER": STATUS["OTHER_WEIGHTS"][0],
        "BAD_SIZE": BAD_SIZE[0],
        "PARTS_AT": table.parts,
    }
    if taken.file is None:
        weights = _IN_OBJECT.replace("@SYMBOL", f"@{WEIGHTS}")
    else:
        size, seal_word = taken.file
        values |= {"WEIGHTS_BYTES": size, "SEAL": _signed(seal_word)}
        weights = _IN_FILE
    known, know = (_LOAD_PERMISSION, _STORE_PERMISSION) if asks else ("add i64 0, 0", "")
    run = _RUN.replace("@WEIGHTS_TEXT", weights)
    ask = _ASK if asks else ""
    do = ask + _DO_OPEN if opened else ask + _DO_SHARED if taken.threads else _DO
    run = run.replace("@DO", do)
    made = _TAKE + (_PERMISSION if asks else "") + run + (_THREADS if taken.threads else _ALONE)
    made += c_open.text(opened, word) if opened else ""
    made = made.replace("@KNOWN", known).replace("@KNOW", know)
    if taken.file is None:
        made += f"\n@{WEIGHTS} = external hidden constant i8\n"
    return re.sub("@([A-Z][A-Z0-9_]*)", lambda found: str(values[found[1]]), made)


def _signed(word: int) -> int:
    """A word of 64 bits as LLVM writes it."""
    return word - (1 << 64) if word >> 63 else word


_TAKE = """
declare i32 @qcompiler_run(ptr)

define internal i1 @c_take(ptr %from, ptr %slots, i32 %count) noinline {
entry:
  br label %next
next:
  %i = phi i32 [ 0, %entry ], [ %after, %take ]
  %good = phi i1 [ true, %entry ], [ %both, %take ]
  %more = icmp slt i32 %i, %count
  br i1 %more, label %take, label %done
take:
  %from_at = getelementptr ptr, ptr %from, i32 %i
  %address = load ptr, ptr %from_at
  %word = ptrtoint ptr %address to i64
  %slot = getelementptr i64, ptr %slots, i32 %i
  store i64 %word, ptr %slot, align 8
  %low = and i64 %word, @LOW
  %aligned = icmp eq i64 %low, 0
  %there = icmp ne ptr %address, null
  %fine = and i1 %aligned, %there
  %both = and i1 %good, %fine
  %after = add i32 %i, 1
  br label %next
done:
  ret i1 %good
}
"""
"""Addresses of a struct -> words of the table, and whether each is neither null nor unaligned."""

_PERMISSION = "@c_permission = internal global i64 0\n"
_LOAD_PERMISSION = "load atomic i64, ptr @c_permission monotonic, align 8"
_STORE_PERMISSION = "store atomic i64 %permission, ptr @c_permission monotonic, align 8"
"""The system's answer to the request for registers: the only word that outlives a run, on
instruction sets that need permission. After a refusal the request is repeated.
"""

_RUN = """
define internal i32 @c_run(ptr %inputs, ptr %outputs, ptr %workspace, ptr %threads@SIZES) noinline {
entry:
  %table = alloca [@WORDS x i64], align 8
  %own = alloca ptr
  store ptr %workspace, ptr %own
  %outputs_at = getelementptr i64, ptr %table, i32 @OUTPUTS_AT
  %weights_at = getelementptr i64, ptr %table, i32 @WEIGHTS_AT
  %workspace_at = getelementptr i64, ptr %table, i32 @WORKSPACE_AT
  %first_at = getelementptr i64, ptr %table, i32 @FIRST_AT
  %last_at = getelementptr i64, ptr %table, i32 @LAST_AT
  %permission_at = getelementptr i64, ptr %table, i32 @PERMISSION_AT
  %good1 = call i1 @c_take(ptr %inputs, ptr %table, i32 @INPUTS)
  %good2 = call i1 @c_take(ptr %outputs, ptr %outputs_at, i32 @OUTPUTS)
  %good3 = call i1 @c_take(ptr %own, ptr %workspace_at, i32 1)
  store i64 0, ptr %first_at, align 8
  store i64 @STEPS, ptr %last_at, align 8
  %known = @KNOWN
  store i64 %known, ptr %permission_at, align 8
  %good12 = and i1 %good1, %good2
  %good = and i1 %good12, %good3
  br i1 %good, label %set_weights, label %bad
@WEIGHTS_TEXT
run:
@DO
finish:
  %permission = load i64, ptr %permission_at, align 8
  @KNOW
  %no = icmp eq i64 %permission, @REFUSED
  %status = select i1 %no, i32 @REFUSED, i32 0
  ret i32 %status
bad:
  ret i32 @BAD
}
"""

_DO = """  %result = call i32 @qcompiler_run(ptr %table)
  br label %finish"""

_DO_OPEN = """  %fit = call i1 @c_sizes(@ONLY_SIZES)
  br i1 %fit, label %sized, label %other_size
other_size:
  ret i32 @BAD_SIZE
sized:
  %parts_at = getelementptr i64, ptr %table, i32 @PARTS_AT
  store i64 1, ptr %parts_at, align 8
  call void @c_open(ptr %table, ptr %workspace@SIZES)
  br label %finish"""

_DO_SHARED = """  %alone = icmp eq ptr %threads, null
  br i1 %alone, label %one, label %several
one:
  %result = call i32 @qcompiler_run(ptr %table)
  br label %finish
several:
  %pool_at = getelementptr ptr, ptr %threads, i32 1
  %parallel_for = load ptr, ptr %threads
  %pool = load ptr, ptr %pool_at
  %shared = call i32 @qcompiler_parallel(ptr %table, ptr %parallel_for, ptr %pool)
  br label %finish"""

_ASK = """  store i64 0, ptr %last_at, align 8
  %asked = call i32 @qcompiler_run(ptr %table)
  store i64 @STEPS, ptr %last_at, align 8
  %answer = load i64, ptr %permission_at, align 8
  %against = icmp eq i64 %answer, @REFUSED
  br i1 %against, label %finish, label %granted
granted:
"""
"""A run of no steps requests registers for all threads of the process."""

_ALONE = """
define i32 @qcompiler_c_run(ptr %inputs, ptr %outputs, ptr %workspace@SIZES) {
  %status = call i32 @c_run(ptr %inputs, ptr %outputs, ptr %workspace, ptr null@SIZES)
  ret i32 %status
}
"""

_THREADS = (
    """
declare i32 @qcompiler_parallel(ptr, ptr, ptr)

define i32 @qcompiler_c_run_threads(ptr %inputs, ptr %outputs, ptr %workspace, ptr %threads) {
  %status = call i32 @c_run(ptr %inputs, ptr %outputs, ptr %workspace, ptr %threads)
  ret i32 %status
}
"""
    + _ALONE
)

_IN_OBJECT = """
set_weights:
  %word = ptrtoint ptr @SYMBOL to i64
  store i64 %word, ptr %weights_at, align 8
  br label %run
"""

_IN_FILE = """
set_weights:
  %from_at = getelementptr ptr, ptr %inputs, i32 @INPUTS
  %good4 = call i1 @c_take(ptr %from_at, ptr %weights_at, i32 1)
  br i1 %good4, label %look, label %bad
look:
  %weights = load ptr, ptr %from_at
  %seal_at = getelementptr i8, ptr %weights, i64 @WEIGHTS_BYTES
  %seal = load i64, ptr %seal_at, align 8
  %same = icmp eq i64 %seal, @SEAL
  br i1 %same, label %run, label %other
other:
  ret i32 @OTHER
"""
"""Weights in a file: their address is the last in the struct of inputs."""
