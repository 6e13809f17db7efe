"""Open sizes -> LLVM text of a run from C: for the sizes that the caller says, which steps run and
how often, as the runtime does it (runtime/open_batch.py, runtime/open_sizes.py).

Kernels read and write arrays of the sizes they were made for. The caller's are of those of the run,
so they are copied to the run's own memory, behind the workspace, and back. Arrays that only the
batch makes larger are used where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from qcompiler.artifact.abi import ALIGN
from qcompiler.artifact.manifest import Batch, Pinned, Symbol, Value
from qcompiler.artifact.sizes import Size, parts
from qcompiler.dtypes import numpy_dtype
from qcompiler.emit.c_open_text import BOX, QUOTIENT, ROUND

Dims = Sequence["int | str"]


@dataclass(frozen=True)
class Open:
    """What an artifact says of its open sizes: as its manifest and its variant; `offset`: where in
    the workspace the memory begins that its steps do not use.
    """

    symbols: Sequence[Symbol]
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    batches: Sequence[Batch]
    pinned: Sequence[Pinned]
    sizes: Sequence[str]
    offset: int

    @property
    def batch(self) -> str:
        """The name of the batch; "" if it is not open."""
        return self.symbols[0].name if self.batches else ""

    @property
    def copied(self) -> list[tuple[int, Value]]:
        """Arrays that are copied, and their words in the table."""
        first = len(self.inputs) + len(self.sizes)
        numbered = [*enumerate(self.inputs), *enumerate(self.outputs, first)]
        own = [{s for d in self.sample(v) for s in _symbols(d)} for _, v in numbered]
        return [pair for pair, symbols in zip(numbered, own, strict=True) if symbols]

    def sample(self, value: Value) -> Dims:
        """The shape of one sample of a value."""
        if not self.batch:
            return value.dims
        (rows, *rest) = value.dims
        return [Size.of(rows).at({self.batch: 1}), *rest]

    def memory(self, value: Value) -> Dims:
        """The same with the room that it has in memory."""
        return self.sample(replace(value, open=value.room or value.open))

    def largest(self, value: Value) -> tuple[int, ...]:
        """The largest shape that one sample of a value has."""
        return self.fitted(value, [s.high for s in self._inner])

    def fitted(self, value: Value, sizes: Sequence[int]) -> tuple[int, ...]:
        """The shape of one sample of a value in such sizes, one for each but the batch."""
        known = dict(zip([s.name for s in self._inner], sizes, strict=True))
        return tuple(d if isinstance(d, int) else Size.of(d).at(known) for d in self.memory(value))

    @property
    def _inner(self) -> Sequence[Symbol]:
        return self.symbols[bool(self.batch) :]

    @property
    def places(self) -> list[int]:
        """Where in the workspace the copies are."""
        at, found = self.offset + ALIGN * len(self.sizes), []
        for _, value in self.copied:
            found.append(at)
            at += -(-_bytes(value, self.largest(value)) // ALIGN) * ALIGN
        return [*found, at]

    @property
    def workspace_bytes(self) -> int:
        """Size of the workspace, with its own memory."""
        return self.places[-1]


def parameters(opened: Open, word: str) -> str:
    """The sizes, as parameters or arguments of LLVM's type of a word."""
    return ", ".join(f"{word} %s{i}" for i in range(len(opened.symbols)))


def text(opened: Open, word: str) -> str:
    """The functions `c_sizes(sizes)`, which says whether they are in their ranges, and
    `c_open(table, workspace, sizes)`, which runs in these.
    """
    made = _pinned(opened, word) if opened.pinned else _rounds(opened, word)
    return _ranges(opened, word) + _bytes_of_samples(opened) + made + ROUND + QUOTIENT + BOX


class _Code:
    """Lines of a function; each value has a name of its own."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """A line."""
        self.lines.append(f"  {line}")

    def label(self, name: str) -> None:
        """The begin of a block."""
        self.lines.append(f"{name}:")

    def value(self, what: str) -> str:
        """What an instruction gives -> its name."""
        name = f"%v{len(self.lines)}"
        self.say(f"{name} = {what}")
        return name

    def size(self, size: int | str, known: Mapping[str, str]) -> str:
        """A size, by the names of its symbols' values -> its name."""
        if isinstance(size, int):
            return str(size)
        total = "0"
        for monomial, c in Size.of(size).terms.items():
            made = str(c)
            for factor, power in monomial:
                for _ in range(power):
                    made = self.value(f"mul i32 {made}, {self._factor(factor, known)}")
            total = self.value(f"add i32 {total}, {made}")
        return total

    def _factor(self, factor: str, known: Mapping[str, str]) -> str:
        if factor[0] != "(":
            return known[factor]
        above, below = (self.size(part, known) for part in parts(factor))
        return self.value(f"call i32 @c_quotient(i32 {above}, i32 {below})")

    def numbers(self, count: int, word: str) -> list[str]:
        """The parameters as numbers of 32 bits."""
        if word == "i32":
            return [f"%s{i}" for i in range(count)]
        return [self.value(f"trunc {word} %s{i} to i32") for i in range(count)]

    def at(self, base: str, offset: int | str) -> str:
        """An address so many bytes on."""
        return self.value(f"getelementptr i8, ptr {base}, i64 {offset}")


def _ranges(opened: Open, word: str) -> str:
    code = _Code()
    fit = "true"
    for i, symbol in enumerate(opened.symbols):
        above = code.value(f"sub {word} %s{i}, {symbol.low}")
        inside = code.value(f"icmp ule {word} {above}, {symbol.high - symbol.low}")
        fit = code.value(f"and i1 {fit}, {inside}")
        if symbol.step > 1:
            rest = code.value(f"urem {word} {above}, {symbol.step}")
            even = code.value(f"icmp eq {word} {rest}, 0")
            fit = code.value(f"and i1 {fit}, {even}")
    code.say(f"ret i1 {fit}")
    return _function("i1 @c_sizes", parameters(opened, word), code)


def _bytes_of_samples(opened: Open) -> str:
    """The constant array of every array's bytes for each sample; 0 for those that are copied."""
    copied = {at for at, _ in opened.copied}
    hidden = [0] * len(opened.sizes)
    first = len(opened.inputs) + len(hidden)
    ins, outs = (
        [0 if at in copied else _bytes(v, opened.largest(v)) for at, v in enumerate(side, begin)]
        for side, begin in ((opened.inputs, 0), (opened.outputs, first))
    )
    return f"\n@c_bytes = internal constant {_array([*ins, *hidden, *outs], 'i64')}\n"


def _rounds(opened: Open, word: str) -> str:
    """A batch by rounds of so many samples, then of fewer."""
    code = _Code()
    (count,) = code.numbers(1, word)
    bases = _bases(opened, code)
    code.say("br label %size0")
    before = "0, %entry"
    for i, batch in enumerate(opened.batches):
        run = f"i32 {batch.first}, i32 {batch.last}"
        code.label(f"size{i}")
        code.say(f"%at{i} = phi i32 [ {before} ], [ %next{i}, %body{i} ]")
        code.say(f"%left{i} = sub i32 {count}, %at{i}")
        code.say(f"%more{i} = icmp sge i32 %left{i}, {batch.samples}")
        code.say(f"br i1 %more{i}, label %body{i}, label %rest{i}")
        code.label(f"body{i}")
        code.say(f"call void @c_round(ptr %table, ptr {bases}, i32 %at{i}, {run})")
        code.say(f"%next{i} = add i32 %at{i}, {batch.samples}")
        code.say(f"br label %size{i}")
        code.label(f"rest{i}")
        following = f"size{i + 1}" if i + 1 < len(opened.batches) else "done"
        least = _again(opened.batches[i:])
        code.say(f"%long{i} = icmp sge i32 %left{i}, {least}")
        code.say(f"%some{i} = icmp sgt i32 %at{i}, {before.partition(',')[0]}")
        code.say(f"%again{i} = and i1 %long{i}, %some{i}")
        code.say(f"br i1 %again{i}, label %last{i}, label %{following}")
        code.label(f"last{i}")
        code.say(f"%from{i} = sub i32 {count}, {batch.samples}")
        code.say(f"call void @c_round(ptr %table, ptr {bases}, i32 %from{i}, {run})")
        code.say("br label %done")
        before = f"%at{i}, %rest{i}"
    code.label("done")
    code.say("ret void")
    return _function("void @c_open", _given(opened, word), code)


def _again(batches: Sequence[Batch]) -> int:
    """Of how many samples that are left one more round of the first batch, which computes some
    again, takes less time than fewer at once.
    """
    first, *fewer = batches
    for rest in range(1, first.samples):
        seconds, count = 0, rest
        for batch in fewer:
            times, count = divmod(count, batch.samples)
            seconds += times * batch.nanoseconds
        if seconds > first.nanoseconds:
            return rest
    return first.samples


def _pinned(opened: Open, word: str) -> str:
    """The least sizes that those of the run fit into; samples one after the other."""
    code = _Code()
    names = [s.name for s in opened.symbols]
    known = dict(zip(names, code.numbers(len(names), word), strict=True))
    row = _row(opened, code, known)
    bases = _bases(opened, code)
    for i, size in enumerate(opened.sizes):
        place = code.at("%workspace", opened.offset + i * ALIGN)
        code.say(f"store i32 {code.size(size, known)}, ptr {place}, align 4")
        _enter(code, bases, len(opened.inputs) + i, place)
    copies = _copies(opened, code, known, bases, row)
    run = f"i32 {_word_of(code, row, 0)}, i32 {_word_of(code, row, 1)}"
    count = known[opened.batch] if opened.batch else "1"
    code.say("br label %next")
    code.label("next")
    code.say("%at = phi i32 [ 0, %entry ], [ %after, %sample ]")
    code.say(f"%more = icmp slt i32 %at, {count}")
    code.say("br i1 %more, label %sample, label %done")
    code.label("sample")
    code.say("%at64 = zext i32 %at to i64")
    for copy in copies:
        if copy.taken:
            copy.emit(code)
    code.say(f"call void @c_round(ptr %table, ptr {bases}, i32 %at, {run})")
    for copy in copies:
        if not copy.taken:
            copy.emit(code)
    code.say("%after = add i32 %at, 1")
    code.say("br label %next")
    code.label("done")
    code.say("ret void")
    return _table(opened) + _function("void @c_open", _given(opened, word), code)


def _copies(
    opened: Open, code: _Code, known: Mapping[str, str], bases: str, row: str
) -> list[_Copy]:
    """The arrays that are copied, whose own places are entered among the addresses."""
    found = []
    skip = 2
    for (at, value), offset in zip(opened.copied, opened.places[:-1], strict=True):
        own = code.at("%workspace", offset)
        slot = code.value(f"getelementptr i64, ptr {bases}, i32 {at}")
        caller = code.value(f"load ptr, ptr {slot}, align 8")
        _enter(code, bases, at, own)
        dims = opened.sample(value)
        item = numpy_dtype(value.dtype).itemsize
        shape, size = _shape(code, dims, item, known)
        fitted = code.value(f"getelementptr i32, ptr {row}, i32 {skip}")
        skip += len(dims) + 1
        taken = at < len(opened.inputs)
        found.append(_Copy(taken, caller, own, shape, size, fitted, len(dims), item))
    return found


def _shape(code: _Code, dims: Dims, item: int, known: Mapping[str, str]) -> tuple[str, str]:
    """The shape of a run in memory, and its bytes."""
    shape = code.value(f"alloca [{len(dims)} x i32], align 4")
    size = str(item)
    for i, d in enumerate(dims):
        number = code.size(d, known)
        slot = code.value(f"getelementptr i32, ptr {shape}, i32 {i}")
        code.say(f"store i32 {number}, ptr {slot}, align 4")
        size = code.value(f"mul i32 {size}, {number}")
    return shape, code.value(f"zext i32 {size} to i64")


@dataclass(frozen=True)
class _Copy:
    """An array that is copied, an input or an output: where the caller's and its own are, the shape
    and the bytes of one sample of the run, and, of the sizes that run, the shape, behind which are
    its bytes.
    """

    taken: bool
    caller: str
    own: str
    shape: str
    bytes: str
    fitted: str
    rank: int
    item: int

    def emit(self, code: _Code) -> None:
        """Copy the sample `%at`: an input's from the caller's, an output's to the caller's."""
        offset = code.value(f"mul i64 {self.bytes}, %at64")
        caller = code.at(self.caller, offset)
        run, own = (caller, self.shape), (self.own, self.fitted)
        to, source = (own, run) if self.taken else (run, own)
        if self.taken:
            size = _word_of(code, self.fitted, self.rank)
            code.say(f"call void @llvm.memset.p0.i32(ptr {self.own}, i8 0, i32 {size}, i1 false)")
        code.say(
            f"call void @c_box(ptr {to[0]}, ptr {source[0]}, ptr {self.shape}, ptr {to[1]},"
            f" ptr {source[1]}, i32 {self.rank}, i32 {self.item})"
        )


def _table(opened: Open) -> str:
    """The constant array of a row for each of the sizes that steps compute, the largest first:
    first step, last step, and the shape of every array that is copied, with its bytes.
    """
    rows = []
    for pinned in opened.pinned:
        row = [pinned.first, pinned.last]
        for _, value in opened.copied:
            shape = opened.fitted(value, pinned.sizes)
            row += [*shape, _bytes(value, shape)]
        rows += row
    return f"\n@c_pinned = internal constant {_array(rows, 'i32')}\n"


def _row(opened: Open, code: _Code, known: Mapping[str, str]) -> str:
    """The row of the least sizes that those of the run fit into."""
    inner = [known[s.name] for s in opened.symbols if s.name != opened.batch]
    length = 2 + sum(len(value.dims) + 1 for _, value in opened.copied)
    row = "@c_pinned"
    for i, pinned in enumerate(opened.pinned[1:], 1):
        fits = "true"
        for number, most in zip(inner, pinned.sizes, strict=True):
            below = code.value(f"icmp sle i32 {number}, {most}")
            fits = code.value(f"and i1 {fits}, {below}")
        own = code.value(f"getelementptr i32, ptr @c_pinned, i32 {i * length}")
        row = code.value(f"select i1 {fits}, ptr {own}, ptr {row}")
    return row


def _bases(opened: Open, code: _Code) -> str:
    """A copy of the addresses in the table."""
    count = len(opened.inputs) + len(opened.sizes) + len(opened.outputs)
    bases = code.value(f"alloca [{max(count, 1)} x i64], align 8")
    code.say(
        f"call void @llvm.memcpy.p0.p0.i32(ptr align 8 {bases}, ptr align 8 %table,"
        f" i32 {8 * count}, i1 false)"
    )
    return bases


def _enter(code: _Code, bases: str, at: int, place: str) -> None:
    address = code.value(f"ptrtoint ptr {place} to i64")
    slot = code.value(f"getelementptr i64, ptr {bases}, i32 {at}")
    code.say(f"store i64 {address}, ptr {slot}, align 8")


def _word_of(code: _Code, row: str, at: int) -> str:
    place = code.value(f"getelementptr i32, ptr {row}, i32 {at}")
    return code.value(f"load i32, ptr {place}, align 4")


def _given(opened: Open, word: str) -> str:
    return f"ptr %table, ptr %workspace, {parameters(opened, word)}"


def _function(name: str, given: str, code: _Code) -> str:
    body = "\n".join(code.lines)
    return f"\ndefine internal {name}({given}) noinline {{\nentry:\n{body}\n}}\n"


def _array(values: Sequence[int], kind: str) -> str:
    kept = list(values) or [0]
    return f"[{len(kept)} x {kind}] [{', '.join(f'{kind} {v}' for v in kept)}]"


def _symbols(d: int | str) -> frozenset[str]:
    return frozenset() if isinstance(d, int) else Size.of(d).symbols


def _bytes(value: Value, shape: Sequence[int]) -> int:
    return prod(shape) * numpy_dtype(value.dtype).itemsize
