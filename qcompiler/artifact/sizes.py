"""Sizes that a model leaves open: text <-> integer expressions of symbols.

    batch = Size.of("batch");  (batch * 4 + 8) // 4  ->  Size("batch + 2")

A size is a polynomial of symbols and of quotients, rounded down, that do not come out even. It is
the text of its canonical form, so equal sizes are equal strings, print themselves in types, and are
keys of dicts. It is no number: code that was not written for symbols sees a string where it wants a
number, and cannot take an open size for a known one. Symbols stand for positive integers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import prod
from typing import Union

from qcompiler.errors import Error

Number = Union[int, str]
"""A number, or the text of a size."""
Monomial = tuple[tuple[str, int], ...]
"""((factor, power), ...), factors in order: symbols, and quotients as text."""
Terms = Mapping[Monomial, int]

MOST_TEXT, MOST_TERMS, MOST_POWER, MOST_DEPTH = 4096, 64, 32, 64
_TOKEN = re.compile(r"\s*(?:(\d{1,19})|([A-Za-z_?]\w*)|(//|[-+*()]))")


class Size(str):
    """An integer expression of symbols; `Size.of` makes one."""

    __slots__ = ()

    @staticmethod
    def of(value: Number) -> Size:
        """A symbol, the text of an expression, or a number -> its canonical form. Raises Error
        where the text is no size."""
        return value if isinstance(value, Size) else _made(_parsed(str(value)))

    @property
    def terms(self) -> Terms:
        """Coefficients by monomial."""
        return _parsed(self)

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols that it is made of."""
        return frozenset(_symbols(str(self)))

    def __add__(self, other: Number) -> Size:
        return _made(_sum(self.terms, Size.of(other).terms))

    def __radd__(self, other: Number) -> Size:
        return self + other

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Number) -> Size:
        return self + Size.of(other) * -1

    def __rsub__(self, other: Number) -> Size:
        return Size.of(other) - self

    def __mul__(self, other: Number) -> Size:  # type: ignore[override]
        return _made(_product(self.terms, Size.of(other).terms))

    def __rmul__(self, other: Number) -> Size:  # type: ignore[override]
        return self * other

    def __floordiv__(self, other: Number) -> Size:
        return _made(_quotient(self.terms, Size.of(other).terms))

    def __rfloordiv__(self, other: Number) -> Size:
        return Size.of(other) // self

    def __mod__(self, other: Number) -> Size:
        return self - self // other * Size.of(other)

    def over(self, other: Number) -> Size | None:
        """The quotient if it comes out even for all symbols, else None."""
        made = _even(self.terms, Size.of(other).terms)
        return None if made is None else _made(made)

    def at(self, values: Mapping[str, int]) -> int:
        """The number for values of its symbols. Raises Error for a symbol without one."""
        return _value(self.terms, values)

    def bounds(self, ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
        """The least and the largest value that it may have, or beyond, for symbols in ranges."""
        return _bounds(self.terms, ranges)

    def bounds_if_known(self, ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int] | None:
        """`bounds`, or None if one of its symbols has no range."""
        return self.bounds(ranges) if self.symbols <= ranges.keys() else None


def settled(value: Number) -> Number:
    """A size -> its number, if it has no symbols; else the size."""
    if isinstance(value, int):
        return value
    number = _number(Size.of(value).terms)
    return value if number is None else number


def _made(terms: Terms) -> Size:
    """Terms -> the canonical text: higher powers first."""
    kept = sorted(((m, c) for m, c in terms.items() if c), key=_rank)
    if len(kept) > MOST_TERMS:
        raise Error(f"a size of {len(kept)} terms", hint=f"at most {MOST_TERMS}")
    text = ""
    for monomial, c in kept:
        words = [f for f, power in monomial for _ in range(power)]
        words = [str(abs(c)), *words] if abs(c) != 1 or not words else words
        sign = (" - " if c < 0 else " + ") if text else ("-" if c < 0 else "")
        text += sign + "*".join(words)
    return str.__new__(Size, text or "0")


def _rank(term: tuple[Monomial, int]) -> tuple[int, Monomial]:
    monomial, _ = term
    return -sum(power for _, power in monomial), monomial


def _sum(a: Terms, b: Terms) -> Terms:
    made = dict(a)
    for monomial, c in b.items():
        made[monomial] = made.get(monomial, 0) + c
    return {m: c for m, c in made.items() if c}


def _product(a: Terms, b: Terms) -> Terms:
    made: dict[Monomial, int] = {}
    for m, c in a.items():
        for n, d in b.items():
            both = _joined(m, n)
            made[both] = made.get(both, 0) + c * d
    return {m: c for m, c in made.items() if c}


def _joined(a: Monomial, b: Monomial) -> Monomial:
    powers = dict(a)
    for factor, power in b:
        powers[factor] = powers.get(factor, 0) + power
    if sum(powers.values()) > MOST_POWER:
        raise Error(f"a size of a power above {MOST_POWER}")
    return tuple(sorted(powers.items()))


def _without(a: Monomial, b: Monomial) -> Monomial | None:
    """a / b; None if b does not divide a."""
    powers = dict(a)
    for factor, power in b:
        powers[factor] = powers.get(factor, 0) - power
        if powers[factor] < 0:
            return None
    return tuple(sorted((f, p) for f, p in powers.items() if p))


def _even(a: Terms, b: Terms) -> Terms | None:
    """a / b by long division of polynomials; None where a rest stays."""
    if not b:
        raise Error("a size divided by 0")
    lead, by = min(b.items(), key=_rank)
    made: dict[Monomial, int] = {}
    rest = dict(a)
    for _ in range(MOST_TERMS):
        if not rest:
            return made
        first, c = min(rest.items(), key=_rank)
        part = _without(first, lead)
        if part is None or c % by:
            return None
        made[part] = c // by
        rest = dict(_sum(rest, _product({part: -(c // by)}, b)))
    return None


def _quotient(a: Terms, b: Terms) -> Terms:
    """a // b: what comes out even stands by itself, the rest as a quotient of its own."""
    whole = _even(a, b)
    if whole is not None:
        return whole
    divisor = _number(b)
    if divisor is None:
        return {((f"(({_made(a)})//({_made(b)}))", 1),): 1}
    even = {m: c // divisor for m, c in a.items() if c // divisor}
    rest = {m: c % divisor for m, c in a.items() if c % divisor}
    left = _number(rest)
    if left is not None:
        return _sum(even, {(): left // divisor})
    above, below = _at_once(rest, divisor)
    return _sum(even, {((f"(({_made(above)})//({below}))", 1),): 1})


def _at_once(rest: Terms, divisor: int) -> tuple[Terms, int]:
    """A quotient and a number, divided again: (a // m + c) // n -> (a + c * m) // (m * n)."""
    first, *others = [m for m in rest if m]
    if others or rest[first] != 1 or len(first) != 1 or first[0][1] != 1 or first[0][0][0] != "(":
        return rest, divisor
    above, below = (_parsed(part) for part in parts(first[0][0]))
    by = _number(below)
    if by is None or by < 1 or divisor < 1:
        return rest, divisor
    return _sum(above, {(): rest.get((), 0) * by}), by * divisor


def _number(terms: Terms) -> int | None:
    """The number that terms without symbols are; None for others."""
    return None if set(terms) - {()} else terms.get((), 0)


def _value(terms: Terms, values: Mapping[str, int]) -> int:
    return sum(c * prod(_factor(f, values) ** p for f, p in m) for m, c in terms.items())


def _factor(factor: str, values: Mapping[str, int]) -> int:
    if factor[0] == "(":
        above, below = parts(factor)
        return Size.of(above).at(values) // Size.of(below).at(values)
    if factor not in values:
        raise Error(f"the size {factor!r} is not known")
    return values[factor]


def _bounds(terms: Terms, ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    low = high = 0
    for monomial, c in terms.items():
        least = most = 1
        for factor, power in monomial:
            a, b = _factor_bounds(factor, ranges)
            corners = [x * y for x in (least, most) for y in (a**power, b**power)]
            least, most = min(corners), max(corners)
        low, high = low + min(c * least, c * most), high + max(c * least, c * most)
    return low, high


def _factor_bounds(factor: str, ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    if factor[0] != "(":
        if factor not in ranges:
            raise Error(f"the size {factor!r} is not known")
        return ranges[factor]
    above, below = (Size.of(part).bounds(ranges) for part in parts(factor))
    if below[0] <= 0:
        raise Error(f"{factor} may divide by 0")
    corners = [x // y for x in above for y in below]
    return min(corners), max(corners)


def parts(factor: str) -> tuple[str, str]:
    """ "((a)//(b))" -> its dividend and divisor."""
    depth = 0
    for i, letter in enumerate(factor):
        depth += (letter == "(") - (letter == ")")
        if depth == 1 and factor.startswith("//", i):
            return factor[1:i], factor[i + 2 : -1]
    raise Error(f"{factor!r} is not a quotient")


def _symbols(text: str) -> Iterator[str]:
    return (found[2] for found in _TOKEN.finditer(text) if found[2])


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Terms:
    """The text of an expression -> its terms."""
    if len(text) > MOST_TEXT:
        raise Error(f"a size of {len(text)} letters", hint=f"at most {MOST_TEXT}")
    tokens, at = [], 0
    text = text.strip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise Error(f"{text[:60]!r} is not a size")
        tokens.append(found[0].strip())
        at = found.end()
    reader = _Reading(tokens)
    made = reader.sum()
    if reader.at < len(tokens):
        raise Error(f"{text[:60]!r} is not a size")
    return made


class _Reading:
    """Recursive descent over the tokens of an expression."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = self.depth = 0

    def taken(self, *wanted: str) -> str:
        """The next token, if it is one of those wanted; else ""."""
        token = self.tokens[self.at] if self.at < len(self.tokens) else ""
        if token not in wanted:
            return ""
        self.at += 1
        return token

    def sum(self) -> Terms:
        made = self.product()
        while sign := self.taken("+", "-"):
            more = self.product()
            made = _sum(made, more if sign == "+" else _product(more, {(): -1}))
        return made

    def product(self) -> Terms:
        made = self.factor()
        while sign := self.taken("*", "//"):
            more = self.factor()
            made = _product(made, more) if sign == "*" else _quotient(made, more)
        return made

    def factor(self) -> Terms:
        token = self.tokens[self.at] if self.at < len(self.tokens) else ")"
        self.at, self.depth = self.at + 1, self.depth + 1
        if self.depth > MOST_DEPTH or token in ("+", "*", "//", ")"):
            raise Error(f"{' '.join(self.tokens)[:60]!r} is not a size")
        if token == "-":
            made = _product(self.factor(), {(): -1})
        elif token == "(":
            made = self.sum()
            if not self.taken(")"):
                raise Error(f"{' '.join(self.tokens)[:60]!r} is not a size")
        else:
            made = _sum({}, {(): int(token)} if token.isdigit() else {((token, 1),): 1})
        self.depth -= 1
        return made
