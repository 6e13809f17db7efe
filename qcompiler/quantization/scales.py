"""Scales, zero points and integers: arithmetic shared by the quantize passes.

real = (integer - zero) * scale. Zero is always one of the integers, so padding and Relu stay exact.
Scales are float32, so far from its limits that products and quotients of two of them are normal
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import Error
from qcompiler.hardware.isa import Device
from qcompiler.hardware.products import BYTE_PRODUCTS
from qcompiler.ir import Array, Node, constant
from qcompiler.ops import make
from qcompiler.rewrite import ANY, CONST, Pattern, Skip, op
from qcompiler.rewrite.matching import per_channel, rebuilt

Numbers = NDArray[Any]

SMALLEST, LARGEST = 2.0**-40, 2.0**40
"""Bounds of scales: the product of two, over a third, stays within float32."""

NOTHING = 2.0**-10
"""Range assumed for values that were all zero; a large one would make the bias coarse."""

LEAST = 1 / 64
"""Least ratio of a channel's step to the largest, in case calibration hardly saw the channel."""

BIAS_LIMIT = 2.0**30
"""Largest int32 bias: half of the sum's range."""


@dataclass(frozen=True)
class Scale:
    """How the numbers of one tensor map to integers of `dtype`: a step (scale) per tensor, [], or
    per channel, [C], along `axis`. `folded`: readers use the largest step for all channels, and
    the ratios are folded into their weights.
    """

    dtype: str
    step: NDArray[np.float32]
    zero: int
    axis: int = 1
    folded: bool = False

    @property
    def worth(self) -> NDArray[np.float32]:
        """The value of one step, as readers see it."""
        return np.asarray(self.step.max()) if self.folded else self.step

    def rounded(self, columns: Numbers) -> Numbers:
        """A product's operand [G,K,P] after quantization. [C] steps are per group, or per channel
        of contiguous elements of K.
        """
        groups, depth, _ = columns.shape
        step = self.step
        if step.size > 1:
            step = np.repeat(step, groups * depth // step.size).reshape(groups, depth, 1)
        info = np.iinfo(self.dtype)
        q = np.clip(np.rint(columns / step) + self.zero, info.min, info.max)
        made: Numbers = (q - self.zero) * step
        return made


def activation_scale(low: float, high: float, dtype: str, symmetric: bool = False) -> Scale | None:
    """A range -> its quantization; None if too large to be represented by 256 steps (a mask's
    -3e38).

    `symmetric` puts zero at 0 of a signed dtype and leaves out -128, as weights do.
    """
    info = np.iinfo(dtype)
    low, high = min(low, 0.0), max(high, 0.0)
    if max(-low, high) > 255 * LARGEST:
        return None
    if symmetric:
        return Scale(dtype, _float32(max(-low, high) / info.max), 0)
    step = _float32((high - low) / (info.max - info.min))
    zero = int(np.clip(np.rint(info.min - low / step), info.min, info.max))
    return Scale(dtype, step, zero)


def channel_scale(lows: Numbers, highs: Numbers, dtype: str, least: float = LEAST) -> Scale | None:
    """The ranges of channels, [C] and [C] -> a step per channel, with one zero point for all.

    The zero point minimizes the geometric mean of the steps. A channel's step is at least the
    fraction `least` of the largest, so that one which calibration hardly saw is not clipped to
    nothing.
    """
    whole = activation_scale(float(lows.min()), float(highs.max()), dtype)
    if whole is None:
        return None
    info = np.iinfo(dtype)
    zeros = np.arange(info.min, info.max + 1)[:, None].astype(np.float64)
    below, above = np.maximum(-lows, 0), np.maximum(highs, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        down = np.where(below > 0, below / (zeros - info.min), 0)
        up = np.where(above > 0, above / (info.max - zeros), 0)
    steps = np.maximum(np.maximum(down, up), max(float(whole.step) * least, SMALLEST))
    best = int(np.argmin(np.log(steps).mean(axis=1)))
    return Scale(dtype, np.maximum(steps[best], SMALLEST).astype(np.float32), int(zeros[best, 0]))


def _float32(step: float) -> NDArray[np.float32]:
    """A step in float32; an empty range (all zeros) still has one."""
    return np.array(max(step or NOTHING, SMALLEST), np.float32)


def unfit(weights: Array) -> str:
    """Why weights cannot be integers times a scale; "" where they can. The largest scale would clip
    them, or the smallest one leave nothing of any: such products stay as they are.
    """
    largest = max(-float(weights.min(initial=0)), float(weights.max(initial=0)))
    if not np.isfinite(weights.sum(dtype=np.float64)):
        return "a weight is infinite or not a number"
    if largest > LARGEST:
        return f"weights of up to {largest:.1g} are beyond all scales"
    if 0 < largest < 127 * SMALLEST:
        return f"weights of {largest:.1g} and less are below all scales"
    return ""


def weight_scales(weights: Array, axis: int | None, bits: int = 8) -> NDArray[np.float32]:
    """Weights -> the scale of each slice along `axis`, [C]; of the whole tensor, [1], for None.

    It maps the largest magnitude of a slice to 2^(bits-1) - 1. Slices of zeros get the finest
    scale, for the bias quantized with it. Raises Error for infinite or NaN weights.
    """
    if not np.isfinite(weights).all():
        raise Error("a weight is infinite or not a number")
    rows = weights.reshape(1, -1) if axis is None else np.moveaxis(weights, axis, 0)
    flat = np.abs(rows.reshape(rows.shape[0], -1).astype(np.float64))
    largest = flat.max(axis=1, initial=0)
    used = largest[largest > 0]
    largest = np.where(largest > 0, largest, used.min(initial=NOTHING))
    scales = largest / (2 ** (bits - 1) - 1)
    clipped: NDArray[np.float32] = np.clip(scales, SMALLEST, LARGEST).astype(np.float32)
    return clipped


def weight_bits(asked: int, device: Device | None) -> int:
    """Bits of weights: as requested, else (0) 8, or 7 if the device's byte product saturates."""
    if asked:
        if not 2 <= asked <= 8:
            raise Error(f"weights of {asked} bits", hint="2 to 8")
        return asked
    mac = device.isa.best_product(BYTE_PRODUCTS) if device else None
    return 8 if mac is None or mac.exact else 7


def has_exact_product(device: Device | None) -> bool:
    """Does the device multiply bytes without a saturating sum of products?"""
    mac = device.isa.best_product(BYTE_PRODUCTS) if device else None
    return device is None or (mac is not None and mac.exact)


def multiplies_bfloat16(device: Device) -> bool:
    """Does the device have bfloat16 products, which are faster than float32 ones?"""
    return device.isa.best_product([("bf16", "bf16", "f32")]) is not None


def room_for_bias(
    scales: NDArray[np.float32], bias: Array, input_step: Numbers
) -> NDArray[np.float32]:
    """Weight scales -> the same, increased where an int32 bias in their units would overflow.

    That happens to channels with nearly zero weights but a normal bias: their weights are then
    rounded more coarsely, or to zero. The unit is (input step x weight scale).
    """
    least = np.abs(bias.astype(np.float64)) / (input_step * BIAS_LIMIT)
    return np.maximum(scales, least.astype(np.float32))


def along(values: Array, rank: int, axis: int | None) -> Numbers:
    """[C] -> reshaped to broadcast along `axis` of `rank` dimensions, [C,1,1]; [] for None."""
    if axis is None:
        return values.reshape(())
    return values.reshape(-1, *[1] * (rank - 1 - axis % rank))


def round_to(values: Array, scale: Array, dtype: str, bits: int = 8) -> Numbers:
    """Real numbers -> integers around 0, within +-(2^(bits-1) - 1); ties to even, as in ONNX."""
    limit = 2 ** (bits - 1) - 1
    steps = np.rint(values.astype(np.float64) / scale.astype(np.float64))
    return np.clip(steps, -limit, limit).astype(dtype)


def bias_steps(bias: Array, step: Array) -> NDArray[np.int32] | None:
    """A float bias in units of (input scale x weight scale) -> int32; None on overflow."""
    steps = np.rint(bias.astype(np.float64) / step.astype(np.float64))
    if not np.isfinite(steps).all() or np.abs(steps).max(initial=0) > BIAS_LIMIT + 1:
        return None
    return steps.astype(np.int32)


# Nodes.

BYTES = ("uint8", "int8")
DATA: Pattern = op("dequantize", ANY, CONST, CONST, shared=True)
WEIGHTS: Pattern = op("dequantize", CONST, CONST, CONST, shared=True)


def numbers(constant: Node) -> Numbers:
    """A constant's value, for arithmetic."""
    return constant.array


def by(scale: Array) -> tuple[Array, int]:
    """Scales -> (the factor operand of `quantize`, its `divide` attribute). It divides unless the
    scales are powers of two: a product by the inverse rounds differently from ONNX's quotient.
    """
    mantissa, exponent = np.frexp(scale)
    if np.all((mantissa == 0.5) & (np.abs(exponent) < 100)):
        return np.reciprocal(np.asarray(scale, np.float32)), 0
    return np.asarray(scale), 1


def inverse(quantize: Node) -> Numbers:
    """The factor of a `quantize` in float64; the inverse of the divisor if it divides."""
    factor = quantize.operands[1].array.astype(np.float64)
    return 1 / factor if quantize.attrs["divide"] else factor


def with_factor(quantize: Node, x: Node, scale: Node) -> Node | Skip:
    """quantize(Mul(x, m), k, z) -> quantize(x, m * k, z): one rounding instead of two."""
    with np.errstate(over="ignore", under="ignore"):
        factor = (numbers(scale).astype(np.float64) * inverse(quantize)).astype(np.float32)
    if not np.all((factor >= np.finfo(np.float32).tiny) & np.isfinite(factor)):
        return Skip("the product of the scales leaves float32")
    return rebuilt(quantize, (x, constant(factor), quantize.inputs[2]), divide=0)


def scalar(constant: Node) -> Any:
    """The value of a one-element constant; None for a larger one."""
    return constant.array.reshape(())[()] if constant.array.size == 1 else None


@dataclass(frozen=True)
class Bytes:
    """(node - zero) * scale, with one zero point; the scale broadcasts to the node."""

    node: Node
    scale: Numbers
    zero: int = 0

    @property
    def zero_point(self) -> Node | None:
        """The zero point as an input of ONNX's integer products: absent if 0."""
        return constant(np.array(self.zero, self.node.dtype)) if self.zero else None


def activation(dequantize: Node, axis: int | None = None) -> Bytes | Skip:
    """dequantize(x, s, z) of bytes, with one zero point and one scale, [].

    With an `axis`, the scale may also be per index along it, [C].
    """
    x, scale, zero = dequantize.operands
    if x.dtype not in BYTES:
        return Skip(f"{x.dtype} is not a byte")
    zeros = np.unique(zero.array)
    if zeros.size != 1:
        return Skip("an activation has more than one zero point")
    steps = scale.array.astype(np.float64)
    if steps.size == 1:
        return Bytes(x, steps.reshape(()), int(zeros[0]))
    each = None if axis is None else per_channel(steps, x.type.rank, axis)
    if each is None:
        return Skip("an activation has more than one scale")
    return Bytes(x, each.astype(np.float64), int(zeros[0]))


def weights(dequantize: Node) -> Bytes | Skip:
    """dequantize(constant bytes) -> int8 with zero points of 0, if they fit."""
    w, scale, zero = dequantize.operands
    if w.dtype not in BYTES:
        return Skip(f"weights of {w.dtype}")
    shifted = w.array.astype(np.int32) - numbers(zero)
    if shifted.size and (shifted.min() < -128 or shifted.max() > 127):
        return Skip("the weights minus their zero point do not fit int8")
    same = w.dtype == "int8" and not zero.array.any()
    node = w if same else constant(shifted.astype(np.int8), w.name)
    return Bytes(node, scale.array.astype(np.float64))


def real(node: Node) -> Numbers | None:
    """A constant, or a dequantized one, as real numbers; None for anything else."""
    if node.is_constant:
        return node.array.astype(np.float64)
    if node.op == "dequantize" and all(i.is_constant for i in node.operands):
        x, scale, zero = (numbers(i) for i in node.operands)
        product: Numbers = (x.astype(np.float64) - zero) * scale.astype(np.float64)
        return product
    return None


def rescaled(sums: Node, step: Numbers, name: str) -> Node | Skip:
    """int32 sums -> Mul(Cast(sums), step), if the step is a normal float32."""
    tiny = float(np.finfo(np.float32).tiny)
    if not np.all((step >= tiny) & (step < 1 / tiny)):
        return Skip("the product of the scales leaves float32")
    factor = constant(step.astype(np.float32))
    return make("Mul", make("Cast", sums, to="float32"), factor, name=name)
