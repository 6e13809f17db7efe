"""Graphs: immutable nodes with types, and their text form."""

from qcompiler.ir.graph import (
    CHECK,
    EXTENT,
    MAX_ELEMENTS,
    MAX_RANK,
    SIZE,
    Array,
    Attr,
    Dim,
    Graph,
    Node,
    Type,
    constant,
    numpy_dtype,
    placeholder,
    substitute,
    walk,
)

__all__ = [
    "CHECK",
    "EXTENT",
    "MAX_ELEMENTS",
    "MAX_RANK",
    "SIZE",
    "Array",
    "Attr",
    "Dim",
    "Graph",
    "Node",
    "Type",
    "constant",
    "numpy_dtype",
    "placeholder",
    "substitute",
    "walk",
]
