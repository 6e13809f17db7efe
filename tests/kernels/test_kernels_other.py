"""Elementwise, copying, picking and scattering kernels against numpy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import Graph, check, device, region_of, vector_isas

import qcompiler.kernels.cpu.elements.elementwise
import qcompiler.kernels.cpu.moves.indexing  # noqa: F401  (registers its generators)
from qcompiler.emit.machine import compile_functions
from qcompiler.emit.tasks import phases
from qcompiler.errors import Skip
from qcompiler.hardware.isa import Isa
from qcompiler.ir import Array, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.cpu.code.epilogue import merged
from qcompiler.kernels.cpu.moves.copy import copy
from qcompiler.kernels.cpu.moves.views import boxes
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Kernel
from qcompiler.ops import make

ISAS = pytest.mark.parametrize("isa", vector_isas(), ids=lambda i: i.name)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "uint8", "bool", "bfloat16", "int64"])


def random(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    rng = np.random.default_rng((seed, *shape))
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if "float" in dtype:
        return rng.standard_normal(shape).astype(numpy_dtype(dtype))
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def given(dtype: str, shape: tuple[int, ...], seed: int = 0) -> tuple[Node, Array]:
    """A graph input and a value for it."""
    return placeholder(f"x{seed}", Type(dtype, shape)), random(dtype, shape, seed)


def ints(*values: int) -> Node:
    return constant(np.array(values, np.int64))


def scalar(value: float) -> Node:
    return constant(np.float32(value))


def agrees(
    output: Node, root: Node | None, pairs: list[tuple[Node, Array]], isa: Isa, threads: int = 1
) -> Kernel:
    inputs, arrays = [p[0] for p in pairs], [p[1] for p in pairs]
    return check(output, root, arrays, inputs, isa, threads=threads)


# Elementwise regions.

BROADCASTS = [
    ((5, 7), (7,)),
    ((3, 16), (3, 1)),
    ((2, 3, 17), (2, 1, 17)),
    ((33,), ()),
    ((4, 5, 6, 7), (5, 1, 7)),
    ((2, 3, 4, 5), (3, 1, 1)),
    ((1,), (1,)),
    ((), ()),
    ((2, 1, 65), (1, 63, 1)),
    ((64, 16), (64, 16)),
    ((1, 15), (1, 15)),
]


@ISAS
@pytest.mark.parametrize(("left", "right"), BROADCASTS)
def test_operands_broadcast_as_numpy_says(
    left: tuple[int, ...], right: tuple[int, ...], isa: Isa
) -> None:
    x, y = given("float32", left), given("float32", right, 1)
    made = make("Relu", make("Add", make("Mul", x[0], y[0]), y[0]))
    agrees(made, None, [x, y], isa)


@ISAS
def test_threads_share_rows_and_long_rows(isa: Isa) -> None:
    for left, right in (((1000, 257), (257,)), ((1, 250_003), (1,)), ((3, 90_001), (3, 1))):
        x, y = given("float32", left), given("float32", right, 1)
        kernel = agrees(make("Mul", make("Add", x[0], y[0]), y[0]), None, [x, y], isa, 2)
        assert kernel.tasks in (1, 2)


def test_what_fills_no_vector_belongs_to_a_task() -> None:
    """A few long rows in bytes: nothing outside the tasks may fill registers."""
    for shape in ((1, 90_001), (2, 45_007)):
        x = given("float32", shape)
        made = make("quantize", x[0], scalar(20), constant(np.int32(3)), dtype="uint8")
        kernel = agrees(made, None, [x], vector_isas()[-1], 2)
        assert len(phases(kernel, 2)) == 1


def test_a_tiny_region_starts_no_threads() -> None:
    x = given("float32", (1, 1000))
    assert agrees(make("Relu", x[0]), None, [x], vector_isas()[-1], 8).tasks == 1


@ISAS
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_quantized_residual_is_exact(dtype: str, isa: Isa) -> None:
    x, y = given(dtype, (3, 37)), given(dtype, (3, 37), 1)
    zero = constant(np.int32(5))
    total = make(
        "Add",
        make("dequantize", x[0], scalar(0.03), zero),
        make("dequantize", y[0], scalar(0.05), zero),
    )
    made = make("quantize", make("Relu", total), scalar(20), zero, dtype=dtype)
    kernel = agrees(made, None, [x, y], isa)
    assert set(kernel.in_place) == {0, 1} or kernel.in_place


@ISAS
def test_dtypes_mix_in_one_region(isa: Isa) -> None:
    x, y, c = given("float32", (4, 33)), given("int64", (33,), 1), given("bool", (4, 33), 2)
    kept = make("Where", c[0], make("Cast", y[0], to="float32"), x[0])
    agrees(make("Cast", kept, to="bfloat16"), None, [x, y, c], isa)
    agrees(make("And", make("Less", x[0], kept), c[0]), None, [x, y, c], isa)


def test_merged_dimensions_are_few() -> None:
    x = placeholder("x", Type("float32", (1,)))
    dims, steps = merged((2, 3, 4, 5), {x: (3, 1, 1)}, keep_last=False)
    assert (dims, steps[x]) == ((2, 3, 20), (0, 1, 0))
    assert merged((2, 3, 4), {x: (2, 3, 4)}, keep_last=False)[0] == (24,)
    assert merged((2, 3, 4), {x: (2, 3, 4)}, keep_last=True)[0] == (6, 4)
    assert merged((), {x: ()}, keep_last=True)[0] == (1,)


# Copies.

TRANSPOSES = [
    ((2, 3, 5, 7), (0, 2, 3, 1)),
    ((1, 3, 17, 16), (0, 2, 3, 1)),
    ((1, 17, 16, 3), (0, 3, 1, 2)),
    ((33, 65), (1, 0)),
    ((1, 64), (1, 0)),
    ((3, 4, 5, 6), (3, 2, 1, 0)),
    ((2, 3, 4, 5), (0, 2, 1, 3)),
    ((1, 1, 1), (2, 1, 0)),
    ((2, 70, 4, 4), (0, 2, 3, 1)),
    ((64, 64), (1, 0)),
    ((9, 67, 2), (0, 2, 1)),
    ((9, 4, 67), (0, 2, 1)),
    ((2, 37, 3, 3), (0, 2, 1, 3)),
    ((3, 16, 2, 7), (0, 2, 1, 3)),
]


@ISAS
@DTYPES
@pytest.mark.parametrize(("shape", "perm"), TRANSPOSES)
def test_transposes_of_every_shape(
    shape: tuple[int, ...], perm: tuple[int, ...], dtype: str, isa: Isa
) -> None:
    x = given(dtype, shape)
    made = make("Transpose", x[0], perm=perm)
    agrees(made, made, [x], isa)


@ISAS
def test_an_image_is_transposed_and_quantized_by_two_threads(isa: Isa) -> None:
    x = given("float32", (1, 3, 150, 151))
    scaled = make("Mul", x[0], constant(random("float32", (3, 1, 1), 1)))
    turned = make("Transpose", scaled, perm=(0, 2, 3, 1))
    each, zero = constant(np.array([30, 20, 10], np.float32)), constant(np.int32(100))
    made = make("quantize", turned, each, zero, dtype="uint8")
    agrees(made, turned, [x], isa, 2)


@ISAS
def test_work_before_and_after_a_transpose(isa: Isa) -> None:
    x, y = given("float32", (2, 40, 9, 11)), given("float32", (2, 9, 11, 40), 1)
    scaled = make("Mul", x[0], constant(random("float32", (40, 1, 1), 2)))
    turned = make("Transpose", scaled, perm=(0, 2, 3, 1))
    agrees(make("Relu", make("Add", turned, y[0])), turned, [x, y], isa)
    short = given("float32", (4, 21, 3, 3), 5)
    turned = make("Transpose", short[0], perm=(0, 2, 1, 3))
    agrees(make("Mul", make("Relu", turned), scalar(1.7)), turned, [short], isa, 2)
    for channels in (40, 3):
        q = given("uint8", (2, 9, 11, channels), 3)
        scales = constant(random("float32", (channels,), 4))
        real = make("dequantize", q[0], scales, constant(np.int32(3)))
        turned = make("Transpose", real, perm=(0, 3, 1, 2))
        agrees(turned, turned, [q], isa)
        turned = make("Transpose", q[0], perm=(0, 3, 1, 2))
        real = make("dequantize", turned, scalar(0.1), constant(np.int32(3)))
        agrees(real, turned, [q], isa)


SLICES = [
    ((1,), (3,), (0,), (1,)),
    ((1, 2), (9, 30), (1, 2), (1, 1)),
    ((0,), (100,), (2,), (2,)),
    ((-1,), (-100,), (1,), (-1,)),
    ((30,), (2,), (2,), (-3,)),
    ((0, 0, 0), (4, 10, 32), (0, 1, 2), (1, 1, 1)),
    ((0,), (3,), (2,), (1,)),
    ((-3,), (1000,), (2,), (1,)),
]


@ISAS
@DTYPES
def test_slices_splits_and_joins(dtype: str, isa: Isa) -> None:
    x = given(dtype, (4, 10, 33))
    for cut in SLICES:
        made = make("Slice", x[0], *(ints(*part) for part in cut))
        agrees(made, made, [x], isa)
    pieces = make("Split", x[0], axis=1, num_outputs=3)
    for index in range(3):
        made = make("item", pieces, index=index)
        agrees(made, made, [x], isa)
    for axis in range(3):
        other = given(dtype, tuple(7 if a == axis else d for a, d in enumerate((4, 10, 33))), 1)
        single = given(dtype, tuple(1 if a == axis else d for a, d in enumerate((4, 10, 33))), 2)
        made = make("Concat", x[0], other[0], single[0], axis=axis)
        agrees(made, made, [x, other, single], isa, 2)


@ISAS
@DTYPES
def test_values_are_repeated_and_rearranged(dtype: str, isa: Isa) -> None:
    x = given(dtype, (3, 1, 5, 1))
    for target in ((2, 3, 4, 5, 17), (3, 1, 5, 1), (3, 2, 5, 2)):
        made = make("Expand", x[0], ints(*target))
        agrees(made, made, [x], isa)
    x = given(dtype, (4, 3, 17))
    for repeats in ((2, 1, 3), (1, 1, 1), (1, 5, 1)):
        made = make("Tile", x[0], ints(*repeats))
        agrees(made, made, [x], isa)
    for mode in ("DCR", "CRD"):
        x = given(dtype, (2, 12, 3, 5))
        made = make("DepthToSpace", x[0], blocksize=2, mode=mode)
        agrees(made, made, [x], isa)
        x = given(dtype, (2, 3, 4, 6))
        made = make("SpaceToDepth", x[0], blocksize=2, mode=mode)
        agrees(made, made, [x], isa)


@ISAS
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pads_of_every_mode(mode: str, dtype: str, isa: Isa) -> None:
    x, value = given(dtype, (4, 10, 33)), given(dtype, (), 1)
    for pads in (
        (1, 2, 3, 0, 1, 2),
        (0, 0, 0, 0, 0, 30),
        (0, -2, 1, 0, 0, -5),
        (0, 3, 3, 0, 2, 2),
        (-1, -2, -3, -1, -2, -3),
        (0, 0, 0, 0, 0, 0),
    ):
        made = make("Pad", x[0], ints(*pads), value[0], mode=mode)
        agrees(made, made, [x, value], isa)
    made = make("Pad", x[0], ints(2, 3), None, ints(-1), mode=mode)
    agrees(made, made, [x], isa, 2)


@ISAS
def test_pads_and_joins_are_fused(isa: Isa) -> None:
    x, y = given("float32", (2, 30, 31, 24)), given("float32", (2, 30, 31, 8), 1)
    above = make("Relu", x[0])
    zero = constant(np.int32(128))
    padded = make("Pad", above, ints(0, 1, 1, 0, 0, 1, 1, 0))
    scales = constant(np.abs(random("float32", (32,), 2)) * 10)
    agrees(make("quantize", padded, scalar(9), zero, dtype="uint8"), padded, [x], isa)
    joined = make("Concat", above, y[0], axis=3)
    agrees(make("quantize", joined, scales, zero, dtype="int8"), joined, [x, y], isa, 2)


def test_every_element_of_the_output_is_in_one_box() -> None:
    x, y = (placeholder(n, Type("float32", (2, 6, 5))) for n in "xy")
    for node in (
        make("Pad", x, ints(1, 0, 2, 0, 3, 1)),
        make("Pad", x, ints(1, 0, 2, 0, 3, 1), mode="edge"),
        make("Concat", x, y, axis=1),
        make("Tile", x, ints(2, 1, 3)),
    ):
        region = sealed(region_of(Graph((x, y), (node,), ("z",)), node), device(vector_isas()[-1]))
        found = boxes(region)
        assert not isinstance(found, Skip)
        assert sum(box.size for box in found) == node.type.size


def test_starts_known_at_run_time_only_are_no_box() -> None:
    x = placeholder("x", Type("float32", (8,)))
    starts = placeholder("s", Type("int64", (1,)))
    made = make("Slice", x, starts, ints(4), ints(0))
    typed = Node("Slice", made.inputs, made.attrs, (Type("float32", (4,)),))
    region = region_of(Graph((x, starts), (typed,), ("y",)), typed)
    assert isinstance(copy(region, device(vector_isas()[-1])), Skip)


# Values picked and put by index.


def places(shape: tuple[int, ...], size: int, seed: int = 5) -> Array:
    """Indices from both ends."""
    return np.random.default_rng(seed).integers(-size, size, shape)


@ISAS
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
def test_gathers(dtype: str, isa: Isa) -> None:
    x = given(dtype, (5, 7, 33))
    for axis, shape in ((0, ()), (0, (4,)), (1, (2, 3)), (2, (1,)), (-1, (3, 2))):
        where = places(shape, (5, 7, 33)[axis])
        at = placeholder("i", Type("int64", shape))
        made = make("Gather", x[0], at, axis=axis)
        agrees(made, made, [x, (at, where)], isa, 2)
    for axis in range(3):
        shape = tuple(9 if a == axis else d - 1 for a, d in enumerate((5, 7, 33)))
        where = places(shape, (5, 7, 33)[axis]).astype(np.int32)
        at = placeholder("i", Type("int32", shape))
        made = make("GatherElements", x[0], at, axis=axis)
        agrees(made, made, [x, (at, where)], isa)
    for shape, batch in (((4, 1), 0), ((2, 3, 3), 0), ((5, 2, 1), 1), ((5, 2), 1), ((3,), 0)):
        sizes = (5, 7, 33)[batch:]
        where = np.stack([places(shape[:-1], sizes[i], i) for i in range(shape[-1])], -1)
        at = placeholder("i", Type("int64", shape))
        made = make("GatherND", x[0], at, batch_dims=batch)
        agrees(made, made, [x, (at, where)], isa)


@ISAS
def test_an_embedding_is_scaled_and_quantized_as_it_is_read(isa: Isa) -> None:
    x = given("float32", (30, 64))
    at, where = placeholder("i", Type("int64", (2, 50))), places((2, 50), 30)
    scaled = make("Mul", x[0], constant(random("float32", (64,), 1)))
    rows = make("Gather", scaled, at, axis=0)
    total = make("Add", rows, constant(random("float32", (50, 64), 2)))
    made = make("quantize", total, scalar(40), constant(np.int32(128)), dtype="uint8")
    agrees(made, rows, [x, (at, where)], isa, 2)


def test_an_index_outside_reads_the_edge() -> None:
    x = given("float32", (5, 16))
    at, where = placeholder("i", Type("int64", (3,))), np.array([1 << 40, -99, 4])
    made = make("Gather", x[0], at, axis=0)
    want = x[1][[4, 0, 4]]  # not the 0 that 2^40 is in 32 bits
    isa = vector_isas()[-1]
    check(made, made, [x[1], where], [x[0], at], isa, want=want)


@ISAS
@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatters(reduction: str, isa: Isa) -> None:
    for dtype in ("float32", "int32"):
        x = given(dtype, (5, 7, 33))
        for axis in range(3):
            shape = tuple(3 if a == axis else d - 1 for a, d in enumerate((5, 7, 33)))
            order = np.array([0, 2, 4]).reshape([3 if a == axis else 1 for a in range(3)])
            where = np.broadcast_to(order, shape) if reduction == "none" else places(shape, 5)
            at = placeholder("i", Type("int64", shape))
            updates = given(dtype, shape, 1)
            made = make("ScatterElements", x[0], at, updates[0], axis=axis, reduction=reduction)
            agrees(made, made, [x, (at, np.ascontiguousarray(where)), updates], isa)
        for depth in (1, 2, 3):
            where = np.stack([np.arange(4) - 2] * depth, -1)
            where = where if reduction == "none" else np.concatenate([where, where[:1]])
            at = placeholder("i", Type("int64", where.shape))
            updates = given(dtype, (len(where), *(5, 7, 33)[depth:]), 1)
            made = make("ScatterND", x[0], at, updates[0], reduction=reduction)
            agrees(made, made, [x, (at, where), updates], isa)


def test_kernels_ask_for_the_vectors_of_their_instruction_set() -> None:
    """The widest registers of each are in the machine code of a copy."""
    registers = {16: "xmm", 32: "ymm", 64: "zmm"}
    for isa in vector_isas():
        x = placeholder("x", Type("float32", (64, 64)))
        made = make("Relu", x)
        kernel = agrees(made, None, [(x, random("float32", (64, 64)))], isa)
        text = compile_functions([(kernel.name, kernel.func)], isa).inspect_source("asm")
        assert registers[isa.vector_bytes] in text
