"""Kernels follow from their region's key: equal keys are equal code, whatever the constants hold.

Generators cannot look at a constant, and the regions that they are handed prove it; so layers share
a kernel exactly where one kernel is right for all of them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import tvm
from kernel_harness import device, region_of

from qcompiler import plugins
from qcompiler.errors import Skip
from qcompiler.hardware.isa import ISAS, Cpu, Isa
from qcompiler.ir import Array, Graph, Node, Type, constant, placeholder
from qcompiler.kernels.facts import NUMBERS, sealed
from qcompiler.kernels.region import Facts, Region
from qcompiler.kernels.registry import GENERATORS, Kernel, candidates, choose
from qcompiler.ops import OPERATORS, make

plugins.load_all()
KERNELS = Path(__file__).parents[2] / "qcompiler" / "kernels"
SETS = [i for i in ISAS.values() if i.name in ("x86_avx2", "x86_avx512vnni", "x86_amx")]
DRAWS = 6

Rng = np.random.Generator
Draw = Callable[[Rng], tuple[Node, Node | None]]
"""Random constants -> a region's output and its root."""

DRAWN: dict[str, Draw] = {}


def drawn(f: Draw) -> Draw:
    DRAWN[f.__name__] = f
    return f


# -- what regions are drawn from


def value(dtype: str, *shape: int, name: str = "x") -> Node:
    return placeholder(name, Type(dtype, shape))


def some(rng: Rng, dtype: str, *shape: int) -> Node:
    """A constant of any kind: zeros, negative zeros, small, large, beyond all bounds."""
    kind = rng.integers(6)
    if dtype == "int32":
        most = (0, 1, 100, 255, 1 << 20, 1 << 31)[kind]
        return constant(rng.integers(-most, most, shape, endpoint=kind < 5).astype(dtype))
    array = rng.standard_normal(shape) * (0, -0.0, 1e-3, 0.3, 200, 1e8)[kind]
    if kind == 5 and array.size:
        array.reshape(-1)[0] = rng.choice([np.nan, np.inf, 1e30])
    return constant(array.astype(dtype))


def weights(rng: Rng, *shape: int) -> Node:
    """int8, from such as never saturate to such as always do."""
    most = int(rng.choice([3, 15, 60, 127]))
    return constant(rng.integers(-most, most + 1, shape).astype(np.int8))


def ints(*numbers: int) -> Node:
    return constant(np.array(numbers, np.int64))


def bytes_of(rng: Rng, x: Node, *multiplier: int) -> Node:
    """Integers -> scaled, with a bias, and rounded to bytes."""
    sums = make("Add", x, some(rng, "int32", x.type.dims[-1]))
    scale, zero = some(rng, "float32", *multiplier), some(rng, "int32")
    return make("quantize", make("Cast", sums, to="float32"), scale, zero, dtype="uint8")


@drawn
def add(rng: Rng) -> tuple[Node, Node | None]:
    return make("Add", value("float32", 3, 40), some(rng, "float32", 40)), None


@drawn
def several_operators(rng: Rng) -> tuple[Node, Node | None]:
    scaled = make("Mul", value("float32", 5, 7), some(rng, "float32"))
    low, high = some(rng, "float32"), some(rng, "float32")
    return make("PRelu", make("Clip", scaled, low, high), some(rng, "float32", 7)), None


@drawn
def compare(rng: Rng) -> tuple[Node, Node | None]:
    return make("Greater", value("float32", 70), some(rng, "float32")), None


@drawn
def quantize(rng: Rng) -> tuple[Node, Node | None]:
    scale, zero = some(rng, "float32"), some(rng, "int32")
    return make("quantize", value("float32", 4, 33), scale, zero, dtype="int8"), None


@drawn
def dequantize_and_quantize(rng: Rng) -> tuple[Node, Node | None]:
    x = value("uint8", 4, 128)
    floats = make("dequantize", x, some(rng, "float32"), some(rng, "int32"))
    scale, zero = some(rng, "float32"), some(rng, "int32")
    return make("quantize", make("Relu", floats), scale, zero, dtype="uint8"), None


@drawn
def int8_conv(rng: Rng) -> tuple[Node, Node | None]:
    x, w = value("uint8", 1, 6, 6, 32), weights(rng, 3, 3, 32, 64)
    root = make("conv", x, w, pads=(1,) * 4)
    return bytes_of(rng, root, 64), root


@drawn
def small_int8_conv(rng: Rng) -> tuple[Node, Node | None]:
    x, w = value("int8", 1, 5, 5, 4), weights(rng, 1, 1, 4, 8)
    root = make("conv", x, w)
    return bytes_of(rng, root), root


@drawn
def float_conv(rng: Rng) -> tuple[Node, Node | None]:
    w = some(rng, "float32", 3, 3, 16, 32)
    root = make("conv", value("float32", 1, 8, 8, 16), w, pads=(1,) * 4)
    biased = make("Add", root, some(rng, "float32", 32))
    return make("Clip", biased, some(rng, "float32"), some(rng, "float32")), root


@drawn
def depthwise_conv(rng: Rng) -> tuple[Node, Node | None]:
    x, w = value("uint8", 1, 8, 8, 64), weights(rng, 3, 3, 1, 64)
    root = make("conv", x, w, pads=(1,) * 4, group=64)
    return bytes_of(rng, root, 64), root


@drawn
def int8_matmul(rng: Rng) -> tuple[Node, Node | None]:
    root = make("matmul", value("uint8", 9, 64), weights(rng, 64, 48))
    return bytes_of(rng, root), root


@drawn
def float_matmul(rng: Rng) -> tuple[Node, Node | None]:
    root = make("matmul", value("float32", 9, 64), some(rng, "float32", 64, 48))
    return make("Max", make("Add", root, some(rng, "float32", 48)), some(rng, "float32")), root


@drawn
def sparse_matmul(rng: Rng) -> tuple[Node, Node | None]:
    w = rng.standard_normal((256, 256)) * (rng.random((256, 1)) < 0.1)
    root = make("matmul", value("float32", 1, 256), constant(w.astype(np.float32)), density=0.1)
    return make("Mul", root, some(rng, "float32", 256)), root


@drawn
def narrow_matmul(rng: Rng) -> tuple[Node, Node | None]:
    codes = constant(rng.integers(0, 16, (64, 32)).astype(np.uint8))
    scale, zero = some(rng, "float32", 2, 32), some(rng, "float32", 2, 32)
    root = make("matmul_narrow", value("float32", 3, 64), codes, scale, zero, bits=4, group=32)
    return make("Add", root, some(rng, "float32", 32)), root


@drawn
def softmax_and_max(rng: Rng) -> tuple[Node, Node | None]:
    root = make("Softmax", make("Mul", value("float32", 6, 40), some(rng, "float32", 40)))
    return make("Max", root, some(rng, "float32")), root


@drawn
def layer_norm(rng: Rng) -> tuple[Node, Node | None]:
    gain, shift = some(rng, "float32", 40), some(rng, "float32", 40)
    root = make("LayerNormalization", value("float32", 6, 40), gain, shift)
    return make("Add", root, some(rng, "float32", 40)), root


@drawn
def attention(rng: Rng) -> tuple[Node, Node | None]:
    q, k, v = (value("int8", 1, 2, 9, 16, name=n) for n in "qkv")
    scale = constant(np.float32(rng.random()))
    root = make("attention", q, k, v, some(rng, "float32", 9, 9), scale)
    return make("Mul", root, some(rng, "float32")), root


@drawn
def lookup(rng: Rng) -> tuple[Node, Node | None]:
    table = constant(rng.integers(0, 2, 256).astype(np.uint8))
    return make("lookup", value("uint8", 4, 100), table), None


@drawn
def resize(rng: Rng) -> tuple[Node, Node | None]:
    sizes = ints(1, *rng.choice([4, 6, 7], 2), 8)
    root = make("Resize", value("float32", 1, 4, 4, 8), None, None, sizes, mode="linear")
    return make("Add", root, some(rng, "float32", 8)), root


@drawn
def slices(rng: Rng) -> tuple[Node, Node | None]:
    start = int(rng.integers(0, 3))
    root = make("Slice", value("float32", 5, 40), ints(start), ints(start + 2), ints(0))
    return make("Mul", root, some(rng, "float32", 40)), root


@drawn
def pad(rng: Rng) -> tuple[Node, Node | None]:
    before = int(rng.integers(0, 3))
    fill = some(rng, "float32")
    root = make("Pad", value("float32", 5, 40), ints(0, before, 0, 2 - before), fill)
    return make("Clip", root, some(rng, "float32"), some(rng, "float32")), root


@drawn
def reduce(rng: Rng) -> tuple[Node, Node | None]:
    scaled = make("Mul", value("float32", 6, 6, 6), some(rng, "float32"))
    root = make("ReduceSum", scaled, ints(int(rng.integers(0, 3))), keepdims=0)
    return make("Add", root, some(rng, "float32", 6)), root


@drawn
def cumulate(rng: Rng) -> tuple[Node, Node | None]:
    root = make("CumSum", value("float32", 4, 4), constant(np.int64(rng.integers(0, 2))))
    return make("Add", root, some(rng, "float32")), root


@drawn
def pool(rng: Rng) -> tuple[Node, Node | None]:
    root = make("max_pool", value("float32", 1, 6, 6, 24), kernel_shape=(2, 2), strides=(2, 2))
    return make("Mul", root, some(rng, "float32", 24)), root


@drawn
def gather(rng: Rng) -> tuple[Node, Node | None]:
    root = make("Gather", value("float32", 9, 12), ints(*rng.integers(0, 9, 3)))
    return make("Add", root, some(rng, "float32", 12)), root


def handed(drawing: tuple[Node, Node | None], to: Cpu) -> Region:
    """What generators see of a drawn region."""
    output, root = drawing
    graph = Graph((), (output,), ("y",))
    inputs = tuple(n for n in graph.nodes if n.op == "input")
    return sealed(region_of(Graph(inputs, (output,), ("y",)), root), to)


# -- equal keys, equal code


@pytest.mark.parametrize("isa", SETS, ids=lambda i: i.name)
@pytest.mark.parametrize("kind", DRAWN)
def test_regions_of_equal_keys_have_the_same_code_whatever_their_constants(
    kind: str, isa: Isa
) -> None:
    made: dict[str, Kernel] = {}
    shared, rng, on = 0, np.random.default_rng(len(kind)), device(isa, 2)
    for _ in range(DRAWS * 2):
        region = handed(DRAWN[kind](rng), on)
        if region.key in made and shared >= DRAWS:
            continue
        found = choose(region, on).kernel
        assert isinstance(found, Kernel), found
        if region.key not in made:
            made[region.key] = found
            continue
        shared, first = shared + 1, made[region.key]
        tvm.ir.assert_structural_equal(first.func, found.func)
        assert (first.name, first.tasks, first.scratch_bytes, first.in_place) == (
            found.name,
            found.tasks,
            found.scratch_bytes,
            found.in_place,
        )
        assert first.pack.keys() == found.pack.keys()
    assert shared, "no two of the drawn regions share a kernel"


def test_keys_tell_every_difference_that_code_may_follow() -> None:
    """Not two of these regions may share a kernel, though their shapes are the same."""
    x, on = value("float32", 1, 64), device(SETS[0])

    def key(output: Node, root: Node | None) -> str:
        return handed((output, root), on).key

    def number(value: float) -> Node:
        return constant(np.float32(value))

    def rounded(scale: float, zero: int) -> str:
        floats = make("Cast", value("int32", 1, 64), to="float32")
        zeros = constant(np.int32(zero))
        return key(make("quantize", floats, number(scale), zeros, dtype="uint8"), None)

    def product(weights: Array, **attrs: int) -> str:
        root = make("conv", value("uint8", 1, 8, 8, 64), constant(weights), **attrs)
        return key(root, root)

    def cut(start: int) -> str:
        root = make("Slice", x, ints(start), ints(start + 8), ints(1))
        return key(root, root)

    dense, apart = np.ones((3, 3, 64, 64), np.int8), np.ones((3, 3, 1, 64), np.int8)
    found = [
        *(key(make("Add", x, number(n)), None) for n in (0.0, 1.0)),
        key(make("Add", x, value("float32", name="y")), None),
        key(make("Sub", x, number(1.0)), None),
        key(make("Sub", number(1.0), x), None),
        key(make("Add", x, constant(np.float32([1]))), None),
        *(rounded(scale, zero) for scale in (1e-3, 10.0) for zero in (0, 128)),
        *(product(dense * n) for n in (1, 30)),
        *(product(apart * n, group=64) for n in (1, 127)),
        *(cut(start) for start in (0, 8)),
    ]
    assert len(set(found)) == len(found)


def test_keys_tell_nothing_that_code_does_not_follow() -> None:
    """Zero points, scales and weights of another size, names, and who made an operand."""
    x, on = value("float32", 1, 64), device(SETS[0])

    def key(output: Node, root: Node | None = None) -> str:
        return handed((output, root), on).key

    def added(number: float, of: Node, name: str) -> str:
        return key(make("Add", of, constant(np.float32(number), name), name=name))

    assert added(0.5, x, "a") == added(-3e9, value("float32", 1, 64, name="y"), "b")
    assert added(-0.0, x, "a") == added(1.0, x, "a") != added(0.0, x, "a")
    y = value("float32", 4)
    seen = make("Reshape", constant(np.ones((2, 2), np.float32)), ints(4))
    total = make("Add", y, seen)
    through_a_view = Region(None, (total,), (y, seen), total)
    assert sealed(through_a_view, on).key == key(make("Add", y, constant(np.ones(4, np.float32))))


def test_facts_are_written_only_where_there_are_some() -> None:
    assert str(Facts()) == ""
    assert str(Facts(numbers=(1, 2), zero=True, run=4)) == "numbers=(1, 2) zero=True run=4"


def test_bounds_hold_where_integers_wrap_around_and_numbers_are_none() -> None:
    """`fits` holds only if no input can make the scaled value too large for int32."""
    on, numbers = device(SETS[0]), np.float32

    def fits(x: Node, scale: Array) -> bool:
        zero = constant(np.int32(0))
        region = handed((make("quantize", x, constant(scale), zero, dtype="uint8"), None), on)
        return region.known(region.output).fits

    sums = value("int32", 4)
    big = make("Add", sums, constant(np.full(4, 2**31 - 1, np.int32)))
    floats = make("Cast", big, to="float32")
    assert fits(floats, numbers(0.4))
    assert not fits(floats, numbers(0.6))
    assert not fits(floats, np.float32([0.1, np.nan, 0.1, 0.1]))
    assert not fits(floats, np.float32([0.1, np.inf, 0.1, 0.1]))
    assert not fits(value("float32", 4), numbers(1e-30))
    beyond = make("Mul", make("Mul", floats, constant(numbers(1e30))), constant(numbers(1e30)))
    assert not fits(make("Mul", beyond, constant(numbers(1e-30))), numbers(1e-38))
    bytes_ = make("dequantize", value("uint8", 4), constant(numbers(2)), constant(np.int32(255)))
    for name, attrs in (("Relu", {}), ("Swish", {"alpha": 1.702})):
        assert fits(make(name, bytes_, **attrs), numbers(1e5))
        assert not fits(make(name, bytes_, **attrs), numbers(1e8))
        assert not fits(make(name, value("float32", 4), **attrs), numbers(1e-30))
    assert not fits(make("Exp", bytes_), numbers(1e-5))


def test_what_fits_16_bits_is_known_by_column_where_instructions_gain() -> None:
    """By the weights of each column, its addend and its scale."""
    gains, other = device(ISAS["arm_dotprod"]), device(SETS[0])
    rng = np.random.default_rng(0)
    weights = np.ones((1, 1, 64, 3), np.int8) * np.array([1, 10, 100], np.int8)
    weights *= rng.choice([-1, 1], weights.shape).astype(np.int8)
    scales = np.float32([1, 0.1, 0.01])  # 8,192 by each column's scale

    def known(on: Cpu, scale: Array, addend: int = 0, zero: int = -128) -> Facts:
        root = make("conv", value("int8", 1, 4, 4, 64), constant(weights))
        sums = make("Add", root, constant(np.int32([addend, 0, 0])))
        floats, zeros = make("Cast", sums, to="float32"), constant(np.int32(zero))
        made = make("quantize", floats, constant(scale), zeros, dtype="int8")
        region = handed((made, root), on)
        return region.known(region.output)

    assert known(gains, scales).short
    assert not known(gains, np.float32(0.1)).short
    assert not known(gains, scales[::-1].copy()).short
    assert known(gains, scales, 20_000).short
    assert not known(gains, scales, -30_000).short
    assert not known(gains, np.float32([1, np.nan, 0.01])).short
    assert known(gains, scales).least
    assert not known(gains, scales, zero=-127).least
    assert known(gains, np.float32(0.1)).least
    assert not known(other, scales).short
    assert not known(other, scales).least


def test_differences_of_bytes_are_known_to_fit_16_bits_where_instructions_gain() -> None:
    """Where every zero point is a byte of the same dtype."""

    def known(zero: list[int], dtype: str = "uint8", on: Isa = ISAS["arm_dotprod"]) -> bool:
        x, zeros = value(dtype, 4, 2), constant(np.int32(zero))
        region = handed((make("dequantize", x, constant(np.float32(0.1)), zeros), None), device(on))
        return region.known(region.output).short

    assert known([0, 255])
    assert not known([0, 256])
    assert not known([-1, 0])
    assert known([-128, 127], "int8")
    assert not known([-128, 128], "int8")
    assert not known([0, -(2**31)], "int8")
    assert not known([0, 255], on=SETS[0])


# -- generators cannot see more than the key says


def reachable(region: Region) -> Iterator[Node]:
    todo, seen = [region.output, *region.nodes, *region.inputs], set()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            todo.extend(node.operands)


@pytest.mark.parametrize("kind", DRAWN)
def test_no_array_no_name_and_no_maker_is_within_reach_of_a_generator(kind: str) -> None:
    drawing = DRAWN[kind](np.random.default_rng(1))
    region = handed(drawing, device(SETS[0]))
    assert set(reachable(region)) == {*region.nodes, *region.inputs}
    for node in reachable(region):
        assert not node.name
        assert "value" not in node.attrs
    for node in region.inputs:
        assert not node.attrs
        assert not node.inputs
        if node.is_constant:
            with pytest.raises(KeyError):
                _ = node.array


def test_every_generator_is_handed_sealed_regions_only() -> None:
    seen: list[Region] = []

    @candidates("elementwise")
    def curious(region: Region, device: Cpu) -> Skip:
        seen.append(region)
        return Skip("only looking")

    try:
        output = make("Add", value("float32", 4), constant(np.ones(4, np.float32)))
        region = region_of(Graph((output.operands[0],), (output,), ("y",)), None)
        choose(region, device(SETS[0]))
        curious(region, device(SETS[0]))
    finally:
        GENERATORS["elementwise"] = [g for g in GENERATORS["elementwise"] if g.name != "curious"]
    assert len(seen) == 2
    assert all(r.facts is not None and r.inputs != region.inputs for r in seen)


class Other(Cpu):
    """Another kind of device."""


def test_generators_are_asked_for_their_own_kind_of_device_only() -> None:
    seen: list[Cpu] = []

    @candidates("elementwise", kind=Other)
    def curious(region: Region, device: Cpu) -> Skip:
        seen.append(device)
        return Skip("only looking")

    here = device(SETS[0])
    other = Other(**{f.name: getattr(here, f.name) for f in fields(here)})
    output = make("Abs", value("float32", 4))
    region = region_of(Graph((output.operands[0],), (output,), ("y",)), None)
    try:
        for each in (here, other):
            choose(region, each)
    finally:
        GENERATORS["elementwise"] = [g for g in GENERATORS["elementwise"] if g.name != "curious"]
    assert seen == [other]


FORBIDDEN = {"known_value", "evaluate", "array", "_KNOWN"}
"""Names by which code could come to a constant's numbers."""


@pytest.mark.parametrize(
    "path", sorted(KERNELS.rglob("*.py")), ids=lambda p: str(p.relative_to(KERNELS))
)
def test_only_facts_reads_constants(path: Path) -> None:
    """`.array`, `known_value` and other ways to a constant's numbers stand in facts.py alone."""
    if path.stem == "facts":
        return
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            numpy_s = isinstance(node.value, ast.Name) and node.value.id == "np"
            found += [node.attr] if node.attr in FORBIDDEN and not numpy_s else []
        elif isinstance(node, ast.ImportFrom):
            found += [a.name for a in node.names if a.name in FORBIDDEN]
            if node.module == "qcompiler.kernels.facts" and path.stem != "registry":
                found.append(node.module)
        elif isinstance(node, (ast.Subscript, ast.Call)) and "attrs" in ast.unparse(node):
            found += [a for a in ("['value']", "('value'") if a in ast.unparse(node)]
    assert not found, f"{path.name} reads {', '.join(found)}: ask region.known, or pack"


def test_operators_whose_code_follows_numbers_are_operators() -> None:
    assert set(NUMBERS) <= set(OPERATORS)
    for op, places in NUMBERS.items():
        assert 0 not in places
        assert max(places) < OPERATORS[op].arity[1]
