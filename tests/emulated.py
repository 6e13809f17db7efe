"""Products that this CPU lacks, in plain vector operations: what an instruction set with them would
compute, on any x86.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from qcompiler import plugins
from qcompiler.isa import ISAS, Isa
from qcompiler.kernels import tir
from qcompiler.kernels.tir import Value
from qcompiler.products import BlockMac, Mac, MacKey, VectorMac

_DTYPES = {"u8": "uint8", "i8": "int8", "bf16": "uint16", "f16": "float16", "f32": "float32"}


def vector(key: MacKey, lanes: int, k: int) -> VectorMac:
    """A vector product: a lane's sum takes k neighbours of both operands."""
    places = [[lane * k + i for lane in range(lanes)] for i in range(k)]
    return VectorMac(key, lanes, k, _emit(key, places, places))


def block(key: MacKey, size: int, k: int, blocks: int) -> BlockMac:
    """A product of `size` rows of k by k columns of `size`, in each of `blocks` parts."""
    cells = [(b, r, c) for b in range(blocks) for r in range(size) for c in range(size)]
    left = [[(b * size + r) * k + i for b, r, _ in cells] for i in range(k)]
    right = [[(b * size + c) * k + i for b, _, c in cells] for i in range(k)]
    return BlockMac(key, size, size, k, _emit(key, left, right), blocks)


def _emit(
    key: MacKey, lefts: Sequence[Sequence[int]], rights: Sequence[Sequence[int]]
) -> Callable[[Value, Value, Value], Value]:
    """sums + the products of chosen elements, one after the other."""

    def emit(sums: Value, left: Value, right: Value) -> Value:
        a, b = (
            _wide(tir.reinterpret(v, _DTYPES[dtype]), dtype)
            for v, dtype in zip((left, right), key[:2], strict=True)
        )
        for one, other in zip(lefts, rights, strict=True):
            x, y = tir.shuffle(a, one), tir.shuffle(b, other)
            sums = sums + x * y
        return sums

    return emit


def _wide(value: Value, dtype: str) -> Value:
    """Elements -> int32 or float32."""
    if dtype == "bf16":
        upper = tir.const(1 << 16, "uint32", tir.lanes_of(value))
        return tir.reinterpret(tir.cast(value, "uint32") * upper, "float32")
    return tir.cast(value, "int32" if dtype in ("u8", "i8") else "float32")


def machine(name: str, *macs: Mac) -> Isa:
    """32-byte vectors without masks, products of float32, and these."""
    plugins.load_all()
    base = ISAS["x86_avx2"]
    single = base.vector(("f32", "f32", "f32"))
    assert single is not None
    return replace(base, name=name, macs=(single, *macs), masked=frozenset())


SIGNED = machine("signed", vector(("i8", "i8", "i32"), 8, 4))
"""Bytes are multiplied with a sign only."""
HALVES = machine("halves", vector(("f16", "f16", "f32"), 8, 1))
"""float16 is multiplied as it is."""
BLOCKS = machine(
    "blocks",
    block(("u8", "i8", "i32"), 2, 8, 2),
    block(("i8", "i8", "i32"), 2, 8, 2),
    block(("bf16", "bf16", "f32"), 2, 4, 2),
    vector(("i8", "i8", "i32"), 8, 4),
)
"""Products of 2 x 8 bytes by 8 x 2, and of half as many of bfloat16, twice in a vector."""
