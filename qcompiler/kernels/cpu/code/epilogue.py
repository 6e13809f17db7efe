"""A region's elementwise nodes -> vector code for their value at any position of the output.

    f = Fused(m, region, nodes, output, pointers, given=(root,))  # before any loop: loads scalars
    row = f.row(i)                                    # once a row: where it is in each operand
    value = f.at(row, n, lanes, count, {root: sums})  # row i, columns n, n + 1, ... (count)

The output is treated as rows of its last dimension. An operand may have any shape that numpy would
broadcast. Neighbouring dimensions that all operands step through alike are merged; each one that
remains costs a division a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod

from tvm import tirx

from qcompiler.ir import Node, numpy_dtype
from qcompiler.kernels.cpu.code import polynomials, tir
from qcompiler.kernels.cpu.code.casts import HALF_FLOATS, dequantize_short
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.code.math import Table, TirMath
from qcompiler.kernels.cpu.code.narrow import FLOATS, INTEGERS, NARROW, POWERS
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.region import Region
from qcompiler.ops import OPERATORS
from qcompiler.ops.quantized import TABLES

DTYPES = frozenset(
    ["bool", "float16", "bfloat16", "float32", "float64", *NARROW]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)
"""The dtypes that kernels can hold in vectors."""

_IN_FLOAT32 = frozenset({*HALF_FLOATS, *FLOATS, POWERS})
"""Floats that are computed with in float32."""

_SHORTER: Mapping[str, Callable[..., Vec]] = {
    "Gelu": polynomials.gelu,
    "Sigmoid": polynomials.sigmoid,
    "Swish": polynomials.swish,
}
"""Cheaper formulas of the same value, in float32."""

_ROUNDED: Mapping[str, Callable[..., Vec]] = {
    "Gelu": polynomials.gelu_rounded,
    "Swish": polynomials.swish_rounded,
}
"""Formulas for results that are only rounded `to` "byte" or "bfloat16"."""


@dataclass(frozen=True)
class Row:
    """Where a row begins in each operand, and the operands that are one value along it.

    `steps`: distances of elements, for operands that are not contiguous along the row.
    """

    offsets: Mapping[Node, Value] = field(default_factory=dict)
    values: Mapping[Node, Vec] = field(default_factory=dict)
    steps: Mapping[Node, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Walk:
    """Nested loops, and how far an iteration of each moves in every operand, from `bases` on."""

    dims: tuple[int, ...]
    steps: Mapping[Node, tuple[int, ...]]
    bases: Mapping[Node, int] = field(default_factory=dict)


class Fused:
    """Nodes that are computed together at any position of the output."""

    def __init__(
        self,
        m: TirMath,
        region: Region,
        nodes: Sequence[Node],
        output: Node,
        pointers: Mapping[Node, Pointer],
        *,
        given: Sequence[Node] = (),
        whole: bool = False,
        walk: Walk | None = None,
    ) -> None:
        """`nodes` are some of the region's. `given`: values that the kernel computes and passes to
        `at`. `whole`: merge the last dimension with others if possible, for longer rows. `walk`:
        for kernels that go through the output in another order.
        """
        self.m, self.nodes, self.output = m, tuple(nodes), output
        self._region = region
        self._pointers = pointers
        self.operands = read_by(nodes, output, given)
        self._rounded = _rounded(nodes)
        self._late = _late(region, nodes) if "half_maximum" in m.isa.intrinsics else {}
        tables = tables_of(nodes)
        if walk is None:
            shapes = {n: n.type.dims for n in self.operands}
            walk = Walk(*merged(output.type.dims, shapes, keep_last=not whole))
        self.dims, self._strides, self._bases = walk.dims, walk.steps, walk.bases
        self._constants: dict[Node, Vec | Table] = {n: Table(pointers[n], n.dtype) for n in tables}
        for n in self.operands:
            if not any(self._strides[n]):
                self._constants[n] = self._load(n, self._bases.get(n, 0), 1, 1)

    @property
    def rows(self) -> int:
        """Rows of the output."""
        return prod(self.dims[:-1])

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return self.dims[-1]

    def strides(self, operand: Node) -> tuple[int, ...]:
        """An operand's steps along the dimensions of the output as they are merged here."""
        return self._strides[operand]

    def lanes(self) -> int:
        """Lanes of vectors of the widest dtype of nodes and operands."""
        sizes = [numpy_dtype(n.dtype).itemsize for n in (*self.nodes, *self.operands)]
        if any(n.dtype in _IN_FLOAT32 for n in (*self.nodes, *self.operands)):
            sizes.append(4)
        return self.m.isa.lanes(max(sizes, default=4))

    def row(self, index: Value) -> Row:
        """A row's number -> the row; loads what is constant along it."""
        return self.place([*indices(self.m.builder, index, self.dims[:-1]), 0], -1)

    def place(self, place: Sequence[Value], axis: int) -> Row:
        """An index in each dimension -> the row that goes along dimension `axis` from there."""
        offsets: dict[Node, Value] = {}
        values: dict[Node, Vec] = {}
        steps: dict[Node, int] = {}
        for n in self.operands:
            if n in self._constants:
                continue
            moves = [i * s for i, s in zip(place, self._strides[n], strict=True) if s]
            offset = self.m.builder.let(sum(moves, start=self._bases.get(n, 0)))
            step = self._strides[n][axis]
            if step == 0:
                values[n] = self._load(n, offset, 1, 1)
                continue
            offsets[n] = offset
            if step != 1:
                steps[n] = step
        return Row(offsets, values, steps)

    def at(
        self,
        row: Row,
        column: Value,
        lanes: int,
        count: Value | None = None,
        given: Mapping[Node, Vec] | None = None,
    ) -> Vec:
        """`lanes` values of the output, in its dtype, from a column on; only memory of the first
        `count` is read.
        """
        known: dict[Node, Vec | Table] = {**self._constants, **row.values, **(given or {})}
        count = lanes if count is None else count
        for n, offset in row.offsets.items():
            step = row.steps.get(n, 1)
            known[n] = self._load(n, offset + column * step, lanes, count, step)
        late = self._late.values()
        for node in self.nodes:
            if node not in late:
                known[node] = self._apply(node, known)
        value = known[self.output]
        assert isinstance(value, Vec)
        return self.m.widen(value, lanes)

    def _apply(self, node: Node, known: Mapping[Node, Vec | Table]) -> Vec:
        """One node's formula, in float32 for 16-bit floats."""
        if node in self._late:
            return self._clipped(self._late[node], known)
        operands = [None if i is None else self._wide(known[i]) for i in node.inputs]
        entry = OPERATORS[node.op]
        short = isinstance(operands[0], Vec) and operands[0].dtype == "float32"
        formula = _SHORTER.get(node.op, entry.formula) if short else entry.formula
        if short and node.op == "quantize":
            facts, whole = self._region.known(node), _of_integers(node)
            formula = partial(
                TirMath.quantize,
                fits=facts.fits,
                numbers=whole,
                short=facts.short,
                least=facts.least,
            )
        if node.op == "dequantize" and self._region.known(node).short:
            formula = dequantize_short
        if short and node in self._rounded:
            formula = partial(_ROUNDED[node.op], to=self._rounded[node])
        assert formula is not None, f"{node.op} is not elementwise"
        value = formula(self.m, *operands, **{k: node.attrs[k] for k in entry.defaults})
        assert isinstance(value, Vec), f"{node.op} gave {value!r}"
        return self.m.cast(value, node.dtype)

    def _clipped(self, clip: Node, known: Mapping[Node, Vec | Table]) -> Vec:
        """A Clip or Relu rounded to float16: rounded first, as half as many vectors are clipped."""
        m = self.m
        x, *bounds = (None if i is None else known[i] for i in clip.inputs)
        assert isinstance(x, Vec)
        value = m.cast(x, "float16")
        ends = bounds if clip.op == "Clip" else [m.splat(0, "float32")]
        for name, bound in zip(("half_maximum", "half_minimum"), ends, strict=False):
            if bound is None:
                continue
            assert isinstance(bound, Vec)
            end = m.widen(m.cast(bound, "float16"), value.lanes)
            value = m.vec(m.isa.intrinsics[name](value.expr, end.expr), "float16")
        return value

    def _wide(self, value: Vec | Table) -> Vec | Table:
        if isinstance(value, Vec) and value.dtype in _IN_FLOAT32:
            return self.m.cast(value, "float32")
        if isinstance(value, Vec) and value.dtype in INTEGERS:
            return self.m.cast(value, "uint8" if value.dtype.startswith("u") else "int8")
        return value

    def _load(self, node: Node, offset: Value, lanes: int, count: Value, step: int = 1) -> Vec:
        if self._region.known(node).zero:
            return self.m.splat(0, node.dtype, lanes)
        return load(self.m, self._pointers[node], node.dtype, offset, lanes, count, step)


def _of_integers(node: Node) -> bool:
    """Does a `quantize` scale integers by constants? Then it rounds no NaN."""
    x, factor = node.operands[:2]
    return x.op == "Cast" and "int" in x.operands[0].dtype and factor.is_constant


def read_by(nodes: Sequence[Node], output: Node, given: Sequence[Node] = ()) -> tuple[Node, ...]:
    """The operands that these nodes read elementwise to compute `output`, each once."""
    outside = [i for n in nodes for i in n.operands] if nodes else [output]
    tables = tables_of(nodes)
    return tuple(i for i in dict.fromkeys(outside) if i not in {*nodes, *given, *tables})


def tables_of(nodes: Iterable[Node]) -> set[Node]:
    """The operands of these nodes that are tables, whose elements numbers choose."""
    return {n.operands[i] for n in nodes for i in TABLES.get(n.op, ())}


def read_beside(region: Region) -> tuple[Node, ...]:
    """The inputs that nodes besides the root read elementwise: its own operands, too, if they do,
    as in x + conv(x).
    """
    read = (
        i
        for n in region.nodes
        for at, i in enumerate(n.operands)
        if n is not region.root and at not in TABLES.get(n.op, ())
    )
    return tuple(i for i in dict.fromkeys(read) if i in region.inputs)


def _rounded(nodes: Sequence[Node]) -> dict[Node, str]:
    """Nodes that have a formula for results that are only rounded -> what these are rounded to."""
    readers: dict[Node, list[Node]] = {n: [] for n in nodes if n.op in _ROUNDED}
    for reader in nodes:
        for n in readers.keys() & set(reader.operands):
            readers[n].append(reader)
    found: dict[Node, str] = {}
    for n, (reader, *others) in ((n, r) for n, r in readers.items() if r):
        if others:
            continue
        if reader.op == "quantize" and numpy_dtype(reader.dtype).itemsize == 1:
            found[n] = "byte"
        elif reader.op == "Cast" and reader.dtype == "bfloat16":
            found[n] = "bfloat16"
    return found


def _late(region: Region, nodes: Sequence[Node]) -> dict[Node, Node]:
    """What rounds a Clip, or a Relu, of float32 to float16 -> that, if nothing else reads it and
    float16 has its bounds: it does not matter then which is done first.
    """
    readers: dict[Node, list[Node]] = {}
    for node in nodes:
        for i in set(node.operands):
            readers.setdefault(i, []).append(node)
    found = {}
    for clip in nodes:
        fits = clip.op == "Relu" or (clip.op == "Clip" and region.known(clip).halves)
        read = [n for n in readers.get(clip, []) if clip is not region.output]
        if clip.dtype != "float32" or not fits or len(read) != 1:
            continue
        if read[0].op == "Cast" and read[0].dtype == "float16":
            found[read[0]] = clip
    return found


def load(
    m: TirMath,
    pointer: Pointer,
    dtype: str,
    offset: Value,
    lanes: int,
    count: Value,
    step: int = 1,
) -> Vec:
    """Load a value; only the first `count` lanes are read, `step` elements apart."""
    if step == 1 or lanes == 1:
        raw = m.vec(pointer.load_first(count, offset, lanes))
    else:
        lane = tir.ramp(0, lanes)
        if count is not lanes:
            lane = tirx.Min(lane, tir.broadcast(count - 1 + tir.const(0), lanes))
        apart = lane * tir.const(step, "int32", lanes)
        raw = m.vec(pointer.gather(apart + tir.broadcast(offset + tir.const(0), lanes)))
    if dtype == "bool":
        return raw != 0
    return Vec(m, raw.expr, dtype, lanes)


def store(m: TirMath, pointer: Pointer, offset: Value, value: Vec, count: Value) -> None:
    """Store a value; only the first `count` lanes are written."""
    value = m.cast(value, "uint8") if value.dtype == "bool" else value
    pointer.store_first(count, offset, value.expr)


def merged(
    shape: Sequence[int], operands: Mapping[Node, Sequence[int]], *, keep_last: bool
) -> tuple[tuple[int, ...], dict[Node, tuple[int, ...]]]:
    """Shapes of an output and its operands -> the fewest dimensions that describe all of them, at
    least one, and each operand's steps along these (0: broadcast). `keep_last`: do not merge the
    last dimension.
    """
    rank = max(len(shape), 1)
    full = (1,) * (rank - len(shape)) + tuple(shape)
    steps = {n: steps_of(dims, full) for n, dims in operands.items()}
    kept: list[int] = []  # the last dimension merged into each
    sizes: list[int] = []
    for axis, size in enumerate(full):
        last = axis == rank - 1
        if size == 1 and not (last and (keep_last or not sizes)):
            continue
        if sizes and not (last and keep_last) and _alike(steps, kept[-1], axis, size):
            sizes[-1] *= size
            kept[-1] = axis
        else:
            sizes.append(size)
            kept.append(axis)
    return tuple(sizes), {n: tuple(s[a] for a in kept) for n, s in steps.items()}


def steps_of(dims: Sequence[int], full: Sequence[int]) -> list[int]:
    """A contiguous array's step along each dimension of the shape it broadcasts to."""
    padded = (1,) * (len(full) - len(dims)) + tuple(dims)
    return [0 if d == 1 else prod(padded[i + 1 :]) for i, d in enumerate(padded)]


def _alike(steps: Mapping[Node, Sequence[int]], outer: int, inner: int, size: int) -> bool:
    """Do all operands step through two neighbouring dimensions as if they were one?"""
    return all(s[outer] == s[inner] * size for s in steps.values())
