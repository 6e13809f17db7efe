"""Machine code for AMX and AVX-VNNI -> what the manual says it does, on whatever CPU we have.

The instructions come from gcc (emulator/instructions.c), from the assembler (emulator/fuzz.py) and
from TVM. On a CPU that has them the same tests check the CPU.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, valid-type"

import ctypes
import functools
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm.script import tirx as T

from emulator import SOURCE, compile_library, fuzz, library, load_or_skip
from emulator.fuzz import pointer

Array = NDArray[Any]

INTEGER_TYPES = {
    "dpbusd": (np.uint8, np.int8),
    "dpbssd": (np.int8, np.int8),
    "dpbsud": (np.int8, np.uint8),
    "dpbuud": (np.uint8, np.uint8),
}


@pytest.fixture(autouse=True)
def _emulator() -> None:
    load_or_skip()


@functools.cache
def instructions() -> ctypes.CDLL:
    return compile_library(SOURCE.with_name("instructions.c"))


def call(name: str, *arguments: Array | int) -> None:
    """A function of instructions.c on arrays (as pointers) and longs."""
    converted = (ctypes.c_long(a) if isinstance(a, int) else pointer(a) for a in arguments)
    getattr(instructions(), name)(*converted)


def tile_config(shapes: dict[int, tuple[int, int]]) -> NDArray[np.uint8]:
    """{tile: (rows, bytes a row)} -> the 64 bytes of LDTILECFG."""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    for tile, (rows, row_bytes) in shapes.items():
        config[48 + tile], config[16 + 2 * tile] = rows, row_bytes
    return config


def interleave(b: Array, group: int) -> Array:
    """b[k, n] -> rows of `group` neighbours in k for each n: how a second factor lies in a tile."""
    k, n = b.shape
    return b.reshape(k // group, group, n).transpose(0, 2, 1).reshape(k // group, n * group)


def padded(matrix: Array, extra_bytes: int) -> NDArray[np.uint8]:
    """A matrix -> its bytes, with unused bytes between the rows."""
    rows = np.ascontiguousarray(matrix).view(np.uint8)
    memory = np.full((rows.shape[0], rows.shape[1] + extra_bytes), 0xA5, np.uint8)
    memory[:, : rows.shape[1]] = rows
    return memory


def multiply_tiles(
    name: str, tile: int, a: Array, b: Array, c: Array, extra: tuple[int, int, int]
) -> Array:
    """c + a @ b by one instruction, c in `tile`. Bytes between the rows in memory must survive."""
    group = 4 // a.itemsize
    blocks = [padded(x, e) for x, e in zip((c, a, interleave(b, group)), extra, strict=True)]
    m, n, k = c.shape[0], c.shape[1], a.shape[1] // group
    shapes = {tile: (m, 4 * n), (tile + 1) % 8: (m, 4 * k), (tile + 2) % 8: (k, 4 * n)}
    arguments = [x for block in blocks for x in (block, block.shape[1])]
    call(f"{name}_{tile}", tile_config(shapes), *arguments)
    assert np.all(blocks[0][:, 4 * n :] == 0xA5)
    return np.ascontiguousarray(blocks[0][:, : 4 * n]).view(c.dtype)


def integer_case(
    rng: np.random.Generator, name: str, m: int, n: int, k: int
) -> tuple[Array, Array, Array]:
    """-> random a[m, 4k], b[4k, n], c[m, n] of the instruction's types, extremes included."""
    a_type, b_type = INTEGER_TYPES[name]
    low, high = np.iinfo(a_type), np.iinfo(b_type)
    a = rng.integers(low.min, low.max + 1, (m, 4 * k)).astype(a_type)
    b = rng.integers(high.min, high.max + 1, (4 * k, n)).astype(b_type)
    return a, b, rng.integers(-(2**31), 2**31, (m, n)).astype(np.int32)


def check_integer_product(
    rng: np.random.Generator, name: str, tile: int, m: int, n: int, k: int
) -> None:
    a, b, c = integer_case(rng, name, m, n, k)
    extra = tuple(int(x) for x in rng.integers(0, 100, 3))
    expected = (c + a.astype(np.int64) @ b.astype(np.int64)).astype(
        np.int32
    )  # wraps, as the CPU does
    np.testing.assert_array_equal(
        multiply_tiles(name, tile, a, b, c, (extra[0], extra[1], extra[2])), expected
    )


@pytest.mark.parametrize("name", INTEGER_TYPES)
@pytest.mark.parametrize("tile", range(8))
def test_integer_tile_products_are_exact_for_every_shape(name: str, tile: int) -> None:
    rng = np.random.default_rng(tile)
    for m, n, k in [(16, 16, 16), (1, 1, 1), *rng.integers(1, 17, (6, 3)).tolist()]:
        check_integer_product(rng, name, tile, m, n, k)


def flushed(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Denormals -> zeros of the same sign."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def bf16_product(a: Array, b: Array, c: NDArray[np.float32]) -> NDArray[np.float32]:
    """c + a @ b by the SDM's text of TDPBF16PS; float64 is precise enough for a fused step."""
    a64, b64 = (flushed(x.astype(np.float32)).astype(np.float64) for x in (a, b))
    sums = [np.zeros(c.shape, np.float32), np.zeros(c.shape, np.float32)]
    for k in range(a.shape[1]):
        sums[k % 2] = flushed((a64[:, k : k + 1] * b64[k] + sums[k % 2]).astype(np.float32))
    return flushed(flushed(c) + flushed(sums[0] + sums[1]))


@pytest.mark.parametrize("tile", range(8))
def test_bf16_tile_products_round_and_flush_as_documented(tile: int) -> None:
    rng = np.random.default_rng(tile)
    for m, n, k in [(16, 16, 16), (1, 1, 1), *rng.integers(1, 17, (6, 3)).tolist()]:
        scale = np.float32(2.0) ** rng.choice(
            [0, -62, -66, 61]
        )  # products around 1, near and below the least, near the greatest
        a = (rng.standard_normal((m, 2 * k)) * scale).astype(ml_dtypes.bfloat16)
        b = (rng.standard_normal((2 * k, n)) * scale).astype(ml_dtypes.bfloat16)
        a[rng.random(a.shape) < 0.1] = ml_dtypes.bfloat16(1e-40)  # a denormal
        c = (rng.standard_normal((m, n)) * scale * scale).astype(np.float32)
        np.testing.assert_array_equal(
            multiply_tiles("dpbf16ps", tile, a, b, c, (0, 6, 12)), bf16_product(a, b, c)
        )


def test_each_thread_has_tiles_of_its_own() -> None:
    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            m, n, k = rng.integers(1, 17, 3).tolist()
            check_integer_product(rng, "dpbusd", int(rng.integers(8)), m, n, k)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


def test_the_configuration_can_be_read_back_and_released() -> None:
    config = tile_config({0: (16, 64), 3: (1, 4), 7: (9, 20)})
    loaded, released = np.full(64, 7, np.uint8), np.full(64, 7, np.uint8)
    call("configurations", config, loaded, released)
    np.testing.assert_array_equal(loaded, config)
    assert not released.any()


def test_tilezero_clears_one_tile_only() -> None:
    rng = np.random.default_rng(0)
    block = rng.integers(1, 256, (11, 64), dtype=np.uint8)
    zeroed, kept = np.full((11, 64), 7, np.uint8), np.full((11, 64), 7, np.uint8)
    call("zero", tile_config({3: (11, 40), 5: (11, 24)}), block, zeroed, kept, 64)
    assert not zeroed[:, :40].any()
    assert np.all(zeroed[:, 40:] == 7)
    np.testing.assert_array_equal(kept[:, :24], block[:, :24])
    assert np.all(kept[:, 24:] == 7)


def refuses(name: str, config: NDArray[np.uint8]) -> bool:
    """-> whether the CPU, or the emulator in its place, refuses an instruction."""
    functions = (library().emulator_install, library().emulator_remove)
    install, remove = (ctypes.cast(f, ctypes.c_void_p) for f in functions)
    run = ctypes.cast(getattr(instructions(), name), ctypes.c_void_p)
    return bool(instructions().refused(run, pointer(config), install, remove))


# c[5 x 7] += a[5 x 3] * b[3 x 7] in tiles 0, 1, 2
FITTING = {0: (5, 28), 1: (5, 12), 2: (3, 28)}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("multiply", {0: (6, 28)}),
        ("multiply", {0: (5, 24)}),
        ("multiply", {1: (5, 16)}),
        ("multiply", {2: (4, 28)}),
        ("multiply", {0: (0, 0)}),
        ("multiply", {0: (5, 27), 2: (3, 27)}),
        ("multiply", {1: (5, 13)}),
        ("multiply_by_itself", {0: (4, 16), 1: (4, 16)}),
        ("load_tile", {}),
        ("load_tile", {6: (2, 6)}),
        ("store_released", {}),
        ("load_config", {4: (17, 64)}),
        ("load_config", {4: (16, 65)}),
        ("load_config", {4: (0, 4)}),
        ("load_config", {4: (4, 0)}),
        ("undefined", {}),
        ("undefined_vex", {}),
    ],
)
def test_what_the_cpu_refuses_is_refused(name: str, change: dict[int, tuple[int, int]]) -> None:
    assert not refuses("multiply", tile_config(FITTING))
    assert refuses(name, tile_config(FITTING | change))


@pytest.mark.parametrize(
    ("byte", "value"), [(0, 2), (2, 1), (15, 1), (32, 1), (47, 1), (56, 1), (63, 1)]
)
def test_reserved_bytes_of_a_configuration_must_be_zero(byte: int, value: int) -> None:
    config = tile_config(FITTING)
    assert not refuses("load_config", config)
    config[byte] = value
    assert refuses("load_config", config)


def test_palette_zero_releases_the_tiles() -> None:
    loaded = np.full(64, 7, np.uint8)
    call("configurations", np.zeros(64, np.uint8), loaded, loaded.copy())
    assert not loaded.any()


@pytest.mark.parametrize(
    "death", ["fuzz.assemble(['ud2']).f0()", "signal.raise_signal(signal.SIGILL)"]
)
def test_an_illegal_instruction_still_kills_the_process(death: str) -> None:
    program = f"import signal; from emulator import fuzz, load; load(); {death}"
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGILL


def vector_dot(sums: Array, a: Array, b: Array, group: int, saturate: bool) -> Array:
    """-> sums + the dot product of each `group` neighbours of a and b, saturated or wrapped."""
    products = (a.astype(np.int64) * b.astype(np.int64)).reshape(-1, group).sum(axis=1)
    exact, limits = sums.astype(np.int64) + products, np.iinfo(sums.dtype)
    result: Array = exact.clip(limits.min, limits.max) if saturate else exact
    return result.astype(sums.dtype)


@pytest.mark.parametrize("bits", [128, 256])
@pytest.mark.parametrize("name", ["dpbusd", "dpbusds", "dpwssd", "dpwssds"])
def test_vector_dot_products_are_exact(name: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    vectors, (a_type, b_type) = (
        64,
        (np.uint8, np.int8) if name.startswith("dpb") else (np.int16, np.int16),
    )
    lanes = vectors * bits // 32
    a = rng.integers(0, 256, 4 * lanes, dtype=np.uint8).view(a_type)
    b = rng.integers(0, 256, 4 * lanes, dtype=np.uint8).view(b_type)
    a[:64], b[:64] = (
        np.iinfo(a_type).min,
        np.iinfo(b_type).min,
    )  # -32768 * -32768 * 2 exceeds int32 alone
    sums = rng.choice([-(2**31), 2**31 - 1, 0, 12345], lanes).astype(np.int32)
    expected = vector_dot(sums, a, b, 4 // a.itemsize, name.endswith("s"))
    call(f"{name}_{bits}", sums, a, b, vectors)
    np.testing.assert_array_equal(sums, expected)


@pytest.mark.parametrize("saturate", ["", "s"])
@pytest.mark.parametrize("name", ["dpbssd", "dpbsud", "dpbuud"])
def test_int8_vector_dot_products_are_exact(name: str, saturate: str) -> None:
    rng = np.random.default_rng(0)
    a_type, b_type = INTEGER_TYPES[name]
    sum_type = np.uint32 if name == "dpbuud" else np.int32
    for _ in range(20):
        a = rng.integers(0, 256, 32, dtype=np.uint8).view(a_type)
        b = rng.integers(0, 256, 32, dtype=np.uint8).view(b_type)
        sums = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1], 8).astype(np.uint32).view(sum_type)
        expected = vector_dot(sums, a, b, 4, saturate == "s")
        call(f"{name}{saturate}", sums, a, b)
        np.testing.assert_array_equal(sums, expected)


@pytest.mark.parametrize("seed", range(3))
def test_all_registers_and_addressing_modes_of_vector_instructions(seed: int) -> None:
    fuzz.vectors(seed, zmm=" avx512f " in Path("/proc/cpuinfo").read_text())


@pytest.mark.parametrize("seed", range(3))
def test_random_tile_programs_equal_the_reference(seed: int) -> None:
    fuzz.tiles(seed)


def tile(name: str, *arguments: object) -> object:
    """An AMX instruction as a statement of TIR."""
    return T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))


def amx_matmul(m: int, n: int, k: int, types: tuple[str, str, str], product: str) -> tvm.IRModule:
    """c[m, n] = a[m, k] * b, a task for each 16 columns; b lies in tiles, see `in_tiles`."""
    a_type, b_type, c_type = types
    step = 64 // np.dtype(a_type).itemsize

    @T.prim_func(s_tir=True)
    def matmul(
        A: T.Buffer((m, k), a_type),
        B: T.Buffer((n // 16, k // step, 16, step), b_type),
        C: T.Buffer((m, n), c_type),
        config: T.Buffer((64,), "uint8"),
    ):
        for column in T.parallel(n // 16):
            tile("ldtilecfg", T.address_of(config[0]))
            for row in T.serial(m // 16):
                tile("tilezero", T.int8(0))
                for i in T.serial(k // step):
                    tile(
                        "tileloadd64",
                        T.int8(1),
                        T.address_of(A[row * 16, i * step]),
                        T.int64(64 // step * k),
                    )
                    tile("tileloadd64", T.int8(2), T.address_of(B[column, i, 0, 0]), T.int64(64))
                    tile(product, T.int8(0), T.int8(1), T.int8(2))
                tile(
                    "tilestored64",
                    T.int8(0),
                    T.address_of(C[row * 16, column * 16]),
                    T.int64(4 * n),
                )
            tile("tilerelease")

    return tvm.IRModule({"main": matmul})


def vnni_matmul(m: int, k: int) -> tvm.IRModule:
    """c[m, 8] = a[m, k] * b, b interleaved by four, with one vpdpbusd for each four of k."""

    @T.prim_func(s_tir=True)
    def matmul(
        A: T.Buffer((m, k), "uint8"),
        B: T.Buffer((k // 4, 32), "int8"),
        C: T.Buffer((m, 8), "int32"),
    ):
        for row in T.parallel(m):
            total = T.alloc_buffer((8,), "int32", scope="local")
            total[T.ramp(0, 1, 8)] = T.broadcast(T.int32(0), 8)
            for i in T.serial(k // 4):
                total[T.ramp(0, 1, 8)] = T.call_llvm_pure_intrin(
                    "int32x8",
                    "llvm.x86.avx512.vpdpbusd.256",  # the name of the AVX-VNNI form too
                    total[T.ramp(0, 1, 8)],
                    T.reinterpret(
                        "uint8x32",
                        T.broadcast(T.reinterpret("int32", A[row, T.ramp(4 * i, 1, 4)]), 8),
                    ),
                    B[i, T.ramp(0, 1, 32)],
                )
            C[row, T.ramp(0, 1, 8)] = total[T.ramp(0, 1, 8)]

    return tvm.IRModule({"main": matmul})


def run_in_two_threads(
    monkeypatch: pytest.MonkeyPatch, module: tvm.IRModule, features: list[str], *arrays: Array
) -> Array:
    """A kernel for more than this CPU, run by two threads of TVM -> its third array afterwards."""
    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3", "mattr": features})
    compiled = tvm.compile(module, target=target)
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    monkeypatch.setenv("TVM_NUM_THREADS", "2")
    monkeypatch.setenv("TVM_BIND_THREADS", "0")
    threads = []

    def run() -> (
        None
    ):  # a thread that has not used TVM's pool gets a new one, of the size that is set now
        compiled["main"](*tensors)
        threads.append(tvm.get_global_func("runtime.NumThreads")())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert threads == [2]
    result: Array = tensors[2].numpy()
    return result


def in_tiles(b: Array, group: int) -> Array:
    """b[k, n] -> [n / 16, k / (16 * group), 16, 16 * group], each tile interleaved."""
    k, n = b.shape
    blocks = b.reshape(k // (16 * group), 16, group, n // 16, 16).transpose(3, 0, 1, 4, 2)
    return np.ascontiguousarray(blocks).reshape(n // 16, k // (16 * group), 16, 16 * group)


FULL_TILES = tile_config({0: (16, 64), 1: (16, 64), 2: (16, 64)})


def test_an_int8_amx_kernel_compiled_by_tvm_runs_in_its_thread_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b, c = integer_case(np.random.default_rng(0), "dpbusd", 48, 64, 48)
    module = amx_matmul(48, 64, 192, ("uint8", "int8", "int32"), "tdpbusd")
    features = ["+amx-tile", "+amx-int8"]
    result = run_in_two_threads(monkeypatch, module, features, a, in_tiles(b, 4), c, FULL_TILES)
    np.testing.assert_array_equal(result, a.astype(np.int32) @ b.astype(np.int32))


def test_a_bf16_amx_kernel_compiled_by_tvm_runs_in_its_thread_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in ((48, 96), (96, 64)))
    c = np.zeros((48, 64), np.float32)
    module = amx_matmul(48, 64, 96, ("bfloat16", "bfloat16", "float32"), "tdpbf16ps")
    features = ["+amx-tile", "+amx-bf16"]
    result = run_in_two_threads(monkeypatch, module, features, a, in_tiles(b, 2), c, FULL_TILES)
    for k in range(0, 96, 32):
        c = bf16_product(a[:, k : k + 32], b[k : k + 32], c)
    np.testing.assert_array_equal(result, c)


def test_an_avx_vnni_kernel_compiled_by_tvm_runs_in_its_thread_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b, _ = integer_case(np.random.default_rng(0), "dpbusd", 33, 8, 16)
    c = np.zeros((33, 8), np.int32)
    result = run_in_two_threads(
        monkeypatch, vnni_matmul(33, 64), ["+avxvnni"], a, interleave(b, 4), c
    )
    np.testing.assert_array_equal(result, a.astype(np.int32) @ b.astype(np.int32))
