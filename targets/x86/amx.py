"""AMX (Sapphire Rapids and later): eight tile registers of 16 rows by 64 bytes, int8 and bfloat16.

Linux grants the tile registers only on request, to all threads of a process: "Permission, when
granted, is valid per process. Permissions are inherited on fork(2) and cleared on exec(3)"
(Documentation/arch/x86/xstate.rst of the kernel, 5.16 and newer). So the entry of a run requests
them, and worker threads need not.
"""

from collections.abc import Callable, Mapping, Sequence

from qcompiler.targets.x86.avx512bf16 import AVX512BF16
from tvm import tirx

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import TileMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value

_ARCH_PRCTL = 158  # number of the system call on x86-64
_ARCH_REQ_XCOMP_PERM = 0x1023  # arch/x86/include/uapi/asm/prctl.h of the kernel
_XFEATURE_XTILEDATA = 18  # arch/x86/include/asm/fpu/types.h


def _tile(name: str, *operands: Value) -> Value:
    return tirx.op.call_llvm_intrin("void", f"llvm.x86.{name}", *operands)


def _number(tile: int) -> Value:
    return tir.const(tile, "int8")


def _product(name: str) -> Callable[[int, int, int], Value]:
    def emit(sums: int, left: int, right: int) -> Value:
        return _tile(name, _number(sums), _number(left), _number(right))

    return emit


def tile_shapes(shapes: Mapping[int, tuple[int, int]]) -> bytes:
    """{tile: (rows, bytes of a row)} -> the 64 bytes that ldtilecfg reads: palette 1."""
    config = bytearray(64)
    config[0] = 1
    for tile, (rows, row_bytes) in shapes.items():
        config[16 + 2 * tile] = row_bytes
        config[48 + tile] = rows
    return bytes(config)


def ldtilecfg(address: Value) -> Value:
    """Set the shapes of all tiles from 64 bytes of memory."""
    return _tile("ldtilecfg", address)


def tilerelease() -> Value:
    """Release the tiles, so that context switches need not save them."""
    return _tile("tilerelease")


def tilezero(tile: int) -> Value:
    """Clear a tile."""
    return _tile("tilezero", _number(tile))


def tileloadd(tile: int, address: Value, stride: Value) -> Value:
    """Load a tile's rows, `stride` bytes apart."""
    return _tile("tileloadd64", _number(tile), address, tirx.Cast("int64", stride))


def tileloaddt1(tile: int, address: Value, stride: Value) -> Value:
    """tileloadd of data that is not read again soon, which need not displace cached lines."""
    return _tile("tileloaddt164", _number(tile), address, tirx.Cast("int64", stride))


def tilestored(tile: int, address: Value, stride: Value) -> Value:
    """Store a tile's rows, `stride` bytes apart."""
    return _tile("tilestored64", _number(tile), address, tirx.Cast("int64", stride))


def system_call(numbers: Sequence[int]) -> str:
    """LLVM text of a system call (its number, then two arguments); it returns 0 or a negative
    error.
    """
    number, first, second = numbers
    clobbered = "~{rcx},~{r11},~{memory}"
    return (
        f'call i64 asm sideeffect "syscall", "={{rax}},{{rax}},{{rdi}},{{rsi}},{clobbered}"'
        f"(i64 {number}, i64 {first}, i64 {second})"
    )


AMX = isa(
    "x86_amx",
    extends=AVX512BF16,
    llvm="+amx-tile +amx-int8 +amx-bf16",
    cpu_flags="amx_tile amx_int8 amx_bf16",
    macs=(
        TileMac(("u8", "i8", "i32"), rows=16, lanes=16, k=64, emit=_product("tdpbusd"), tiles=8),
        TileMac(("i8", "i8", "i32"), rows=16, lanes=16, k=64, emit=_product("tdpbssd"), tiles=8),
        TileMac(
            ("bf16", "bf16", "f32"), rows=16, lanes=16, k=32, emit=_product("tdpbf16ps"), tiles=8
        ),
    ),
    intrinsics={
        "tile_shapes": tile_shapes,
        "tile_configure": ldtilecfg,
        "tile_release": tilerelease,
        "tile_zero": tilezero,
        "tile_load": tileloadd,
        "tile_load_once": tileloaddt1,
        "tile_store": tilestored,
        "system_call": system_call,
    },
    permission=(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA),
)
