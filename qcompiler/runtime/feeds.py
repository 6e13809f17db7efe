"""What callers give as an array -> a numpy array, or an Error that says why it is not one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import Error

Array = NDArray[Any]


def array_of(given: object, where: str) -> Array:
    """Anything that holds numbers (an array, a scalar, a tensor of another library, nested lists)
    -> a numpy array, which shares its memory where possible.

    Whatever the other library raises becomes an Error: tensors on other devices, tensors that
    require a gradient, ragged lists. Masked elements have no value, so they are refused.
    """
    if type(given) is np.ndarray:
        return given
    if given is None or isinstance(given, (str, bytes, Mapping)):
        raise Error(f"{_kind(given)} given, an array wanted", where=where)
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise Error("some of its elements are masked", where=where, hint="give array.filled(0)")
    # PyTorch's DLPack ignores lazy negation of tensors; its __array__ refuses them.
    foreign = hasattr(given, "__dlpack__") and not hasattr(given, "__array__")
    try:
        array: Array = np.from_dlpack(given) if foreign else np.asarray(given)  # type: ignore[arg-type]
    except Exception as e:
        raise _unreadable(given, e, where) from e
    if array.dtype == object:
        raise Error(f"{_kind(given)} given, which is no array of numbers", where=where)
    return array


def named_arrays(given: object, where: str, hint: str = "") -> Mapping[str, object]:
    """{name: array} -> the same; anything else is an Error."""
    if isinstance(given, Mapping):
        return given
    raise Error(f"{_kind(given)} given, {{input name: array}} wanted", where=where, hint=hint)


def shaped(array: Array, shape: Sequence[int], where: str) -> Array:
    """An array -> the same in a shape that others sent, of as many elements. Raises Error for one
    that no array has: of too many dimensions, or of 0 and sizes beyond all memory.
    """
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError) as e:
        raise Error("no array has the shape that was sent", where=where) from e


def _unreadable(given: object, error: Exception, where: str) -> Error:
    reason = " ".join(str(error).split())[:200]
    tensor = hasattr(given, "detach") and hasattr(given, "cpu")
    return Error(
        f"numpy cannot read this {type(given).__name__}: {reason or type(error).__name__}",
        where=where,
        hint="give tensor.detach().cpu().numpy()" if tensor else "give a numpy array of numbers",
    )


def _kind(given: object) -> str:
    return "None" if given is None else type(given).__name__
