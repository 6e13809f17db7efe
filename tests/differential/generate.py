"""Seed -> case: a model, inputs for it, and how to compile it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from qcompiler import plugins
from qcompiler.errors import Error
from qcompiler.hardware.isa import ISAS, Cpu
from qcompiler.ir import Array

from . import arithmetic, extremes, moves, products, quantized, selected, sequences, windows
from .builder import Builder

Step = Callable[[Builder], None]
FEEDS = 3
"""Sets of inputs: two to run with, one more to calibrate with."""

ELEMENTWISE: Sequence[Step] = (
    *[arithmetic.unary] * 4,
    *[arithmetic.binary] * 3,
    *[arithmetic.equals] * 3,
    *[arithmetic.pair] * 2,
    arithmetic.itself,
    arithmetic.choice,
    arithmetic.gated,
    arithmetic.power,
)
INTEGERS: Sequence[Step] = (*[arithmetic.integers] * 2, arithmetic.cast)
MOVES: Sequence[Step] = (
    *[moves.transpose, moves.reshape, moves.concat, moves.piece] * 2,
    *[moves.shifted, moves.pad, moves.split, moves.halves, moves.flatten, moves.unit_axes],
    *[moves.expand, moves.tile, moves.gather, moves.shuffle, moves.blocks],
)
INDEXED: Sequence[Step] = (moves.gather_elements, moves.scatter, moves.scatter_nd, moves.triangle)
INDEXED = (*INDEXED, moves.one_hot, moves.reverse, windows.order, windows.order, windows.grid)
PRODUCTS: Sequence[Step] = (
    *[products.conv] * 5,
    *[products.matmul] * 3,
    *[products.transposed_conv, products.equal_convs, products.residual] * 2,
    *[products.constant_left, products.with_itself, products.two_values, products.gemm],
    *[products.einsum, products.batch_norm, products.squeeze_excite],
)
WINDOWS: Sequence[Step] = (
    *[windows.pool, windows.softmax, windows.norm, windows.reduce] * 2,
    *[windows.resize, windows.spread, windows.rms_norm, windows.layer_norm_spelled],
)
SEQUENCES: Sequence[Step] = (sequences.recurrent, sequences.attention, sequences.attention_itself)
SEQUENCES = (*SEQUENCES, sequences.feed_forward)
QUANTIZED: Sequence[Step] = (
    *[quantized.conv, quantized.matmul, quantized.both_quantized, quantized.moved] * 2,
    *[quantized.pair, quantized.twice, quantized.per_axis, quantized.dynamic],
    *[quantized.integer_conv, quantized.linear_conv, quantized.linear_matmul],
)
SELECTED: Sequence[Step] = (selected.written_back, selected.summed_up)
PRUNED: Sequence[Step] = (
    *[products.conv, products.matmul, products.equal_convs, sequences.attention] * 3,
    *[products.residual, products.squeeze_excite, products.adapted, products.biased] * 2,
    *[sequences.attention_itself, sequences.masked, windows.pool, windows.reduce] * 2,
    *[windows.softmax, windows.norm, windows.layer_norm_spelled, arithmetic.repeated] * 2,
)
EXTREMES: Sequence[Step] = (extremes.coarse, extremes.per_axis)
EXTREMES = (*[extremes.conv, extremes.matmul] * 3, *EXTREMES * 2)
SPREAD: Sequence[Step] = (extremes.transposed_conv, extremes.blocked)
FLOATS = (*ELEMENTWISE, *MOVES, *PRODUCTS, *PRODUCTS, *WINDOWS, *SEQUENCES)
ALL = (*FLOATS, *INTEGERS, *INDEXED)

KINDS: Mapping[str, tuple[float, str, Sequence[Step]]] = {
    "float32": (0.34, "float32", ALL),
    "small": (0.12, "float32", (*ELEMENTWISE, *MOVES, *INTEGERS)),
    "odd": (0.04, "float32", (*ELEMENTWISE, *MOVES, *INTEGERS, *INDEXED)),
    "quantized": (0.16, "float32", (*QUANTIZED, *QUANTIZED, *QUANTIZED, *ELEMENTWISE, *MOVES)),
    "int8": (0.14, "int8", FLOATS),
    "int8-dynamic": (0.07, "int8-dynamic", FLOATS),
    "int8-weights": (0.03, "int8-weights", FLOATS),
    "bfloat16": (0.07, "bfloat16", FLOATS),
    "float16": (0.03, "float16", FLOATS),
    "selected": (0.02, "float32", (*SELECTED * 4, *ELEMENTWISE, *MOVES)),
    "extreme": (0.0, "float32", (*EXTREMES * 2, *SPREAD * 3, *QUANTIZED, *ELEMENTWISE, *MOVES)),
    "extreme-odd": (0.0, "float32", (*EXTREMES * 2, *ELEMENTWISE, *MOVES)),
    "pruned": (0.0, "float32", (*PRUNED, *PRUNED, *ELEMENTWISE, *MOVES, *PRODUCTS)),
}
"""Kind -> its share of all cases (0: of none but those that ask for it), the precision to compile
with, and the steps it is made of.
"""


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and how to compile it."""

    seed: int
    kind: str
    precision: str
    model: ModelProto
    feeds: tuple[Mapping[str, Array], ...]
    device: Cpu

    @property
    def title(self) -> str:
        """Who it is, in a few words."""
        return f"seed {self.seed}: {self.kind} for {self.device.isa.name}"


def generate(seed: int, kind: str = "") -> Case:
    """The case of a seed; the same on every machine but for the instruction set, which is one that
    this CPU has.
    """
    rng = np.random.default_rng((seed, 0x9C))
    shares = np.array([share for share, _, _ in KINDS.values()])
    drawn = list(KINDS)[int(rng.choice(len(KINDS), p=shares / shares.sum()))]
    kind = kind or drawn
    _, precision, steps = KINDS[kind]
    while True:
        builder = Builder(rng, FEEDS, odd=kind.endswith("odd"))
        builder.opset = builder.choose((20, 21, 21, 22, 23, 24))
        _inputs(builder)
        _grow(builder, _chosen(builder, steps))
        outputs = builder.outputs()
        if outputs:
            break
    device = _device(builder, rng)
    return Case(seed, kind, precision, builder.model(outputs), tuple(builder.feeds), device)


def _chosen(b: Builder, steps: Sequence[Step]) -> Sequence[Step]:
    """Half of the models are of few kinds of steps, which then meet more often."""
    return [b.choose(steps) for _ in range(b.between(2, 5))] if b.chance(0.5) else steps


def _inputs(b: Builder) -> None:
    kinds = [
        (b.choose((1, 1, 2, 3)), b.choose((1, 2, 3, 4, 6, 8, 12, 16, 17, 32)), *_image(b)),
        (b.choose((1, 1, 2, 4)), b.choose((3, 4, 8, 16, 17)), *_image(b)),
        (b.choose((1, 2, 5)), b.between(1, 17), b.choose((2, 4, 8, 12, 16, 31, 32))),
        b.shape(2, 2000),
        (1, b.choose((1, 3, 4)), b.between(3, 7), b.between(2, 5), b.between(3, 6)),
        b.shape(b.between(1, 4), 500),
    ]
    for _ in range(b.choose((1, 1, 1, 2))):
        b.input(b.choose(kinds), scale=b.choose((1.0, 1.0, 0.3, 3.0)))


def _image(b: Builder) -> tuple[int, int]:
    return b.choose((1, 5, 7, 8, 12, 13, 16)), b.choose((1, 4, 7, 8, 11, 14, 16))


def _grow(b: Builder, steps: Sequence[Step]) -> None:
    wanted = b.between(2, 16)
    for _ in range(80):
        if len(b.nodes) >= wanted:
            return
        try:
            b.choose(steps)(b)
        except Error:  # nothing of the rank or size that the step wants
            continue


def _device(b: Builder, rng: np.random.Generator) -> Cpu:
    """An instruction set of this CPU, with caches that are usual, or so small that small problems
    are cut into blocks and batches into parts.
    """
    plugins.load_all()
    isas = [i for i in ISAS.values() if i.cpu_flags and not i.lacks]
    small = b.chance(0.3)
    l1, l2, l3 = (2 << 10, 8 << 10, 16 << 10) if small else (32 << 10, 1 << 20, 8 << 20)
    return Cpu("test", b.choose(isas), 2, l1, l2, l3)
