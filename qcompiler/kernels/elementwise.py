"""Elementwise regions -> one pass over the output: long rows of vectors, shared among threads."""

from __future__ import annotations

from qcompiler.errors import Skip
from qcompiler.isa import Device
from qcompiler.kernels import tir
from qcompiler.kernels.draft import Draft, refuse
from qcompiler.kernels.epilogue import Fused, Row, store
from qcompiler.kernels.loops import BYTES_PER_NS, share, sweep, tasks
from qcompiler.kernels.registry import Kernel, Region, kernel
from qcompiler.kernels.tir import Value

_SLOW = frozenset(
    ["Exp", "Log", "Erf", "Tanh", "Gelu", "Sigmoid", "Swish", "Mish", "Softplus", "Pow", "Sin"]
)
_NODE_NS, _SLOW_NS = 0.02, 0.3
"""One core's time for one element: of a formula of a few instructions, and of a polynomial."""


def nanoseconds(region: Region) -> float:
    """An estimate of one core's time for a region's elementwise nodes and its reads and writes."""
    moved = sum(n.type.bytes for n in (*region.inputs, region.output))
    computed = sum(
        n.type.size * (_SLOW_NS if n.op in _SLOW else _NODE_NS)
        for n in region.nodes
        if n is not region.root and len(n.types) == 1
    )
    return moved / BYTES_PER_NS + computed


@kernel("elementwise")
def elementwise(region: Region, device: Device) -> Kernel | Skip:
    """Any broadcast of operands; the output may take over the memory of an operand of its size."""
    if reason := refuse(region):
        return reason
    d = Draft("elementwise", region, device)
    f = d.writing(whole=True)
    vectors = f.columns // f.lanes()
    if f.rows >= 4 * device.threads or vectors < f.rows:
        count = tasks(device, nanoseconds(region), f.rows)
        with share(d.b, count, f.rows) as (first, turns), d.b.serial(turns, "row", first) as i:
            row = f.row(i)
            sweep(d.b, f.columns, f.lanes(), lambda n, c: _put(d, f, i, row, n, c))
    else:
        count = tasks(device, nanoseconds(region), vectors)
        _by_columns(d, f, vectors, count)
    size = region.output.type.size
    own = [i for i, n in enumerate(region.inputs) if n.type.bytes == region.output.type.bytes]
    in_place = tuple(i for i in own if region.inputs[i].type.size == size > 1)
    return d.kernel(tasks=count, in_place=in_place)


def _by_columns(d: Draft, f: Fused, vectors: int, count: int) -> None:
    """Few long rows: each task takes its part of all of them; what no vector fills comes last."""
    lanes, rest = f.lanes(), f.columns % f.lanes()
    if vectors:
        with share(d.b, count, vectors) as (first, turns), d.b.serial(f.rows, "row") as i:
            row = f.row(i)
            with d.b.serial(turns, "v", first) as v:
                _put(d, f, i, row, d.b.let(v * lanes), lanes)
    if rest:
        with d.b.serial(f.rows, "row") as i:
            _put(d, f, i, f.row(i), tir.const(vectors * lanes), rest)


def _put(d: Draft, f: Fused, index: Value, row: Row, column: Value, count: int) -> None:
    value = f.at(row, column, f.lanes(), count)
    store(d.m, d.out, index * f.columns + column, value, count)
