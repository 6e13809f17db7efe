"""A file's graph inputs and the user's shapes -> names and types."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto

from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.ir import Dim, Type
from qcompiler.ir.refusals import pins
from qcompiler.onnx_io.tensors import checked_type, dtype_name

MAX_NAME = 4096
_COUNTS = ("seq", "len", "time", "frame", "step", "token", "word", "point", "sample", "num", "row")
"""Parts of symbol names that denote a length or count other than the batch."""


def checked_name(name: str, what: str) -> str:
    """The name of an input or output. Raises Error if it is not usable."""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise Error(f"an {what} has no usable name: {name[:60]!r}")
    return name


def first_double(names: Sequence[str]) -> str:
    """The first name that occurs twice; there must be one."""
    return next(n for i, n in enumerate(names) if n in names[:i])


def input_types(
    infos: Sequence[onnx.ValueInfoProto],
    initializers: Mapping[str, TensorProto],
    input_shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Type]:
    """Types of the graph's inputs with `input_shapes` applied; initializers are not inputs."""
    declared: dict[str, Type] = {}
    symbols: dict[str, str] = {}
    for info in infos:
        if info.name in initializers:
            continue
        name = checked_name(info.name, "input")
        if name in declared:
            raise Error(f"two inputs have the name {name!r}")
        declared[name] = _input_type(info, symbols, input_shapes.get(name))
    for name in input_shapes:
        if name not in declared:
            raise Error(f"no input {name!r}", hint=f"the inputs are {', '.join(declared)}")
    pinned: dict[str, int] = {}
    for name, shape in input_shapes.items():
        _pin(name, declared[name].shape, shape, pinned)
    return {
        name: checked_type(_pinned(t, pinned), f"input {name!r}") for name, t in declared.items()
    }


def _pinned(type: Type, pinned: Mapping[str, int]) -> Type:
    """A type with the pinned symbols replaced by numbers."""
    return Type(
        type.dtype, tuple(pinned.get(d, d) if isinstance(d, str) else d for d in type.shape)
    )


def batch_of_one(types: Mapping[str, Type]) -> tuple[dict[str, Type], str]:
    """Input types -> (the same with an unknown batch size set to 1, a note that says so), or (the
    same, no note) if there is no such batch.

    A batch is the only unknown size, always the first dimension where it occurs, at least once
    followed by other dimensions, and not named like a length or a count of something.
    """
    found = {d for t in types.values() for d in t.shape if isinstance(d, str)}
    symbol = next(iter(found), "")
    first = all(symbol not in t.shape[1:] for t in types.values())
    before = any(t.rank > 1 and t.shape[0] == symbol for t in types.values())
    counts = any(word in symbol.lower() for word in _COUNTS)
    if len(found) != 1 or not first or not before or counts:
        return dict(types), ""
    pinned = {
        name: Type(t.dtype, tuple(1 if d == symbol else d for d in t.shape))
        for name, t in types.items()
    }
    return pinned, f"1, since the model leaves {symbol} open; to change it: {pins(types)}"


def _input_type(
    info: onnx.ValueInfoProto, symbols: dict[str, str], wanted: tuple[int, ...] | None
) -> Type:
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
        names = (f"{info.name}_{i}" for i in range(len(wanted)))
        return Type(dtype, tuple(Size.of(_symbol(n, symbols)) for n in names))
    shape: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            shape.append(dim.dim_value)
        else:
            name = dim.dim_param or f"{info.name}_{axis}"
            shape.append(Size.of(_symbol(name, symbols)))
    return checked_type(Type(dtype, tuple(shape)), where)


def _symbol(spelled: str, symbols: dict[str, str]) -> str:
    """A symbolic dimension's spelling -> a unique identifier for it."""
    if spelled not in symbols:
        word = re.sub(r"\W", "_", spelled[:MAX_NAME], flags=re.ASCII)
        word = word if not word[:1].isdigit() else f"_{word}"
        while word in symbols.values():
            word += "_"
        symbols[spelled] = word
    return symbols[spelled]


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
        if isinstance(have, str) and pinned.setdefault(have, want) != want:
            raise Error(f"{have!r} cannot be both {pinned[have]} and {want}", where=where)
