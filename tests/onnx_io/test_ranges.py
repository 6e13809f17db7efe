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
    "a rest": ("a = Constant<value_int=4>() n = Mod(a, w)", {"w": (5, 9)}),
    "a rest from behind": ("a = Constant<value_int=-4>() n = Mod(a, w)", {"w": (4, 9)}),
    "an equality": (
        """a = Constant<value_int=4>() q = Div(w, a) nil = Constant<value_int=0>()
        e = Equal(q, nil) d = Mul(w, a) n = Where(e, d, w)""",
        {"w": (4, 8)},
    ),
    "an equality of what is always none": (
        """a = Constant<value_int=9>() q = Div(w, a) nil = Constant<value_int=0>()
        e = Equal(q, nil) d = Mul(w, a) n = Where(e, d, w)""",
        {"w": (4, 8)},
    ),
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
    "an equality": (KNOWN["an equality"][0], {"w": (3, 8)}),
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


def cut(ends: str) -> str:
    """A model that reads a part of two open sizes, up to constant ends."""
    return f"""g (float[n,m,3] x) => (float[a,b,3] y) {{
        low = Constant<value_ints=[1,0]>() ends = Constant<value_ints=[{ends}]>()
        axes = Constant<value_ints=[1,0]>() y = Slice(x, low, ends, axes) }}"""


@pytest.mark.parametrize("ends", ["40,30", "25,19", "25,30", "40,19"])
def test_a_part_that_is_longer_or_shorter_than_all_sizes_is_read(ends: str) -> None:
    check(cut(ends), {"n": (19, 22), "m": (25, 27)})


def test_a_part_without_axes_is_read() -> None:
    made = """g (float[n,m] x) => (float[n,b] y) { low = Constant<value_ints=[0,0]>()
        ends = Constant<value_ints=[30,20]>() one = Constant<value_ints=[1,1]>()
        y = Slice(x, low, ends, , one) }"""
    check(made, {"n": (19, 22), "m": (25, 27)})


def test_a_part_that_is_longer_than_some_sizes_is_refused() -> None:
    with pytest.raises(Error, match="depends on data"):
        opened(model_of(cut("40,20")), {"n": (19, 22), "m": (25, 27)})


BAGS = """one = Constant<value_ints=[1]>() zero = Constant<value_ints=[0]>()
    most = Constant<value_ints=[9223372036854775807]>() ends = Slice(of, one, most, zero)
    sh = Shape(ends) i0 = Constant<value_int=0>() bags = Gather(sh, i0)
    on = Constant<value=bool[1] {1}>() yes = Squeeze(on)
    y = Loop(bags, yes) <body = sums (int64 i, bool go) => (bool more, float[k] row) {
        more = Identity(go) a = Gather(of, i) b = Gather(ends, i) first = Unsqueeze(a, zero)
        behind = Unsqueeze(b, zero) part = Slice(x, first, behind, zero)
        row = ReduceSum<keepdims=0>(part, zero) }>"""
PARTS: dict[str, tuple[str, Ranges]] = {
    "from the front": (
        """(float[n,3] x, int64[1] a, int64[1] b) => (float[3] y) {
        zero = Constant<value_ints=[0]>() part = Slice(x, a, b)
        y = ReduceSum<keepdims=0>(part, zero) }""",
        {"n": (1, 9)},
    ),
    "from behind": (
        """(float[n,3] x, int64[1] a, int64[1] b) => (float[3] y) {
        zero = Constant<value_ints=[0]>() seven = Constant<value_ints=[7]>() low = Sub(a, seven)
        part = Slice(x, low, b) w = Softmax<axis=0>(part) both = Mul(part, w)
        y = ReduceSum<keepdims=0>(both, zero) }""",
        {"n": (1, 9)},
    ),
    "bags of rows": (
        f"(float[n,3] x, int64[b] of) => (float[c,3] y) {{ {BAGS} }}",
        {"n": (1, 9), "b": (2, 6)},
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_data_say_which_part_of_an_open_size_is_read(name: str) -> None:
    made, ranges = PARTS[name]
    check(f"g {made}", ranges)


def test_a_part_that_data_decide_of_what_is_open_besides_is_refused_by_name() -> None:
    made = """g (float[n,m] x, int64[1] a, int64[1] b) => (float[m] y) {
        zero = Constant<value_ints=[0]>() part = Slice(x, a, b, zero)
        y = ReduceSum<keepdims=0>(part, zero) }"""
    with pytest.raises(Error, match="depends on data"):
        opened(model_of(made), {"n": (1, 4), "m": (2, 5)})
