"""Contractions in tile registers, run by real machine code: on the CPU, or on the emulator."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tvm
from emulator import load_or_skip
from kernel_harness import Fenced, compare, expected, made, region_of, run
from tvm import tirx

from qcompiler import load, plugins
from qcompiler.emit.assemble import assemble
from qcompiler.emit.machine import compile_functions
from qcompiler.emit.native import emit_kernel
from qcompiler.errors import Skip
from qcompiler.hardware import cpu
from qcompiler.hardware.core import REFERENCE, Core
from qcompiler.hardware.isa import ISAS, Cpu, Isa, host
from qcompiler.hardware.products import TileMac
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tails import Tails
from qcompiler.kernels.cpu.contraction.operands import tile_of
from qcompiler.kernels.cpu.contraction.problem import Problem, problem_of
from qcompiler.kernels.cpu.matrix.block import Blocks
from qcompiler.kernels.cpu.matrix.contraction import emitted, tiles
from qcompiler.kernels.cpu.matrix.layout import layouts
from qcompiler.kernels.cpu.matrix.model import Choice, choices
from qcompiler.kernels.cpu.matrix.right import pack
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Kernel, Region, choose
from qcompiler.ops import evaluate, make
from qcompiler.plan.plan import plan

plugins.load_all()

TILED = [i for i in ISAS.values() if any(isinstance(m, TileMac) for m in i.macs)]
PAIRS = [("uint8", "int8"), ("int8", "int8"), ("bfloat16", "bfloat16")]


@pytest.fixture(autouse=True)
def _emulator() -> None:
    load_or_skip(flag for isa in TILED for flag in isa.cpu_flags)


@pytest.fixture(params=TILED, ids=lambda i: i.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    found: Isa = request.param
    return found


def device(isa: Isa, threads: int = 1) -> Cpu:
    return Cpu("test", isa, threads, l1_bytes=48 << 10, l2_bytes=2 << 20)


def random(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Integers over their whole range, its ends often; floats around zero."""
    rng = np.random.default_rng((seed, *shape))
    if numpy_dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max + 1, shape)
        ends = rng.choice([info.min, info.max], shape)
        return np.where(rng.random(shape) < 0.3, ends, values).astype(dtype)
    return rng.standard_normal(shape).astype(numpy_dtype(dtype))


def region_around(root: Node, output: Node) -> tuple[Graph, Region]:
    graph = Graph((), (output,), ("y",))
    graph = Graph(tuple(n for n in graph.nodes if n.op == "input"), (output,), ("y",))
    return graph, region_of(graph, root)


def values_of(graph: Graph, region: Region) -> dict[Node, Array]:
    values = {n: random(n.dtype, n.type.dims, i) for i, n in enumerate(graph.inputs)}
    return values | {n: n.array for n in region.inputs if n.is_constant}


def check(
    root: Node,
    isa: Isa,
    output: Node | None = None,
    *,
    threads: int = 1,
    choice: Choice | None = None,
    values: Mapping[Node, Array] | None = None,
) -> Kernel:
    """The kernel of a region around `root`, on random inputs, against numpy."""
    graph, region = region_around(root, output or root)
    kernel: Kernel | Skip
    on = device(isa, threads)
    if choice:
        kernel = emitted(region, on, choice)
    else:
        kernel = made(tiles, region, device(isa, threads))
    assert isinstance(kernel, Kernel), kernel
    values = values or values_of(graph, region)
    got, want = run(kernel, region, isa, values), expected(graph, values)
    depth = kernel.macs / root.type.size
    compare(got, want, rtol=1e-6 * depth**0.5, atol=4e-7 * depth)
    return kernel


def matmul(
    a: tuple[int, ...],
    b: tuple[int, ...],
    left: str,
    right: str,
    *,
    constant_b: bool = True,
    **k: int,
) -> Node:
    y = constant(random(right, b, 7), "b") if constant_b else placeholder("b", Type(right, b))
    return make("matmul", placeholder("a", Type(left, a)), y, **k)


def conv(x: tuple[int, ...], w: tuple[int, ...], left: str, right: str, **attrs: object) -> Node:
    return make("conv", placeholder("x", Type(left, x)), constant(random(right, w, 7)), **attrs)


def problem(root: Node, isa: Isa) -> tuple[Problem, TileMac]:
    mac, found = tile_of(isa, root), problem_of(root, 1, REFERENCE, upright=True)
    assert mac is not None
    assert isinstance(found, Problem)
    return found, mac


# -- products


ROWS = (1, 15, 16, 17, 31, 32, 33, 67)
COLUMNS = (1, 15, 16, 17, 31, 32, 33, 49)
DEPTHS = (1, 2, 3, 16, 17, 31, 33, 63, 64, 65, 100, 191)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_products_of_awkward_shapes_equal_numpy(isa: Isa, pair: tuple[str, str]) -> None:
    for i, k in enumerate(DEPTHS):
        m, n = ROWS[i % len(ROWS)], COLUMNS[(3 * i) % len(COLUMNS)]
        check(matmul((m, k), (k, n), *pair), isa)
    check(matmul((100, 520), (520, 33), *pair), isa)  # left rows pass by the nearest cache
    for i, m in enumerate(ROWS):
        check(matmul((m, 64), (64, COLUMNS[i % len(COLUMNS)]), *pair), isa)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("transposed", [0, 1])
def test_right_operands_made_at_run_time_are_packed(
    isa: Isa, pair: tuple[str, str], transposed: int
) -> None:
    shapes = [
        ((40, 64), (64, 48)),
        ((17, 35), (35, 33)),
        ((3, 1), (1, 1)),
        ((2, 33, 70), (2, 70, 17)),
        ((2, 1, 16, 33), (1, 3, 33, 20)),
        ((3, 20, 67), (67, 31)),
    ]
    for a, b in shapes:
        b = (*b[:-2], b[-1], b[-2]) if transposed else b
        check(matmul(a, b, *pair, constant_b=False, transpose_b=transposed), isa)


def test_weights_may_differ_from_image_to_image(isa: Isa) -> None:
    check(matmul((2, 3, 18, 24), (3, 24, 20), "uint8", "int8"), isa)
    check(matmul((2, 3, 18, 24), (2, 1, 20, 24), "int8", "int8", transpose_b=1), isa)


WINDOWS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]] = [
    ((1, 14, 14, 32), (3, 3, 32, 48), {"pads": (1, 1, 1, 1)}),
    ((1, 14, 15, 32), (3, 3, 32, 48), {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
    (
        (2, 9, 11, 20),
        (3, 3, 20, 17),
        {"pads": (2, 1, 0, 3), "strides": (2, 1), "dilations": (1, 2)},
    ),
    ((1, 13, 17, 3), (7, 7, 3, 33), {"pads": (3, 3, 3, 3), "strides": (2, 2)}),
    ((1, 12, 12, 64), (3, 3, 32, 36), {"group": 2, "pads": (1, 1, 1, 1)}),
    ((1, 9, 9, 34), (1, 1, 17, 34), {"group": 2}),
    ((2, 9, 10, 32), (1, 1, 32, 34), {"strides": (2, 3)}),
    ((1, 12, 12, 16), (3, 3, 16, 34), {}),
    ((1, 12, 12, 19), (3, 2, 19, 16), {"dilations": (2, 3)}),
    ((1, 16, 16, 3), (4, 4, 3, 40), {"strides": (4, 4)}),
    ((1, 5, 5, 8), (5, 5, 8, 16), {"pads": (4, 4, 4, 4), "strides": (3, 3), "dilations": (2, 1)}),
    ((2, 40, 24), (3, 24, 24), {"pads": (1, 1)}),
    ((1, 41, 23), (5, 23, 20), {"strides": (3,)}),
    ((1, 30, 17), (3, 17, 18), {"dilations": (4,), "pads": (3, 4), "strides": (2,)}),
    ((3, 4, 1, 20), (1, 1, 20, 16), {"pads": (0, 1, 0, 1)}),
    ((3, 7, 7, 64), (1, 1, 64, 64), {}),
]


@pytest.mark.parametrize("pair", PAIRS[::2], ids="-".join)
@pytest.mark.parametrize("window", WINDOWS, ids=lambda w: "x".join(map(str, w[0] + w[1])))
def test_windows_equal_numpy_however_their_rows_lie(
    isa: Isa,
    window: tuple[tuple[int, ...], tuple[int, ...], dict[str, object]],
    pair: tuple[str, str],
) -> None:
    x, w, attrs = window
    pad_value = 7 if pair[0] == "uint8" else 0
    root = conv(x, w, *pair, **attrs, pad_value=pad_value)
    p, mac = problem(root, isa)
    for layout in layouts(p, mac):
        check(root, isa, choice=Choice.of(layout, p.rows, 1, 1))


@pytest.mark.parametrize(
    ("root", "splits"),
    [
        (
            conv((1, 11, 7, 32), (3, 3, 32, 49), "uint8", "int8", pads=(1, 1, 1, 1)),
            [(2, 1), (1, 2), (2, 2)],
        ),
        (
            conv((3, 8, 7, 32), (3, 3, 16, 40), "int8", "int8", group=2, strides=(2, 2)),
            [(2, 1), (1, 2)],
        ),
        (
            matmul((2, 50, 40), (2, 40, 70), "int8", "int8", constant_b=False),
            [(2, 1), (1, 2), (2, 3)],
        ),
        (matmul((131, 65), (65, 70), "bfloat16", "bfloat16"), [(3, 1), (1, 3)]),
    ],
    ids=lambda v: v.op if isinstance(v, Node) else "",
)
def test_parts_and_tasks_that_do_not_divide_the_work(
    isa: Isa, root: Node, splits: list[tuple[int, int]]
) -> None:
    p, mac = problem(root, isa)
    layout = next(iter(layouts(p, mac)))
    for row_tasks, column_tasks in splits:
        for lines in {p.rows, -(-p.rows // 2), 3}:
            if p.images * -(-p.rows // lines) >= row_tasks:
                check(root, isa, choice=Choice.of(layout, lines, row_tasks, column_tasks))


# -- the epilogue


def requantized(
    root: Node, channels: int, dtype: str = "uint8", residual: Node | None = None
) -> Node:
    """bias, scale, residual, ReLU, quantize: the tail of a quantized convolution."""
    bias = constant(random("int8", (channels,), 3).astype(np.int32) * 50)
    scale = constant(np.abs(random("float32", (channels,), 4)) * np.float32(1e-3))
    y = make("dequantize", make("Add", root, bias), scale, constant(np.int32(0)))
    if residual is not None:
        r = make("dequantize", residual, constant(np.float32(0.7)), constant(np.int32(3)))
        y = make("Add", y, r)
    y = make("Relu", y)
    return make("quantize", y, constant(np.float32(0.3)), constant(np.int32(5)), dtype=dtype)


@pytest.mark.parametrize("channels", [16, 32, 40, 67])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_sums_leave_requantized(isa: Isa, channels: int, dtype: str) -> None:
    root = conv((1, 9, 9, 20), (3, 3, 20, channels), "uint8", "int8", pads=(1, 1, 1, 1))
    check(root, isa, requantized(root, channels, dtype))
    root = matmul((70, 50), (50, channels), "int8", "int8")
    check(root, isa, requantized(root, channels, dtype))


@pytest.mark.parametrize("channels", [32, 50])
@pytest.mark.parametrize(
    ("dtype", "zero"), [("uint8", 3), ("uint8", 255), ("int8", -128), ("int8", 9)]
)
def test_quantized_sums_round_and_saturate_as_numpy(
    isa: Isa, channels: int, dtype: str, zero: int
) -> None:
    """Halves to even, beyond every limit, infinite and NaN."""
    a = placeholder("a", Type("bfloat16", (40, 8)))
    b = constant(
        np.random.default_rng(0).integers(-9, 10, (8, channels)).astype(ml_dtypes.bfloat16)
    )
    multiplier = np.resize(
        np.array([0.5, 0.25, 1, 3, 1e3, 1e8, 1e9, 1e30, -1e30, np.inf, np.nan, -0.5], np.float32),
        channels,
    )
    root = make("matmul", a, b)
    zero_point = constant(np.int32(zero))
    output = make("quantize", root, constant(multiplier), zero_point, dtype=dtype)
    values = {a: np.random.default_rng(1).integers(-3, 4, (40, 8)).astype(ml_dtypes.bfloat16)}
    graph, region = region_around(root, output)
    check(root, isa, output, values={**values_of(graph, region), **values})


def test_grouped_sums_take_their_own_columns_of_the_operands(isa: Isa) -> None:
    root = conv((1, 6, 6, 40), (1, 1, 20, 42), "uint8", "int8", group=2)
    check(root, isa, requantized(root, 42))


def test_operands_of_the_epilogue_broadcast(isa: Isa) -> None:
    root = matmul((2, 3, 20, 24), (24, 33), "bfloat16", "bfloat16")
    for shape in ((2, 1, 20, 1), (33,), (3, 1, 1), (2, 3, 20, 33), (1, 1, 20, 33)):
        other = placeholder("other", Type("float32", shape))
        check(root, isa, make("Mul", make("Add", root, other), other))


def test_a_bias_that_is_no_constant_is_not_read_too_far(isa: Isa) -> None:
    root = matmul((20, 24), (24, 33), "uint8", "int8")
    check(root, isa, make("Add", root, placeholder("bias", Type("int32", (33,)))))


def test_a_product_that_is_read_twice(isa: Isa) -> None:
    root = matmul((33, 24), (24, 40), "uint8", "int8")
    check(root, isa, make("Add", make("Add", root, constant(random("int32", (40,)))), root))


@pytest.mark.parametrize("lines", [11, 5])
def test_the_output_may_take_the_place_of_the_residual(isa: Isa, lines: int) -> None:
    """Blocks and parts overlap, yet no output is written twice: it would read itself."""
    channels = 33
    root = conv((1, 11, 7, 16), (3, 3, 16, channels), "uint8", "int8", pads=(1, 1, 1, 1))
    residual = placeholder("residual", Type("uint8", root.type.dims))
    graph, region = region_around(root, requantized(root, channels, residual=residual))
    on = device(isa, 2)
    handed = sealed(region, on)
    assert handed.root is not None
    layout = next(iter(layouts(*problem(handed.root, isa))))
    kernel = emitted(handed, on, Choice.of(layout, lines, 2 if lines < 11 else 1, 1))
    place = region.inputs.index(residual)
    assert kernel.in_place == (place,)
    values = values_of(graph, region)
    memory = [
        in_memory(kernel.pack[i](a) if i in kernel.pack else a)
        for i, a in enumerate(values[n] for n in region.inputs)
    ]
    call(kernel, isa, [*memory, memory[place]])
    got = memory[place].bytes.reshape(root.type.dims)
    np.testing.assert_array_equal(got, expected(graph, values))


def in_memory(array: Array) -> Fenced:
    memory = Fenced(array.nbytes + 64)
    memory.bytes[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    memory.bytes = memory.bytes[: array.nbytes]
    return memory


def call(kernel: Kernel, isa: Isa, memory: list[Fenced]) -> None:
    """A kernel on memory as it is, with scratch memory full of NaN."""
    scratch = Fenced(kernel.scratch_bytes)
    scratch.bytes[:] = 0xFF
    module = compile_functions([("kernel", kernel.func)], isa)
    module["kernel"](*(ctypes.c_void_p(m.address) for m in (*memory, scratch)))


def test_nan_and_infinity_stay_with_the_windows_that_see_them(isa: Isa) -> None:
    """Neither a neighbour's elements nor what the scratch memory held may meet a zero weight."""
    for x, w, attrs in (
        ((1, 9, 9, 20), (3, 3, 20, 16), {"pads": (1, 1, 1, 1)}),
        ((1, 9, 9, 3), (3, 3, 3, 16), {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
        ((1, 9, 9, 35), (1, 1, 35, 17), {}),
    ):
        root = conv(x, w, "bfloat16", "bfloat16", **attrs)
        graph, region = region_around(root, root)
        values = values_of(graph, region)
        image = values[graph.inputs[0]].copy()
        image[0, 4, 4, :] = np.inf
        image[0, 8, 8, 0] = np.nan
        values[graph.inputs[0]] = image
        want = expected(graph, values)
        assert 0 < np.isnan(want).sum() < want.size
        p, mac = problem(root, isa)
        for layout in layouts(p, mac):
            kernel = emitted(region, device(isa), Choice.of(layout, p.rows, 1, 1))
            memory = [
                in_memory(kernel.pack[i](values[n]) if i in kernel.pack else values[n])
                for i, n in enumerate(region.inputs)
            ]
            out = in_memory(np.zeros(want.shape, np.float32))
            call(kernel, isa, [*memory, out])
            got = out.bytes.view(np.float32).reshape(want.shape)
            np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
            compare(got, want, rtol=1e-5, atol=1e-3)


# -- threads, choices, packing


def test_two_threads_work_in_scratch_memory_of_their_own(
    isa: Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", "2")
    monkeypatch.setenv("TVM_BIND_THREADS", "0")
    root = conv((1, 16, 16, 64), (3, 3, 64, 64), "uint8", "int8", pads=(1, 1, 1, 1))
    p, mac = problem(root, isa)
    failures: list[BaseException | int] = []

    def work() -> None:
        """A thread that has not used TVM's pool gets one of the size that is set now."""
        try:
            for layout in layouts(p, mac):
                check(root, isa, choice=Choice.of(layout, 4, 2, 1), threads=2)
                check(root, isa, choice=Choice.of(layout, 16, 1, 2), threads=2)
            failures.append(int(tvm.get_global_func("runtime.NumThreads")()))
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == [2]


def test_what_vectors_do_better_is_left_to_them(isa: Isa) -> None:
    def chosen(root: Node) -> str:
        offer = choose(region_around(root, root)[1], device(isa, 2)).chosen
        assert offer is not None
        return offer.generator

    assert chosen(conv((1, 28, 28, 64), (3, 3, 1, 64), "uint8", "int8", group=64)) != "tiles"
    assert chosen(conv((1, 28, 28, 64), (3, 3, 4, 64), "uint8", "int8", group=16)) != "tiles"
    assert chosen(matmul((1, 16), (16, 16), "uint8", "int8")) != "tiles"
    assert chosen(matmul((64, 64), (64, 64), "float32", "float32")) != "tiles"
    assert chosen(matmul((64, 64), (64, 64), "uint8", "int8")) == "tiles"
    twice = constant(random("int8", (64, 64)))
    assert chosen(make("matmul", twice, twice)) != "tiles"
    below = isa.extends
    assert below is not None
    root = matmul((64, 64), (64, 64), "uint8", "int8")
    assert isinstance(tiles(region_around(root, root)[1], device(below)), Skip)


def test_small_work_stays_on_one_thread_and_large_work_is_shared(isa: Isa) -> None:
    for m, n, tasks in ((64, 64, 1), (4096, 256, 4)):
        root = matmul((m, n), (n, n), "uint8", "int8")
        kernel = made(tiles, region_around(root, root)[1], device(isa, 4))
        assert isinstance(kernel, Kernel)
        assert kernel.tasks == tasks


def test_every_candidate_covers_every_line(isa: Isa) -> None:
    root = conv((2, 30, 30, 16), (3, 3, 16, 40), "uint8", "int8", pads=(1, 1, 1, 1))
    p, mac = problem(root, isa)
    found = list(choices(p, mac, 4))
    assert len({c.layout.form for c in found}) == 2
    for choice in found:
        assert choice.parts * choice.lines >= p.rows > (choice.parts - 1) * choice.lines
        assert choice.tiling.tasks in (1, 4)


@pytest.mark.parametrize("rows", range(1, 100))
def test_blocks_cover_all_rows_in_as_few_as_can_be(rows: int) -> None:
    blocks = Blocks.of(rows, 16)
    assert blocks.count == -(-rows // 32)
    assert blocks.count * blocks.size >= rows > (blocks.count - 1) * blocks.size
    assert sum(blocks.heights(16)) == blocks.size <= min(rows, 32)


def test_packed_weights_stand_in_the_order_tiles_are_loaded(isa: Isa) -> None:
    root = matmul((32, 130), (130, 50), "uint8", "int8")
    p, mac = problem(root, isa)
    layout = next(iter(layouts(p, mac)))
    weights = root.operands[1].array
    tiles_of = pack(layout, p.matrices(weights)).reshape(-1)
    assert tiles_of.nbytes == layout.matrix_bytes == 4 * 3 * 1024
    wide = tiles_of[: 2 * 3 * 2048].reshape(
        2, 3, 2, 16, 16, 4
    )  # panel, step, tile, row, lane, quad
    padded = np.zeros((192, 64), np.int8)
    padded[:130, :50] = weights
    for panel, step, tile, row, lane, quad in np.ndindex(wide.shape):
        k, n = step * 64 + row * 4 + quad, panel * 32 + tile * 16 + lane
        assert wide[panel, step, tile, row, lane, quad] == padded[k, n]


def loops(text: str) -> Iterator[list[str]]:
    """Assembly text -> its innermost loops: from a label to the jump back to it."""
    lines = [line.strip() for line in text.splitlines()]
    labels = {
        line[:-1]: i for i, line in enumerate(lines) if line.startswith(".L") and line.endswith(":")
    }
    for end, line in enumerate(lines):
        target = line.split()[-1] if line.startswith("j") else ""
        if target in labels and labels[target] < end:
            body = lines[labels[target] + 1 : end]
            if not any(b.startswith("j") and labels.get(b.split()[-1], end) < end for b in body):
                yield body


def test_the_loop_over_k_is_tiles_and_addresses(isa: Isa) -> None:
    """Four loads and four products a step, and nothing that reads or writes a vector."""
    root = matmul((32, 4096), (4096, 32), "uint8", "int8")
    kernel = made(tiles, region_around(root, root)[1], device(isa))
    assert isinstance(kernel, Kernel)
    text = compile_functions([("k", kernel.func)], isa).inspect_source("asm")
    (body,) = (x for x in loops(text) if any(i.startswith("tdp") for i in x))
    steps = sum(i.startswith("tdp") for i in body) // 4
    assert sum(i.startswith("tileload") for i in body) == 4 * steps
    assert not any("mm" in i and not i.startswith(("tileload", "tdp")) for i in body)
    others = [i for i in body if not i.startswith(("tile", "tdp", "prefetch", "."))]
    assert len(others) <= 8 * steps


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("known", [True, False])
def test_one_lane_of_a_narrowed_vector_is_stored_alone(isa: Isa, dtype: str, known: bool) -> None:
    b = tir.Builder("narrow", Tails.of(isa))
    source, out = b.pointer("source", "int32"), b.pointer("out", dtype)
    value = b.let(tir.cast(b.let(source.load(0, 16)) + 1, dtype))
    with b.serial(2) as i:  # unrolled, the second iteration's count is one
        out.store_first(1 if known else tirx.Min(17 - i * 16, tir.const(16)), i * 16, value)
    memory, written = np.arange(16, dtype=np.int32), np.full(32, 9, dtype)
    module = compile_functions([("narrow", b.function())], isa.extends or isa)
    module["narrow"](*(ctypes.c_void_p(a.ctypes.data) for a in (memory, written)))
    assert written[0] == written[16] == 1
    assert np.all(written[17:] == 9)


def test_a_machine_with_tiles_is_taken_for_one(isa: Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "features", lambda: isa.cpu_flags | {"avx_vnni", "avx512_fp16"})
    assert host(2).isa is isa


REFUSED = """
import errno, sys
import emulator
from qcompiler import Error, load, plugins
from qcompiler.artifact.artifact import open_artifact
from qcompiler.hardware import cpu
from qcompiler.hardware.isa import ISAS, host
from qcompiler.runtime import library

emulator.refuse(errno.EPERM)
plugins.load_all()
artifact = open_artifact(sys.argv[1])
(variant,), (binary,) = artifact.manifest.variants, artifact.binaries
cpu.features = lambda: frozenset(variant.cpu_flags)
arrays = len(artifact.manifest.inputs) + len(artifact.manifest.outputs)
weights = library.aligned_copy(binary.weights)
code, frame = library.Code(binary.code), library.Frame(arrays, weights, 0)
for threads in (1, 2):
    try:
        frame.run(code, threads, 0, 1)  # on addresses that are none
    except Error as e:
        print(e.what)
print(ISAS[variant.isa].lacks, host().isa.name)
try:
    load(artifact)
except Error as e:
    print(e.what)
"""

SAID = "the system refuses this process registers that the code needs"


def test_a_refusal_of_tile_registers_is_an_error_before_anything_runs(
    isa: Isa, tmp_path: Path
) -> None:
    root = matmul((4, 8), (8, 8), "uint8", "int8")
    graph = Graph((root.operands[0],), (root,), ("y",))
    path = tmp_path / "a.qc"
    assemble(plan(graph, device(isa))).save(path)
    command = [sys.executable, "-c", REFUSED, str(path)]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert isa.extends is not None
    lacks = ("the system's permission",)
    assert found.stdout.splitlines() == [
        SAID,
        SAID,
        f"{lacks} {isa.extends.name}",
        SAID,
    ]


def test_only_code_that_needs_a_permission_asks_for_it(isa: Isa) -> None:
    b = tir.Builder("nothing")
    b.pointer("out", "int32").store(0, tir.const(1))
    for each in (isa, isa.extends):
        assert each is not None
        code = emit_kernel(Kernel("nothing", b.function()), each)
        assert (b"\x0f\x05" in code) is bool(each.permission)  # the instruction SYSCALL


def small_network() -> Graph:
    """An image -> a stem, a residual block and a classifier, all of them quantized."""
    x = placeholder("x", Type("uint8", (2, 12, 12, 3)))

    def layer(
        y: Node, kernel: int, channels: int, residual: Node | None = None, **k: object
    ) -> Node:
        w = constant(random("int8", (kernel, kernel, int(y.shape[-1]), channels), channels) // 8)
        pads = (kernel // 2,) * 4
        return requantized(make("conv", y, w, pads=pads, **k), channels, residual=residual)

    stem = layer(x, 3, 40, strides=(2, 2), pad_value=5)
    inner = layer(layer(stem, 1, 32), 3, 32, pad_value=5)
    block = layer(inner, 1, 40, residual=stem)
    rows = make("Reshape", block, constant(np.array([2, 36 * 40])))
    weights = constant(random("int8", (36 * 40, 10), 1) // 16)
    return Graph((x,), (requantized(make("matmul", rows, weights), 10),), ("y",))


@pytest.mark.parametrize("line_bytes", [32, 64, 128])
def test_a_network_is_planned_emitted_and_run(
    isa: Isa, line_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    have = cpu.features() | isa.cpu_flags  # what the CPU lacks the emulator does
    monkeypatch.setattr(cpu, "features", lambda: have)
    graph = small_network()
    core = Core(line_bytes=line_bytes, l2_latency_cycles=line_bytes)
    made = plan(graph, replace(device(isa, 2), core=core))
    assert sum("_tiles_" in s.kernel.name for s in made.steps) >= 3
    assert any(s.output in s.operands for s in made.steps), "the residual's place is taken over"
    model = load(assemble(made))
    image = random("uint8", (2, 12, 12, 3))
    np.testing.assert_array_equal(model(image), evaluate(graph, {"x": image})["y"])
