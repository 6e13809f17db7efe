"""Kernels of every family, on every instruction set of another architecture, as its processors run
them: a few by default; all that this folder tests, of every shape and dtype, dealt out among
them where marked slow.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import board
import pytest
import test_kernels_attention as attention
import test_kernels_contraction as contraction
import test_kernels_itself as itself
import test_kernels_low_bits as low_bits
import test_kernels_math as math
import test_kernels_other as other
import test_kernels_recurrent as recurrent
import test_kernels_sparse as sparse
import test_kernels_strassen as strassen
import test_kernels_windows as windows
import test_kernels_winograd as winograd

from qcompiler import plugins
from qcompiler.hardware.isa import ISAS, Isa

plugins.load_all()
SETS = [ISAS[name] for name in board.CPUS]
WINDOW, FLAT = windows.WINDOWS[1], attention.CASES[1]


def _tiles(isa: Isa) -> None:
    with pytest.MonkeyPatch.context() as patches:
        contraction.test_every_tile_and_its_neighbours_are_right(isa, patches)


FAMILIES: Mapping[str, Callable[[Isa], None]] = {
    **{
        f"products of {left} and {right}": lambda isa, pair=(left, right): (
            contraction.test_products_of_awkward_shapes_equal_numpy(isa, pair)
        )
        for left, right in contraction.PAIRS
    },
    **{
        f"convolution, {name}": lambda isa, name=name: contraction.test_convolutions_equal_numpy(
            isa, name
        )
        for name in ("a first layer", "groups", "dilated")
    },
    "tiles": _tiles,
    "products of rows in pairs": contraction.test_many_columns_of_single_pixels,
    "products of windows side by side": contraction.test_rows_of_windows_lie_side_by_side,
    "what follows sums": contraction.test_what_follows_is_computed_on_the_sums,
    "products of activations": lambda isa: contraction.test_both_operands_may_be_activations(
        isa, ("uint8", "int8")
    ),
    "any product": lambda isa: contraction.test_the_plain_kernel_computes_anything(
        isa, ("uint8", "int8")
    ),
    "fewer products": lambda isa: winograd.test_convolutions_equal_numpy(
        isa, next(iter(winograd.SHAPES))
    ),
    "seven products of eight": lambda isa: strassen.test_products_equal_numpy(isa, 17),
    "products by zeros": lambda isa: sparse.test_matrix_products_of_any_share_of_zeros(
        isa, ("uint8", "int8")
    ),
    "few bits": lambda isa: low_bits.test_products_of_every_shape(isa, 4),
    **{
        f"depthwise {dtype}": lambda isa, dtype=dtype: windows.test_depthwise_convolutions(
            WINDOW, dtype, isa
        )
        for dtype in ("float32", "uint8", "int8")
    },
    "depthwise extremes": (
        windows.test_the_extreme_bytes_of_a_depthwise_convolution_do_not_saturate
    ),
    "depthwise 5": lambda isa: windows.test_depthwise_weights_that_never_saturate("int8", 5, isa),
    "pools of bytes": lambda isa: windows.test_pools("int8", isa),
    **{
        f"itself and the product {name}": lambda isa, name=name: (
            itself.test_what_an_operator_reads_is_added_to_its_result(name, isa)
        )
        for name in ("depthwise", "1 x 1")
    },
    "resize": windows.test_images_are_resized_in_every_mode,
    "reductions": windows.test_reductions_of_integers,
    "softmax": lambda isa: windows.test_softmax_along_every_axis(2, "Softmax", isa),
    "norms": windows.test_a_layer_norm_of_bytes_into_bytes,
    "argmax": lambda isa: windows.test_the_place_of_the_best("ArgMax", isa),
    "attention of bytes": lambda isa: attention.test_attention_of_bytes(FLAT, isa),
    "attention of halves": lambda isa: attention.test_attention_of_halves(FLAT, isa),
    "attention": lambda isa: attention.test_attention_with_booleans_that_hide_some_or_all(
        "float32", isa
    ),
    "recurrent": lambda isa: recurrent.test_any_number_of_hidden_units("LSTM", 7, isa),
    "exp": lambda isa: math.test_functions_are_as_accurate_as_promised("Exp", isa),
    "swish to bytes": lambda isa: math.test_a_rounded_swish_is_as_accurate_as_promised(
        isa, 1.0, "uint8"
    ),
    "gelu": math.test_gelu_sigmoid_and_swish_are_close_to_the_formulas,
    "quantize": lambda isa: math.test_quantize_equals_its_meaning_bit_for_bit("uint8", isa),
    "quantize with a sign": lambda isa: math.test_quantize_equals_its_meaning_bit_for_bit(
        "int8", isa
    ),
    "quantize what fits 16 bits": lambda isa: (
        math.test_quantize_of_what_fits_16_bits_equals_its_meaning("int8", isa)
    ),
    "tables": lambda isa: math.test_dequantize_and_tables_take_every_byte("int8", isa),
    "integers": lambda isa: math.test_integers_wrap_around_and_never_trap("int32", isa),
    "casts": lambda isa: math.test_casts_are_cs("float16", isa),
    "residual": lambda isa: other.test_a_quantized_residual_is_exact("uint8", isa),
    "transpose": lambda isa: other.test_transposes_of_every_shape(
        *other.TRANSPOSES[0], "uint8", isa
    ),
    "joins": lambda isa: other.test_slices_splits_and_joins("uint8", isa),
    "gather": lambda isa: other.test_gathers("float32", isa),
    "scatter": lambda isa: other.test_scatters("add", isa),
}


ALL = ("arm_neon", "arm_bf16", "arm_v7", "riscv_v")
PRODUCTS = re.compile("product|convolution|depthwise|attention")
FEW = re.compile("products of uint8 and int8|depthwise int8|attention of bytes|quantize$")


def _cases() -> Iterator[object]:
    """All families on the poorest and the richest instruction set of an architecture, on others
    those that multiply, by whose products they differ. By default all on `arm_neon`, those that
    multiply on `arm_bf16`, and a few on others.
    """
    for isa in SETS:
        for family in FAMILIES:
            multiplies = PRODUCTS.search(family)
            if isa.name in ALL or multiplies:
                usual = isa.name == "arm_neon" or (isa.name == "arm_bf16" and multiplies)
                marks = () if usual or FEW.search(family) else pytest.mark.slow
                yield pytest.param(isa, family, id=f"{isa.name}-{family}", marks=marks)


@pytest.mark.parametrize(("isa", "family"), tuple(_cases()))
def test_kernels_of_every_family(isa: Isa, family: str) -> None:
    board.demand_for(isa.name)
    FAMILIES[family](isa)


def test_swish_to_bytes_where_float16_is_computed_with() -> None:
    isa = next(i for i in SETS if i.name == "arm_bf16")
    assert "half_minimum" in isa.intrinsics
    board.demand_for(isa.name)
    FAMILIES["swish to bytes"](isa)


BOARDS = [(isa, cpu) for isa, cpus in board.CPUS.items() for cpu in cpus]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BOARDS)), ids=[":".join(b) for b in BOARDS])
def test_a_share_of_all_kernels(number: int) -> None:
    """Every test of this folder that takes an instruction set, each on one processor. All of them
    on one take half an hour: `pytest tests/kernels --board arm_neon:cortex-a53 --share 0/1`.
    """
    board.demand_for(BOARDS[number][0])
    here = Path(__file__).parent
    models = here / "test_shared_kernels.py"  # loads what it compiles
    tiles = here.glob("test_kernels_tiles*.py")  # are not of these
    others = [f"--ignore={p}" for p in (Path(__file__), models, *tiles)]
    chosen = ["--board", ":".join(BOARDS[number]), "--share", f"{number}/{len(BOARDS)}"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *chosen, *others, str(here)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
