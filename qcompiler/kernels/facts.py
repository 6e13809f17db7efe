"""A region of a graph -> the same sealed: what generators get, with all that they may know.

This is the only place in kernels/ that reads constants before code exists; packing, which comes
after, gets arrays. What may be known of an operand depends on its role:

what says how to compute (starts, axes, sizes)   every number                            `numbers`
what an elementwise node reads in step           whether all is zero, as zero points are `zero`
multipliers of a `quantize`, scales, addends     whether what it rounds fits int32       `fits`
... and weights, where instructions care         whether it fits int16                   `short`
zero points of a `quantize` to int8, there       whether it is -128                      `least`
bounds of a Clip, where float16 is multiplied    whether float16 has them                `halves`
weights, and sums with a bias, there             whether float16 can sum all of them     `halves`
weights of products that saturate at 16 bits     how many may be added there             `run`
... of one filter a channel                      whether two rows' always fit            `pairs_fit`
... multiplied to 16 bits                        how many taps' always fit               `run`

There are few facts on purpose: each one that two layers do not share means another kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod

import numpy as np

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu, Device
from qcompiler.ir import Array, Node, numpy_dtype
from qcompiler.kernels.cpu.contraction.operands import bias_of, product_of, sections
from qcompiler.kernels.cpu.contraction.problem import problem_of
from qcompiler.kernels.cpu.contraction.saturation import longest_run
from qcompiler.kernels.cpu.windows.depthwise_filters import Shape, longest_chain, tame
from qcompiler.kernels.region import NOTHING, Facts, Region
from qcompiler.ops import OPERATORS, known_value
from qcompiler.ops.kinds import VIEWS
from qcompiler.ops.quantized import TABLES

Bound = float | Array | None
"""A bound of absolute values, none of which is NaN, or one for each column; None: unknown."""

_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")

NUMBERS: Mapping[str, tuple[int, ...]] = {
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Resize": (2, 3),
    "CumSum": (1,),
    "CumProd": (1,),
    **{f"Reduce{kind}": (1,) for kind in _REDUCTIONS},
}
"""Operators whose code depends on the numbers of some inputs -> the positions of these inputs."""

_DTYPES = ("float32", "int32")
"""The dtypes of elementwise nodes' constants that are examined."""

_FLOAT32 = float(np.finfo(np.float32).max)
_LARGEST_SCALE = 2.0**15
"""The largest power of two that float16 has."""
_WHOLE = 1e9
"""Numbers up to this certainly fit int32 after rounding."""
_SHORT = 32000.0
"""The same of int16, and of sums that were rounded to float32 before."""


def sealed(region: Region, device: Device) -> Region:
    """A region of a graph -> what generators for a device get; a sealed region stays as it is."""
    if region.facts is not None:
        return region
    new: dict[Node, Node] = {n: _stand_in(n) for n in region.inputs}
    for n in region.nodes:
        reads = tuple(None if i is None else new[i] for i in n.inputs)
        new[n] = Node(n.op, reads, n.attrs, n.types)
    facts = {new[n]: known for n, known in _known(region, device).items() if known != NOTHING}
    root = None if region.root is None else new[region.root]
    nodes, inputs = (tuple(new[n] for n in old) for old in (region.nodes, region.inputs))
    return Region(root, nodes, inputs, new[region.output], facts, region.least)


def _stand_in(node: Node) -> Node:
    """A value from outside -> a placeholder of its type that is a constant or not."""
    return Node("constant" if _base(node).is_constant else "input", (), {}, node.types)


def _known(region: Region, device: Device) -> dict[Node, Facts]:
    """All that may be known of the region's inputs and nodes."""
    numbers, zeros, fitting = _numbers(region), _zeros(region), _fitting(region, _WHOLE)
    short, least = _shortened(region, device)
    halves = _halves(region, device)
    halves |= _short_sums(region, device, halves)
    run, pairs_fit = _weights(region, device)
    right = region.root.operands[1] if region.root and len(region.root.operands) > 1 else None
    return {
        n: Facts(
            numbers=numbers.get(n),
            zero=n in zeros,
            fits=n in fitting,
            short=n in short,
            least=n in least,
            halves=n in halves,
            run=run if n is right else 1,
            pairs_fit=pairs_fit and n is right,
        )
        for n in (*region.inputs, *region.nodes)
    }


def _base(node: Node) -> Node:
    while node.op in VIEWS:
        node = node.operands[0]
    return node


def _array(node: Node) -> Array | None:
    """The array of a constant or a view of one; None for other values."""
    source = _base(node)
    return source.array.reshape(node.type.dims) if source.is_constant else None


def _numbers(region: Region) -> dict[Node, tuple[int | float, ...]]:
    """Operands that say how to compute -> their elements, where known before the model runs."""
    root = region.root
    asked = () if root is None else NUMBERS.get(root.op, ())
    given = [i for at in asked for i in root.inputs[at : at + 1] if i in region.inputs]  # type: ignore[union-attr]
    values = {i: known_value(i) for i in given}
    return {i: tuple(v.reshape(-1).tolist()) for i, v in values.items() if v is not None}


def _examined(region: Region) -> dict[Node, Array]:
    """The constants that elementwise nodes read elementwise."""
    found: dict[Node, Array] = {}
    for node in region.nodes:
        tables = TABLES.get(node.op, ())
        read = [i for at, i in enumerate(node.operands) if at not in tables]
        for i in read if OPERATORS[node.op].formula is not None else ():
            array = _array(i) if i.dtype in _DTYPES and i in region.inputs else None
            if array is not None and array.size:
                found[i] = array
    return found


def _zeros(region: Region) -> set[Node]:
    """The examined constants that are all zero; a negative zero is not."""
    return {n for n, a in _examined(region).items() if not a.reshape(-1).view(np.int32).any()}


def _fitting(region: Region, most: float, columns: int = 0) -> set[Node]:
    """The `quantize` nodes whose scaled values are never beyond a number; `columns`: with bounds
    for each of so many columns, and of sums by what the weights allow.
    """
    if not any(n.op == "quantize" for n in region.nodes):
        return set()
    constants = _examined(region)
    bounds: dict[Node, Bound] = {}
    for i in region.inputs:
        size = _size(constants[i], columns) if i in constants else None
        bounds[i] = _largest(i) if size is None else size
    fitting = set()
    spans: dict[Node, tuple[Array, Array]] = {}
    for node in region.nodes:
        if node.op == "quantize":
            scaled = _scaled(node, bounds, constants)
            if scaled is not None and float(np.max(scaled)) <= most:
                fitting.add(node)
        bounds[node] = _bound(node, [bounds[i] for i in node.operands])
        if columns and (span := _span(node, region.root, spans, constants)) is not None:
            spans[node] = span
            bounds[node] = np.minimum(np.abs(span[0]) + span[1], 2.0**31)
    return fitting


def _size(array: Array, columns: int) -> Bound:
    """A constant's absolute values; None where there is one that is no number."""
    sizes = np.abs(array.astype(np.float64))
    if not np.isfinite(sizes).all():
        return None
    each = columns > 1 and array.size == columns == array.shape[-1]
    return sizes.reshape(-1) if each else float(sizes.max())


def _span(
    node: Node,
    root: Node | None,
    spans: Mapping[Node, tuple[Array, Array]],
    constants: Mapping[Node, Array],
) -> tuple[Array, Array] | None:
    """For each column the middle of all values that a sum may have before it wraps around, and half
    the width of their range: of a root, and of one to which a row is added.
    """
    if node is root:
        return _sums(node)
    if node.op != "Add" or node.dtype != "int32":
        return None
    one, other = node.operands
    sums, row = (one, other) if one in spans else (other, one)
    if sums not in spans or row not in constants:
        return None
    middle, half = spans[sums]
    added = constants[row]
    if added.size not in (1, middle.size) or added.shape[-1:] not in ((), (added.size,)):
        return None
    return middle + added.reshape(-1).astype(np.float64), half


def _sums(root: Node) -> tuple[Array, Array] | None:
    """The same of sums of bytes by constant weights; None for others."""
    if root.op not in ("conv", "matmul") or root.dtype != "int32":
        return None
    x, w = root.operands
    weights = _array(w) if {x.dtype, w.dtype} <= {"int8", "uint8"} else None
    if weights is None or (root.op == "matmul" and weights.ndim != 2):
        return None
    turned = root.op == "matmul" and root.int("transpose_b")
    rows = (weights.T if turned else weights).astype(np.float64)
    rows = rows.reshape(-1, rows.shape[-1])
    info = np.iinfo(x.dtype)
    middle, half = (info.max + info.min) / 2, (info.max - info.min) / 2
    return rows.sum(0) * middle, np.abs(rows).sum(0) * half


def _shortened(region: Region, device: Device) -> tuple[set[Node], set[Node]]:
    """The `quantize` nodes whose scaled values always fit int16, with the `dequantize` nodes of
    bytes whose zero points are bytes, too; and the `quantize` nodes to int8 whose zero point is
    -128. None where no instruction gains by it.
    """
    if not isinstance(device, Cpu) or "quantize_short" not in device.isa.intrinsics:
        return set(), set()
    root = region.root
    columns = root.type.dims[-1] if root is not None and root.type.rank and root.type.static else 0
    short = _fitting(region, _SHORT, columns)
    constants = _examined(region)
    short |= {n for n in region.nodes if n.op == "dequantize" and _of_bytes(n, constants)}
    least = {
        n
        for n in region.nodes
        if n.op == "quantize" and n.dtype == "int8" and n.operands[2] in constants
        if (constants[n.operands[2]] == -128).all()
    }
    return short, least


def _of_bytes(node: Node, constants: Mapping[Node, Array]) -> bool:
    """Are a `dequantize` node's integers bytes, and its zero points bytes of the same dtype?"""
    x, _, zero = node.operands
    if x.dtype not in ("uint8", "int8") or zero not in constants:
        return False
    limits, found = np.iinfo(x.dtype), constants[zero]
    return limits.min <= int(found.min()) and int(found.max()) <= limits.max


def _halves(region: Region, device: Device) -> set[Node]:
    """The Clip nodes whose bounds are numbers of float16; none where that is not computed with."""
    if not isinstance(device, Cpu) or "half_maximum" not in device.isa.intrinsics:
        return set()
    constants = _examined(region)

    def fits(bound: Node | None) -> bool:
        array = None if bound is None else constants.get(bound)
        if array is None:
            return bound is None
        with np.errstate(over="ignore"):
            return bool((array.astype(np.float16).astype(array.dtype) == array).all())

    clips = [n for n in region.nodes if n.op == "Clip" and n.dtype == "float32"]
    return {n for n in clips if all(fits(i) for i in n.inputs[1:])}


def _short_sums(region: Region, device: Device, clips: Collection[Node]) -> set[Node]:
    """Weights of which float16 can add up all sections (see ShortMac) for a region whose result is
    float16; and the root, or its sum with a bias, if float16 can hold that, too: it is only rounded
    to float16, or clipped before by what float16 has, and has the bias and the scales of columns.
    """
    root = region.root
    short = device.isa.short if isinstance(device, Cpu) else None
    if root is None or root.op not in ("conv", "matmul") or short is None:
        return set()
    weights = _array(root.operands[1])
    if root.dtype != "float32" or weights is None or weights.dtype != np.float16:
        return set()
    axis = -1 if root.op == "matmul" and root.int("transpose_b") else -2
    taps = 1 if root.op == "matmul" else prod(weights.shape[:-2])
    count, size = sections(short.steps, taps, weights.shape[axis])
    if region.output.dtype != "float16" or count + size > short.steps + short.sections:
        return set()
    axes = axis if root.op == "matmul" else tuple(range(weights.ndim - 1))
    sizes = np.abs(np.where(np.isfinite(weights), weights, 0).astype(np.float64)).sum(axes)
    found = {root.operands[1]}
    if sizes.max(initial=0) <= short.most * _LARGEST_SCALE:
        found |= _rounded_sum(region, clips)
    return found


def _rounded_sum(region: Region, clips: Collection[Node]) -> set[Node]:
    """The root, or its sum with a bias that float16 has, if it is only rounded to float16."""
    summed, bias = bias_of(region)
    ends = _only_reader(region, summed)
    if ends is not None and (ends.op == "Relu" or ends in clips):
        ends = _only_reader(region, ends)
    if ends is None or (ends.op, ends.dtype) != ("Cast", "float16"):
        return set()
    return {summed} if bias is None or _rounds(region, bias) else set()


def _only_reader(region: Region, node: Node) -> Node | None:
    """The one node of a region that reads another, which is not its output."""
    readers = [n for n in region.nodes if node in n.operands]
    return readers[0] if len(readers) == 1 and node is not region.output else None


def _rounds(region: Region, bias: Node) -> bool:
    """Is a constant that one node of a region reads finite in float16 where it is in float32?"""
    array = _array(bias)
    if array is None or _only_reader(region, bias) is None:
        return False
    with np.errstate(over="ignore"):
        return bool((np.isfinite(array.astype(np.float16)) == np.isfinite(array)).all())


def _scaled(node: Node, bounds: Mapping[Node, Bound], constants: Mapping[Node, Array]) -> Bound:
    """The bound of what a `quantize` rounds."""
    x, factor = node.operands[:2]
    if not node.attrs["divide"]:
        return _product(bounds[x], bounds[factor])
    least = float(np.abs(constants[factor]).min()) if factor in constants else 0.0
    return _product(bounds[x], 1 / least) if least > 0 else None


def _bound(node: Node, operands: Sequence[Bound]) -> Bound:
    """The bound of a node's elements; integers that may wrap around have that of their dtype."""
    limit = _largest(node)
    rule = _BOUNDS.get(node.op)
    unbounded = len(node.types) > 1 or node.dtype not in _DTYPES
    made = None if rule is None or unbounded else rule(*operands)
    if limit is None:
        return made if made is not None and float(np.max(made)) <= _FLOAT32 else None
    return limit if made is None else np.minimum(made, limit)


def _product(*bounds: Bound) -> Bound:
    known = [b for b in bounds if b is not None]
    return prod(known) if len(known) == len(bounds) else None


def _sum(*bounds: Bound) -> Bound:
    known = [b for b in bounds if b is not None]
    return sum(known) if len(known) == len(bounds) else None


_BOUNDS: Mapping[str, Callable[..., Bound]] = {
    **dict.fromkeys(("Cast", "Relu", "Neg", "Abs", "Swish"), lambda x: x),
    **dict.fromkeys(("Add", "Sub"), _sum),
    "Mul": _product,
    "dequantize": lambda x, scale, zero: _product(_sum(x, zero), scale),
}
"""Bounds of results, from those of the operands."""


def _largest(node: Node) -> float | None:
    """The largest absolute value of an integer dtype."""
    dtype = node.dtype if len(node.types) == 1 else "several"
    if "int" not in dtype:
        return 1.0 if dtype == "bool" else None
    return 2.0 ** (8 * numpy_dtype(dtype).itemsize - (not dtype.startswith("u")))


def _weights(region: Region, device: Device) -> tuple[int, bool]:
    """`run` and `pairs_fit` of a product's weights, if the device's product of bytes saturates;
    otherwise they would only keep layers from sharing a kernel.
    """
    root = region.root
    if root is None or root.op not in ("conv", "matmul") or root.dtype != "int32":
        return 1, False
    if not isinstance(device, Cpu):
        return 1, False
    x, w = root.operands
    weights = _array(w) if w.dtype == "int8" and x.dtype in ("int8", "uint8") else None
    product = product_of(device.isa, "uint8", "int8", "int32", packed=True)
    if weights is None or product is None or not product.leftovers:
        return 1, False
    if not root.type.static or not x.type.static or 0 in (*x.type.dims, *weights.shape):
        return 1, False
    if root.op == "conv" and root.int("group") == w.type.dims[-1] > 1 == w.type.dims[-2]:
        if "multiply_long" in device.isa.intrinsics:
            return longest_chain(weights), False
        return 1, x.type.rank in (3, 4) and tame(weights, Shape.of(region))
    problem = problem_of(root, product.mac.lanes, device.core)
    if isinstance(problem, Skip):
        return 1, False
    return longest_run(problem.matrices(weights), product.limit), False
