"""Strings of open sizes: Python computes them in the sizes of a run, and machine code what is made
of them; sizes outside their ranges, or that differ where they must not, are errors.
"""

from __future__ import annotations

import numpy as np
import pytest

import qcompiler
from qcompiler.errors import Error
from qcompiler.ir import Array
from tests.rewrite.test_padding import model_of

WORDS = ("", "monday", "a b", "a,b,,c", "Tuesday", "x y  z", "ab")


def words(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).choice(np.array(WORDS, object), shape)


def compiled(text: str, **dims: str) -> qcompiler.Model:
    return qcompiler.load(qcompiler.compile(model_of(f"g {text}", 21), dims=dims, threads=1))


COUNTED = """(string[n,m] t, float[n,m] x) => (string[n,m,k] parts, float[n,m] y, int64[2] size) {
    parts, c = StringSplit<delimiter=" ">(t) r = Cast<to=1>(c) y = Mul(r, x) size = Shape(t) }"""


def test_numbers_of_strings_are_used_in_runs_of_any_size() -> None:
    model = compiled(COUNTED, n="1..5", m="1..7")
    assert [str(s) for s in model.manifest.symbols] == ["n = 1 to 5", "m = 1 to 7"]
    for seed, (n, m) in enumerate([(1, 1), (5, 7), (2, 5), (1, 7), (5, 1), (2, 5)]):
        t, x = words(n, m, seed=seed), np.full((n, m), 2, np.float32)
        found = model.run({"t": t, "x": x})
        each = [s.split(" ") for s in t.ravel()]
        wanted = np.reshape([2 * len(p) for p in each], (n, m))
        np.testing.assert_array_equal(found["y"], wanted)
        assert found["size"].tolist() == [n, m]
        assert found["parts"].shape[:2] == (n, m)
        for parts, own in zip(found["parts"].reshape(n * m, -1), each, strict=True):
            assert parts.tolist()[: len(own)] == own


def test_sizes_of_strings_are_checked_as_others_are() -> None:
    model = compiled(COUNTED, n="1..5", m="1..7")
    x = np.ones((2, 3), np.float32)
    with pytest.raises(Error, match="m is 8, the artifact takes m = 1 to 7"):
        model.run({"t": words(2, 8), "x": np.ones((2, 8), np.float32)})
    with pytest.raises(Error, match="m is not the same in all inputs"):
        model.run({"t": words(2, 4), "x": x})
    with pytest.raises(Error, match=r"shape \[3\] given, \['n', 'm'\] wanted"):
        model.run({"t": words(3), "x": x})


def test_a_model_of_strings_alone_keeps_its_sizes_open() -> None:
    model = compiled(
        """(string[n] a, string[n] b) => (string[n] y, bool[n] same) {
        y = StringConcat(a, b) same = Equal(a, b) }""",
        n="2..6",
    )
    assert [s.name for s in model.manifest.symbols] == ["n"]
    for n in (2, 3, 6):
        a, b = words(n, seed=n), words(n, seed=n + 1)
        found = model.run({"a": a, "b": b})
        assert found["y"].tolist() == [s + t for s, t in zip(a, b, strict=True)]
        assert found["same"].tolist() == [s == t for s, t in zip(a, b, strict=True)]
    for n in (1, 7):
        with pytest.raises(Error, match=f"n is {n}, the artifact takes n = 2 to 6"):
            model.run({"a": words(n), "b": words(n)})
    with pytest.raises(Error, match=r"shape \[3\] given, \[2\] wanted"):
        model.run({"a": words(2), "b": words(3)})


def test_sizes_of_several_names_that_strings_make_equal() -> None:
    """Of which either may be 1, unless both are known to be above."""
    text = "(string[n] a, string[m] b) => (string[k] y) { y = StringConcat(a, b) }"
    for least in (1, 2):
        model = compiled(text, n=f"{least}..6", m=f"{least}..6")
        a, b = words(4), words(4, seed=1)
        found = model.run({"a": a, "b": b})["y"]
        assert found.tolist() == [s + t for s, t in zip(a, b, strict=True)]
        with pytest.raises(Error):
            model.run({"a": a, "b": b[:3]})
    one = compiled(text, n="1..6", m="1..6").run({"a": words(4), "b": words(1)})["y"]
    assert one.tolist() == [s + words(1)[0] for s in words(4)]


def test_what_text_decides_the_size_of_is_no_input_of_machine_code() -> None:
    text = """(string[n] t) => (bool[n,k] y) { p, c = StringSplit<delimiter=" ">(t) e = Equal(p, p)
        y = Not(e) }"""
    with pytest.raises(Error, match="its size depends on text"):
        compiled(text, n="1..6")


def test_results_belong_to_their_run() -> None:
    model = compiled(
        """(string[n] a) => (string[n] y, string[2] z) <string[2] k = {"s", "t"}> {
        y = Identity(a) z = Identity(k) }""",
        n="1..6",
    )
    a = words(3)
    first = model.run({"a": a})
    first["y"][:] = "changed"
    first["z"][:] = "changed"
    assert a.tolist() == words(3).tolist()
    assert model.run({"a": a})["z"].tolist() == ["s", "t"]
