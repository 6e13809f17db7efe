"""Operators on strings; they run in Python, before a model's machine code."""

from __future__ import annotations

from typing import Any

from qcompiler.errors import Error
from qcompiler.ir import Node, Type
from qcompiler.ops.registry import Numbers, broadcast, fresh, operator, typed
from qcompiler.ops.shapes import need_rank
from qcompiler.runtime import text


def _of_text(node: Node) -> Type:
    if any(i.dtype != "string" for i in node.operands):
        raise Error("inputs that are not strings")
    return node.operands[0].type


@operator("StringConcat")
def string_concat(node: Node, x: Numbers, y: Numbers) -> Numbers:
    return text.concat(node.attrs, x, y)[0]


@typed(string_concat)
def _(node: Node) -> Type:
    _of_text(node)
    return Type("string", broadcast(*(i.shape for i in node.operands)))


@operator("RegexFullMatch", pattern=None)
def regex_full_match(node: Node, x: Numbers) -> Numbers:
    """Whether whole strings fit a regular expression."""
    return text.full_match(node.attrs, x)[0]


@typed(regex_full_match)
def _(node: Node) -> Type:
    return Type("bool", _of_text(node).shape)


@operator("StringSplit", delimiter=None, maxsplit=None)
def string_split(node: Node, x: Numbers) -> tuple[Numbers, Numbers]:
    """Parts, filled up with empty strings, and the number of parts."""
    parts, counts = text.split(node.attrs, x)
    return parts, counts


@typed(string_split)
def _(node: Node) -> tuple[Type, Type]:
    x = _of_text(node)
    return Type("string", (*x.shape, fresh())), Type("int64", x.shape)


_NORMALIZER: dict[str, Any] = {
    "case_change_action": "NONE",
    "is_case_sensitive": 0,
    "locale": None,
    "stopwords": None,
}


@operator("StringNormalizer", **_NORMALIZER)
def string_normalizer(node: Node, x: Numbers) -> Numbers:
    """Without stop words, in upper or lower case."""
    return text.normalized(node.attrs, x)[0]


@typed(string_normalizer)
def _(node: Node) -> Type:
    x = _of_text(node)
    need_rank(node.operands[0], 1, "input")
    if x.rank > 2 or (x.rank == 2 and x.shape[0] != 1):
        raise Error(f"{x} is neither [C] nor [1, C]")
    if node.str("case_change_action") not in ("NONE", "LOWER", "UPPER"):
        raise Error(f"unknown case_change_action {node.attrs['case_change_action']!r}")
    return Type("string", (*x.shape[:-1], fresh()))
