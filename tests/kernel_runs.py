"""A region and a device -> its kernel run on this machine, on memory whose ends cannot be crossed."""

import ctypes
import mmap
from collections.abc import Mapping

import numpy as np

from qcompiler.ir import Array, Graph, Node, numpy_dtype
from qcompiler.isa import Isa
from qcompiler.kernels import tir
from qcompiler.kernels.registry import Kernel, Region
from qcompiler.ops.evaluate import evaluate

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def region_of(output: Node, root: Node | None) -> Region:
    """All between the placeholders (and constants) and `output`, as one region."""
    graph = Graph((), (output,), ("y",))
    nodes = tuple(n for n in graph.nodes if n.op not in ("input", "constant"))
    reads = [i for n in nodes for i in n.operands if i not in nodes]
    return Region(root, nodes, tuple(dict.fromkeys(reads)), output)


def fenced(size: int, *, behind: int = 0) -> Array:
    """Bytes that end just before memory that must not be touched (`behind` more may be read).

    64-byte aligned when `size` + `behind` is a multiple of 64.
    """
    pages = -(-(size + behind) // PAGE) + 2
    memory = mmap.mmap(-1, pages * PAGE)
    view = np.frombuffer(memory, np.uint8)
    base = view.ctypes.data
    for page in (0, pages - 1):
        if _libc.mprotect(base + page * PAGE, PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    end = (pages - 1) * PAGE - behind
    return view[end - size : end]


def run(region: Region, kernel: Kernel, isa: Isa, arrays: Mapping[str, Array]) -> Array:
    """Compile the kernel and call it once, every operand and the scratch area fenced in."""
    function = tir.compile_functions([("kernel", kernel.func)], isa)["kernel"]
    operands = []
    for i, node in enumerate(region.inputs):
        array = node.array if node.is_constant else arrays[node.name]
        packed = np.ascontiguousarray(kernel.pack[i](array) if i in kernel.pack else array)
        raw = fenced(packed.nbytes, behind=64 if node.is_constant else 0)
        raw[:] = packed.reshape(-1).view(np.uint8)
        operands.append(raw)
    out = fenced(region.output.type.bytes)
    out[:] = 0xA5
    scratch = [fenced(-(-kernel.scratch_bytes // 64) * 64)] if kernel.scratch_bytes else []
    for memory in scratch:
        memory[:] = 0xFF  # NaN, or -1
    function(*(ctypes.c_void_p(a.ctypes.data) for a in (*operands, out, *scratch)))
    type_ = region.output.type
    return out.view(numpy_dtype(type_.dtype)).reshape(type_.dims)


def expected(region: Region, arrays: Mapping[str, Array]) -> Array:
    """The numpy meaning."""
    inputs = tuple(n for n in region.inputs if n.op == "input")
    return evaluate(Graph(inputs, (region.output,), ("y",)), arrays)["y"]
