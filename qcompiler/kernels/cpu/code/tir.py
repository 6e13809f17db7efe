"""Python calls -> the TIR function of one kernel, statement by statement.

    b = Builder("axpy", Tails.of(isa))
    x, y = b.pointer("x", "float32"), b.pointer("y", "float32")
    with b.parallel(2) as task, b.serial(32) as i:
        at = b.let((task * 32 + i) * 16)
        y.store(at, y.load(at, 16) + x.load(at, 16) * 3.0)
    func = b.function()

Nodes are built directly with `tvm.tirx`, so a Python loop around these calls unrolls. A value is a
plain TIR expression with a dtype and lanes; TIR computes an expression wherever it occurs, so `let`
names what is used more than once. bfloat16 is carried as its uint16 bits and bool as uint8, so TVM
never has to legalize either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.ir import PointerType, PrimType, TensorLoad, Var

from qcompiler.errors import Unfit
from qcompiler.ir import numpy_dtype

if TYPE_CHECKING:
    from qcompiler.kernels.cpu.code.tails import Tails

Value = Any
"""A TIR expression: a scalar or a vector ("float32x16"); Python numbers are allowed too."""

_UNBOUNDED = 1 << 30  # elements; TIR requires a length that nothing uses
_MOST_ITERATIONS = (1 << 31) - 1
_MOST_STATEMENTS = 1 << 15
"""The most in one kernel, which limits generators that unroll over a number of the model. Kernels
of real networks have hundreds, the longest 4,000.
"""
_STORED = {"bfloat16": "uint16", "bool": "uint8"}
_BACKEND = "default"
_WRAPPING = {"+": "add", "-": "sub", "*": "mul"}


def stored(dtype: str) -> str:
    """A tensor's dtype -> the dtype its elements have inside kernels ("bfloat16" -> "uint16")."""
    if dtype.startswith(("float8", "float4", "int4", "uint4", "int2", "uint2")):
        return "uint8"
    return _STORED.get(dtype, dtype)


def dtype_of(value: Value) -> str:
    """Element dtype of a value ("float32" of a float32x16)."""
    return str(value.ty.dtype).split("x")[0]


def lanes_of(value: Value) -> int:
    """Elements of a value; 1 for a scalar."""
    return int(value.ty.dtype.lanes)


def with_lanes(dtype: str, lanes: int) -> str:
    """("float32", 16) -> "float32x16"."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def bits(dtype: str) -> int:
    """Bits of one element."""
    return numpy_dtype(dtype).itemsize * 8


def const(value: float, dtype: str = "int32", lanes: int = 1) -> Value:
    """A number as a scalar, or in every lane of a vector."""
    return broadcast(tirx.const(value, dtype), lanes)


def broadcast(value: Value, lanes: int) -> Value:
    """A scalar in every lane; a vector of that many lanes stays as it is."""
    have = lanes_of(value)
    assert have in (1, lanes), f"{have} lanes cannot become {lanes}"
    return value if have == lanes else tirx.Broadcast(value, lanes)


def ramp(start: Value, lanes: int, step: int = 1) -> Value:
    """start, start + step, ... in the lanes of a vector; the scalar itself for one lane."""
    start = tirx.const(start, "int32") if isinstance(start, int) else start
    return start if lanes == 1 else tirx.Ramp(start, tirx.const(step, dtype_of(start)), lanes)


def cast(value: Value, dtype: str) -> Value:
    """Convert every element as C does."""
    if dtype_of(value) == dtype:
        return value
    return tirx.Cast(with_lanes(dtype, lanes_of(value)), value)


def bounded(value: Value, low: Value, high: Value) -> Value:
    """A number of a run, an integer of any width -> int32 of low..high, whatever is given: an index
    made of it touches no other memory, and none becomes another because it is cut to 32 bits.
    """
    dtype = dtype_of(value)
    low = 0 if dtype.startswith("uint") and isinstance(low, int) else low
    ends = (cast(const(e) if isinstance(e, int) else e, dtype) for e in (high, low))
    return cast(tirx.Max(tirx.Min(value, next(ends)), next(ends)), "int32")


def wide(dtype: str) -> str:
    """Where kernels compute on floats that they read: float64 if they are that, else float32."""
    return "float64" if dtype == "float64" else "float32"


def reinterpret(value: Value, dtype: str) -> Value:
    """The same bits as elements of another dtype; the lanes follow from the size."""
    if dtype_of(value) == dtype:
        return value
    lanes = lanes_of(value) * bits(dtype_of(value)) // bits(dtype)
    if isinstance(value, tirx.IntImm) and value.value == 0:
        return const(0, dtype, lanes)  # TVM treats a zero as a null pointer
    return tirx.op.reinterpret(with_lanes(dtype, lanes), value)


def shuffle(value: Value, indices: Sequence[int]) -> Value:
    """Chosen lanes of a vector, as a vector (a scalar for one index)."""
    return shuffle2([value], indices)


def shuffle2(values: Sequence[Value], indices: Sequence[int]) -> Value:
    """Chosen lanes of several concatenated vectors of equal length."""
    return tirx.Shuffle(list(values), [tirx.const(i, "int32") for i in indices])


def concat(values: Sequence[Value]) -> Value:
    """Concatenate vectors of equal length; a power of two of them."""
    values = list(values)
    while len(values) > 1:
        lanes = lanes_of(values[0])
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [shuffle2(pair, range(2 * lanes)) for pair in pairs]
    return values[0]


def llvm(dtype: str, lanes: int, name: str, *operands: Value) -> Value:
    """A pure LLVM intrinsic by name: llvm("float32", 16, "llvm.fma", a, b, c)."""
    return tirx.op.call_llvm_pure_intrin(with_lanes(dtype, lanes), name, *operands)


def opaque(value: Value) -> Value:
    """The same bits, of which LLVM knows nothing; takes no instruction.

    LLVM 22 does not come to an end over some shuffles of bytes that it can follow back to a masked
    load: it lowers each to another, and that one to the first.
    """
    lanes = lanes_of(value) * bits(dtype_of(value)) // 32
    hidden = llvm("float32", lanes, "llvm.arithmetic.fence", reinterpret(value, "float32"))
    return reinterpret(hidden, dtype_of(value))


def extern(dtype: str, lanes: int, name: str, *operands: Value) -> Value:
    """A pure function of the instruction set's own LLVM text (its intrinsic "llvm_ir")."""
    return tirx.op.call_pure_extern(with_lanes(dtype, lanes), name, *operands)


def fma(a: Value, b: Value, c: Value) -> Value:
    """a * b + c in one rounding."""
    return llvm(dtype_of(c), lanes_of(c), "llvm.fma", a, b, c)


def wrapping(op: str, a: Value, b: Value) -> Value:
    """Integer "+", "-", "*" modulo 2**bits.

    TVM marks its signed and unsigned 32- and 64-bit sums as never overflowing, which LLVM uses (it
    folds 0 - x to 0 for an unsigned x); so these are LLVM's own instructions.
    """
    dtype, lanes = dtype_of(a), lanes_of(a)
    if bits(dtype) < 32:
        return {"+": tirx.Add, "-": tirx.Sub, "*": tirx.Mul}[op](a, b)
    return extern(dtype, lanes, _wrapping_name(op, bits(dtype), lanes), a, b)


def _wrapping_name(op: str, size: int, lanes: int) -> str:
    return f"wrapping_{_WRAPPING[op]}_i{size}x{lanes}"


def wrapping_ir() -> str:
    """LLVM functions behind `wrapping`, and `again`, `either` and `same` of a Builder."""
    text = [
        "define internal i32 @same_pointer(ptr %a, ptr %b) alwaysinline {\n"
        "  %c = icmp eq ptr %a, %b\n  %r = zext i1 %c to i32\n  ret i32 %r\n}\n",
        "define internal ptr @again_pointer(ptr %p) alwaysinline {\n"
        '  %r = call ptr asm sideeffect "", "=r,0"(ptr %p)\n  ret ptr %r\n}\n',
        "define internal ptr @either_pointer(i32 %c, ptr %a, ptr %b) alwaysinline {\n"
        "  %d = icmp ne i32 %c, 0\n  %r = select i1 %d, ptr %a, ptr %b\n  ret ptr %r\n}\n",
    ]
    for op, word in _WRAPPING.items():
        for size in (32, 64):
            for lanes in (1, 2, 4, 8, 16, 32, 64):
                kind = f"<{lanes} x i{size}>" if lanes > 1 else f"i{size}"
                name = _wrapping_name(op, size, lanes)
                text.append(
                    f"define internal {kind} @{name}({kind} %a, {kind} %b) alwaysinline {{\n"
                    f"  %r = {word} {kind} %a, %b\n  ret {kind} %r\n}}\n"
                )
    return "".join(text)


def first_lanes(lanes: int, count: Value) -> Value:
    """A mask: true in the first `count` of `lanes` lanes."""
    count = tirx.const(count, "int32") if isinstance(count, int) else count
    return ramp(0, lanes) < broadcast(count, lanes)


class Pointer:
    """Memory seen as elements of `dtype`; offsets are in elements.

    Vectors need only the alignment of their elements. A `view` with larger elements accesses the
    same memory through the smaller ones, so any byte address is valid and nothing is reordered by
    type.
    """

    def __init__(self, builder: Builder, buffer: Value, dtype: str, offset: Value = 0) -> None:
        self.builder = builder
        self.buffer = buffer
        self.dtype = dtype
        self.offset = offset
        self.scale = bits(dtype) // bits(str(buffer.dtype))
        """Elements of the memory for each of the view's."""

    def __add__(self, offset: Value) -> Pointer:
        return Pointer(self.builder, self.buffer, self.dtype, self.offset + offset * self.scale)

    def view(self, dtype: str) -> Pointer:
        """The same address as elements of another dtype, no smaller than the memory's."""
        dtype = stored(dtype)
        assert bits(dtype) >= bits(str(self.buffer.dtype)), f"no {dtype} inside {self.buffer}"
        return Pointer(self.builder, self.buffer, dtype, self.offset)

    def index(self, offset: Value) -> Value:
        """An offset in this pointer's elements -> in the memory's, from its beginning."""
        index = self.offset + offset * self.scale
        return tirx.const(index, "int32") if isinstance(index, int) else index

    def load(self, offset: Value = 0, lanes: int = 1, dtype: str = "") -> Value:
        """`lanes` elements from an offset on; `dtype` reinterprets their bits (lanes follow)."""
        index = ramp(self.index(offset), lanes * self.scale)
        return reinterpret(tirx.BufferLoad(self.buffer, [index]), dtype or self.dtype)

    def load_first(self, count: Value, offset: Value = 0, lanes: int = 1) -> Value:
        """The first `count` of `lanes` elements; the memory of the others is not touched, and their
        lanes are undefined.
        """
        if isinstance(count, int) and count == lanes:
            return self.load(offset, lanes)
        if lanes == 1:  # count is 0 or 1, and a scalar has no mask
            raise ValueError("one lane is loaded whole or not at all")
        return self.builder.tails.load(self, count, offset, lanes)

    def gather(self, offsets: Value) -> Value:
        """The elements at a vector of offsets."""
        assert self.scale == 1, "a view with larger elements cannot gather"
        start = broadcast(self.index(0), lanes_of(offsets))
        return tirx.BufferLoad(self.buffer, [offsets + start])

    def store(self, offset: Value, value: Value) -> None:
        """Write a scalar or a vector of this pointer's dtype (or of as many bits)."""
        raw = reinterpret(value, str(self.buffer.dtype))
        index = ramp(self.index(offset), lanes_of(raw))
        self.builder.emit(tirx.BufferStore(self.buffer, raw, [index]))

    def store_first(self, count: Value, offset: Value, value: Value) -> None:
        """Write the first `count` lanes only."""
        if isinstance(count, int) and count in (1, lanes_of(value)):
            self.store(offset, shuffle(value, range(count)) if lanes_of(value) > 1 else value)
        else:
            self.builder.tails.store(self, count, offset, value)

    def address(self, offset: Value = 0) -> Value:
        """The address of an element, for intrinsics that take one."""
        return tirx.op.address_of(tirx.BufferLoad(self.buffer, [self.index(offset)]))

    def prefetch(self, offset: Value = 0, *, level: int = 1, write: bool = False) -> None:
        """Prefetch the cache line of an element into L1 (level 1), L2 (2) or L3 (3)."""
        operands = [tirx.const(v, "int32") for v in (int(write), 4 - level, 1)]
        call = tirx.op.call_llvm_intrin("void", "llvm.prefetch", self.address(offset), *operands)
        self.builder.emit(call)


def nth_vector(pointer: Pointer, lanes: int, nth: int) -> Value:
    """One of the vectors that lie one after the other."""
    return pointer.load(nth * lanes, lanes)


class Registers:
    """Vectors that LLVM keeps in registers, read and written by constant index only."""

    def __init__(self, builder: Builder, dtype: str, lanes: int, count: int, name: str) -> None:
        self._builder = builder
        self.dtype, self.lanes, self.count = dtype, lanes, count
        # on the stack, from where LLVM's mem2reg promotes them
        self._buffers = [builder.buffer(dtype, lanes, f"{name}{i}") for i in range(count)]

    def __getitem__(self, index: int) -> Value:
        return tirx.BufferLoad(self._buffers[index], [ramp(0, self.lanes)])

    def __setitem__(self, index: int, value: Value) -> None:
        store = tirx.BufferStore(self._buffers[index], value, [ramp(0, self.lanes)])
        self._builder.emit(store)

    def fill(self, value: float) -> None:
        """Set every lane of all vectors to a number."""
        for i in range(self.count):
            self[i] = const(value, self.dtype, self.lanes)


class Builder:
    """Collects the statements of one kernel; `function` makes the PrimFunc.

    Parameters are raw pointers in the order of the `pointer` calls. The function returns int32 0.
    `tails` moves partial vectors, which `load_first` and `store_first` need.
    """

    def __init__(self, name: str, tails: Tails | None = None) -> None:
        self.name, self._tails = name, tails
        self._params: list[Value] = []
        self._views: list[Value] = []
        self._blocks: list[list[Value]] = [[]]
        self._names: dict[str, int] = {}
        self._lets: set[str] = set()
        self._count = 0

    @property
    def tails(self) -> Tails:
        """What moves partial vectors."""
        assert self._tails is not None, f"{self.name} has no way to move partial vectors"
        return self._tails

    def emit(self, statement: Value) -> None:
        """Append a statement, or an expression evaluated for its effect."""
        self._count += 1
        if self._count > _MOST_STATEMENTS:
            raise Unfit(f"code of more than {_MOST_STATEMENTS} statements")
        if not isinstance(statement, tirx.Stmt):
            statement = tirx.Evaluate(statement)
        self._blocks[-1].append(statement)

    def pointer(self, name: str, dtype: str) -> Pointer:
        """The next parameter: a raw pointer to elements of a tensor dtype."""
        kept = stored(dtype)
        param = Var(name, PointerType(PrimType(kept)))
        buffer = tirx.decl_buffer((_UNBOUNDED,), kept, f"{name}_memory", layout=None)
        self._params.append(param)
        self._views.append(tirx.DeclBuffer(buffer, data=param))
        return Pointer(self, buffer, kept)

    def either(self, condition: Value, one: Pointer, other: Pointer, name: str = "p") -> Pointer:
        """`one` if a condition holds, else `other`, of the same dtype; selected once, here."""
        assert one.dtype == other.dtype, f"{one.dtype} or {other.dtype}"
        kind = PointerType(PrimType(one.dtype))
        var = Var(self._fresh(name), kind)
        chosen = (tirx.Cast("int32", condition), one.address(), other.address())
        self.emit(tirx.Bind(var, tirx.op.call_pure_extern(kind, "either_pointer", *chosen)))
        return self._behind(var, one.dtype)

    def same(self, one: Pointer, other: Pointer) -> Value:
        """Whether two pointers are one, which they may be where a kernel works in place."""
        pair = one.address(), other.address()
        found = tirx.op.call_pure_extern("int32", "same_pointer", *pair)
        return tirx.NE(self.let(found, "same"), 0)

    def stack(self, dtype: str, elements: int, name: str) -> Pointer:
        """Memory on the stack."""
        return Pointer(self, self.buffer(dtype, elements, self._fresh(name)), dtype)

    def buffer(self, dtype: str, elements: int, name: str) -> Value:
        """A buffer on the stack."""
        buffer = tirx.decl_buffer((elements,), dtype, name, scope="local", layout=None)
        keep = {"disable_lower_builtin": tirx.IntImm("bool", 1)}
        self.emit(tirx.AllocBuffer(buffer, annotations=keep))
        return buffer

    def again(self, pointer: Pointer) -> Pointer:
        """The same pointer, of which LLVM cannot know that: what is loaded through it is not what
        was loaded before.
        """
        kind = PointerType(PrimType(pointer.dtype))
        var = Var(self._fresh("again"), kind)
        call = tirx.op.call_extern(kind, "again_pointer", pointer.address())
        self.emit(tirx.Bind(var, call))
        return self._behind(var, pointer.dtype)

    def _behind(self, var: Value, dtype: str) -> Pointer:
        buffer = tirx.decl_buffer((_UNBOUNDED,), dtype, f"{var.name}_memory", layout=None)
        self.emit(tirx.DeclBuffer(buffer, data=var))
        return Pointer(self, buffer, dtype)

    def let(self, value: Value, name: str = "v") -> Value:
        """Name a value that may be an index or a bound; it is computed once, here.

        Only integers and conditions are bound to TIR variables: its passes analyse each one, which
        would dominate compile time for vectors. They also expand each in terms of earlier ones, so
        chains must be short; `hold` is for the others.
        """
        if not isinstance(value, (int, float, Var)) and (
            not isinstance(value.ty, PrimType) or dtype_of(value) == "bool" or _is_index(value)
        ):
            var = Var(self._fresh(name), value.ty)
            self.emit(tirx.Bind(var, value))
            return var
        return self.hold(value, name)

    def hold(self, value: Value, name: str = "v") -> Value:
        """Name a value computed from data; it is computed once, here, and TVM does not look behind
        the name. So expressions stay short, however long the chain of names is.
        """
        if isinstance(value, (int, float, Var)) or _is_load_of(value, self._lets):
            return value
        dtype, lanes = dtype_of(value), lanes_of(value)
        if dtype == "bool":  # as bytes: LLVM removes both conversions
            return tirx.NE(self.hold(cast(value, "uint8"), name), const(0, "uint8", lanes))
        name = self._fresh(name)
        self._lets.add(f"{name}_0")
        held = Registers(self, dtype, lanes, 1, f"{name}_")
        held[0] = value
        return held[0]

    def registers(self, dtype: str, lanes: int, count: int, name: str = "r") -> Registers:
        """`count` vectors to read and write by constant index, kept in registers."""
        return Registers(self, dtype, lanes, count, self._fresh(name))

    @contextmanager
    def serial(self, extent: Value, name: str = "i", start: Value = 0) -> Iterator[Value]:
        """A loop over start, start + 1, ... (`extent` numbers); one iteration needs no loop."""
        if isinstance(extent, int) and extent == 1:
            yield tirx.const(start, "int32") if isinstance(start, int) else start
            return
        with self._loop(extent, name, start, tirx.stmt.ForKind.SERIAL) as i:
            yield i

    @contextmanager
    def parallel(self, tasks: int, name: str = "task") -> Iterator[Value]:
        """A loop whose iterations are shared among threads; one task needs no launch."""
        if tasks == 1:
            yield tirx.const(0, "int32")
            return
        with self._loop(tasks, name, 0, tirx.stmt.ForKind.PARALLEL) as i:
            yield i

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """The statements inside run only if the condition holds."""
        with self._block() as body:
            yield
        self.emit(tirx.IfThenElse(condition, _sequence(body), None))

    @contextmanager
    def otherwise(self) -> Iterator[None]:
        """Directly after `when`: the statements inside run if its condition does not hold."""
        branch = self._blocks[-1].pop()
        with self._block() as body:
            yield
        self.emit(tirx.IfThenElse(branch.condition, branch.then_case, _sequence(body)))

    @contextmanager
    def _loop(self, extent: Value, name: str, start: Value, kind: Value) -> Iterator[Value]:
        iterations = getattr(extent, "value", extent)
        if isinstance(iterations, int) and iterations > _MOST_ITERATIONS:
            raise Unfit(f"a loop of {iterations} iterations is too long")
        var = Var(self._fresh(name), "int32")
        with self._block() as body:
            yield var
        self.emit(tirx.For(var, start, extent, kind, _sequence(body)))

    @contextmanager
    def _block(self) -> Iterator[list[Value]]:
        self._blocks.append([])
        yield self._blocks[-1]
        self._blocks.pop()

    def _fresh(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return f"{name}_{count}"

    def function(self) -> Value:
        """All emitted statements as a private PrimFunc, callable from others of its module."""
        assert len(self._blocks) == 1, "a loop is still open"
        body = _sequence([*self._views, *self._blocks[0]])
        for key, value in (("device_type", 1), ("device_id", 0)):  # stack allocations need them
            body = tirx.AttrStmt(_BACKEND, key, tirx.IntImm("int32", value), body)
        zero = tirx.stmt.Return(tirx.IntImm("int32", 0))
        return tirx.PrimFunc(self._params, tirx.SeqStmt([body, zero]), PrimType("int32"))


def _is_index(value: Value) -> bool:
    return lanes_of(value) == 1 and dtype_of(value).startswith("int")


def _is_load_of(value: Value, names: set[str]) -> bool:
    return isinstance(value, TensorLoad) and value.source.name in names


def _sequence(statements: list[Value]) -> Value:
    if not statements:
        return tirx.Evaluate(tirx.IntImm("int32", 0))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)
