"""Open sizes -> C: names of arguments, and expressions of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.sizes import Size, parts
from qcompiler.export.names import distinct, identifier

_TAKEN = ("inputs", "outputs", "workspace", "workspace_", "threads")
"""Names of other arguments."""


def arguments(symbols: Sequence[Symbol]) -> list[str]:
    """A C name for each symbol."""
    words = (identifier(s.name) for s in symbols)
    return distinct(f"{word}_size" if word.lower() in _TAKEN else word for word in words)


def expression(size: int | str, known: Mapping[str, str]) -> str:
    """A size -> a C expression of type size_t or int64_t, by the C names of its symbols."""
    if isinstance(size, int):
        return str(size)
    symbol = known.get(size)
    return f"(size_t)({symbol})" if symbol else f"(size_t)({_sum(size, known)})"


def _sum(size: str, known: Mapping[str, str]) -> str:
    terms = []
    for monomial, c in Size.of(size).terms.items():
        factors = [_factor(f, known) for f, power in monomial for _ in range(power)]
        terms.append(" * ".join([f"({c})", *factors]))
    return " + ".join(terms) or "0"


def _factor(factor: str, known: Mapping[str, str]) -> str:
    """A symbol, or a quotient rounded down, by a positive number."""
    if factor[0] != "(":
        return f"(int64_t)({known[factor]})"
    above, below = (f"({_sum(part, known)})" for part in parts(factor))
    return f"({above} / {below} - ({above} % {below} < 0))"
