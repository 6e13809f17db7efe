"""Arithmetic on shapes -> the sizes that it computes, some of them open.

Exporters compute the target of a Reshape or Expand by Shape, Gather, Concat, Mul and the like. What
these compute is known as an expression of the sizes that the model leaves open, before it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from qcompiler.artifact.sizes import Size, settled
from qcompiler.ir import Array, Dim, Node, numpy_dtype
from qcompiler.ops.evaluate import LEAVES, known_value, plain_value
from qcompiler.ops.registry import OPERATORS

Sizes = NDArray[Any]
"""An array of dtype object, of numbers and sizes."""

MOST, DEEPEST, MOST_POWER = 64, 100, 8
"""Most sizes in a tensor, longest chain, and highest power, that are followed."""

_MOVES = frozenset({"Identity", "Cast", "Gather", "Concat", "Slice", "Squeeze", "Unsqueeze"})
_MOVES |= {"Reshape", "Expand", "Flatten", "Transpose", "OneHot"}
"""Operators whose numpy meaning only moves elements, whatever these are."""

_known: WeakKeyDictionary[Node, Sizes | None] = WeakKeyDictionary()


def known_sizes(node: Node | None, depth: int = 0) -> Sizes | None:
    """The values of a small integer or bool tensor that depend on constants and on shapes only;
    None for others.
    """
    if node is None or len(node.types) != 1 or not node.type.static or node.type.size > MOST:
        return None
    if not node.dtype.startswith(("int", "uint", "bool")) or depth > DEEPEST:
        return None
    if node not in _known:
        _known[node] = _sizes(node, depth + 1)
    return _known[node]


def is_open(node: Node) -> bool:
    """Is it arithmetic on shapes whose result depends on an open size?"""
    found = known_sizes(node)
    return found is not None and any(isinstance(d, str) for d in found.ravel())


def _numbers(node: Node) -> Array | None:
    """The values, if no open size is among them."""
    found = known_sizes(node)
    if found is None or any(isinstance(d, str) for d in found.ravel()):
        return None
    return found.astype(numpy_dtype(node.dtype))


LEAVES.append(_numbers)


def _sizes(node: Node, depth: int) -> Sizes | None:
    number = plain_value(node)
    if number is not None:
        return np.asarray(number).astype(object)
    if node.op == "Shape":
        end = node.int("end") if node.attrs["end"] is not None else None
        return _array(node.operands[0].shape[node.int("start") : end])
    if node.op == "Size":
        return _array([_product(node.operands[0].shape)]).reshape(())
    if node.op == "item":
        return _piece(node, depth)
    if node.op in _MOVES:
        return _moved(node, depth)
    if node.op in ("ReduceProd", "ReduceSum"):
        return _reduced(node, known_sizes(node.operands[0], depth))
    if node.op == "Where" and known_sizes(node.operands[0], depth) is None:
        return _either(node, depth)
    rule = _fmod if node.attrs.get("fmod") else _RULES.get(node.op)
    operands = [known_sizes(i, depth) for i in node.operands]
    if rule is None or any(o is None for o in operands):
        return None
    made = _each(rule, *operands)
    return None if any(d is None for d in made.ravel()) else made


def _moved(node: Node, depth: int) -> Sizes | None:
    """An operator that moves elements; only the first operand may be open, of Concat all, of OneHot
    the values.
    """
    if node.op == "Cast" and "float" in node.operands[0].dtype:
        numbers = known_value(node.operands[0])  # such as the root of a size that is known
        if numbers is None or node.dtype == "bool" or not np.isfinite(numbers).all():
            return None
        whole = np.trunc(numbers).astype(np.int64)
        return _array(whole.ravel().tolist()).reshape(whole.shape)
    at = {"Concat": slice(None), "OneHot": slice(2, 3)}.get(node.op, slice(1))
    moved = node.operands[at]
    values: list[Any] = []
    for i in node.inputs:
        value = None if i is None else known_sizes(i, depth) if i in moved else plain_value(i)
        if i is not None and value is None:
            return None
        values.append(value)
    if node.op == "Cast":
        only: Sizes = values[0]
        return only
    made = OPERATORS[node.op].meaning(node, *values)
    return made if isinstance(made, np.ndarray) else _array([made]).reshape(())


def _piece(node: Node, depth: int) -> Sizes | None:
    """An output of a Split."""
    whole = node.operands[0]
    if whole.op != "Split" or any(plain_value(i) is None for i in whole.operands[1:]):
        return None
    value = known_sizes(whole.operands[0], depth)
    if value is None:
        return None
    sizes = [plain_value(i) for i in whole.operands[1:]]
    made: Sizes = OPERATORS["Split"].meaning(whole, value, *sizes)[node.int("index")]
    return made


def _reduced(node: Node, sizes: Sizes | None) -> Sizes | None:
    """The product or the sum of a list of sizes."""
    axes = plain_value(node.operands[1]) if len(node.operands) > 1 else np.zeros(1, np.int64)
    if sizes is None or sizes.ndim != 1 or axes is None or axes.size != 1:
        return None
    rule = _mul if node.op == "ReduceProd" else _add
    first: Dim = 1 if node.op == "ReduceProd" else 0
    return _array([reduce(rule, sizes, first)]).reshape(node.type.dims)


def _either(node: Node, depth: int) -> Sizes | None:
    """Where(a == b, x, y) of single sizes, which are equal where a and b are -> y; x of a != b."""
    found = _compared(node.operands[0], depth)
    sides = [known_sizes(i, depth) for i in node.operands[1:]]
    if found is None or any(s is None or s.size != 1 for s in sides):
        return None
    equal, difference = found
    yes, no = (s.item() for s in sides if s is not None)
    if not _vanishes_with(Size.of(yes) - no, difference):
        return None
    return _array([no if equal else yes]).reshape(node.type.dims)


def _compared(condition: Node, depth: int) -> tuple[bool, Size] | None:
    """a == b -> True and a - b, a != b -> False and a - b, of single sizes; None for others."""
    if condition.op == "Not":
        found = _compared(condition.operands[0], depth)
        return found and (not found[0], found[1])
    if condition.op == "And":
        known = [known_sizes(i, depth) for i in condition.operands]
        left = [i for i, k in zip(condition.operands, known, strict=True) if k is None]
        true = all(k is None or k.all() for k in known)
        return _compared(left[0], depth) if len(left) == 1 and true else None
    if condition.op != "Equal" or condition.operands[0].dtype == "bool":
        return None
    sides = [known_sizes(i, depth) for i in condition.operands]
    if any(s is None or s.size != 1 for s in sides):
        return None
    a, b = (s.item() for s in sides if s is not None)
    return True, Size.of(a) - b


def _vanishes_with(size: Size, other: Size) -> bool:
    """Is a size certainly 0 where another is?"""
    if settled(size) == 0:
        return True
    factor = other.over(size)
    if factor is not None:
        return never_below_0(factor - 1)
    return settled(other) != 0 and size.over(other) is not None


def _array(values: Any) -> Sizes:
    made = np.empty(len(values), object)
    made[:] = values
    return made


def _each(rule: Callable[..., Dim | bool | None], *operands: Any) -> Sizes:
    """A rule for each element of the broadcast operands."""
    wide = np.broadcast_arrays(*operands)
    made = np.empty(wide[0].shape, object)
    for at in np.ndindex(made.shape):
        made[at] = rule(*(w[at] for w in wide))
    return made


def _product(dims: Any) -> Dim:
    return settled(reduce(lambda a, b: a * b, map(Size.of, dims), Size.of(1)))


def never_below_0(a: Dim) -> bool:
    """Is it certainly at least 0? Symbols are positive, quotients of sizes at least 0."""
    terms = Size.of(a).terms
    if any(c < 0 for m, c in terms.items() if m):
        return False
    plain = [c for m, c in terms.items() if all(factor[0] != "(" for factor, _ in m)]
    return sum(plain) >= 0


def _add(a: Dim, b: Dim) -> Dim:
    return settled(Size.of(a) + b)


def _sub(a: Dim, b: Dim) -> Dim:
    return settled(Size.of(a) - b)


def _mul(a: Dim, b: Dim) -> Dim:
    return settled(Size.of(a) * b)


def _div(a: Dim, b: Dim) -> Dim | None:
    """ONNX divides towards 0, which is down for what is positive."""
    even = Size.of(a).over(b) if b != 0 else None
    if even is not None:
        return settled(even)
    positive = never_below_0(Size.of(b) - 1) and never_below_0(a)
    return _quotient(a, b) if positive else None


def _quotient(a: Dim, b: Dim) -> Dim | None:
    """Of sizes that are known to be at least 0, and not to be divided by 0."""
    return None if b == 0 else settled(Size.of(a) // b)


def _pow(a: Dim, b: Dim) -> Dim | None:
    """By a small number."""
    if not isinstance(b, int) or not 0 <= b <= MOST_POWER:
        return None
    return settled(reduce(lambda x, y: x * y, [Size.of(a)] * b, Size.of(1)))


def _mod(a: Dim, b: Dim) -> Dim | None:
    """ONNX's rest of integers has the sign of what is divided by, as here."""
    if b != 0 and Size.of(a).over(b) is not None:
        return 0
    return settled(Size.of(a) % b) if never_below_0(Size.of(b) - 1) else None


def _fmod(a: Dim, b: Dim) -> Dim | None:
    """That of C has the sign of what is divided."""
    return _mod(a, b) if never_below_0(a) else None


def _difference(a: Dim, b: Dim) -> int | None:
    """The sign of a - b, where it is the same whatever the open sizes are."""
    found = settled(Size.of(a) - b)
    if isinstance(found, int):
        return (found > 0) - (found < 0)
    if never_below_0(Size.of(found) - 1):
        return 1
    return -1 if never_below_0(-Size.of(found) - 1) else None


def _compare(wanted: Callable[[int], bool]) -> Callable[[Dim, Dim], bool | None]:
    def rule(a: Dim, b: Dim) -> bool | None:
        sign = _difference(a, b)
        return None if sign is None else wanted(sign)

    return rule


def _where(condition: bool, a: Dim, b: Dim) -> Dim:
    return a if condition else b


def _min(a: Dim, b: Dim) -> Dim | None:
    sign = _difference(a, b)
    return None if sign is None else b if sign > 0 else a


def _max(a: Dim, b: Dim) -> Dim | None:
    sign = _difference(a, b)
    return None if sign is None else a if sign > 0 else b


_RULES: Mapping[str, Callable[..., Dim | bool | None]] = {
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Neg": lambda a: _mul(a, -1),
    "Div": _div,
    "quotient": _quotient,
    "Pow": _pow,
    "Mod": _mod,
    "Min": _min,
    "Max": _max,
    "Where": _where,
    "Equal": _compare(lambda sign: sign == 0),
    "Less": _compare(lambda sign: sign < 0),
    "Greater": _compare(lambda sign: sign > 0),
    "LessOrEqual": _compare(lambda sign: sign <= 0),
    "GreaterOrEqual": _compare(lambda sign: sign >= 0),
    "And": lambda a, b: bool(a) and bool(b),
    "Or": lambda a, b: bool(a) or bool(b),
    "Not": lambda a: not a,
}
"""An operator -> what it does to one element; None where that depends on more than is known."""
