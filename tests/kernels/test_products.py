"""What instruction sets say about their products: checked when said, and asked for the best."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from emulated import BLOCKS, HALVES, SIGNED, block, machine
from kernel_harness import made, region_of
from test_kernels_attention import CASES, attend
from test_kernels_contraction import CONVOLUTIONS, check, conv, force, matmul

from qcompiler import plugins
from qcompiler.emit.machine import machine_code
from qcompiler.hardware import cpu, isa
from qcompiler.hardware.isa import ISAS, Isa
from qcompiler.hardware.products import BYTE_PRODUCTS, BlockMac, TileMac, VectorMac
from qcompiler.ir import Graph, Type, constant, placeholder
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.contraction.blocking import Tiling
from qcompiler.kernels.cpu.contraction.tiled import tiled
from qcompiler.kernels.registry import Kernel
from qcompiler.ops import make
from qcompiler.quantization.scales import has_exact_product
from qcompiler.tune import limits

plugins.load_all()

BYTES = ("u8", "i8", "i32")
BFLOATS = ("bf16", "bf16", "f32")
WRONG: dict[str, Callable[[], object]] = {
    "not a power": lambda: VectorMac(BYTES, 12, 4, print),
    "more than a lane": lambda: VectorMac(BYTES, 8, 8, print),
    "halves": lambda: VectorMac(BYTES, 8, 4, print, exact=False),
    "a product of u4": lambda: VectorMac(("u4", "i8", "i32"), 8, 4, print),
    "unequal sizes": lambda: BlockMac(BYTES, 2, 2, 4, print),
    "one row": lambda: BlockMac(BYTES, 1, 4, 4, print),
    "2 tiles": lambda: TileMac(BYTES, 16, 16, 64, print, 2),
    "no whole number of 2": lambda: TileMac(BFLOATS, 16, 16, 1, print, 8),
    "16 bytes of sums": lambda: Isa(
        "narrow", "", (), frozenset(), 16, 32, (VectorMac(BYTES, 4, 4, print),)
    ),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_product_that_cannot_be_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        WRONG[reason]()


@pytest.mark.parametrize(
    ("machine", "sign", "kind", "exact"),
    [
        (ISAS["x86_avx2"], "u8", VectorMac, False),
        (ISAS["x86_avx512"], "u8", VectorMac, False),
        (ISAS["x86_avxvnni"], "u8", VectorMac, True),
        (ISAS["x86_amx"], "u8", TileMac, True),
        (SIGNED, "i8", VectorMac, True),
        (BLOCKS, "u8", BlockMac, True),
    ],
    ids=lambda v: v.name if isinstance(v, Isa) else str(v),
)
def test_the_best_product_of_bytes(machine: Isa, sign: str, kind: type, exact: bool) -> None:
    best = machine.best_product(BYTE_PRODUCTS)
    assert isinstance(best, kind)
    assert (best.key[0], best.exact) == (sign, exact)
    assert has_exact_product(isa.Cpu("d", machine, 1)) == exact


def test_a_nearer_product_stands_for_those_below_it() -> None:
    amx, exact = ISAS["x86_amx"], ISAS["x86_avx512vnni"].vector(BYTES)
    assert amx.vector(BYTES) is exact
    assert amx.vector(BYTES, exact=False) is ISAS["x86_avx512"].vector(BYTES)
    assert (amx.block(BYTES), SIGNED.tile(BYTES)) == (None, None)


def test_the_host_is_what_the_targets_prefer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what has the longest vectors, or was registered last."""
    have = ISAS["x86_avx512vnni"].cpu_flags | ISAS["x86_avxvnni"].cpu_flags
    monkeypatch.setattr(cpu, "features", lambda: have)
    assert isa.host().isa.name == "x86_avx512vnni"
    preferred = Isa("odd", "", (), frozenset({"avx2"}), 16, 16, preference=100)
    monkeypatch.setitem(ISAS, "odd", preferred)
    assert isa.host().isa is preferred


@pytest.mark.parametrize("left", ["uint8", "int8"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (13, 19, 33), (29, 37, 67)], ids=str)
def test_bytes_without_a_sign_are_multiplied_by_a_product_of_those_with_one(
    shape: tuple[int, int, int], left: str
) -> None:
    root = matmul(*shape, left, "int8")
    assert "i8i8" in check(root, root, SIGNED).name


@pytest.mark.parametrize("name", ["same padding", "groups", "depthwise", "a first layer"])
def test_convolutions_of_bytes_by_a_product_of_the_other_sign(name: str) -> None:
    x, w, attrs = CONVOLUTIONS[name]
    root = conv(x, w, "uint8", "int8", **attrs, pad_value=5)
    assert "i8i8" in check(root, root, SIGNED).name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_of_bytes_by_a_product_with_signs(case: tuple[object, ...]) -> None:
    """Weights are 0 to 255: they too are multiplied 128 smaller."""
    attend(case, "int8", SIGNED)


def test_float16_is_multiplied_as_it_is_where_there_is_such_a_product() -> None:
    for root in (
        matmul(13, 21, 33, "float16", "float16"),
        conv(*CONVOLUTIONS["same padding"][:2], "float16", "float16", pads=(1,) * 4),
    ):
        assert "f16f16" in check(root, root, HALVES, generator=tiled).name
    attend(CASES[1], "float16", HALVES)


BLOCK_PAIRS = [("uint8", "int8"), ("int8", "int8"), ("bfloat16", "bfloat16")]


@pytest.mark.parametrize("pair", BLOCK_PAIRS, ids="-".join)
def test_products_of_blocks_equal_numpy(pair: tuple[str, str]) -> None:
    """Odd and even rows, columns that end inside a vector and a block, depths that end inside k."""
    for m, n, k in [(2, 4, 8), (3, 1, 1), (13, 8, 4), (7, 23, 33), (31, 33, 6), (29, 37, 67)]:
        root = matmul(m, n, k, *pair)
        assert "mm_" in check(root, root, BLOCKS).name
    single = matmul(1, 19, 33, *pair)
    assert "mm_" not in check(single, single, BLOCKS).name


def test_tiles_of_blocks_and_their_neighbours_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, vectors in ((1, 1), (2, 2), (3, 2), (5, 3), (8, 1)):
        force(monkeypatch, Tiling(rows, vectors, block=1))
        for m in (rows, rows + 1, 2 * rows + 1):
            for n in (vectors * 4 - 1, vectors * 4, vectors * 4 + 1):
                root = matmul(max(m, 2), n, 13, "uint8", "int8")
                check(root, root, BLOCKS)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_by_products_of_blocks(name: str) -> None:
    x, w, attrs = CONVOLUTIONS[name]
    root = conv(x, w, "uint8", "int8", **attrs, pad_value=5)
    bias = constant(np.arange(root.type.dims[-1], dtype=np.int32) * 1000, "bias")
    out = make("Relu", make("Add", root, bias))
    assert "mm_" in check(root, out, BLOCKS, threads=2).name


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("left", ["uint8", "int8"])
def test_a_right_operand_that_is_no_constant_is_packed_for_blocks(
    left: str, transposed: int
) -> None:
    """Also by a machine whose blocks need bytes of the other sign: its columns are summed, too."""
    signed = machine("signed blocks", block(BYTE_PRODUCTS[1], 2, 8, 2))
    x = placeholder("x", Type(left, (3, 7, 19)))
    w = placeholder("w", Type("int8", (3, 11, 19) if transposed else (3, 19, 11)))
    root = make("matmul", x, w, transpose_b=transposed)
    for isa_ in (BLOCKS, signed):
        assert "mm_" in check(root, root, isa_).name


def test_limits_measure_products_of_blocks() -> None:
    mac = BLOCKS.block(BYTES)
    assert mac is not None
    assert limits.products(isa.Cpu("d", BLOCKS, 1), mac) > 0


def test_a_real_product_of_blocks_fills_its_loop() -> None:
    """Of ARM's, compiled only: rows are loaded by pairs of eight bytes, and nothing is spilled."""

    def usmmla(sums: Value, left: Value, right: Value) -> Value:
        a, b = (tir.reinterpret(v, "int8") for v in (left, right))
        return tir.llvm("int32", 4, "llvm.aarch64.neon.usmmla.v4i32.v16i8", sums, a, b)

    triple, features = "aarch64-unknown-linux-gnu", ("+neon", "+i8mm")
    macs = (BlockMac(BYTES, 2, 2, 8, usmmla),)
    arm = Isa("arm", triple, features, frozenset(), 32, 16, macs, masked=frozenset())
    root = matmul(8, 8, 64, "uint8", "int8")
    graph = Graph(root.operands[:1], (root,), ("y",))
    device, tile = isa.Cpu("d", arm, 1), (8, 4)
    kernel = made(
        tiled, region_of(graph, root), device, lambda k: (k["rows"], k["vectors"]) == tile
    )
    assert isinstance(kernel, Kernel)
    text = machine_code({"kernel": kernel.func}, arm, "").inspect_source("asm")
    body = text.partition("\nkernel:")[2].partition(".Lfunc_end")[0]
    lines = [line for line in body.splitlines() if re.match(r"\s+[a-z]", line)]
    places = [i for i, line in enumerate(lines) if "usmmla" in line]
    between = lines[places[0] : places[-1]]
    assert len(places) >= 4 * 4
    assert len(places) > len(between) / 2
    assert not any(re.search(r"\bq\d+, .*\[sp", line) for line in between)
