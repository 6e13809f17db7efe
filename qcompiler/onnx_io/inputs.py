"""A file's graph inputs and the user's shapes -> names and types."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import onnx
from onnx import TensorProto

from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.ir import Dim, Type
from qcompiler.ir.refusals import pins
from qcompiler.onnx_io.spellings import replaced, sizes_spelled
from qcompiler.onnx_io.tensors import checked_type, dtype_name

MAX_NAME = 4096
_COUNTS = ("seq", "len", "time", "frame", "step", "token", "word", "point", "sample", "num", "row")
"""Parts of symbol names that denote a length or count other than the batch."""

_Name = TypeVar("_Name")


def checked_name(name: str, what: str) -> str:
    """The name of an input or output. Raises Error if it is not usable."""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise Error(f"an {what} has no usable name: {name[:60]!r}")
    return name


def first_double(names: Sequence[_Name]) -> _Name:
    """The first name that occurs twice; there must be one."""
    return next(n for i, n in enumerate(names) if n in names[:i])


def input_types(
    infos: Sequence[onnx.ValueInfoProto],
    initializers: Collection[str],
    input_shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Type]:
    """Types of the graph's inputs with `input_shapes` applied; initializers are not inputs."""
    spelled: dict[str, Type] = {}
    for info in infos:
        if info.name in initializers:
            continue
        name = checked_name(info.name, "input")
        if name in spelled:
            raise Error(f"two inputs have the name {name!r}")
        spelled[name] = _input_type(info, input_shapes.get(name))
    for name in input_shapes:
        if name not in spelled:
            raise Error(f"no input {name!r}", hint=f"the inputs are {', '.join(spelled)}")
    sizes = sizes_spelled(d for t in spelled.values() for d in t.shape if isinstance(d, str))
    declared = {n: _with(t, lambda d: sizes[d], f"input {n!r}") for n, t in spelled.items()}
    pinned: dict[str, int] = {}
    for name, shape in input_shapes.items():
        _pin(name, declared[name].shape, shape, pinned)
    made = with_symbols(declared, pinned)
    for name, shape in input_shapes.items():
        _demand_pinned(name, declared[name].shape, made[name].shape, shape)
    return made


def with_symbols(types: Mapping[str, Type], values: Mapping[str, Dim]) -> dict[str, Type]:
    """Input types by name -> the same with symbols replaced by numbers or other sizes. Raises Error
    for impossible sizes.
    """
    return {
        name: _with(t, lambda d: replaced(d, values), f"input {name!r}")
        for name, t in types.items()
    }


def _with(type: Type, size: Callable[[str], Dim], where: str) -> Type:
    """A type whose open sizes are those that a function makes of them."""
    shape = tuple(size(d) if isinstance(d, str) else d for d in type.shape)
    return checked_type(Type(type.dtype, shape), where)


def batch_of_one(types: Mapping[str, Type]) -> tuple[dict[str, Type], str]:
    """Input types -> (the same with an unknown batch size set to 1, a note that says so), or (the
    same, no note) if there is no such batch.

    A batch is the only unknown size, always the first dimension where it occurs, at least once
    followed by other dimensions, and not named like a length or a count of something.
    """
    found = {s for t in types.values() for s in t.symbols}
    symbol = next(iter(found), "")
    first = all(t.static or Type(t.dtype, t.shape[1:]).static for t in types.values())
    before = any(t.rank > 1 and t.shape[0] == symbol for t in types.values())
    counts = any(word in symbol.lower() for word in _COUNTS)
    if len(found) != 1 or not first or not before or counts:
        return dict(types), ""
    return with_symbols(
        types, {symbol: 1}
    ), f"1, since the model leaves {symbol} open; to change it: {pins(types)}"


def _input_type(info: onnx.ValueInfoProto, wanted: tuple[int, ...] | None) -> Type:
    """An input's type, with open sizes as the file spells them."""
    where = f"input {info.name!r}"
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        raise Error(f"inputs of kind {kind} are not supported", where=where)
    tensor = info.type.tensor_type
    text = tensor.elem_type == TensorProto.STRING
    dtype = "string" if text else dtype_name(tensor.elem_type, where)
    if not tensor.HasField("shape"):
        if wanted is None:
            raise Error(
                "its rank is not known", where=where, hint=f"--input-shape {info.name}=1x3x224x224"
            )
        return Type(dtype, tuple(f"{info.name}_{i}" for i in range(len(wanted))))
    shape: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        known = dim.HasField("dim_value") and dim.dim_value >= 0
        shape.append(dim.dim_value if known else dim.dim_param or f"{info.name}_{axis}")
    return Type(dtype, tuple(shape))


def _pin(
    name: str, declared: tuple[Dim, ...], wanted: tuple[int, ...], pinned: dict[str, int]
) -> None:
    def spelled(shape: Sequence[Dim]) -> str:
        return "x".join(map(str, shape))

    where = f"input {name!r}"
    if len(declared) != len(wanted):
        raise Error(f"shape {spelled(wanted)} does not fit {spelled(declared)}", where=where)
    for have, want in zip(declared, wanted, strict=True):
        if want < 0:
            raise Error(f"shape {spelled(wanted)} has a dimension below 0", where=where)
        if isinstance(have, int) and have != want:
            raise Error(
                f"shape {spelled(wanted)} contradicts the model's {spelled(declared)}",
                where=where,
                hint=f"{want} is not {have}",
            )
        if Size.of(have).symbols == {have} and pinned.setdefault(str(have), want) != want:
            raise Error(f"{have!r} cannot be both {pinned[str(have)]} and {want}", where=where)


def _demand_pinned(
    name: str, declared: Sequence[Dim], made: Sequence[Dim], wanted: Sequence[int]
) -> None:
    """Raise Error unless sizes that are computed from others came out as wanted."""
    for size, have, want in zip(declared, made, wanted, strict=True):
        if have != want:
            what = f"{size} is to be {want}, and is {have} as other inputs are"
            hint = "the shapes of other inputs decide it: --input-shape for each of these"
            raise Error(what, where=f"input {name!r}", hint=hint)
