"""A call whose axes, shapes or sizes are known at run time only -> one whose sizes are known.

Kernels are made for known shapes. Where the model declares the shape of an output, that shape says
what a target shape, a number of repeats or a k must be: then the operand becomes a constant, and a
check fails the runs that are given another. Operands that a shape leaves open (where a slice
begins, which axis to sum along) are used as they are: as indices, or by choosing among the few
results that are possible.

`@settles(op, operands)` registers how the calls of an operator are settled if one of the operands
at these positions is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, NodeProto, TensorShapeProto

from qcompiler.errors import Error
from qcompiler.ir import Attr, Dim, Node, constant, numpy_dtype
from qcompiler.onnx_io.call import Call, Result, axis_of
from qcompiler.onnx_io.lengths import note_lengths
from qcompiler.ops import OPERATORS, known_value, make
from qcompiler.ops.known_sizes import known_sizes
from qcompiler.ops.patches import unpooled
from qcompiler.ops.reduce import REDUCTIONS
from qcompiler.ops.shapes import total

Shape = tuple[int, ...]
Stated = tuple[Dim, ...]
"""A shape that a file states, which may name sizes of inputs that stay open."""
Require = Callable[[Node, str], None]
"""(booleans that must all be true, what is wrong otherwise)."""
Bound = Callable[[Node, dict[int, Node]], None]
"""(a value, along which axes there are how many elements of it: vectors of one)."""


class Open(Exception):
    """A call that cannot be settled, and what to say of it."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.what)
        self.error = error


@dataclass
class Settling:
    """A call, the declared shapes of its outputs (None: unknown), and where checks go."""

    call: Call
    shapes: tuple[Shape | None, ...]
    require: Require
    bound: Bound | None = None
    """Says how many elements a result has along some axes, where data decide it; None: no."""
    size: Callable[[Dim], Node] | None = None
    """An open size -> int64[1], what it is in a run; None: no size is open."""
    most: Callable[[Dim], int | None] | None = None
    """A size -> the largest that it may be; None where that is not known."""
    memory: Callable[[Dim], Dim] | None = None
    """A size -> for how many there is memory; None: for as many."""
    count: list[int] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        """The first known shape of an output. Raises Open if none is."""
        found = next((s for s in self.shapes if s is not None), None)
        if found is None:
            raise self.refusal()
        return found

    def refusal(self) -> Open:
        """The exception for a call that cannot be settled."""
        return Open(
            self.call.unsupported(
                "its output's shape depends on what is known at run time only",
                "make that operand a constant (an initializer), or declare the output's shape",
            )
        )

    def node(self, op: str, *inputs: Node | Sequence[Dim] | Dim | None, **attrs: Attr) -> Node:
        """One of the nodes that the call becomes; numbers and sizes become int64 values."""
        self.count.append(0)
        given = [i if i is None or isinstance(i, Node) else self.ints(i) for i in inputs]
        return self.call.node(f"{op}{len(self.count)}", op, *given, **attrs)

    def ints(self, values: Sequence[Dim] | Dim) -> Node:
        """Numbers -> a constant; an open size -> a vector of one, several sizes -> a vector."""
        listed = [values] if isinstance(values, str) else values
        if isinstance(listed, int) or not any(isinstance(v, str) for v in listed):
            return constant(np.asarray(listed, np.int64))
        if self.size is None:
            raise self.refusal()
        parts = [self.size(v) for v in listed]
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=0)

    def length(self, x: Node, axis: int) -> Node:
        """How long a value is along an axis, in this run: a vector of one."""
        return self.node("Shape", x, start=axis, end=axis + 1)

    def scalar(self, node: Node) -> Node:
        """A value of one element without dimensions."""
        return self.node("Reshape", node, constant(np.zeros(0, np.int64)))

    def room(self, size: Dim) -> int:
        """The largest that a size may be. Raises Open where that is not known."""
        if isinstance(size, int):
            return size
        found = self.most(size) if self.most is not None else None
        if found is None:
            raise self.refusal()
        return found

    def steps(self, count: Dim | Node) -> Node:
        """0, 1, 2, ..., so many, which may be a vector of one."""
        if self.memory is not None and isinstance(count, str):
            count = self.memory(count)
        if isinstance(count, int):
            return self.ints(list(range(count)))
        none = constant(np.zeros((), np.int64))
        end = self.ints(count) if isinstance(count, str) else count
        return self.node("Range", none, self.scalar(end), constant(np.ones((), np.int64)))

    def vector(self, index: int) -> Node:
        """An integer operand as a vector of int64."""
        return self.flat(self.call.need(index))

    def flat(self, node: Node) -> Node:
        """An integer value as a vector of int64."""
        wide = node if node.dtype == "int64" else self.node("Cast", node, to="int64")
        return wide if wide.type.rank == 1 else self.node("Reshape", wide, [wide.type.size])

    def flag(self, node: Node) -> Node:
        """A condition as a vector of one bool."""
        return self.node("Reshape", node, [1])

    def same(self, node: Node, wanted: Sequence[Dim], what: str) -> None:
        """Check that a vector holds these numbers."""
        if node.type.size != len(wanted):
            raise self.call.error(f"{what} has {node.type.size} numbers, not {len(wanted)}")
        if wanted:
            equal = self.node("Equal", node, list(wanted))
            self.check(equal, f"{what} is not {listed(wanted)}, as the output's shape says")

    def one_of(self, number: Node, numbers: Sequence[int], what: str) -> None:
        """Check that a vector of one is one of some different numbers."""
        hits = self.node("Cast", self.node("Equal", number, numbers), to="int64")
        total = self.node("ReduceSum", hits, [0], keepdims=1)
        self.check(self.node("Equal", total, 1), f"{what} the shape {listed(self.shape)}")

    def check(self, holds: Node, what: str) -> None:
        """Check that all of `holds` is true."""
        self.require(holds, f"{self.call.name} ({self.call.op}): {what}")

    def replaced(self, index: int, value: Sequence[Dim] | Dim) -> Call:
        """The call with an operand replaced by numbers or sizes, of its type and shape."""
        old, made = self.call.need(index), self.ints(value)
        if made.is_constant:
            array = np.asarray(made.array).astype(old.dtype).reshape(old.type.dims)
            made = constant(array, f"{self.call.name}.{index}")
        else:
            made = self.node("Reshape", made, list(old.type.dims))
            made = made if old.dtype == "int64" else self.node("Cast", made, to=old.dtype)
        inputs = list(self.call.inputs)
        inputs[index] = made
        return self.call.but(inputs=inputs)

    def chosen(self, key: Node, results: Sequence[tuple[int, Node]]) -> Node:
        """Of (number, result), that whose number is `key`, a vector of one."""
        scalar = self.node("Reshape", key, self.ints(np.zeros(0, np.int64)))  # type: ignore[arg-type]
        *rest, (_, made) = results
        for number, result in reversed(rest):
            made = self.node("Where", self.node("Equal", scalar, number), result, made)
        return made


def listed(sizes: Sequence[Dim]) -> str:
    """Sizes as an Error lists them."""
    return f"[{', '.join(map(str, sizes))}]"


def plain(call: Call) -> Settling:
    """A call of known sizes, to write its nodes with."""

    def never(holds: Node, what: str) -> None:
        raise AssertionError(what)

    return Settling(call, (None,), never)


def zeros(s: Settling, count: Dim) -> Node:
    """So many zeros, a vector of int64."""
    if isinstance(count, int):
        return s.ints([0] * count)
    return s.node("ConstantOfShape", [count], value=np.zeros(1, np.int64))


Settle = Callable[[Settling], Call | Result]

_SETTLES: dict[str, tuple[tuple[int, ...], Settle]] = {}


def settles(*ops: str, operands: tuple[int, ...]) -> Callable[[Settle], Settle]:
    """Register how calls are settled that have an unknown operand at one of the positions."""

    def register(settle: Settle) -> Settle:
        _SETTLES.update({op: (operands, settle) for op in ops})
        return settle

    return register


def settling(op: str) -> bool:
    """Are calls of an operator settled here?"""
    return op in _SETTLES


def settled(
    call: Call,
    shapes: tuple[Shape | None, ...],
    require: Require,
    bound: Bound | None = None,
    size: Callable[[Dim], Node] | None = None,
    most: Callable[[Dim], int | None] | None = None,
) -> Result:
    """A call -> the call, its operands constant where they must be, or its finished outputs. `size`
    and `most` as of Settling.
    """
    call = _with_empty(call)
    note_lengths(call, shapes)
    operands, settle = _SETTLES.get(call.op, ((), None))
    given = [call.input(i) for i in operands]
    if settle is None or all(i is None or _is_known(i) for i in given):
        return call
    static = all(i is None or i.type.static for i in call.inputs) or call.op in _SELECT
    if any(i is not None and any(s[0] == "?" for s in i.type.symbols) for i in call.inputs):
        if call.op in _SELECT - OPERATORS.keys():
            sizes = ", ".join(str(i.type) for i in call.inputs if i is not None)
            raise call.unsupported(f"an operand of a size that is not known: {sizes}")
        return call  # what is not known of another value says nothing here
    lengths = call.op in _ANY_LENGTHS or all(_of_known_rank(i) for i in given)
    if not static and not (call.op in _ANY_SIZES and lengths):
        if call.op not in OPERATORS:
            what = "an operand whose size is open, or decided by data"
            raise call.unsupported(what, "pin it: --dim NAME=N, or --input-shape")
        return call  # a refusal elsewhere names what made the size unknown
    try:
        return settle(Settling(call, shapes, require, bound, size, most))
    except Open as e:
        if call.op not in OPERATORS:
            raise e.error from e
        return call


_ANY_SIZES = (
    frozenset({"CumSum", "CumProd", "Squeeze", "Unsqueeze", *REDUCTIONS})
    | {"Reshape", "Expand", "ConstantOfShape", "TopK", "OneHot", "Split", "AffineGrid"}
    | {"CenterCropPad", "MaxUnpool", "Slice", "Pad", "Range", "Tile", "Resize", "Upsample"}
    | {"Col2Im", "DFT", "STFT"}
)
"""Calls whose operands and results may be of open sizes."""
_SELECT = frozenset({"NonZero", "Compress", "Unique", "NonMaxSuppression"})
"""Calls whose results are as many as data say, of operands of any sizes."""
_ANY_LENGTHS = frozenset({"Expand", "MaxUnpool", "Slice", "Pad"})
"""Calls whose operands, as of the axes that they name, may be as many as only a run knows."""


def stated(op: str, shape: Stated | None) -> Shape | None:
    """What is known of the shape of an output, as calls of an operator are settled by it: named
    sizes are known where the first operand may be of open sizes.
    """
    if shape is None or (op not in _ANY_SIZES and any(isinstance(d, str) for d in shape)):
        return None
    return shape  # type: ignore[return-value]  # what is settled by named sizes expects them


def _of_known_rank(node: Node | None) -> bool:
    return node is None or node.type.static


def _is_known(node: Node) -> bool:
    """Are its numbers known, or sizes that only depend on those that the model leaves open?"""
    return known_value(node) is not None or known_sizes(node) is not None


def _with_empty(call: Call) -> Call:
    """Operands of no elements, but the first, are constants: there is nothing to know of them."""
    inputs = [
        constant(np.zeros(i.type.dims, np.int64).astype(i.dtype), f"{call.name}.{at}")
        if at and i is not None and not i.is_constant and i.dtype in ("int32", "int64")
        and i.type.static and not i.type.size
        else i
        for at, i in enumerate(call.inputs)
    ]  # fmt: skip
    return call.but(inputs=inputs)


def declared(
    graph: GraphProto, sizes: Mapping[str, Dim] | None = None, equal: Collection[str] = ()
) -> dict[str, Stated]:
    """The shapes that a graph states of its outputs and inner values, where all sizes are known:
    numbers, and names among `sizes`, of which one at least stays open, or is among those that were
    found to be `equal` to others.
    """
    found = {}
    for info in (*graph.value_info, *graph.output):
        kind = info.type.tensor_type
        shape = _named(kind.shape, sizes or {}, equal) if kind.HasField("shape") else None
        if shape is not None:
            found[info.name] = shape
    return found


def _named(
    shape: TensorShapeProto, sizes: Mapping[str, Dim], equal: Collection[str]
) -> Stated | None:
    found = [d.dim_value if d.HasField("dim_value") else sizes.get(d.dim_param) for d in shape.dim]
    dims = tuple(d for d in found if d is not None)
    plain = all(d.HasField("dim_value") for d in shape.dim)
    open_ = any(isinstance(d, str) for d in dims) or any(d.dim_param in equal for d in shape.dim)
    return dims if len(dims) == len(found) and (plain or open_) else None


_OF_ONE = frozenset(
    {
        "Abs",
        "Cast",
        "Ceil",
        "Cos",
        "Exp",
        "Floor",
        "Identity",
        "Log",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
    }
    | {"Round", "Sigmoid", "Sin", "Sqrt", "Tanh", "CastLike", "Clip"}
)
"""Operators whose output has their first input's shape."""


_OF_TWO = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})
"""Operators whose output has one input's shape if the other is a scalar."""


def spread(nodes: Sequence[NodeProto], known: dict[str, Stated], scalars: set[str]) -> None:
    """Nodes in order: shapes that are known of outputs hold for what they are made of, too.
    `scalars`: the names of values that are known to have no dimensions.
    """
    for node in nodes:
        made = _is_scalar(node) if node.op_type == "Constant" else False
        elementwise = node.op_type in _OF_ONE | _OF_TWO and bool(node.input)
        if made or (elementwise and all(i in scalars for i in node.input)):
            scalars.update(node.output)
    for node in reversed(nodes):
        if not node.input or node.output[0] not in known:
            continue
        if node.op_type in _OF_ONE:
            known.setdefault(node.input[0], known[node.output[0]])
        if node.op_type in _OF_TWO:  # a guess for two tensors; what relies on it is checked
            for name in set(node.input) - scalars:
                known.setdefault(name, known[node.output[0]])


def _is_scalar(constant: NodeProto) -> bool:
    tensors = (a for a in constant.attribute if a.name == "value")
    single = any(a.name in ("value_float", "value_int") for a in constant.attribute)
    return single or any(not a.t.dims for a in tensors)


# Operands that follow from the output's shape.


@settles("Reshape", operands=(1,))
def _reshape(s: Settling) -> Result:
    x, wanted = s.call.need(0), s.shape
    target = s.vector(1)
    if target.type.size != len(wanted):
        raise s.call.error(f"a shape of {target.type.size} numbers where {len(wanted)} are needed")
    if wanted:
        fits = s.node("Or", s.node("Equal", target, list(wanted)), s.node("Equal", target, -1))
        if not s.call.get("allowzero"):
            kept = [i < x.type.rank and x.shape[i] == d for i, d in enumerate(wanted)]
            zero = s.node("And", s.node("Equal", target, 0), constant(np.array(kept)))
            fits = s.node("Or", fits, zero)
        s.check(fits, f"its shape is not {listed(wanted)}")
    return make("Reshape", x, s.ints(wanted), name=s.call.name, allowzero=1)


@settles("Expand", operands=(1,))
def _expand(s: Settling) -> Result:
    x, wanted, rank = s.call.need(0).shape, s.shape, len(s.shape)
    target = s.vector(1)
    (given,) = target.shape
    if len(x) > rank or (isinstance(given, int) and max(len(x), given) != rank):
        raise s.call.error(f"an expansion to {given} dimensions, not {rank}")
    own = (1,) * (rank - len(x)) + x
    if given != 0:
        places = s.node("Add", s.node("Shape", target), list(range(-rank, 0)))
        behind = s.node("GreaterOrEqual", places, 0)
        whole = s.node("Gather", target, s.node("Max", places, 0), axis=0)
        whole = s.node("Where", behind, whole, 1)
        same = s.node("Equal", whole, list(wanted))
        stays = constant(np.array([a == b for a, b in zip(own, wanted, strict=True)]))
        fits = s.node("Or", same, s.node("And", s.node("Equal", whole, 1), stays))
        s.check(fits, f"it does not expand to {listed(wanted)}")
        if isinstance(given, str):
            s.check(s.node("LessOrEqual", s.node("Shape", target), rank), "a target too long")
    return s.call.but(inputs=(s.call.need(0), s.ints(wanted)))


@settles("ConstantOfShape", operands=(0,))
def _constant_of_shape(s: Settling) -> Result:
    s.same(s.vector(0), s.shape, "the shape")
    return s.replaced(0, s.shape)


@settles("TopK", operands=(1,))
def _top_k(s: Settling) -> Result:
    axis = axis_of(s.call, s.call.number("axis"), len(s.shape))
    s.same(s.vector(1), s.shape[axis : axis + 1], "k")
    return s.replaced(1, s.shape[axis])


@settles("OneHot", operands=(1,))
def _one_hot(s: Settling) -> Result:
    axis = axis_of(s.call, s.call.number("axis"), len(s.shape))
    s.same(s.vector(1), s.shape[axis : axis + 1], "the depth")
    return s.replaced(1, s.shape[axis])


@settles("Split", operands=(1,))
def _split(s: Settling) -> Result:
    x, shapes = s.call.need(0), [h for h in s.shapes if h is not None]
    if len(shapes) < s.call.outputs:
        raise s.refusal()
    axis = axis_of(s.call, s.call.number("axis"), x.type.rank)
    sizes = [shape[axis] for shape in shapes]
    s.same(s.vector(1), sizes, "the list of sizes")
    return s.replaced(1, sizes)


@settles("AffineGrid", operands=(1,))
def _affine_grid(s: Settling) -> Result:
    sizes, inner = s.vector(1), s.shape[1:-1]
    s.same(s.node("Slice", sizes, [0], [1]), s.shape[:1], "the batch")
    s.same(s.node("Slice", sizes, [2], [2 + len(inner)]), inner, "the size of the image")
    return s.replaced(1, (s.shape[0], 1, *inner))


@settles("CenterCropPad", operands=(1,))
def _center_crop_pad(s: Settling) -> Result:
    axes = s.call.numbers("axes") or range(s.call.need(0).type.rank)
    wanted = [s.shape[axis_of(s.call, a, len(s.shape))] for a in axes]
    s.same(s.vector(1), wanted, "the shape")
    return s.replaced(1, wanted)


@settles("HannWindow", "HammingWindow", "BlackmanWindow", operands=(0,))
def _window(s: Settling) -> Result:
    s.same(s.vector(0), s.shape, "the size")
    return s.replaced(0, s.shape)


@settles("MaxUnpool", operands=(0, 2))
def _max_unpool(s: Settling) -> Call | Result:
    """Of images of open sizes, values go to their places in a row of zeros."""
    given, x = s.call.input(2), s.call.need(0)
    call = s.call
    if given is not None and known_value(given) is None:
        s.same(s.vector(2), s.shape, "the output's shape")
        call = s.replaced(2, s.shape)
    if x.type.static:
        return call
    whole = unpooled(s.call.attrs, x.shape)
    flat = [s.node("Reshape", call.need(i), [-1]) for i in (0, 1)]
    zeros = s.node("ConstantOfShape", [total(whole)], value=np.zeros(1, numpy_dtype(x.dtype)))
    made = s.node("ScatterElements", zeros, flat[1], flat[0], axis=0)
    made = s.node("Reshape", made, list(whole))
    if given is None:
        return made
    ends = s.node("Sub", call.need(2), list(whole))
    s.check(s.node("GreaterOrEqual", ends, 0), f"its output is smaller than {listed(whole)}")
    return s.node("Pad", made, s.node("Concat", s.ints([0] * len(whole)), ends, axis=0))
