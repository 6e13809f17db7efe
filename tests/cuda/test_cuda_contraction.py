"""Products for GPUs, run on this CPU, with every size of tile."""

import numpy as np
import pytest
from emulation import check, gpu, run
from kernel_harness import compare, expected, normal, region_of

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.gpu.contraction.tensor import BLOCKINGS, gpu_tensor
from qcompiler.kernels.gpu.contraction.tiled import TILES, gpu_tiled
from qcompiler.kernels.registry import Kernel, Ways, choose
from qcompiler.ops import make


def every_tile(
    output: Node,
    root: Node,
    inputs: tuple[Node, ...],
    arrays: list[Array],
    generator: Ways = gpu_tiled,
    device: Gpu | None = None,
    parts: int = 1,
) -> None:
    """Run the region's kernel of each tile, and compare: exactly for integers. `parts`: only those
    whose sums are cut into so many.
    """
    device = device or gpu()
    graph = Graph(inputs, (output,), ("y",))
    region = region_of(graph, root)
    values = dict(zip(inputs, arrays, strict=True))
    values |= {n: n.array for n in region.inputs if n.is_constant}
    want = expected(graph, values)
    found = generator(region, device)
    assert not isinstance(found, Skip), found
    chosen = [c for c in found if c.knobs.parts == parts]  # type: ignore[attr-defined]
    assert chosen
    for candidate in chosen:
        kernel = candidate.build()
        assert isinstance(kernel, Kernel), kernel
        depth = kernel.macs / root.type.size
        got = run(kernel, region, device, values)
        compare(got, want, rtol=1e-6 * depth**0.5, atol=4e-7 * depth)


@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (5, 7, 3),
        (33, 20, 36),
        *[
            pytest.param(*s, marks=pytest.mark.slow)
            for s in ((1, 8, 4), (64, 64, 64), (130, 12, 132))
        ],
    ],
)
def test_matrices_of_any_size_are_multiplied(m: int, k: int, n: int) -> None:
    x = placeholder("x", Type("float32", (m, k)))
    y = make("matmul", x, constant(normal((k, n))))
    out = make("Relu", make("Add", y, constant(normal((n,)))))
    every_tile(out, y, (x,), [normal((m, k), 1)])


@pytest.mark.parametrize("transposed", [0, 1])
def test_batches_are_broadcast(transposed: int) -> None:
    x = placeholder("x", Type("float32", (2, 3, 5, 8)))
    shape = (3, 6, 8) if transposed else (3, 8, 6)
    w = placeholder("w", Type("float32", shape))
    y = make("matmul", x, w, transpose_b=transposed)
    every_tile(y, y, (x, w), [normal((2, 3, 5, 8)), normal(shape)])


CONVS = [
    dict(x=(1, 6, 7, 4), w=(3, 3, 4, 8), pads=(1, 1, 1, 1)),
    dict(x=(2, 9, 8, 3), w=(3, 2, 3, 5), strides=(2, 1), pads=(1, 0, 0, 1)),
    dict(x=(2, 5, 5, 8), w=(1, 1, 8, 12)),
    dict(x=(1, 8, 8, 8), w=(3, 3, 4, 6), group=2, pads=(2, 2, 2, 2), dilations=(2, 2)),
    dict(x=(1, 10, 4), w=(3, 4, 4), strides=(2,)),
    dict(x=(1, 3, 4, 5, 4), w=(2, 2, 2, 4, 4), pads=(0, 1, 1, 1, 0, 0)),
]


@pytest.mark.parametrize("case", CONVS, ids=lambda c: "x".join(map(str, c["w"])))
def test_windows_are_gathered_while_they_are_multiplied(case: dict[str, tuple[int, ...]]) -> None:
    attrs = {k: v for k, v in case.items() if k not in "xw"}
    x = placeholder("x", Type("float32", case["x"]))
    y = make("conv", x, constant(normal(case["w"])), **attrs)
    other = constant(normal(y.type.dims, 3))
    every_tile(make("Add", y, other), y, (x,), [normal(case["x"], 1)])


@pytest.mark.parametrize("dtype", ["int8", pytest.param("uint8", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "case",
    [
        dict(x=(1, 5, 6, 4), w=(3, 3, 4, 8), pads=(1, 1, 1, 1), pad_value=7),
        dict(x=(1, 5, 5, 16), w=(1, 1, 16, 5)),
        dict(x=(1, 6, 6, 8), w=(3, 3, 4, 8), group=2),
        dict(x=(1, 9, 7, 3), w=(3, 3, 3, 8), pads=(1, 1, 1, 1), pad_value=5),
    ],
    ids=lambda c: "x".join(map(str, c["w"])),
)
def test_bytes_are_multiplied_exactly(case: dict[str, tuple[int, ...]], dtype: str) -> None:
    rng = np.random.default_rng(0)
    attrs = {k: v for k, v in case.items() if k not in "xw"}
    x = placeholder("x", Type(dtype, case["x"]))
    w = rng.integers(-128, 128, case["w"]).astype(np.int8)
    y = make("conv", x, constant(w), **attrs)
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max + 1, case["x"]).astype(dtype)
    every_tile(y, y, (x,), [values])


def test_bytes_may_be_multiplied_by_what_is_no_constant() -> None:
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (2, 9, 12)).astype(np.uint8),
        rng.integers(-128, 128, (2, 12, 6)).astype(np.int8),
    ]
    inputs = tuple(
        placeholder(n, Type(a.dtype.name, a.shape)) for n, a in zip("xw", arrays, strict=True)
    )
    y = make("matmul", *inputs)
    every_tile(y, y, inputs, arrays)


def test_what_follows_a_product_of_bytes_is_fused() -> None:
    rng = np.random.default_rng(0)
    x = placeholder("x", Type("uint8", (9, 32)))
    y = make("matmul", x, constant(rng.integers(-128, 128, (32, 12)).astype(np.int8)))
    scaled = make("Cast", make("Add", y, constant(np.arange(12, dtype=np.int32))), to="float32")
    factor, zero = constant(np.full(12, 0.01, np.float32)), constant(np.int32(3))
    out = make("quantize", scaled, factor, zero, dtype="uint8", divide=0)
    check(out, y, [rng.integers(0, 256, (9, 32)).astype(np.uint8)], (x,), gpu())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats_are_summed_in_float32(dtype: str) -> None:
    x = placeholder("x", Type(dtype, (6, 24)))
    w = constant(normal((24, 8)).astype(numpy_dtype(dtype)))
    y = make("matmul", x, w)
    every_tile(y, y, (x,), [normal((6, 24), 1).astype(numpy_dtype(dtype))])


def test_every_tile_is_one_that_a_block_can_hold() -> None:
    device = gpu("sm_75")
    for tile in (*TILES, *BLOCKINGS):
        held = device.multiprocessor.occupancy(tile.threads, tile.registers, tile.shared_bytes)
        assert held >= 1
        assert tile.shared_bytes <= 48 << 10  # more would have to be asked for


def numbers(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    rng = np.random.default_rng((seed, *shape))
    if "float" in dtype:
        return rng.standard_normal(shape).astype(numpy_dtype(dtype))
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


PAIRS = [("float16",) * 2, ("bfloat16",) * 2, ("int8",) * 2, ("uint8", "int8")]


@pytest.mark.parametrize("dtypes", PAIRS)
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (33, 48, 36),
        *[pytest.param(*s, marks=pytest.mark.slow) for s in ((5, 16, 3), (130, 80, 70))],
    ],
)
def test_tensor_cores_multiply_matrices_of_any_size(
    dtypes: tuple[str, str], m: int, k: int, n: int
) -> None:
    x = placeholder("x", Type(dtypes[0], (m, k)))
    y = make("matmul", x, constant(numbers((k, n), dtypes[1])))
    every_tile(y, y, (x,), [numbers((m, k), dtypes[0], 1)], gpu_tensor)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_tensor_cores_multiply_batches(dtype: str) -> None:
    x = placeholder("x", Type(dtype, (2, 3, 20, 32)))
    w = placeholder("w", Type(dtype, (3, 18, 32)))
    y = make("matmul", x, w, transpose_b=1)
    arrays = [numbers((2, 3, 20, 32), dtype), numbers((3, 18, 32), dtype, 1)]
    every_tile(y, y, (x, w), arrays, gpu_tensor)


@pytest.mark.parametrize(
    ("dtypes", "case"),
    [
        (PAIRS[0], dict(x=(1, 6, 7, 8), w=(3, 3, 8, 12), pads=(1, 1, 1, 1))),
        (PAIRS[2], dict(x=(1, 7, 6, 16), w=(3, 3, 16, 8), pads=(1, 0, 0, 1), pad_value=-5)),
        (PAIRS[3], dict(x=(1, 7, 6, 32), w=(2, 2, 16, 10), group=2, strides=(2, 1), pad_value=9)),
        (PAIRS[1], dict(x=(2, 5, 5, 16), w=(1, 1, 16, 24))),
    ],
    ids=["f16", "i8", "u8", "bf16"],
)
def test_tensor_cores_gather_windows(
    dtypes: tuple[str, str], case: dict[str, tuple[int, ...]]
) -> None:
    attrs = {k: v for k, v in case.items() if k not in "xw"}
    x = placeholder("x", Type(dtypes[0], case["x"]))
    y = make("conv", x, constant(numbers(case["w"], dtypes[1])), **attrs)
    out = make("Relu", make("Cast", y, to="float32"))
    every_tile(out, y, (x,), [numbers(case["x"], dtypes[0], 1)], gpu_tensor)


@pytest.mark.parametrize(
    "dtypes", [PAIRS[0], *(pytest.param(p, marks=pytest.mark.slow) for p in PAIRS[2:])]
)
def test_without_asynchronous_copies_steps_come_by_registers(dtypes: tuple[str, str]) -> None:
    x = placeholder("x", Type(dtypes[0], (1, 5, 6, 32)))
    y = make("conv", x, constant(numbers((3, 3, 32, 12), dtypes[1])), pads=(1, 1, 1, 1))
    every_tile(y, y, (x,), [numbers((1, 5, 6, 32), dtypes[0], 1)], gpu_tensor, gpu("sm_75"))


@pytest.mark.parametrize(
    ("dtypes", "n"),
    [
        (("uint8", "int8"), 12),
        *(pytest.param(("float32",) * 2, n, marks=pytest.mark.slow) for n in (12, 5)),
    ],
)
def test_sums_may_be_cut_into_parts(dtypes: tuple[str, str], n: int) -> None:
    x = placeholder("x", Type(dtypes[0], (3, 288)))
    y = make("matmul", x, constant(numbers((288, n), dtypes[1])))
    out = make("Add", make("Cast", y, to="float32"), constant(normal((n,))))
    every_tile(out, y, (x,), [numbers((3, 288), dtypes[0], 1)], parts=2)


@pytest.mark.parametrize(
    ("dtypes", "n"),
    [
        (PAIRS[0], 12),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((PAIRS[3], 20), (PAIRS[1], 5))),
    ],
)
def test_sums_of_tensor_cores_may_be_cut_into_parts(dtypes: tuple[str, str], n: int) -> None:
    x = placeholder("x", Type(dtypes[0], (1, 3, 4, 128)))
    w = constant(numbers((3, 3, 64, 2 * n), dtypes[1]))
    y = make("conv", x, w, pads=(1, 1, 1, 1), group=2)
    out = make("Relu", make("Cast", y, to="float32"))
    every_tile(out, y, (x,), [numbers((1, 3, 4, 128), dtypes[0], 1)], gpu_tensor, parts=2)


def test_few_rows_of_a_long_product_are_cut_into_parts() -> None:
    x = placeholder("x", Type("float16", (49, 4608)))
    y = make("matmul", x, constant(np.zeros((4608, 64), np.float16)))
    found = choose(region_of(Graph((x,), (y,), ("y",)), y), gpu())
    assert found.chosen is not None
    assert found.chosen.candidate.knobs.parts > 1  # type: ignore[attr-defined]
    assert found.kernel.scratch_bytes == 4 * found.chosen.candidate.knobs.parts * 49 * 64


def test_tensor_cores_are_preferred_for_large_products() -> None:
    x = placeholder("x", Type("float16", (512, 512)))
    y = make("matmul", x, constant(numbers((512, 512), "float16")))
    region = region_of(Graph((x,), (y,), ("y",)), y)
    for architecture in ("sm_75", "sm_80"):
        chosen = choose(region, gpu(architecture)).chosen
        assert chosen is not None
        assert chosen.generator == "gpu_tensor"
