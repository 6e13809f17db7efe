"""A graph of one region, and arrays -> what its kernel makes of them, with nothing to touch around
them.

Every array ends right where a page begins that may not be touched, and starts wherever that takes
it, so that a kernel that reads or writes one element too many ends the process.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import board
import numpy as np
from poison import POISONS, other, same, twice

from qcompiler import plugins
from qcompiler.emit.machine import compile_functions
from qcompiler.errors import Skip
from qcompiler.hardware.isa import ISAS, Cpu, Isa
from qcompiler.ir import Array, Graph, Node, numpy_dtype
from qcompiler.kernels.registry import Kernel, Region, Setting, Ways, choose, setting
from qcompiler.ops import evaluate

_PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)


@cache
def isas() -> tuple[Isa, ...]:
    """The instruction sets that this CPU can run, those of the longest vectors last; and the first
    of them again, as a machine that has no masks. With `--board`, the one that was asked for.
    """
    plugins.load_all()
    if board.chosen:
        return (ISAS[board.chosen[0]],)
    found = [i for i in ISAS.values() if i.cpu_flags and not i.lacks]
    first, *others = sorted(found, key=lambda i: i.vector_bytes)
    return first, unmasked(first), *others


def unmasked(isa: Isa) -> Isa:
    """An instruction set that moves parts of vectors in pieces."""
    return replace(isa, name=f"{isa.name}_unmasked", masked=frozenset())


@cache
def vector_isas() -> tuple[Isa, ...]:
    """One of them for each width of vectors, with masks and without: for kernels that use no
    products.
    """
    first: dict[tuple[int, bool], Isa] = {}
    for isa in isas():
        first.setdefault((isa.vector_bytes, bool(isa.masked)), isa)
    return tuple(first.values())


def device(isa: Isa, threads: int = 1) -> Cpu:
    return Cpu("test", isa, threads)


def sharing(device: Cpu) -> Cpu:
    """A device that shares even the smallest work among its threads."""
    return replace(device, core=replace(device.core, launch_ns=1e-6))


def made(
    generator: Ways,
    region: Region,
    device: Cpu,
    wanted: Callable[[Setting], bool] = lambda knobs: True,
) -> Kernel | Skip:
    """The kernel that a generator predicts to be fastest, of those with the wanted knobs."""
    found = generator(region, device)
    if isinstance(found, Skip):
        return found
    fitting = [c for c in found if wanted(setting(c.knobs))]
    return min(fitting, key=lambda c: c.seconds).build()


class Fenced:
    """Memory that ends where a page begins that may not be touched."""

    def __init__(self, size: int) -> None:
        whole = -(-max(size, 1) // _PAGE) * _PAGE
        self.memory = mmap.mmap(-1, whole + _PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        if _LIBC.mprotect(ctypes.c_void_p(start + whole), _PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
        self.address = start + whole - size
        self.size = size
        self.bytes = np.frombuffer(self.memory, np.uint8, size, whole - size)

    def hold(self, array: Array) -> None:
        """Copy an array to the begin of the memory."""
        self.bytes[: array.nbytes] = array.reshape(-1).view(np.uint8)


def region_of(graph: Graph, root: Node | None) -> Region:
    """All of a graph's nodes as one region."""
    nodes = tuple(n for n in graph.nodes if n.op not in ("input", "constant"))
    inside = set(nodes)
    inputs = dict.fromkeys(i for n in nodes for i in n.operands if i not in inside)
    return Region(root, nodes, tuple(inputs), graph.outputs[0])


def elsewhere(isa: Isa) -> bool:
    """Is it another architecture's?"""
    return not isa.triple.startswith(platform.machine())


def processor(isa: Isa) -> str:
    """The processor that `--board` names, or the first that has the instructions."""
    return board.chosen[1] if board.chosen else board.CPUS[isa.name][0]


def called(function: Any, isa: Isa, arrays: Sequence[Array]) -> list[Array]:
    """A TIR function of pointers on copies of arrays, in fenced memory -> what they hold then."""
    if elsewhere(isa):
        return board.run_function(function, isa, processor(isa), arrays)
    module = compile_functions([("called", function)], isa)
    memory = [Fenced(a.nbytes) for a in arrays]
    for place, array in zip(memory, arrays, strict=True):
        place.hold(array)
    module["called"](*(ctypes.c_void_p(m.address) for m in memory))
    return [
        m.bytes.view(a.dtype).reshape(a.shape).copy() for m, a in zip(memory, arrays, strict=True)
    ]


def run(kernel: Kernel, region: Region, isa: Isa, values: Mapping[Node, Array]) -> Array:
    """A kernel on arrays, in fenced memory; for another architecture on an emulated processor."""
    if elsewhere(isa):
        return _run_elsewhere(kernel, region, isa, values)
    return twice(caller(kernel, region, isa, values), values)


def caller(
    kernel: Kernel, region: Region, isa: Isa, values: Mapping[Node, Array]
) -> Callable[[Mapping[Node, Array], int], Array]:
    """A kernel, and arrays of which the constants count -> (arrays, a byte that all memory that it
    may write is full of) -> what it makes of these.
    """
    if elsewhere(isa):
        return lambda arrays, poison: _emulated(
            kernel, region, isa, [({**values, **arrays}, poison)]
        )[0]
    module = compile_functions([(kernel.name, kernel.func)], isa)
    operands = []
    for i, node in enumerate(region.inputs):
        array = np.ascontiguousarray(values[node])
        if i in kernel.pack:
            array = np.ascontiguousarray(kernel.pack[i](array))
        operands.append(Fenced(array.nbytes + (64 if node.is_constant else 0)))
        operands[-1].hold(array)
    type = region.output.type
    made = [Fenced(type.bytes)]
    if kernel.scratch_bytes:
        made.append(Fenced(-(-kernel.scratch_bytes // 64) * 64))

    def call(arrays: Mapping[Node, Array], poison: int) -> Array:
        for node, memory in zip(region.inputs, operands, strict=True):
            if node.is_constant:
                memory.bytes[-64:] = poison  # lanes behind it may be read, and mean nothing
            else:
                memory.hold(np.ascontiguousarray(arrays[node]))
        for memory in made:
            memory.bytes[:] = poison
        module[kernel.name](*(ctypes.c_void_p(m.address) for m in (*operands, *made)))
        return made[0].bytes.view(numpy_dtype(type.dtype)).reshape(type.dims).copy()

    return call


def _run_elsewhere(kernel: Kernel, region: Region, isa: Isa, values: Mapping[Node, Array]) -> Array:
    """The same, on an emulated processor."""
    held = {n: a for n, a in values.items() if n.is_constant}
    rounds = [({**{n: other(a) for n, a in values.items()}, **held}, POISONS[1])]
    rounds += [(dict(values), poison) for poison in POISONS]
    _, *made = _emulated(kernel, region, isa, rounds)
    same([made[0]], [made[1]])
    return made[1]


def _emulated(
    kernel: Kernel, region: Region, isa: Isa, rounds: Sequence[tuple[Mapping[Node, Array], int]]
) -> list[Array]:
    """What each of some calls makes, one after the other, of arrays and a byte in other memory."""
    given = []
    for arrays, poison in rounds:
        operands = []
        for i, node in enumerate(region.inputs):
            array = np.ascontiguousarray(arrays[node])
            packed = np.ascontiguousarray(kernel.pack[i](array)) if i in kernel.pack else array
            operands.append((64 if node.is_constant else 0, packed))
        given.append((operands, poison))
    type = region.output.type
    sizes = [type.bytes] + [-(-kernel.scratch_bytes // 64) * 64] * bool(kernel.scratch_bytes)
    return [
        np.frombuffer(raw, numpy_dtype(type.dtype)).reshape(type.dims)
        for raw in board.run_kernel(kernel, isa, processor(isa), given, sizes)
    ]


def expected(graph: Graph, values: Mapping[Node, Array]) -> Array:
    """What numpy makes of the same arrays."""
    with np.errstate(all="ignore"):
        return evaluate(graph, {n.name: values[n] for n in graph.inputs})[graph.output_names[0]]


def check(
    output: Node,
    root: Node | None,
    arrays: Sequence[Array],
    inputs: Sequence[Node],
    isa: Isa,
    *,
    threads: int = 1,
    ulp: float = 0,
    rtol: float = 0.0,
    atol: float | Array = 0.0,
    want: Array | None = None,
) -> Kernel:
    """Compile the region that ends in `output`, run it, and compare, by default exactly; `atol` may
    be an array of the output's shape.
    """
    graph = Graph(tuple(inputs), (output,), ("y",))
    region = region_of(graph, root)
    kernel = choose(region, device(isa, threads)).kernel
    assert isinstance(kernel, Kernel), kernel
    values = dict(zip(inputs, arrays, strict=True))
    values |= {n: n.array for n in region.inputs if n.is_constant}
    got = run(kernel, region, isa, values)
    want = expected(graph, values) if want is None else want
    atol = np.maximum(atol, 2.0**-126) if isa.name in board.FLUSHES else atol
    compare(got, want, ulp=ulp, rtol=rtol, atol=atol)
    return kernel


def normal(shape: tuple[int, ...], seed: int = 0) -> Array:
    """float32, the same for the same shape and seed."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def check_fewer(
    generator: Ways,
    root: Node,
    output: Node,
    isa: Isa,
    *,
    threads: int = 1,
    wanted: Callable[[Setting], bool] = lambda knobs: True,
) -> Kernel:
    """A kernel of fewer float32 products around `root`, on random inputs, against numpy; the bound
    grows with how many products a sum has.
    """
    graph = Graph((), (output,), ("y",))
    inputs = tuple(n for n in graph.nodes if n.op == "input")
    graph = Graph(inputs, (output,), ("y",))
    region = region_of(graph, root)
    kernel = made(generator, region, sharing(device(isa, threads)), wanted)
    assert isinstance(kernel, Kernel), kernel
    values = {n: normal(n.type.dims, i) for i, n in enumerate(inputs)}
    values |= {n: n.array for n in region.inputs if n.is_constant}
    depth = kernel.macs / root.type.size
    got, want = run(kernel, region, isa, values), expected(graph, values)
    compare(got, want, rtol=1e-6 * depth**0.5, atol=4e-7 * depth)
    return kernel


def compare(
    got: Array, want: Array, *, ulp: float = 0, rtol: float = 0.0, atol: float | Array = 0.0
) -> None:
    """Same bits (but any NaN is a NaN), or within some units in the last place, or close."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if want.dtype.kind in "biu":
        assert np.array_equal(got, want)
        return
    g, w = got.astype(np.float64), want.astype(np.float64)
    same = (g == w) | (np.isnan(g) & np.isnan(w))
    with np.errstate(all="ignore"):
        bound = atol + rtol * np.abs(w)
        if ulp:
            bound = np.maximum(bound, ulp * np.spacing(np.abs(want)).astype(np.float64))
        far = ~same & ~(np.abs(g - w) <= bound)
    assert not far.any(), (
        f"{far.sum()} of {far.size} differ, first at {np.argwhere(far)[0].tolist()}: "
        f"{got[far][0]!r} where {want[far][0]!r} is right"
    )
