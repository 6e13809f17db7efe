"""Merge consecutive Casts if the first is lossless.

Cast(Cast(x, wide), y)  ->  Cast(x, y)     if the wide dtype holds every value of x's dtype
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.rewrite import op, rule
from qcompiler.rewrite.matching import rebuilt

BITS = {
    "bool": ("u", 1),
    **{f"uint{n}": ("u", n) for n in (4, 8, 16, 32, 64)},
    **{f"int{n}": ("i", n - 1) for n in (4, 8, 16, 32, 64)},
    "float16": ("f", 11),
    "bfloat16": ("b", 8),
    "float32": ("F", 24),
    "float64": ("D", 53),
}
"""dtype -> (kind, bits of an integer it holds exactly)."""

FLOATS_INSIDE = {"f": "FD", "b": "FD", "F": "D", "D": ""}


@rule(op("Cast", op("Cast", shared=True)))
def fold_cast_twice(outer: Node, inner: Node) -> Node | None:
    """Cast(Cast(x, wide), y) -> Cast(x, y)."""
    x = inner.operands[0]
    return rebuilt(outer, (x,)) if x.dtype != "bool" and lossless(x.dtype, inner.dtype) else None


def lossless(narrow: str, wide: str) -> bool:
    """Is every value of one dtype also a value of the other?"""
    if narrow == wide:
        return True
    if narrow not in BITS or wide not in BITS:
        return False
    (kind, bits), (wide_kind, wide_bits) = BITS[narrow], BITS[wide]
    if kind in FLOATS_INSIDE:
        return wide_kind in FLOATS_INSIDE[kind]
    signed = wide_kind != "u"
    return bits <= wide_bits and (signed or kind == "u") and wide != "bool"
