"""Arithmetic on open sizes that is only known by what these may be: at every size what the model
means there.
"""

from __future__ import annotations

import pytest

from qcompiler.errors import Error
from tests.rewrite.test_padding import Ranges, check, model_of, opened

WIDTH = """sh = Shape(x) i = Constant<value_int=1>() one = Constant<value_ints=[1]>()
    w = Gather(sh, i)"""


def text(made: str) -> str:
    """A model that repeats its channels as often as some arithmetic on its width says: `n`."""
    return f"""g (float[2,w,3] x) => (float[2,m,3] y, int64[k] steps) {{ {WIDTH} {made}
        flat = Reshape(n, one) two = Constant<value_ints=[2]>() three = Constant<value_ints=[3]>()
        target = Concat<axis=0>(two, flat, three) mean = ReduceMean<keepdims=1>(x, one)
        y = Expand(mean, target) zero = Constant<value_int=0>() steps = Range(zero, n, i) }}"""


KNOWN: dict[str, tuple[str, Ranges]] = {
    "a quotient of a difference": (
        "a = Constant<value_int=3>() b = Constant<value_int=2>() c = Sub(w, a) n = Div(c, b)",
        {"w": (5, 12)},
    ),
    "the larger": (
        "a = Constant<value_int=4>() z = Constant<value_int=0>() c = Sub(w, a) n = Max(z, c)",
        {"w": (5, 9)},
    ),
    "the smaller": ("a = Constant<value_int=9>() n = Min(a, w)", {"w": (2, 9)}),
    "a comparison": (
        """a = Constant<value_int=4>() b = Constant<value_int=6>() c = Less(w, a)
        d = Mul(w, b) e = GreaterOrEqual(w, i) f = And(c, e) n = Where(f, d, w)""",
        {"w": (4, 8)},
    ),
    "a power": ("a = Constant<value_int=2>() n = Pow(w, a)", {"w": (1, 4)}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_sizes_are_known_by_what_others_may_be(name: str) -> None:
    made, ranges = KNOWN[name]
    check(text(made), ranges)


BEYOND: dict[str, tuple[str, Ranges]] = {
    "a quotient of a difference": (KNOWN["a quotient of a difference"][0], {"w": (1, 12)}),
    "the larger": (KNOWN["the larger"][0], {"w": (2, 9)}),
    "the smaller": (KNOWN["the smaller"][0], {"w": (2, 10)}),
    "a comparison": (KNOWN["a comparison"][0], {"w": (3, 8)}),
    "what may be none": (
        """a = Constant<value_int=1>() b = Constant<value_int=2>() c = Sub(w, a) d = Div(c, b)
        n = Add(d, a)""",
        {"w": (0, 5)},
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_differs_between_the_sizes_of_a_range_is_refused(name: str) -> None:
    made, ranges = BEYOND[name]
    with pytest.raises(Error, match=r"depends on data, or is not known|cannot stay open"):
        opened(model_of(text(made)), ranges)
