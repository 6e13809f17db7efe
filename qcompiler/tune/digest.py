"""Kernels -> text that is equal for those of the same code."""

from __future__ import annotations

from tvm_ffi import structural_hash

from qcompiler.kernels.registry import Kernel


def digest(kernel: Kernel) -> str:
    """What is equal for kernels of the same code, whatever knobs they were made with.

    Compared is the code before LLVM, whose work depends on nothing else: a candidate that gives the
    same is not even compiled.
    """
    shape = (kernel.tasks, kernel.scratch_bytes, sorted(kernel.pack), kernel.in_place)
    return f"{structural_hash(kernel.func):016x} {shape}"
