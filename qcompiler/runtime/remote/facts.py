"""A message's values -> the same, checked; Lost where they are not as they should be."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from qcompiler.artifact.artifact import Value
from qcompiler.dtypes import Array, numpy_dtype
from qcompiler.errors import Error
from qcompiler.runtime.feeds import shaped
from qcompiler.runtime.remote.wire import Lost

MOST_COUNT = (1 << 53) - 1
"""The largest integer that JSON keeps exactly."""


def count(message: Mapping[str, object], key: str, most: int = MOST_COUNT) -> int:
    """A whole number, 0 or more."""
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise Lost(f"it sent a message without a sensible {key!r}")
    return value


def seconds(message: Mapping[str, object], key: str) -> float:
    """A time, 0 or more."""
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e9:
        raise Lost(f"it sent a message without a sensible {key!r}")
    return float(value)


def text(message: Mapping[str, object], key: str) -> str:
    """A string."""
    value = message.get(key)
    if not isinstance(value, str):
        raise Lost(f"it sent a message without a sensible {key!r}")
    return value


def digest(message: Mapping[str, object], key: str) -> str:
    """A SHA-256, in hexadecimal digits: also the name of a file."""
    value = text(message, key)
    if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise Lost(f"it sent a message without a sensible {key!r}")
    return value


def error_message(error: Error) -> dict[str, object]:
    """An Error -> the message that carries it."""
    return {"error": error.what[:4000], "where": error.where[:1000], "hint": error.hint[:1000]}


def raised(message: Mapping[str, object]) -> Error | None:
    """A message -> the Error that it carries, if any."""
    if "error" not in message:
        return None
    what, where, hint = (str(message.get(k, ""))[:4000] for k in ("error", "where", "hint"))
    return Error(what, where=where, hint=hint)


def shapes(message: Mapping[str, object]) -> list[list[int]]:
    """The shapes of the arrays that come with a message."""
    found = message.get("shapes")
    if not isinstance(found, list) or not all(isinstance(s, list) for s in found):
        raise Lost("it sent a message without sensible 'shapes'")
    return [[count({"shape": n}, "shape") for n in shape] for shape in found]


def arrays(
    values: tuple[Value, ...], data: bytearray, message: Mapping[str, object]
) -> dict[str, Array]:
    """The bytes of arrays, one after the other, and the message with their shapes -> the arrays."""
    found: dict[str, Array] = {}
    at, all_ = 0, shapes(message)
    if len(all_) != len(values):
        raise Error(f"{len(all_)} arrays given, {len(values)} wanted")
    for value, shape in zip(values, all_):
        dtype = numpy_dtype(value.dtype)
        size = prod(shape) * dtype.itemsize
        if at + size <= len(data):
            flat = np.frombuffer(data, np.uint8, size, at) if size else np.zeros(0, np.uint8)
            found[value.name] = shaped(flat.view(dtype), shape, repr(value.name))
        at += size
    if at != len(data):
        raise Error(f"{len(data)} bytes of arrays given, {at} wanted")
    return found
