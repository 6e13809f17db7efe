"""What the user says of sizes that a model leaves open -> ranges, and input types with them.

batch=1..64    stays open, between these       batch=1..    stays open, without an upper bound
past=0..512    stays open, and may be none
height=224     pinned                          height=64..512:32    stays open, a multiple of 32
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.sizes import Number, Size
from qcompiler.errors import Error
from qcompiler.ir import CHECK, MAX_ELEMENTS, Dim, Graph, Type
from qcompiler.ir.refusals import demand_static
from qcompiler.onnx_io.inputs import batch_of_one, with_symbols
from qcompiler.onnx_io.reader import read
from qcompiler.onnx_io.spellings import replaced
from qcompiler.onnx_io.text import without_text

if TYPE_CHECKING:
    import onnx


class Range(NamedTuple):
    """The least and the largest number that a size may be, equal if it is pinned, and what it is a
    multiple of.
    """

    low: int
    high: int
    step: int = 1


SAMPLES = 8
"""So many samples of an open batch are computed at once, where that is faster."""

_WORD = re.compile(r"(\d{1,10})(?:(\.\.)(\d{0,10})(?::(\d{1,10}))?)?")


def ranges(dims: Mapping[str, int | str] | None) -> dict[str, Range]:
    """{name: number or text} -> {name: range}. Raises Error for other text."""
    return {name: _range(name, value) for name, value in (dims or {}).items()}


def _range(name: str, value: int | str) -> Range:
    found = _WORD.fullmatch(str(value).strip())
    if found is None:
        raise Error(
            f"{value!r} is no range of sizes", where=f"--dim {name}", hint="1..64, 32..512:32, or 8"
        )
    low = int(found[1])
    high = (int(found[3]) if found[3] else MAX_ELEMENTS) if found[2] else low
    if not (low <= high <= MAX_ELEMENTS and high):
        hint = f"from 0 up, at most {MAX_ELEMENTS}"
        raise Error(f"a size from {low} to {high}", where=f"--dim {name}", hint=hint)
    return _stepped(name, low, high, int(found[4] or 1), bounded=bool(found[3]))


def _stepped(name: str, low: int, high: int, step: int, bounded: bool) -> Range:
    """A range of multiples of `step`. Raises Error unless its ends are."""
    where = f"--dim {name}"
    if step < 1 or (step > 1 and not bounded and low < high):
        hint = f"a step from 1 up, and an upper bound: {name}=32..512:32"
        raise Error(f"no range of sizes from {low} by {step}", where=where, hint=hint)
    for end in (low, high) if step > 1 else ():
        if end % step:
            first, last = -(-low // step) * step, high // step * step
            hint = f"{name}={first}..{last}:{step}" if first <= last else ""
            raise Error(f"{end} is no multiple of the step {step}", where=where, hint=hint)
    return Range(low, high, step)


def multiple(name: str, step: int) -> Size:
    """A size that is a multiple of `step`, as an expression that says so: divisions by what divides
    the step come out even. Its value is wrong for other numbers.
    """
    return Size.of(name) // step * step


def in_types(name: str, low: int, step: int) -> Size:
    """How types write a size. Their symbols are positive: one that may be 0 is a symbol less 1."""
    return Size.of(name) - 1 if _may_be_0(low, step) else multiple(name, step)


def _may_be_0(low: int, step: int) -> bool:
    return low == 0 and step == 1  # a quotient by the step may be 0 as it is


def positive(symbol: Symbol) -> Symbol:
    """A symbol as types have it."""
    if not _may_be_0(symbol.low, symbol.step):
        return symbol
    return replace(symbol, low=1, high=symbol.high + 1, best=symbol.best + 1)


def as_asked(size: Number, symbols: Sequence[Symbol]) -> Number:
    """A size in types -> the same by the sizes that the user has named."""
    for symbol in symbols if isinstance(size, str) else ():
        if size == in_types(symbol.name, symbol.low, symbol.step):
            return Size.of(symbol.name)
    return replaced(
        size, {s.name: Size.of(s.name) + 1 for s in symbols if _may_be_0(s.low, s.step)}
    )


_SUM = re.compile(r"\w+(?:(?: [-+] |\*)\w+)*", re.ASCII)
"""What may be a size in a sentence, or a part of one."""


def error_as_asked(error: Error, symbols: Sequence[Symbol]) -> Error:
    """An Error that names sizes as types have them -> the same by the sizes that the user has
    named.
    """
    shifted = {s.name for s in symbols if _may_be_0(s.low, s.step)}
    if not shifted:
        return error

    def said(found: re.Match[str]) -> str:
        if not shifted & set(re.findall(r"[A-Za-z_]\w*", found[0])):
            return found[0]
        size = str(as_asked(Size.of(found[0]), symbols))
        around = error.what[: found.start()][-1:] + error.what[found.end() :][:1]
        return f"({size})" if "*" in around and " " in size else size

    return Error(_SUM.sub(said, error.what), where=error.where, hint=error.hint)


def with_sizes(types: Mapping[str, Type], sizes: Mapping[str, Dim]) -> dict[str, Type]:
    """Input types by name -> the same with these symbols replaced by numbers. Raises Error for one
    that no input has.
    """
    known = sorted({s for t in types.values() for s in t.symbols})
    for name in sizes:
        if name not in known:
            hint = f"open are {', '.join(known)}" if known else "the model leaves none open"
            raise Error(f"no input has an open size {name!r}", where="--dim", hint=hint)
    return with_symbols(types, sizes)


def open_symbols(
    dims: Mapping[str, int | str] | None, opt_dims: Mapping[str, int] | None, usual: int
) -> tuple[Symbol, ...]:
    """What is asked for -> the sizes that stay open, best at `usual` unless asked otherwise."""
    asked = ranges(dims)
    best = {name: _whole(n, f"--opt-dim {name}", "8") for name, n in (opt_dims or {}).items()}
    open_ = {name: found for name, found in asked.items() if found.low < found.high}
    if wrong := [name for name in best if name not in open_]:
        raise Error(f"{wrong[0]!r} does not stay open", where="--opt-dim", hint="--dim NAME=LO..HI")
    for name, (_, high, step) in open_.items():
        if not 1 <= best.get(name, 1) <= high:
            raise Error(f"{best[name]} is not in 1 to {high}", where=f"--opt-dim {name}")
        if best.get(name, 0) % step:
            what = f"{best[name]} is no multiple of the step {step}"
            raise Error(what, where=f"--opt-dim {name}")
    return tuple(
        Symbol(name, low, high, best.get(name, min(usual, high)), step)
        for name, (low, high, step) in open_.items()
    )


def _whole(value: object, where: str, hint: str) -> int:
    """What Python or numpy has for an integer -> int. Raises Error for anything else."""
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        raise Error(f"{value!r} is no whole number", where=where, hint=hint) from None


def _shape(name: str, given: object) -> tuple[Any, ...]:
    """The shape that is asked for an input, or for each element of a sequence -> as tuples."""
    where, hint = f"the shape of {name!r}", "(1, 3, 224, 224)"
    if isinstance(given, str) or not isinstance(given, Collection):
        raise Error(f"{given!r} is no shape", where=where, hint=hint)
    return tuple(
        _shape(name, i) if isinstance(i, Collection) else _whole(i, where, hint) for i in given
    )


def read_pinned(
    model: str | Path | onnx.ModelProto,
    input_shapes: Mapping[str, Sequence[int] | Sequence[Sequence[int]] | None],
    dims: Mapping[str, int | str] | None,
    one_batch: bool,
    sizes: Mapping[str, Dim],
    rolls: bool = True,
) -> Graph:
    """ONNX file or model -> its graph with static shapes, except for symbols among `sizes`, which
    says what to put in place of sizes that `dims` leaves open. `one_batch`: if nothing is said of
    sizes, an open batch size is 1, with a note that says so; `rolls` as of `read`.
    """
    shapes: dict[str, Any] = {
        name: None if given is None else _shape(name, given) for name, given in input_shapes.items()
    }
    asked = ranges(dims)
    pinned = {name: low for name, (low, high, _) in asked.items() if low == high}
    sizes = {
        k: in_types(k, asked[k].low, asked[k].step) if k == d and k in asked else d
        for k, d in sizes.items()
    }
    plain = {k: (asked[k].low, asked[k].high) for k, d in sizes.items() if d == k and k in asked}
    bounds = {
        k: (low + shift, high + shift)
        for k, (low, high, step) in asked.items()
        for shift in [int(_may_be_0(low, step))]
        if isinstance(sizes.get(k), str)
    }
    batch = ""

    def settle(types: dict[str, Type]) -> dict[str, Type]:
        nonlocal batch
        types = with_sizes(types, {**pinned, **sizes})
        if one_batch and not shapes and not sizes:
            types, batch = batch_of_one(types)
        demand_static({n: t for n, t in types.items() if not sizes.keys() >= t.symbols})
        return types

    try:
        graph = without_text(read(model, shapes, settle, rolls, plain, bounds))
    except Error as e:
        if not batch or e.hint:
            raise
        raise Error(e.what, where=e.where, hint=f"the batch is {batch}") from e
    if any(_may_be_0(r.low, r.step) for r in asked.values()):
        symbols = [Symbol(k, r.low, r.high, r.high, r.step) for k, r in asked.items()]
        graph = replace(
            graph, output_names=tuple(_as_asked(n, symbols) for n in graph.output_names)
        )
    return graph.note(batch=batch) if batch else graph


def _as_asked(output: str, symbols: Sequence[Symbol]) -> str:
    """The name of an output; of a check, what it says of sizes as the user has named them."""
    if not output.startswith(CHECK):
        return output
    return CHECK + error_as_asked(Error(output.removeprefix(CHECK)), symbols).what
