"""Symbolic evaluation of formulas of one variable, to prove that two are the same function.

This is the third implementation of `Math`, after numpy's and the kernels'. Agreement at any number
of points would be no proof.

A value is split at finitely many cuts (where a Max, a Clip or a comparison switches) into stretches
of the number line, on each of which it is a quotient of sums of terms

    coefficient * x^n * exp(polynomial in x) * erf(...)^k * log(...)^k

Sigmoid, Tanh and Softplus become such quotients, so every spelling of a function has the same
quotient after cross-multiplication. Anything else (Floor, Sin, Max(Exp(x), x), ...) raises Unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

Poly = tuple[tuple[int, float], ...]
"""((degree, coefficient), ...), degrees ascending."""

MOST_TERMS, MOST_POWER = 200, 8
NOISE = 2.0**-40
"""Relative residue of terms that cancel, from rounding in float64."""


class Unknown(Exception):
    """Raised for a formula that cannot be represented."""


class Atom(NamedTuple):
    """erf or log of a sum."""

    name: str
    of: tuple[tuple[Key, float], ...]


class Key(NamedTuple):
    """x^power * exp(exponent) * atoms."""

    power: int
    exponent: Poly = ()
    atoms: tuple[tuple[Atom, int], ...] = ()


Sum = Mapping[Key, float]
ONE = Key(0)


def _short(c: float) -> float:
    """Rounded to twelve digits, so that float64 rounding does not distinguish equal terms."""
    return float(f"{c:.12g}")


def _added(a: Sum, b: Sum, sign: float = 1.0) -> Sum:
    made = dict(a)
    for key, c in b.items():
        old, new = made.get(key, 0.0), sign * c
        if abs(old + new) <= NOISE * (abs(old) + abs(new)):
            made.pop(key, None)
        else:
            made[key] = old + new
    return made


def _poly(a: Poly, b: Poly) -> Poly:
    total = dict(a)
    for degree, c in b:
        total[degree] = _short(total.get(degree, 0.0) + c)
    return tuple(sorted((d, c) for d, c in total.items() if c))


def _key(a: Key, b: Key) -> Key:
    atoms = dict(a.atoms)
    for atom, power in b.atoms:
        atoms[atom] = atoms.get(atom, 0) + power
    return Key(a.power + b.power, _poly(a.exponent, b.exponent), tuple(sorted(atoms.items())))


def _times(a: Sum, b: Sum) -> Sum:
    if len(a) * len(b) > MOST_TERMS:
        raise Unknown
    made: Sum = {}
    for first, c in a.items():
        for second, d in b.items():
            made = _added(made, {_key(first, second): c * d})
    return made


@dataclass(frozen=True)
class Quotient:
    """above / below."""

    above: Sum
    below: Sum

    def __add__(self, other: Quotient) -> Quotient:
        if self.below == other.below:
            return Quotient(_added(self.above, other.above), self.below)
        above = _added(_times(self.above, other.below), _times(other.above, self.below))
        return Quotient(above, _times(self.below, other.below))

    def __mul__(self, other: Quotient) -> Quotient:
        return Quotient(_times(self.above, other.above), _times(self.below, other.below))

    def __truediv__(self, other: Quotient) -> Quotient:
        if not other.above:
            raise Unknown
        return self * Quotient(other.below, other.above)

    def power(self, exponent: int) -> Quotient:
        """Integer power; a negative exponent inverts."""
        if abs(exponent) > MOST_POWER:
            raise Unknown
        made = number(1.0)
        for _ in range(abs(exponent)):
            made = made * self
        return number(1.0) / made if exponent < 0 else made

    def sum(self) -> Sum:
        """The numerator divided by a constant denominator."""
        if set(self.below) != {ONE}:
            raise Unknown
        return {k: c / self.below[ONE] for k, c in self.above.items()}

    def line(self) -> tuple[float, float]:
        """(a, b) for a * x + b."""
        terms = self.sum()
        if not set(terms) <= {ONE, Key(1)}:
            raise Unknown
        return terms.get(Key(1), 0.0), terms.get(ONE, 0.0)

    def at(self, x: float) -> float:
        """The value at x."""
        return _value(self.above, x) / _value(self.below, x)


def number(c: float) -> Quotient:
    """A constant."""
    if not math.isfinite(c):
        raise Unknown
    return Quotient({ONE: c} if c else {}, {ONE: 1.0})


def _value(terms: Sum, x: float) -> float:
    total = 0.0
    for key, c in terms.items():
        power = sum(a * x**d for d, a in key.exponent)
        if power > 700:
            raise Unknown
        made = c * x**key.power * math.exp(power)
        for atom, times in key.atoms:
            inner = _value(dict(atom.of), x)
            made *= (math.erf(inner) if atom.name == "erf" else math.log(inner)) ** times
        total += made
    return total


def _atom(name: str, of: Sum) -> Atom:
    return Atom(name, tuple(sorted((k, _short(c)) for k, c in of.items())))


def exp(x: Quotient) -> Quotient:
    """exp(polynomial + n * log(w)) = exp(polynomial) * w^n."""
    exponent: dict[int, float] = {}
    made, factor = number(1.0), 1.0
    for key, c in x.sum().items():
        if not key.exponent and not key.atoms and key.power:
            exponent[key.power] = _short(c)
        elif key == ONE:
            factor = math.exp(min(c, 700.0))
        elif key.power == 0 and not key.exponent and len(key.atoms) == 1:
            (atom, power), times = key.atoms[0], round(c)
            if atom.name != "log" or power != 1 or abs(times - c) > NOISE:
                raise Unknown
            made = made * Quotient(dict(atom.of), {ONE: 1.0}).power(times)
        else:
            raise Unknown
    return made * Quotient({Key(0, tuple(sorted(exponent.items()))): factor}, {ONE: 1.0})


def log(x: Quotient) -> Quotient:
    """log(c * exp(p) * (1 + ...)) = log(c) + p + log(1 + ...), p the smallest exponent."""
    terms = x.sum()
    if not terms or any(k.power or k.atoms or c <= 0 for k, c in terms.items()):
        raise Unknown
    least = min(terms, key=lambda k: [dict(k.exponent).get(d, 0.0) for d in range(1, 17)])
    c, back = terms[least], Key(0, tuple((d, -a) for d, a in least.exponent))
    rest = {_key(k, back): value / c for k, value in terms.items()}
    made: Sum = {Key(d): a for d, a in least.exponent}
    made = _added(made, number(math.log(c)).above)
    if len(rest) > 1:
        made = _added(made, {Key(0, (), ((_atom("log", rest), 1),)): 1.0})
    return Quotient(made, {ONE: 1.0})


def erf(x: Quotient) -> Quotient:
    """An atom, normalized by erf(-u) = -erf(u)."""
    terms = x.sum()
    if not terms:
        return number(0.0)
    sign = 1.0 if terms[min(terms)] > 0 else -1.0
    atom = _atom("erf", {k: sign * c for k, c in terms.items()})
    return Quotient({Key(0, (), ((atom, 1),)): sign}, {ONE: 1.0})


Part = Quotient | bool


@dataclass(frozen=True, eq=False)
class Stretches:
    """parts[i] between cuts[i - 1] and cuts[i], points[i] at cuts[i]; each a Quotient or, for a
    condition, a bool.
    """

    cuts: tuple[float, ...]
    parts: tuple[Part, ...]
    points: tuple[Part, ...]

    def __add__(self, other: V) -> Stretches:
        return _each(lambda a, b: a + b, self, other)

    __radd__ = __add__

    def __mul__(self, other: V) -> Stretches:
        return _each(lambda a, b: a * b, self, other)

    __rmul__ = __mul__

    def __neg__(self) -> Stretches:
        return self * -1.0

    def __sub__(self, other: V) -> Stretches:
        return self + -lifted(other)

    def __rsub__(self, other: V) -> Stretches:
        return lifted(other) + -self

    def __truediv__(self, other: V) -> Stretches:
        return _each(lambda a, b: a / b, self, other)

    def __rtruediv__(self, other: V) -> Stretches:
        return lifted(other) / self

    def __lt__(self, other: V) -> Stretches:
        return _compared(lambda d: d < 0, self - other)

    def __le__(self, other: V) -> Stretches:
        return _compared(lambda d: d <= 0, self - other)

    def __gt__(self, other: V) -> Stretches:
        return _compared(lambda d: d > 0, self - other)

    def __ge__(self, other: V) -> Stretches:
        return _compared(lambda d: d >= 0, self - other)

    def __and__(self, other: V) -> Stretches:
        return _each(lambda a, b: a and b, self, other)

    def __or__(self, other: V) -> Stretches:
        return _each(lambda a, b: a or b, self, other)

    def __xor__(self, other: V) -> Stretches:
        return _each(lambda a, b: a is not b, self, other)

    def __eq__(self, other: V) -> Stretches:  # type: ignore[override]
        return _compared(lambda d: d == 0, self - other)

    def __ne__(self, other: V) -> Stretches:  # type: ignore[override]
        return _compared(lambda d: d != 0, self - other)

    __hash__ = None  # type: ignore[assignment]

    def _unknown(self, *_: object) -> Stretches:
        """Operators that cannot be represented."""
        raise Unknown

    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = _unknown
    __lshift__ = __rshift__ = __invert__ = _unknown

    def ends(self) -> list[tuple[float, float]]:
        """Where each part begins and ends."""
        return list(pairwise((-math.inf, *self.cuts, math.inf)))

    def cut_at(self, cuts: Iterable[float]) -> Stretches:
        """The same value with additional cuts."""
        wanted = sorted({*self.cuts, *cuts})
        at = {c: p for c, p in zip(self.cuts, self.points, strict=True)}
        parts = [self.over(_middle(a, b)) for a, b in pairwise((-math.inf, *wanted, math.inf))]
        return Stretches(
            tuple(wanted), tuple(parts), tuple(at.get(c, self.over(c)) for c in wanted)
        )

    def over(self, x: float) -> Part:
        """The part containing x, which is not a cut."""
        return self.parts[sum(c < x for c in self.cuts)]


V = Stretches | float
VARIABLE = Stretches((), (Quotient({Key(1): 1.0}, {ONE: 1.0}),), ())


def lifted(value: V | bool) -> Stretches:
    """A number or bool -> a constant function."""
    if isinstance(value, Stretches):
        return value
    return Stretches((), (value if isinstance(value, bool) else number(float(value)),), ())


def _middle(low: float, high: float) -> float:
    if math.isinf(low):
        return high - 1 - abs(high) if math.isfinite(high) else 0.0
    return low + 1 + abs(low) if math.isinf(high) else (low + high) / 2


def _each(f: Callable[..., Part], *values: V) -> Stretches:
    """Apply f stretch by stretch."""
    given = [lifted(v) for v in values]
    cuts = {c for v in given for c in v.cuts}
    aligned = [v.cut_at(cuts) for v in given]
    parts = tuple(f(*p) for p in zip(*(v.parts for v in aligned), strict=True))
    points = tuple(f(*p) for p in zip(*(v.points for v in aligned), strict=True))
    return Stretches(aligned[0].cuts, parts, points)


def _compared(holds: Callable[[float], bool], difference: Stretches) -> Stretches:
    """Where a difference, linear on each stretch, compares as given with 0."""
    roots = []
    for (low, high), part in zip(difference.ends(), difference.parts, strict=True):
        a, b = _quotient(part).line()
        if a and low < -b / a < high:
            roots.append(-b / a + 0.0)  # no negative zero
    cut = difference.cut_at(roots)
    parts = []
    for (low, high), part in zip(cut.ends(), cut.parts, strict=True):
        a, b = _quotient(part).line()
        parts.append(holds(a * _middle(low, high) + b if a else b))
    values = zip(cut.cuts, cut.points, strict=True)
    points = [holds(0.0 if x in roots else _quotient(p).at(x)) for x, p in values]
    return Stretches(cut.cuts, tuple(parts), tuple(points))


def _quotient(part: Part) -> Quotient:
    if isinstance(part, bool):
        raise Unknown
    return part


class SymbolicMath:
    """`Math` on stretches; missing methods raise Unknown."""

    def __getattr__(self, name: str) -> Any:
        def unknown(*_: object) -> Stretches:
            raise Unknown(name)

        return unknown

    def where(self, condition: V | bool, a: V, b: V) -> Stretches:
        return _each(lambda c, x, y: x if c else y, lifted(condition), a, b)

    def max(self, a: V, b: V) -> Stretches:
        return self.where(lifted(a) < b, b, a)

    def min(self, a: V, b: V) -> Stretches:
        return self.where(lifted(a) > b, b, a)

    def clip(self, x: V, low: V | None, high: V | None) -> Stretches:
        above = lifted(x) if low is None else self.max(x, low)
        return above if high is None else self.min(above, high)

    def abs(self, x: V) -> Stretches:
        return self.where(lifted(x) < 0, -x, x)

    def exp(self, x: V) -> Stretches:
        return _each(lambda p: exp(_quotient(p)), x)

    def log(self, x: V) -> Stretches:
        return _each(lambda p: log(_quotient(p)), x)

    def erf(self, x: V) -> Stretches:
        return _each(lambda p: erf(_quotient(p)), x)

    def tanh(self, x: V) -> Stretches:
        twice = self.exp(lifted(x) * 2.0)
        return (twice - 1.0) / (twice + 1.0)

    def divide(self, a: V, b: V) -> Stretches:
        return lifted(a) / b

    def pow(self, x: V, y: V) -> Stretches:
        slope, exponent = _quotient(lifted(y).parts[0]).line()
        if lifted(y).cuts or slope or exponent != round(exponent):
            raise Unknown
        return _each(lambda p: _quotient(p).power(round(exponent)), x)

    def logical_not(self, x: V) -> Stretches:
        return _each(lambda p: not p, x)


SYMBOLS = SymbolicMath()


def same(f: Stretches, g: Stretches, tolerance: float) -> bool:
    """Are two values equal everywhere, up to a relative error of their coefficients?

    Cuts at nearly the same place are one; nothing but 0 is near 0.
    """
    cuts: list[float] = []
    for c in sorted({*f.cuts, *g.cuts}):
        if not cuts or abs(c - cuts[-1]) > tolerance * max(abs(c), abs(cuts[-1])):
            cuts.append(c)
    for low, high in pairwise((-math.inf, *cuts, math.inf)):
        middle = _middle(low, high)
        a, b = _quotient(f.over(middle)), _quotient(g.over(middle))
        if not all(_positive(p.below, middle, low >= 0 or high <= 0) for p in (a, b)):
            return False
        if not _vanishes(a, b, tolerance):
            return False
    return all(_near(_at(f, c, tolerance), _at(g, c, tolerance), tolerance) for c in cuts)


def _at(f: Stretches, x: float, tolerance: float) -> float:
    """The value at a cut, or at one nearby."""
    for cut, part in zip(f.cuts, f.points, strict=True):
        if abs(cut - x) <= tolerance * max(abs(cut), abs(x)):
            return _quotient(part).at(cut)
    return _quotient(f.over(x)).at(x)


def _near(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))


def _positive(terms: Sum, x: float, one_sign: bool) -> bool:
    """Is every term of a denominator positive on the stretch containing x?

    `one_sign`: the whole stretch is on x's side of 0.
    """
    side = math.copysign(1.0, x)
    return all(
        not k.atoms and (k.power % 2 == 0 or one_sign) and c * side**k.power > 0
        for k, c in terms.items()
    )


def _vanishes(a: Quotient, b: Quotient, tolerance: float) -> bool:
    """Is every term of a.above * b.below - b.above * a.below negligible against its addends?"""
    left, right = _times(a.above, b.below), _times(b.above, a.below)
    clusters: list[tuple[Key, list[float]]] = []
    for terms, sign in ((left, 1.0), (right, -1.0)):
        for key, c in terms.items():
            kin = next((found for k, found in clusters if _alike(k, key, tolerance)), None)
            if kin is None:
                clusters.append((key, [sign * c]))
            else:
                kin.append(sign * c)
    return all(abs(sum(c)) <= tolerance * sum(map(abs, c)) for _, c in clusters)


def _alike(a: Key, b: Key, tolerance: float) -> bool:
    """Are two terms equal up to rounding of the numbers inside?"""
    if a.power != b.power or len(a.atoms) != len(b.atoms):
        return False
    if not _close(
        {Key(d): c for d, c in a.exponent}, {Key(d): c for d, c in b.exponent}, tolerance
    ):
        return False
    return all(
        x.name == y.name and n == m and _close(dict(x.of), dict(y.of), tolerance)
        for (x, n), (y, m) in zip(a.atoms, b.atoms, strict=True)
    )


def _close(a: Sum, b: Sum, tolerance: float) -> bool:
    """Do two sums have the same terms with nearly the same coefficients?"""
    pairs = zip(sorted(a.items()), sorted(b.items()), strict=False)
    return len(a) == len(b) and all(
        _alike(j, k, tolerance) and abs(c - d) <= tolerance * max(abs(c), abs(d))
        for (j, c), (k, d) in pairs
    )
