"""Code for real architectures, by NVIDIA's compiler: that it compiles, and its instructions.

Without the extra `[cuda]` these tests skip; without nvidia-cuda-nvdisasm some of them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from emulation import gpu, made
from kernel_harness import normal, region_of

from qcompiler import plugins
from qcompiler.emit import cuda, nvrtc
from qcompiler.emit.cubin import taken
from qcompiler.errors import Error
from qcompiler.hardware.isa import family
from qcompiler.ir import Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.gpu.attention.tensor import gpu_tensor_attention
from qcompiler.kernels.gpu.contraction.tensor import BLOCKINGS, gpu_tensor
from qcompiler.kernels.gpu.contraction.tiled import TILES, gpu_tiled
from qcompiler.kernels.registry import Kernel, Ways
from qcompiler.ops import make

plugins.load_all()
DEFAULT = ("sm_75", "sm_80", "sm_90")
ARCHITECTURES = [
    i.name if i.name in DEFAULT else pytest.param(i.name, marks=pytest.mark.slow)
    for i in family("cuda")
]


@pytest.fixture(autouse=True)
def _compiler(request: pytest.FixtureRequest) -> None:
    needed = request.function is not test_without_the_extra_the_error_names_it
    if needed and (reason := nvrtc.available()):
        pytest.skip(reason)


@cache
def disassembler() -> Path | None:
    """NVIDIA's disassembler, beside its compiler."""
    return next(nvrtc._folder().glob("bin/nvdisasm"), None)


def instructions(kernel: Kernel, architecture: str, folder: Path) -> str:
    """A kernel -> what the disassembler prints."""
    program = disassembler()
    if program is None:
        pytest.skip("nvidia-cuda-nvdisasm is not installed")
    source = cuda.source(cuda.launched(kernel).functions, gpu(architecture).isa)
    path = folder / "code.cubin"
    path.write_bytes(nvrtc.compile(source, architecture))
    found = subprocess.run([str(program), str(path)], capture_output=True, text=True, check=True)
    assert not re.search(r"\b(LDL|STL)\b", found.stdout), "registers are kept in memory"
    return found.stdout


def product(
    dtype: str, generator: Ways = gpu_tiled, architecture: str = "sm_80", depth: int = 256
) -> Callable[[int], Kernel]:
    """Tile number -> a kernel of 256 x 256 sums of products of a dtype."""
    x = placeholder("x", Type(dtype, (256, depth)))
    w = constant((10 * normal((depth, 256))).astype(numpy_dtype(dtype)))
    y = make("matmul", x, w)

    def of(tile: int) -> Kernel:
        region, device = region_of(Graph((x,), (y,), ("y",)), y), gpu(architecture)
        (candidate,) = list(generator(region, device))[tile:][:1]
        kernel = candidate.build()
        assert isinstance(kernel, Kernel), kernel
        return kernel

    return of


def halves() -> tuple[Node, Node]:
    x = placeholder("x", Type("float16", (64, 64)))
    return x, make("Tanh", make("Add", x, x))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_compiled_for(architecture: str) -> None:
    x, y = halves()
    soft = make("Softmax", x, axis=-1)
    kernels = [
        made(y, None, (x,), gpu(architecture))[0],
        made(soft, soft, (x,), gpu(architecture))[0],
        product("float32")(1),
        product("int8")(1),
    ]
    functions = {n: f for k in kernels for n, f in cuda.launched(k).functions.items()}
    code = nvrtc.compile(cuda.source(functions, gpu(architecture).isa), architecture)
    assert code.startswith(b"\x7fELF")
    assert all(name.encode() in code for name in functions)


def test_equal_kernels_give_equal_code() -> None:
    codes = []
    for _ in range(2):
        x, y = halves()
        kernel = made(y, None, (x,), gpu())[0]
        source = cuda.source(cuda.launched(kernel).functions, gpu().isa)
        codes.append(nvrtc.compile(source, "sm_80"))
    assert codes[0] == codes[1]


@pytest.mark.parametrize("tile", range(len(TILES)))
@pytest.mark.parametrize(
    "architecture",
    ["sm_80", *[pytest.param(a, marks=pytest.mark.slow) for a in ("sm_75", "sm_90")]],
)
def test_products_are_what_the_main_loop_is_made_of(
    architecture: str, tile: int, tmp_path: Path
) -> None:
    text = instructions(product("float32")(tile), architecture, tmp_path)
    sums = TILES[tile].thread_rows * TILES[tile].thread_columns
    assert text.count("FFMA") >= 8 * sums
    assert re.search(r"LDS(\.U)?\.128", text)
    assert re.search(r"LDG\.E\.128", text)
    assert text.count("LDS") <= text.count("FFMA")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_bytes_are_multiplied_four_at_a_time(architecture: str, tmp_path: Path) -> None:
    text = instructions(product("int8")(0), architecture, tmp_path)
    assert text.count("IDP.4A.S8.S8") >= 8 * 64


@pytest.mark.slow
def test_attention_of_architectures_without_asynchronous_copies(tmp_path: Path) -> None:
    operands = [placeholder(n, Type("float16", (1, 2, 128, 64))) for n in "qkv"]
    y = make("attention", *operands)
    region = region_of(Graph(tuple(operands), (y,), ("y",)), y)
    (candidate, *_) = gpu_tensor_attention(region, gpu("sm_75"))
    kernel = candidate.build()
    assert isinstance(kernel, Kernel), kernel
    text = instructions(kernel, "sm_75", tmp_path)
    assert text.count("HMMA.1688.F32") >= 2 * 2 * 4 * 8
    assert "LDSM.16.MT88.4" in text


@pytest.mark.parametrize("architecture", ["sm_80", pytest.param("sm_90", marks=pytest.mark.slow)])
def test_attention_is_made_of_matrices_that_come_while_others_are_multiplied(
    architecture: str, tmp_path: Path
) -> None:
    operands = [placeholder(n, Type("float16", (1, 2, 128, 64))) for n in "qkv"]
    y = make("attention", *operands)
    (candidate, *_) = gpu_tensor_attention(
        region_of(Graph(tuple(operands), (y,), ("y",)), y), gpu()
    )
    kernel = candidate.build()
    assert isinstance(kernel, Kernel), kernel
    text = instructions(kernel, architecture, tmp_path)
    assert text.count("HMMA.16816.F32") >= 2 * 4 * 8  # 16 queries by 64 keys by 64 values, twice
    assert "LDSM.16.M88.4" in text
    assert "LDSM.16.MT88.4" in text  # values, transposed
    assert re.search(r"LDGSTS\.E\.BYPASS(\.LTC128B)?\.128", text)
    assert "MUFU.EX2" in text


@pytest.mark.parametrize("blocking", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize(
    ("dtype", "word", "each"), [("float16", "HMMA.1688.F32", 2), ("int8", "IMMA.8816.S8.S8", 4)]
)
def test_smaller_products_make_up_those_that_an_architecture_lacks(
    dtype: str, word: str, each: int, blocking: int, tmp_path: Path
) -> None:
    text = instructions(product(dtype, gpu_tensor, "sm_75")(blocking), "sm_75", tmp_path)
    how = BLOCKINGS[blocking]
    steps, rest = divmod(text.count(word), each * 2 * how.matrices_down * how.matrices_across)
    assert steps
    assert not rest
    assert "LDSM.16.M88.4" in text
    assert re.search(r"LDG\.E\.128", text)
    assert "STS.128" in text


def main_loop(text: str, word: str) -> list[str]:
    """What the disassembler prints -> the instructions of the loop that has most of a kind, without
    those that are never executed.
    """
    lines: list[str] = []
    labels, found = {}, []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif made := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(made[1])
    for i, line in enumerate(lines):
        if back := re.search(r"(?:BRA|CALL)\b.*`\((\.L_x_\d+)\)", line):
            found.append(lines[labels[back[1]] : i + 1])
    loop = max(found, key=lambda body: sum(word in line for line in body))
    return [line for line in loop if not re.match(r"@!U?PT\b", line)]


@pytest.mark.parametrize(
    ("dtype", "architecture", "slots"),
    [
        ("float32", "sm_80", 1),
        ("float16", "sm_90", 4),
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("float32", "sm_90", 1),
                ("float16", "sm_80", 8),
                ("bfloat16", "sm_90", 4),
                ("int8", "sm_80", 8),
                ("int8", "sm_90", 4),
            )
        ],
    ],
)
def test_more_than_four_fifths_of_a_main_loop_are_products(
    dtype: str, architecture: str, slots: int, tmp_path: Path
) -> None:
    """`slots`: cycles that a product occupies its unit, of one of four that a multiprocessor has,
    at the rate of the data sheet (A100, H100); every other instruction is issued in one.
    """
    generator = gpu_tiled if dtype == "float32" else gpu_tensor
    word = "FFMA" if dtype == "float32" else "MMA"
    kernel = product(dtype, generator, architecture, depth=2048)(0)
    loop = main_loop(instructions(kernel, architecture, tmp_path), word)
    products = sum(word in line for line in loop)
    assert products >= 64
    assert slots * products >= 0.85 * (slots * products + len(loop) - products)


@pytest.mark.parametrize("architecture", ["sm_80", pytest.param("sm_90", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "blocking", [pytest.param(0, marks=pytest.mark.slow), *range(1, len(BLOCKINGS))]
)
@pytest.mark.parametrize(
    ("dtype", "word"),
    [
        ("float16", "HMMA.16816.F32"),
        ("bfloat16", "HMMA.16816.F32.BF16"),
        ("int8", "IMMA.16832.S8.S8"),
    ],
)
def test_tensor_cores_multiply_what_comes_as_matrices(
    dtype: str, word: str, blocking: int, architecture: str, tmp_path: Path
) -> None:
    text = instructions(product(dtype, gpu_tensor)(blocking), architecture, tmp_path)
    how = BLOCKINGS[blocking]
    steps, rest = divmod(text.count(word), 2 * how.matrices_down * how.matrices_across)
    assert steps  # as many as the compiler unrolls
    assert not rest
    assert "LDSM.16.M88.4" in text
    assert re.search(r"LDGSTS\.E\.BYPASS(\.LTC128B)?\.128", text)
    sm, (use,) = (
        gpu(architecture).multiprocessor,
        taken((tmp_path / "code.cubin").read_bytes()).values(),
    )
    found, assumed = (
        sm.occupancy(how.threads, n, how.shared_bytes) for n in (use.registers, how.registers)
    )
    assert found >= assumed  # the model of time


def others() -> Iterator[tuple[list[Node], Node]]:
    """Inputs and outputs of operators that are no products."""

    def of(*shape: int, dtype: str = "float32") -> Node:
        return placeholder("x", Type(dtype, shape))

    x = of(64, 1000)
    yield [x], make("Softmax", x, axis=-1)
    yield [x], make("ArgMax", x, axis=-1)
    yield [x], make("CumSum", x, constant(np.array(1)))
    x = of(1, 98304)
    yield [x], make("ReduceSum", x, constant(np.array([1])))
    yield [x], make("Softmax", x, axis=-1)
    for k in (50, 5000):
        best = make("TopK", x, constant(np.array([k])), axis=1, largest=1)
        yield [x], make("item", best, index=0)
    yield [x], make("item", make("DynamicQuantizeLinear", x), index=0)
    x = of(1, 20, 20, 32)
    yield [x], make("Resize", x, None, None, constant(np.array([1, 33, 31, 32])), mode="cubic")
    given = [of(1000, 64), of(500, 1, dtype="int64"), of(500, 64)]
    for reduction in ("none", "add"):
        yield given, make("ScatterND", *given, reduction=reduction)
    for kind, gates, size in (("LSTM", 4, 64), ("LSTM", 4, 256), ("GRU", 3, 256)):
        x = of(16, 4, gates * size)
        weights = constant(normal((1, size, gates * size)))
        yield [x], make("recurrent", x, weights, kind=kind)
    for rows in (1, 128):
        x = of(rows, 1024)
        codes = constant(np.zeros((1024, 1024), np.uint8))
        scales = [constant(np.zeros((32, 1024), np.float32)) for _ in range(2)]
        yield [x], make("matmul_narrow", x, codes, *scales, bits=4, group=32)
    given = [of(1, 1000, 4), of(1, 8, 1000)]
    bounds = [np.array([9]), np.array([0.5], np.float32), np.array([0.1], np.float32)]
    yield given, make("non_max_suppression", *given, *map(constant, bounds), most=300)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_other_kernels_keep_nothing_in_memory_either(architecture: str, tmp_path: Path) -> None:
    for inputs, output in others():
        kernel = made(output, output, inputs, gpu(architecture))[0]
        assert kernel.grid is not None
        text = instructions(kernel, architecture, tmp_path)
        if output.op == "matmul_narrow":
            assert text.count("FFMA") >= 32


def test_elements_move_sixteen_bytes_at_a_time(tmp_path: Path) -> None:
    x, y = halves()
    text = instructions(made(y, None, (x,), gpu())[0], "sm_80", tmp_path)
    assert re.search(r"LDG\.E\.128", text)
    assert re.search(r"STG\.E\.128", text)


def test_refused_code_is_an_error() -> None:
    with pytest.raises(Error, match="error"):
        nvrtc.compile("this is no code;", "sm_80")


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: None)
    nvrtc._folder.cache_clear()
    nvrtc._library.cache_clear()
    try:
        with pytest.raises(Error, match="the compiler for CUDA is not installed") as e:
            nvrtc.compile("", "sm_80")
        assert "[cuda]" in e.value.hint
    finally:
        nvrtc._folder.cache_clear()
        nvrtc._library.cache_clear()
