"""Sizes are canonical: equal expressions are equal texts, and texts are read back."""

import random
from collections.abc import Callable

import pytest

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.onnx_io.dims import multiple

BATCH, SEQ = Size.of("batch"), Size.of("seq")
Rule = Callable[[dict[str, int]], int]


def made(source: random.Random, depth: int) -> tuple[Size, Rule]:
    """A random expression, and how Python computes it."""
    if depth == 0 or source.random() < 0.2:
        leaf = source.choice(("batch", "seq", source.randint(0, 9)))
        return Size.of(leaf), lambda v: v[leaf] if isinstance(leaf, str) else leaf
    a, f = made(source, depth - 1)
    b, g = made(source, depth - 1)
    n = source.randint(1, 6)
    return source.choice(
        (
            (a + b, lambda v: f(v) + g(v)),
            (a - b, lambda v: f(v) - g(v)),
            (a * b, lambda v: f(v) * g(v)),
            (a // n, lambda v: f(v) // n),
            (a % n, lambda v: f(v) % n),
        )
    )


def test_sizes_are_what_python_computes_within_their_bounds() -> None:
    for seed in range(300):
        size, rule = made(random.Random(seed), 3)
        assert Size.of(str(size)) == size
        low, high = size.bounds({"batch": (1, 16), "seq": (1, 9)})
        for batch, seq in ((1, 2), (5, 7), (9, 4), (16, 3)):
            values = {"batch": batch, "seq": seq}
            assert low <= size.at(values) == rule(values) <= high


def test_equal_sizes_are_equal_texts() -> None:
    assert (BATCH * 4 + 8) // 4 == "batch + 2" == 2 + BATCH
    assert BATCH * SEQ * 2 == SEQ * 2 * BATCH
    assert (BATCH * BATCH - 1) // (BATCH - 1) == BATCH + 1
    assert (BATCH + 5) // 2 == (BATCH + 1) // 2 + 2 != BATCH // 2 + 2
    assert settled(BATCH - BATCH + 3) == 3
    assert (BATCH * 6).over(4) is None
    assert (BATCH * 6).over(3) == BATCH * 2


def test_a_size_is_no_number() -> None:
    with pytest.raises(TypeError):
        range(BATCH)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="invalid literal"):
        int(BATCH)
    with pytest.raises(TypeError):
        BATCH < 4  # type: ignore[operator]  # noqa: B015


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 +",
        "a b",
        "a$",
        "(" * 3000,
        "-" * 3000,
        "x" * 5000,
        "a//0",
        "*".join("a" * 40),
        "2.5",
        "((a)",
        "//",
        "+".join(f"s{i}" for i in range(70)) + "*2",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Error):
        str(Size.of(text))


def test_a_symbol_without_a_number_is_named() -> None:
    with pytest.raises(Error, match="'seq' is not known"):
        (BATCH + SEQ).at({"batch": 2})


def test_a_multiple_is_divided_evenly_by_what_divides_its_step() -> None:
    size = multiple("h", 32)
    assert Size.of(str(size)) == size
    assert size.symbols == {"h"}
    assert size // 2 == (size + 1) // 2 == (size - 1) // 2 + 1 == size // 4 * 2
    assert size % 16 == "0"
    assert size.over(8) == size // 8
    assert size.over(64) is None
    assert (size // 32 + 1) // 2 != size // 64
    assert size.at({"h": 96}) == 96
    assert size.bounds({"h": (64, 512)}) == (64, 512)
    assert multiple("h", 1) == "h"
