"""AVX2 with FMA (Haswell, Zen and later): sixteen 32-byte registers, exact int8 only through int16.

There is a product of uint8 and int8, vpmaddubsw, but it saturates: 255 * 127 + 255 * 127 does not
fit int16. Widened to int16, vpmaddwd is exact.
Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
"""

from collections.abc import Callable, Sequence

from tvm import tirx

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import VectorMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value, llvm

Emit = Callable[[Value, Value, Value], Value]


def vfmaddps(sums: Value, left: Value, right: Value) -> Value:
    """float32: left * right + sums in one rounding."""
    return tir.fma(left, right, sums)


def multiplied(lanes: int, name: str, dtype: str) -> Emit:
    """The product of an instruction that adds to its sums: `lanes` of them, operands of a dtype."""

    def emit(sums: Value, left: Value, right: Value) -> Value:
        a, b = (tir.reinterpret(v, dtype) for v in (left, right))
        return llvm("int32", lanes, name, sums, a, b)

    return emit


def through_words(lanes: int, wd: str, ubsw: str) -> tuple[VectorMac, VectorMac]:
    """The products of int16 and of bytes in vectors of `lanes` sums, by vpmaddwd and vpmaddubsw."""

    def vpmaddwd(sums: Value, left: Value, right: Value) -> Value:
        """int16 pairs: both products of a lane are added in int32; only 4 * 2**30 overflows."""
        a, b = (tir.reinterpret(v, "int16") for v in (left, right))
        return tir.wrapping("+", sums, llvm("int32", lanes, wd, a, b))

    def vpmaddubsw(left: Value, right: Value) -> Value:
        """uint8 by int8: sums of two products, which saturate to int16."""
        a, b = (tir.reinterpret(v, "int8") for v in (left, right))
        return llvm("int16", 2 * lanes, ubsw, a, b)

    def add_pairs(sums: Value, words: Value) -> Value:
        """int16: two neighbours are added to an int32 sum."""
        return vpmaddwd(sums, words, tir.const(1, "int16", 2 * lanes))

    def both(sums: Value, left: Value, right: Value) -> Value:
        """uint8 by int8: sums of two saturate to int16, then pairs of them are added in int32."""
        return add_pairs(sums, vpmaddubsw(left, right))

    return (
        VectorMac(("i16", "i16", "i32"), lanes, 2, vpmaddwd, temporaries=1),
        VectorMac(
            ("u8", "i8", "i32"),
            lanes,
            k=4,
            emit=both,
            exact=False,
            temporaries=2,
            pairs=vpmaddubsw,
            join=add_pairs,
        ),
    )


def vcvtps2dq(x: Value) -> Value:
    """float32 -> int32, halves to even; out of range and NaN give -2**31."""
    return llvm("int32", 8, "llvm.x86.avx.cvt.ps2dq.256", x)


def quantizer(
    lanes: int, rounded: Callable[[Value], Value], name: Callable[[str], str]
) -> Callable[..., Value]:
    """The intrinsic "quantize" (see `Isa`) for vectors of `lanes` floats: `rounded` converts one to
    int32, `name` gives the name of a saturating pack of this width. Packs work within quarters of
    16 bytes; a shuffle restores the order.
    """

    def quantize(
        vectors: Sequence[Value],
        zero: Value | None,
        dtype: str,
        *,
        bounded: bool = False,
        numbers: bool = False,
    ) -> Value:
        """`numbers` makes no difference here."""
        if not bounded:
            # int32 cannot hold more, which saturates anyway
            most = tir.const(1e9, "float32", lanes)
            vectors = [tirx.Select(most < x, most, x) for x in vectors]
        whole = [rounded(x) for x in vectors]
        pairs = zip(whole[::2], whole[1::2], strict=True)
        words = [llvm("int16", 2 * lanes, name("packssdw"), a, b) for a, b in pairs]
        if zero is not None:
            shift = tir.broadcast(tir.cast(zero, "int16"), 2 * lanes)
            words = [llvm("int16", 2 * lanes, "llvm.sadd.sat", w, shift) for w in words]
        pack = {"uint8": "packuswb", "int8": "packsswb"}[dtype]
        packed = llvm("int8", 4 * lanes, name(pack), words[0], words[-1])
        order = [quarter * 4 + v for v in range(len(vectors)) for quarter in range(lanes // 4)]
        return tir.reinterpret(tir.shuffle(tir.reinterpret(packed, "int32"), order), dtype)

    return quantize


quantize = quantizer(8, vcvtps2dq, "llvm.x86.avx2.{}".format)


def pause() -> str:
    """LLVM text: a hint that this thread spins."""
    return "call void @llvm.x86.sse2.pause()"


AVX2 = isa(
    "x86_avx2",
    family="x86-64",
    triple="x86_64-unknown-linux-gnu",
    llvm="x86-64-v3",
    cpu_flags="avx2 fma f16c bmi1 bmi2 abm movbe",
    registers=16,
    vector_bytes=32,
    masked=frozenset((4, 8)),
    macs=(
        VectorMac(("f32", "f32", "f32"), lanes=8, k=1, emit=vfmaddps),
        *through_words(8, "llvm.x86.avx2.pmadd.wd", "llvm.x86.avx2.pmadd.ub.sw"),
    ),
    intrinsics={"round_to_int": vcvtps2dq, "quantize": quantize, "pause": pause},
)
