"""Parts of vectors, with masks and without: what they move, what they leave alone, and in how many
instructions.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
from kernel_harness import called, isas, unmasked

from qcompiler.emit.machine import machine_code
from qcompiler.hardware.isa import Isa
from qcompiler.ir import numpy_dtype
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tails import Tails
from qcompiler.kernels.cpu.code.tir import Builder

ARM = Isa("no masks", "aarch64-unknown-linux-gnu", ("+neon",), frozenset(), 32, 16)
ARM = replace(ARM, masked=frozenset())
POINTERS = {"aarch64": (r"\[x0", r"\[x1"), "x86_64": (r"\(%rdi\b", r"\(%rsi\b")}
"""The registers of the first two arguments, where memory is addressed by them."""
DTYPES = ("uint8", "uint16", "float16", "float32", "float64")


def moving(isa: Isa, dtype: str, lanes: int, count: int | None, memory: str = "") -> tir.Value:
    """A function of from, to and (for a count of None) how many: to[i] = from[i] ^ 1 of the bits,
    through pointers that see `memory`'s elements as `dtype`.
    """
    b = Builder("moving", Tails.of(isa))
    x, y = (b.pointer(name, memory or dtype).view(dtype) for name in "xy")
    first = b.let(b.pointer("n", "int32").load(0)) if count is None else count
    whole = f"uint{tir.bits(dtype)}"
    value = tir.reinterpret(b.let(x.load_first(first, 1, lanes)), whole)
    flipped = b.let(value ^ tir.const(1, whole, lanes))
    y.store_first(first, 1, tir.reinterpret(flipped, dtype))
    return b.function()


def moved(isa: Isa, dtype: str, lanes: int, count: int, *, known: bool, memory: str = "") -> None:
    """Run it, with memory that ends with the last element, and compare with numpy."""
    size = numpy_dtype(dtype).itemsize
    function = moving(isa, dtype, lanes, count if known else None, memory)
    source = np.random.default_rng(count).integers(0, 256, (1 + count) * size, dtype=np.uint8)
    target = np.full_like(source, 0xA5)
    used = [source, target] if known else [source, target, np.array([count], np.int32)]
    found = called(function, isa, used)[1]
    want = source[size:].copy()
    want[::size] ^= 1
    assert np.array_equal(found[size:], want)
    assert (found[:size] == 0xA5).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", [unmasked(isas()[0]), isas()[-1]], ids=lambda i: i.name)
def test_a_part_of_a_vector_is_moved_and_nothing_else_is_touched(isa: Isa, dtype: str) -> None:
    lanes = min(isa.lanes(numpy_dtype(dtype).itemsize), 16)
    for known in (True, False):
        for count in range(lanes + 1) if known else {0, 1, min(3, lanes), lanes - 1, lanes}:
            moved(isa, dtype, lanes, count, known=known)


@pytest.mark.parametrize("known", [True, False])
def test_bytes_seen_as_larger_elements_are_moved_in_pieces(known: bool) -> None:
    for count in (1, 3, 5, 7):
        moved(unmasked(isas()[0]), "float32", 8, count, known=known, memory="uint8")


def accesses(isa: Isa, dtype: str, lanes: int, count: int | None) -> tuple[int, int]:
    """Instructions that read the elements, and that write them."""
    made = machine_code({"moving": moving(isa, dtype, lanes, count)}, isa, "")
    text = made.inspect_source("asm").partition("\nmoving:")[2].partition(".Lfunc_end")[0]
    source, target = POINTERS[isa.triple.partition("-")[0]]
    return len(re.findall(source, text)), len(re.findall(target, text))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("isa", [ARM, unmasked(isas()[0])], ids=lambda i: i.triple)
def test_without_masks_no_lane_moves_on_its_own(isa: Isa, dtype: str) -> None:
    if isa.triple.partition("-")[0] not in POINTERS:
        pytest.skip("another assembly")
    lanes = isa.lanes(numpy_dtype(dtype).itemsize)
    for count in range(2, lanes):
        pieces = 1 if count.bit_count() == 1 else 2
        assert accesses(isa, dtype, lanes, count) == (pieces, pieces), count


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_without_masks_each_binary_digit_of_an_unknown_number_moves_one_piece(dtype: str) -> None:
    """Its pointers move, so all that addresses memory is counted, on both sides together."""
    lanes = ARM.lanes(numpy_dtype(dtype).itemsize)
    made = machine_code({"moving": moving(ARM, dtype, lanes, None)}, ARM, "")
    text = made.inspect_source("asm").partition("\nmoving:")[2].partition(".Lfunc_end")[0]
    moves = re.findall(r"^\s(?:ldr|ldur|str|stur|ld1|st1)[bh]?\s.*\[x", text, re.MULTILINE)
    tables = re.findall(r":lo12:", text)
    number = 1
    most = 2 * lanes.bit_length()
    assert lanes.bit_length() <= len(moves) - len(tables) - number <= most
