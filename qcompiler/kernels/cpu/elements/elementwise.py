"""Elementwise regions -> one pass over the output: long rows of vectors, shared among threads."""

from __future__ import annotations

from contextlib import nullcontext

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.core import Core
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.epilogue import Fused, Row, store
from qcompiler.kernels.cpu.code.loops import first_of, part, share, sweep, tasks, up
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.registry import Kernel, Region, kernel

_SLOW = frozenset(
    ["Exp", "Log", "Erf", "Tanh", "Gelu", "Sigmoid", "Swish", "Mish", "Softplus", "Pow", "Sin"]
)
_NODE_NS, _SLOW_NS = 0.02, 0.3
"""The reference core's time for one element by a simple formula, and by a polynomial."""


def nanoseconds(region: Region, core: Core) -> float:
    """An estimate of one core's time for a region's elementwise nodes and memory accesses."""
    moved = sum(n.type.bytes for n in (*region.inputs, region.output))
    computed = sum(
        n.type.size * (_SLOW_NS if n.op in _SLOW else _NODE_NS)
        for n in region.nodes
        if n is not region.root and len(n.types) == 1
    )
    return core.moved_ns(moved) + core.mixed_ns(computed)


@kernel("elementwise")
def elementwise(region: Region, device: Cpu) -> Kernel | Skip:
    """Any broadcast of operands; the output may reuse the memory of an operand of its size."""
    if reason := refuse(region):
        return reason
    d = Draft("elementwise", region, device)
    f = d.writing(whole=True)
    if f.rows >= 4 * device.threads or f.columns // f.lanes() < f.rows:
        count = tasks(device, nanoseconds(region, device.core), f.rows)
        rows = d.counted(f.rows, _most(region))
        with (
            share(d.b, count, rows) as (first, iterations),
            d.b.serial(iterations, "row", first) as i,
        ):
            _row(d, f, i, f.row(i), 0, f.columns)
    else:
        count = _by_columns(d, f)
    size = region.output.type.size
    own = [i for i, n in enumerate(region.inputs) if n.type.bytes == region.output.type.bytes]
    in_place = tuple(i for i in own if region.inputs[i].type.size == size > 1)
    return d.kernel(tasks=count, in_place=in_place)


def _by_columns(d: Draft, f: Fused) -> int:
    """Emit few long rows, of each of which every task takes a part -> number of tasks."""
    width = _several(f)
    vectors, rest = divmod(f.columns, width)
    count = tasks(d.device, nanoseconds(d.region, d.device.core), vectors)
    counted = d.counted(f.columns, _most(d.region)) if f.rows == 1 else f.columns
    needed: Value = vectors
    if not isinstance(counted, int):  # what is behind the last whole vector is made in any case
        needed = d.b.let(tirx.Min(up(d.b, counted, width), tir.const(vectors)), "vectors")
    with d.b.parallel(count) as task:
        first, iterations = part(d.b, task, count, needed)
        if vectors:
            with d.b.serial(f.rows, "row") as i:
                row = f.row(i)
                with d.b.serial(iterations, "v", first) as v:
                    _put(d, f, i, row, d.b.let(v * width), width, width)
        if rest:
            last = d.b.when(task == count - 1) if count > 1 else nullcontext()
            with last, d.b.serial(f.rows, "row") as i:
                _row(d, f, i, f.row(i), vectors * width, rest)
    return count


def _most(region: Region) -> int:
    """Positions along the output's first dimension of more than one."""
    dims = region.output.type.dims
    return dims[first_of(dims)] if dims else 1


def _row(d: Draft, f: Fused, index: Value, row: Row, start: int, length: int) -> None:
    """Part of a row: several vectors at once, then single ones, then a partial one."""
    for width in dict.fromkeys((_several(f), f.lanes())):
        whole = length // width * width

        def vector(column: Value, count: int, width: int = width) -> None:
            _put(d, f, index, row, column, width, count)

        sweep(d.b, whole, width, vector, start=start)
        start, length = start + whole, length - whole
    if length:
        _put(d, f, index, row, tir.const(start), f.lanes(), length)


def _several(f: Fused) -> int:
    """Lanes computed at once; if wider values become bytes, those of a vector of bytes."""
    lanes, full = f.lanes(), f.m.isa.lanes(1)
    return full if tir.bits(f.output.dtype) == 8 and f.columns >= full else lanes


def _put(d: Draft, f: Fused, index: Value, row: Row, column: Value, lanes: int, count: int) -> None:
    value = f.at(row, column, lanes, count)
    store(d.m, d.out, index * f.columns + column, value, count)
