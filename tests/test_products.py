"""What instruction sets say about their products: checked when said, and asked for the best."""

from collections.abc import Callable

import pytest
from emulated import BLOCKS, HALVES, SIGNED
from test_kernels_attention import CASES, attend
from test_kernels_contraction import CONVOLUTIONS, check, conv, matmul

from qcompiler import cpu, isa, plugins
from qcompiler.isa import ISAS, Isa
from qcompiler.kernels.contraction import tiled
from qcompiler.products import BYTE_PRODUCTS, BlockMac, TileMac, VectorMac
from qcompiler.scales import has_exact_product

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
    assert has_exact_product(isa.Device("d", machine, 1)) == exact


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
    attend(case, "int8", SIGNED, rtol=1e-5, atol=0.3)


def test_float16_is_multiplied_as_it_is_where_there_is_such_a_product() -> None:
    for root in (
        matmul(13, 21, 33, "float16", "float16"),
        conv(*CONVOLUTIONS["same padding"][:2], "float16", "float16", pads=(1,) * 4),
    ):
        assert "f16f16" in check(root, root, HALVES, generator=tiled).name
    attend(CASES[1], "float16", HALVES, rtol=1e-2, atol=1e-2)
