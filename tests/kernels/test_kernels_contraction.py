"""conv and matmul kernels on every instruction set: exact for integers, close for floats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from emulator import load_or_skip
from kernel_harness import compare, device, expected, isas, made, region_of, run, sharing

from benchmarks.arm_loops import loops
from qcompiler import plugins
from qcompiler.emit.machine import compile_functions, machine_code
from qcompiler.errors import Skip
from qcompiler.hardware.core import REFERENCE
from qcompiler.hardware.isa import ISAS, Cpu, Isa
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.cpu.contraction import blocking, direct
from qcompiler.kernels.cpu.contraction.blocking import Tiling, prefetch_pace
from qcompiler.kernels.cpu.contraction.operands import (
    Panels,
    pack,
    panel_bytes,
    product_of,
)
from qcompiler.kernels.cpu.contraction.plain import plain
from qcompiler.kernels.cpu.contraction.problem import problem_of
from qcompiler.kernels.cpu.contraction.saturation import longest_run, without_saturation
from qcompiler.kernels.cpu.contraction.tiled import tiled
from qcompiler.kernels.registry import (
    Candidate,
    Kernel,
    Region,
    Setting,
    Ways,
    choose,
    setting,
)
from qcompiler.ops import make

plugins.load_all()

PAIRS = [
    ("float32", "float32"),
    ("uint8", "int8"),
    ("int8", "int8"),
    ("uint8", "uint8"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
]
EXTREMES = (isas()[0], isas()[-1])
"""The poorest and the richest: most of what differs between instruction sets."""
EMULATED = [ISAS["x86_avxvnni"]]


def random(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Integers over their whole range, its ends often; floats around zero."""
    rng = np.random.default_rng((seed, *shape))
    if numpy_dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max + 1, shape)
        ends = rng.choice([info.min, info.max], shape)
        return np.where(rng.random(shape) < 0.3, ends, values).astype(dtype)
    return rng.standard_normal(shape).astype(numpy_dtype(dtype))


def check(
    root: Node, output: Node, isa: Isa, *, threads: int = 1, generator: Ways = tiled
) -> Kernel:
    """The kernel of a region around `root`, run on random inputs against numpy; work is shared
    however small it is.
    """
    graph = Graph((), (output,), ("y",))
    inputs = tuple(n for n in graph.nodes if n.op == "input")
    graph = Graph(inputs, (output,), ("y",))
    region = region_of(graph, root)
    kernel = made(generator, region, sharing(device(isa, threads)))
    assert isinstance(kernel, Kernel), kernel
    values = {n: random(n.dtype, n.type.dims, i) for i, n in enumerate(inputs)}
    values |= {n: n.array for n in region.inputs if n.is_constant}
    got, want = run(kernel, region, isa, values), expected(graph, values)
    depth = kernel.macs / max(root.type.size, 1)
    loose = 8e-3 * depth**0.5 if short(root, isa) else 0.0  # test_short_sums.py says how exact
    compare(got, want, rtol=1e-6 * depth**0.5, atol=4e-7 * depth + loose)
    return kernel


def short(root: Node, isa: Isa) -> bool:
    """Are sums float16 for some steps?"""
    return (
        isa.short is not None
        and root.operands[0].dtype == "float16"
        and (root.operands[1].is_constant)
    )


def matmul(m: int, n: int, k: int, left: str, right: str, **attrs: int) -> Node:
    shape = (n, k) if attrs.get("transpose_b") else (k, n)
    w = constant(random(right, shape, 7), "w")
    return make("matmul", placeholder("x", Type(left, (m, k))), w, **attrs)


def conv(x: tuple[int, ...], w: tuple[int, ...], left: str, right: str, **attrs: object) -> Node:
    weights = constant(random(right, w, 7), "w")
    return make("conv", placeholder("x", Type(left, x)), weights, **attrs)


@pytest.mark.parametrize(
    ("isa", "pair"),
    [(i, p) for p in PAIRS for i in (isas() if p in PAIRS[:3] else EXTREMES)],
    ids=lambda v: "-".join(v) if isinstance(v, tuple) else v.name,
)
def test_products_of_awkward_shapes_equal_numpy(isa: Isa, pair: tuple[str, str]) -> None:
    lanes = isa.lanes(4)
    for m, n, k in [
        (1, 1, 1),
        (1, 2 * lanes + 3, 129),
        (13, lanes, 4),
        (7, 3 * lanes - 1, 33),
        (31, 4 * lanes + 1, 6),
        (29, 37, 67),
    ]:
        root = matmul(m, n, k, *pair)
        check(root, root, isa)


def force(monkeypatch: pytest.MonkeyPatch, tiling: Tiling) -> None:
    """Let there be no other tiling."""
    for name in ("tiled.priced", "blocking.priced"):
        monkeypatch.setattr(
            f"qcompiler.kernels.cpu.contraction.{name}", lambda *_, **__: [(1.0, tiling)]
        )


@pytest.mark.parametrize("isa", EXTREMES, ids=lambda i: i.name)
def test_every_tile_and_its_neighbours_are_right(isa: Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and columns one less than a tile, a tile, and one more."""
    lanes = isa.lanes(4)
    for rows, vectors in ((1, 1), (3, 2), (4, 2), (2, 3)):
        force(monkeypatch, Tiling(rows, vectors, block=1))
        for m in (rows - 1, rows, rows + 1):
            for n in (vectors * lanes - 1, vectors * lanes, vectors * lanes + 1):
                root = matmul(max(m, 1), n, 10, "uint8", "int8")
                check(root, root, isa)


CONVOLUTIONS = {
    "a first layer": ((1, 11, 13, 3), (7, 7, 3, 20), {"pads": (3,) * 4, "strides": (2, 2)}),
    "same padding": ((2, 9, 10, 16), (3, 3, 16, 40), {"pads": (1,) * 4}),
    "uneven padding": ((1, 8, 9, 5), (3, 2, 5, 18), {"pads": (0, 1, 2, 0)}),
    "single pixels": ((2, 5, 7, 12), (1, 1, 12, 33), {}),
    "strided single pixels": ((2, 9, 7, 12), (1, 1, 12, 33), {"strides": (2, 2)}),
    "dilated": ((1, 12, 13, 8), (3, 3, 8, 24), {"dilations": (2, 3), "pads": (2,) * 4}),
    "groups": ((1, 6, 7, 32), (3, 3, 4, 64), {"group": 8, "pads": (1,) * 4}),
    "narrow groups": ((1, 6, 7, 24), (3, 3, 4, 12), {"group": 6}),
    "depthwise": ((1, 6, 7, 24), (3, 3, 1, 24), {"group": 24, "pads": (1,) * 4}),
    "one axis": ((2, 19, 8), (5, 8, 24), {"pads": (2, 2)}),
    "three dimensions": (
        (2, 5, 7, 6, 8),
        (3, 3, 3, 8, 24),
        {"pads": (2, 2, 1, 1, 0, 1), "strides": (1, 2, 1), "dilations": (2, 1, 1)},
    ),
    "three dimensions, not padded": ((2, 5, 4, 6, 8), (2, 3, 3, 8, 24), {"strides": (2, 1, 1)}),
    "wide rows": ((1, 2, 70, 4), (1, 3, 4, 17), {"pads": (0, 1, 0, 1)}),
    "pixels a page apart": (
        (1, 7, 9, 1024),
        (2, 3, 1024, 20),
        {"strides": (4, 4), "pads": (1, 1, 0, 1)},
    ),
    "patches": ((1, 16, 16, 3), (8, 8, 3, 20), {"strides": (8, 8)}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_weights_may_be_known_only_at_run_time(name: str) -> None:
    x, w, attrs = CONVOLUTIONS[name]
    left, right = placeholder("x", Type("float32", x)), placeholder("w", Type("float32", w))
    root = make("conv", left, right, **attrs)
    graph = Graph((left, right), (root,), ("y",))
    region, isa = region_of(graph, root), EXTREMES[-1]
    kernel = choose(region, device(isa)).kernel
    assert isinstance(kernel, Kernel)
    values = {left: random("float32", x), right: random("float32", w, 1)}
    got = run(kernel, region, isa, values)
    compare(got, expected(graph, values), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("isa", EXTREMES, ids=lambda i: i.name)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_equal_numpy(isa: Isa, name: str) -> None:
    x, w, attrs = CONVOLUTIONS[name]
    for left, right in PAIRS if name == "same padding" else PAIRS[:3]:
        value = {"pad_value": 5} if left in ("uint8", "int8") else {}
        root = conv(x, w, left, right, **attrs, **value)
        check(root, root, isa)


@pytest.mark.parametrize("isa", isas()[-1:], ids=lambda i: i.name)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_tasks_share_the_work_whichever_way_it_is_cut(isa: Isa, name: str) -> None:
    x, w, attrs = CONVOLUTIONS[name]
    root = conv(x, w, "int8", "int8", **attrs, pad_value=-3)
    for tasks in (2, 5):
        kernel = check(root, root, isa, threads=tasks)
        assert 1 <= kernel.tasks <= tasks


def test_every_tiling_of_a_problem_gives_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    isa = isas()[-1]
    root = conv((2, 7, 9, 6), (3, 3, 6, 70), "uint8", "int8", pads=(1,) * 4, pad_value=9)
    product = product_of(isa, "uint8", "int8", "int32")
    problem = problem_of(root, 16, REFERENCE)
    assert product is not None
    assert not isinstance(problem, Skip)
    found = list(blocking.tilings(problem, product, device(isa, 4), tasks=4))
    assert len({(t.rows, t.vectors, t.block, t.row_tasks) for t in found}) > 20
    for tiling in found[::15]:
        force(monkeypatch, tiling)
        check(root, root, isa)


@pytest.mark.parametrize("isa", EXTREMES, ids=lambda i: i.name)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1]}")
def test_both_operands_may_be_activations(isa: Isa, pair: tuple[str, str]) -> None:
    for a, b, transposed in [
        ((2, 3, 13, 30), (2, 3, 30, 17), 0),
        ((2, 3, 13, 30), (3, 17, 30), 1),
        ((1, 3, 5, 64), (2, 1, 64, 48), 0),
        ((4, 9), (20, 9), 1),
    ]:
        x, y = placeholder("x", Type(pair[0], a)), placeholder("y", Type(pair[1], b))
        root = make("matmul", x, y, transpose_b=transposed)
        check(root, root, isa, threads=2)


def test_weights_may_differ_from_image_to_image() -> None:
    isa = isas()[-1]
    x = placeholder("x", Type("int8", (3, 5, 9)))
    root = make("matmul", x, constant(random("int8", (3, 9, 40))))
    check(root, root, isa)


def quantized(root: Node, channels: int, residual: bool) -> Node:
    """Bias, residual, rectifier and quantization, as they follow a convolution."""
    rng = np.random.default_rng(3)
    y = make("Add", root, constant(rng.integers(-500, 500, channels).astype(np.int32)))
    scale = constant((rng.random(channels) * 1e-3 + 1e-4).astype(np.float32))
    y = make("dequantize", y, scale, constant(np.int32(0)))
    if residual:
        y = make("Add", y, placeholder("r", root.type.__class__("float32", root.type.shape)))
    y = make("Relu", y)
    inverse = constant(np.float32(17.3))
    return make("quantize", y, inverse, constant(np.int32(3)), dtype="uint8")


@pytest.mark.parametrize("isa", isas(), ids=lambda i: i.name)
def test_what_follows_is_computed_on_the_sums(isa: Isa) -> None:
    for channels in (16, 37):
        for residual in (False, True):
            root = conv((1, 9, 7, 8), (3, 3, 8, channels), "uint8", "int8", pads=(1,) * 4)
            kernel = check(root, quantized(root, channels, residual), isa)
            assert "quantize" in kernel.name


@pytest.mark.parametrize("isa", isas()[:1], ids=lambda i: i.name)
def test_many_columns_of_single_pixels(isa: Isa) -> None:
    """Rows of an odd number, and steps, of enough columns that rows are worth a copy where two are
    multiplied at once; what follows may have a number for each column, or for each element.
    """
    for depth, dtype in ((16, "uint8"), (24, "int8"), (40, "uint8")):
        for residual in (False, True):
            root = conv((2, 5, 7, depth), (1, 1, depth, 96), dtype, "int8")
            check(root, quantized(root, 96, residual), isa)
    root = conv((1, 9, 7, 24), (1, 1, 24, 98), "uint8", "int8", strides=(2, 2))
    check(root, quantized(root, 98, residual=False), isa)
    check(root, root, isa)
    with pytest.MonkeyPatch.context() as patches:
        side_by_side(patches)
        for dtype in ("bfloat16", "float32"):
            for depth in (9, 20, 70):
                root = conv((1, 5, 7, depth), (1, 1, depth, 50), dtype, dtype)
                check(root, root, isa)


@pytest.mark.parametrize("isa", isas()[:1], ids=lambda i: i.name)
def test_rows_of_windows_lie_side_by_side(isa: Isa) -> None:
    """Those of every tap, in tiles of several heights: padded, from pixels or taps that lie apart,
    of planes, of bytes that change their sign, of depths that are no whole vectors.
    """
    shapes: list[tuple[tuple[int, ...], int, dict[str, object]]] = [
        ((1, 7, 9), 16, {"pads": (1,) * 4}),
        ((2, 9, 9), 20, {"strides": (2, 2), "pads": (1, 0, 0, 1)}),
        ((1, 9, 8), 36, {"dilations": (2, 3)}),
        ((1, 5, 6, 7), 16, {"pads": (1,) * 6}),
    ]
    with pytest.MonkeyPatch.context() as patches:
        side_by_side(patches)
        for left, right in PAIRS[:3] + PAIRS[4:5]:
            value = {"pad_value": 5} if right == "int8" else {}
            for image, depth, attrs in shapes:
                kernel = (3,) * (len(image) - 1)
                root = conv((*image, depth), (*kernel, depth, 50), left, right, **attrs, **value)
                check(root, root, isa)


@pytest.mark.parametrize(
    ("name", "pair", "tile"),
    [
        ("arm_neon", ("float32", "float32"), (8, 3)),
        ("arm_neon", ("float32", "float32"), (4, 4)),
        ("arm_dotprod", ("int8", "int8"), (8, 3)),
        ("arm_fp16", ("float16", "float16"), (8, 3)),
    ],
)
def test_rows_are_copied_by_what_stores_four_vectors_in_turn(
    name: str, pair: tuple[str, str], tile: tuple[int, int]
) -> None:
    """Compiled only; and no loop that multiplies spills."""
    isa, root = ISAS[name], matmul(16, 64, 48 if pair[0] == "float32" else 96, *pair)
    region = region_of(Graph(root.operands[:1], (root,), ("y",)), root)
    with pytest.MonkeyPatch.context() as patches:
        side_by_side(patches)
        found = made(tiled, region, device(isa), lambda k: (k["rows"], k["vectors"]) == tile)
    assert isinstance(found, Kernel)
    text = str(machine_code({"kernel": found.func}, isa, "").inspect_source("asm"))
    assert "\tst4\t" in text
    hot = [loop for loop in loops(text) if len(loop.multiplies) >= 16]
    assert hot
    assert not any(loop.spills for loop in hot)


def side_by_side(patches: pytest.MonkeyPatch) -> None:
    """Rows are copied so wherever they can be, whatever it costs."""
    patches.setattr(direct, "least", lambda problem, product, device: not product.zipped)


@pytest.mark.parametrize("isa", isas(), ids=lambda i: i.name)
def test_a_float_epilogue(isa: Isa) -> None:
    root = matmul(9, 35, 20, "float32", "float32")
    y = make("Add", root, constant(random("float32", (35,))))
    check(root, make("Relu", y), isa)


def test_sums_become_bfloat16_as_a_cast_makes_them() -> None:
    """Halves to even, infinities and NaN; denormals may become zero, as AVX512-BF16 has it."""
    isa, edges = isas()[-1], [0x3F80, 0x7F80, 0xFF80, 0x7FC0, 0x7F7F, 0x0080, 0x8000]
    x = placeholder("x", Type("bfloat16", (40, 3)))
    w = constant(random("bfloat16", (3, 37), 7), "w")
    root = make("matmul", x, w)
    cast = make("Cast", root, to="bfloat16")
    values = {x: random("bfloat16", (40, 3)), w: w.array}
    values[x].view(np.uint16)[:7] = np.array(edges, np.uint16)[:, None]
    results = []
    for output in (root, cast):
        region = region_of(Graph((x,), (output,), ("y",)), root)
        kernel = made(tiled, region, device(isa))
        assert isinstance(kernel, Kernel)
        results.append(run(kernel, region, isa, values))
    with np.errstate(all="ignore"):
        want = results[0].astype(numpy_dtype("bfloat16"))
    nan = np.isnan(want.astype(np.float32))
    assert np.array_equal(nan, np.isnan(results[1].astype(np.float32)))
    denormal = np.abs(results[0]) < np.finfo(np.float32).tiny
    zero = denormal & (results[1].astype(np.float32) == 0)
    assert nan.any()
    assert denormal.any()
    assert np.all(nan | zero | (results[1].view(np.uint16) == want.view(np.uint16)))


def test_what_is_asked_for_ahead_changes_no_value() -> None:
    isa = isas()[-1]
    root = matmul(29, 3 * isa.lanes(4) + 5, 33, "float32", "float32")
    other = placeholder("r", root.type)
    graph = Graph((root.operands[0], other), (make("Add", root, other),), ("y",))
    region = region_of(graph, root)
    kernel = made(tiled, region, replace(device(isa), l2_bytes=0))
    assert isinstance(kernel, Kernel)
    assert "prefetch" in kernel.func.script()
    values = {n: random("float32", n.type.dims, i) for i, n in enumerate(graph.inputs)}
    values |= {n: n.array for n in region.inputs if n.is_constant}
    compare(run(kernel, region, isa, values), expected(graph, values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", EMULATED, ids=lambda i: i.name)
def test_instruction_sets_that_this_cpu_lacks_run_emulated(isa: Isa) -> None:
    load_or_skip(isa.cpu_flags)
    for left in ("uint8", "int8"):
        root = matmul(5, 21, 19, left, "int8")
        check(root, root, isa)
        root = conv((1, 5, 6, 3), (3, 3, 3, 10), left, "int8", pads=(1,) * 4, pad_value=7)
        check(root, root, isa)


@pytest.mark.parametrize(
    ("name", "pair", "instruction"),
    [
        ("x86_avx2", ("float32", "float32"), "vfmadd231ps"),
        ("x86_avx2", ("uint8", "int8"), "vpmaddubsw"),
        ("x86_avx2", ("uint8", "uint8"), "vpmaddwd"),
        ("x86_avxvnni", ("uint8", "int8"), "vpdpbusd"),
        ("x86_avx512", ("int8", "int8"), "vpmaddubsw"),
        ("x86_avx512vnni", ("uint8", "int8"), "vpdpbusd"),
        ("x86_avx512vnni", ("uint8", "uint8"), "vpdpwssd"),
        ("x86_avx512bf16", ("bfloat16", "bfloat16"), "vdpbf16ps"),
    ],
)
def test_the_product_becomes_its_instruction(
    name: str, pair: tuple[str, str], instruction: str
) -> None:
    root = matmul(64, 64, 512, *pair)
    region = region_of(Graph((), (root,), ("y",)), root)
    isa = ISAS[name]
    kernel = made(tiled, region, device(isa))
    assert isinstance(kernel, Kernel)
    text = compile_functions([("kernel", kernel.func)], isa).inspect_source("asm")
    assert instruction in text
    loop = innermost_loop(text, instruction)
    assert loop.count(instruction) >= 8
    assert "%rsp" not in loop, "sums are spilled to the stack"


@pytest.mark.parametrize(
    ("name", "dtype", "instruction"),
    [
        ("x86_avx2", "float32", "vfmadd231ps"),
        ("x86_avx512", "float32", "vfmadd231ps"),
        ("x86_avx512bf16", "bfloat16", "vdpbf16ps"),
    ],
)
def test_windows_that_overlap_are_read_again(name: str, dtype: str, instruction: str) -> None:
    """LLVM keeps what neighbouring windows share in registers, if it can see that, and the sums in
    memory: once for each product or two of them, here.
    """
    root = conv((1, 112, 112, 3), (3, 3, 3, 32), dtype, dtype, strides=(2, 2), pads=(1,) * 4)
    region, isa = region_of(Graph((), (root,), ("y",)), root), ISAS[name]
    kernel = made(tiled, region, device(isa))
    assert isinstance(kernel, Kernel)
    text = compile_functions([("kernel", kernel.func)], isa).inspect_source("asm")
    loop = innermost_loop(text, instruction)
    assert loop.count("%rsp") <= loop.count(instruction) / 8


def innermost_loop(assembly: str, instruction: str) -> str:
    """The shortest stretch from a label back to itself that has the instruction most often."""
    lines = assembly.splitlines()
    labels = {line.split(":")[0]: i for i, line in enumerate(lines) if line.startswith(".LBB")}
    loops = [
        lines[labels[target] : i + 1]
        for i, line in enumerate(lines)
        if line.lstrip().startswith("j")
        and (target := line.split()[-1]) in labels
        and labels[target] < i
    ]
    inner = [
        x for x in loops if not any(y is not x and y[0] in x and len(y) < len(x) for y in loops)
    ]
    return "\n".join(max(inner, key=lambda x: sum(instruction in line for line in x)))


@pytest.mark.parametrize("isa", isas()[:1], ids=lambda i: i.name)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1]}")
def test_the_plain_kernel_computes_anything(isa: Isa, pair: tuple[str, str]) -> None:
    for name in ("uneven padding", "dilated", "groups", "depthwise", "one axis"):
        x, w, attrs = CONVOLUTIONS[name]
        value = {"pad_value": 5} if pair[0] in ("uint8", "int8") else {}
        root = conv(x, w, *pair, **attrs, **value)
        check(root, root, isa, generator=plain)
    deep = {"pads": (2, 2, 1, 1, 0, 1), "strides": (1, 2, 1)}
    root = conv((2, 5, 7, 6, 8), (3, 3, 3, 8, 24), *pair, **deep)
    check(root, root, isa, generator=plain, threads=2)
    x, y = (placeholder(n, Type(d, (3, 5, 6))) for n, d in zip("xy", pair, strict=True))
    root = make("matmul", x, y, transpose_b=1)
    check(root, root, isa, generator=plain)


@pytest.mark.parametrize("dtype", ["float64", "int32"])
def test_plain_sums_of_several_pixels_and_vectors_are_the_same(dtype: str) -> None:
    """Of dtypes that no other generator multiplies."""
    isa = isas()[-1]
    lanes = isa.lanes(8)
    for rows, columns, deep in ((8, 5 * lanes + 3, 13), (3, 9 * lanes, 7)):
        root = matmul(rows, columns, deep, dtype, dtype)
        blocks = every_block(root, isa)
        assert len(blocks) > 1
        assert all(rows % p == 0 for p, _ in blocks)
    x, w = (placeholder(n, Type(dtype, (3, 4, s))) for n, s in (("x", 6), ("w", 6)))
    assert {v for _, v in every_block(make("matmul", x, w, transpose_b=1), isa)} == {1}


def test_plain_windows_sum_several_vectors() -> None:
    isa = isas()[-1]
    wide = 2 * isa.lanes(8) + 5
    root = conv((1, 5, 6, 8), (3, 3, 8, wide), "float64", "float64", pads=(1,) * 4)
    assert {p for p, _ in every_block(root, isa)} == {1}
    root = conv((1, 5, 6, 8), (3, 3, 4, 2 * wide), "float64", "float64", group=2)
    assert len(every_block(root, isa)) > 1


def test_where_products_have_tiles_plain_sums_are_single() -> None:
    root = matmul(8, 64, 32, "float32", "float32")
    assert every_block(root, isas()[-1]) == {(1, 1)}


def every_block(root: Node, isa: Isa) -> set[tuple[int, int]]:
    """Check each kernel that `plain` offers -> the pixels and vectors of their sums."""
    found = plain(region_of(Graph((), (root,), ("y",)), root), device(isa))
    assert not isinstance(found, Skip)
    blocks = set()
    for knobs in (setting(c.knobs) for c in found):

        def only(region: Region, device: Cpu, knobs: Setting = knobs) -> Iterable[Candidate]:
            some = plain(region, device)
            assert not isinstance(some, Skip)
            return [c for c in some if setting(c.knobs) == knobs]

        check(root, root, isa, threads=2, generator=only)
        blocks.add((int(knobs.get("pixels", 1)), int(knobs.get("vectors", 1))))
    return blocks


def test_panels_hold_every_column_once() -> None:
    for width in (1, 15, 16, 17, 64, 100, 1000):
        for vectors in (1, 2, 3, 4, 7):
            runs = list(Panels.of(width, 16, vectors).runs())
            columns = [
                run.column + p * run.vectors * 16 + v * 16 + lane
                for run in runs
                for p in range(run.count)
                for v in range(run.vectors)
                for lane in range(run.tail if v == run.vectors - 1 else 16)
            ]
            assert columns == list(range(width))


def test_packing_fills_up_with_zeros_and_keeps_every_weight() -> None:
    product = product_of(ISAS["x86_avx512vnni"], "uint8", "int8", "int32")
    assert product is not None
    weights = random("int8", (1, 1, 3, 6, 21))
    packed = pack(weights, product, Panels.of(21, 16, 2))
    assert packed.dtype == np.uint8
    assert packed.size == 3 * 2 * 2 * 64  # taps x steps x vectors x bytes
    assert packed.view(np.int8).astype(int).sum() == weights.astype(int).sum()


def test_products_that_saturate_are_made_exact() -> None:
    """uint8 by int8 through 16 bits would clip 255 * 127 * 2."""
    for isa in isas():
        for low, high in ((127, 127), (-128, -128), (-128, 127), (100, 29), (64, 64)):
            weights = np.tile(np.array([[low], [high]], np.int8), (3, 5))
            x = placeholder("x", Type("uint8", (2, 6)))
            root = make("matmul", x, constant(weights))
            region = region_of(Graph((x,), (root,), ("y",)), root)
            kernel = made(tiled, region, device(isa))
            assert isinstance(kernel, Kernel)
            values = {x: np.full((2, 6), 255, np.uint8), root.operands[1]: weights}
            assert (run(kernel, region, isa, values) == 3 * 255 * (low + high)).all()


def test_several_steps_are_added_in_16_bits_where_weights_are_small() -> None:
    """Of a few large ones the rest is left over; what is added never exceeds 16 bits."""
    rng = np.random.default_rng(3)
    for most, longest in ((16, 4), (40, 2)):
        small = rng.integers(-most, most + 1, (3, 67, 40)).astype(np.int8)
        small[1, ::31, 5] = 127
        small[2, 8:24, 7] = -128
        assert longest_run(small) == longest
        for steps in (1, 2, 4):
            kept = without_saturation(small, steps)
            ends = np.pad(kept, ((0, 0), (0, -67 % (4 * steps)), (0, 0))).astype(int)
            lanes = ends.reshape(3, -1, steps, 2, 2, 40)  # [tap][run][step][lane][neighbour]
            for sign in (1, -1):
                assert np.maximum(sign * lanes, 0).sum((2, 4)).max() <= 128
        for isa in isas():
            for left in ("uint8", "int8"):
                x = placeholder("x", Type(left, (2, 5, 6, 67)))
                root = make("conv", x, constant(small[None]), pads=(0, 1, 0, 1), pad_value=9)
                check(root, root, isa)
                flat = make("matmul", placeholder("x", Type(left, (5, 67))), constant(small[0]))
                check(flat, flat, isa)


def test_only_what_would_saturate_is_left_over() -> None:
    product = product_of(ISAS["x86_avx2"], "uint8", "int8", "int32", packed=True)
    assert product is not None
    assert product.leftovers
    tame = np.full((1, 1, 1, 32, 8), 64, np.int8)
    size = pack(tame, product, Panels.of(8, 8, 1)).size
    wild = tame.copy()
    wild[..., 9, 3] = 65
    assert pack(wild, product, Panels.of(8, 8, 1)).size == size + 32 + 4


def test_the_next_panel_is_asked_for_where_weights_come_from_afar() -> None:
    """A share with every step of every tile: all of it by the end of the block. Sizes are those of
    vectors of 64 bytes.
    """
    isa = ISAS["x86_avx512vnni"]
    product = product_of(isa, "uint8", "int8", "int32", packed=True)
    assert product is not None

    def pace(rows: int, depth: int, width: int, block: int) -> int:
        x = placeholder("x", Type("uint8", (rows, depth)))
        root = make("matmul", x, constant(np.zeros((depth, width), np.int8)))
        problem = problem_of(root, product.mac.lanes, REFERENCE)
        assert not isinstance(problem, Skip)
        return prefetch_pace(problem, product, device(isa), Tiling(8, 2, block), 2)

    found, steps = pace(128, 768, 3072, 16), product.steps(768)
    panel = panel_bytes(product, 1, 768, 2)
    assert panel <= found * steps * 16 < panel + steps * 16
    assert pace(128, 768, 32, 16) == 0  # all of the weights stay near
    assert pace(8, 768, 3072, 1) == 0  # nothing to do meanwhile
    assert pace(128, 1 << 15, 3072, 16) == 0  # a panel alone is too large
