"""Python calls -> the TIR function of one kernel for a grid of blocks of threads.

    b = Block("scale", threads=256)
    x, y = b.pointer("x", "float32"), b.pointer("y", "float32")
    with b.items(1000) as i:                       # a thread each
        y.store(i, x.load(i) * 3.0)
    func, grid = b.function(), b.grid

`Block` is the `Builder` of CPU kernels, whose statements each thread executes. Every value has one
lane.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tvm
from tvm import tirx
from tvm.ir import PrimType, Var

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.gpu.code import device
from qcompiler.kernels.registry import Grid


class Block(Builder):
    """Collects the statements of one kernel; `threads`: those of a block."""

    def __init__(self, name: str, threads: int = 256) -> None:
        super().__init__(name)
        self.thread: Value = Var("threadIdx.x", PrimType("int32"))
        self.x, self.y, self.z = (
            Var(f"blockIdx.{axis}", PrimType("int32")) for axis in ("x", "y", "z")
        )
        self.threads, self._blocks_of_grid = threads, (1, 1, 1)
        self._shared_bytes = 0

    @property
    def grid(self) -> Grid:
        """How the kernel is started."""
        return Grid(self._blocks_of_grid, self.threads, self._shared_bytes)

    def number(self, name: str) -> Value:
        """The next parameter, after all pointers: an int32."""
        param = Var(name, PrimType("int32"))
        self._params.append(param)
        return param

    def blocks(self, x: int, y: int = 1, z: int = 1) -> None:
        """Set the number of blocks."""
        self._blocks_of_grid = (x, y, z)

    @contextmanager
    def items(self, count: int) -> Iterator[Value]:
        """Number of items -> the item of each thread, as many blocks as that takes."""
        whole = -(-count // self.threads)
        self.blocks(whole)
        item = self.let(self.x * self.threads + self.thread, "item")
        if whole * self.threads == count:
            yield item
        else:
            with self.when(item < count):
                yield item

    @contextmanager
    def unrolled(self, extent: int, name: str = "i") -> Iterator[Value]:
        """A loop that the compiler of the code unrolls."""
        with self._loop(extent, name, 0, tirx.stmt.ForKind.UNROLLED) as i:
            yield i

    def shared(self, dtype: str, count: int, name: str = "shared") -> Pointer:
        """Memory of all threads of a block, full of rubbish."""
        self._shared_bytes += -(-count * tir.bits(dtype) // 8 // 64) * 64
        return self._array(dtype, count, name, "shared")

    def local(self, dtype: str, count: int, name: str = "own") -> Pointer:
        """Registers of each thread, if they are read and written by constant offsets only."""
        return self._array(dtype, count, name, "local")

    def _array(self, dtype: str, count: int, name: str, scope: str) -> Pointer:
        kept, name = tir.stored(dtype), self._fresh(name)
        buffer = tirx.decl_buffer((count,), kept, name, scope=scope, layout=None)
        self.emit(tirx.AllocBuffer(buffer))
        return Pointer(self, buffer, kept)

    def barrier(self) -> None:
        """Wait for all threads of the block, which all come here, and see what they wrote."""
        self.emit(device.barrier())

    def function(self) -> Value:
        """All emitted statements as a function that a grid executes."""
        assert len(self._blocks) == 1, "a loop is still open"
        body = tirx.SeqStmt([*self._views, *self._blocks[0]])
        extents = zip((self.x, self.y, self.z), self._blocks_of_grid, strict=True)
        for var, extent in ((self.thread, self.threads), *extents):
            body = bound(var, extent, body)
        return tirx.PrimFunc(self._params, body)


def bound(var: Value, extent: int, body: Value) -> Value:
    """A body in which `var` is the index of the same name."""
    span = tvm.ir.Range(0, extent)
    index = tirx.IterVar(span, var, tirx.IterVar.ThreadIndex, var.name)
    return tirx.AttrStmt(index, "thread_extent", tirx.IntImm("int32", extent), body)
