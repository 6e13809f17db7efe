"""Low-precision weights stored in a model stay so: kernels decode them, or their scales move on.

MatMul(x, DequantizeLinear(q, s, z))  ->  matmul_narrow(x, q - least, s, z - least)
Conv(x, DequantizeLinear(q, s), b)    ->  Conv(x, float(q)) * s + b        s per channel

q: constants of 2 to 8 bits; s, z: per block of a column, per column, or scalar. `least` is the
minimum of q, so that codes begin at 0. Transposed weights (as in a Gemm or MatMulNBits) are
transposed here. Likewise the compiler's own dequantize.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from qcompiler.passes.quantize.common import scaled

from qcompiler.ir import Node, constant
from qcompiler.ops import make
from qcompiler.ops.registry import Numbers
from qcompiler.rewrite import ANY, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.matching import channel_shape, input_at, per_channel, perm_of

NARROW = frozenset({"int2", "uint2", "int4", "uint4", "int8", "uint8"})
_STORED = op("DequantizeLinear|dequantize", shared=True)
_TURNED = op("Transpose", _STORED, shared=True)


@rule(op("MatMul", ANY, _STORED))
def integer_weights_matmul(matmul: Node, stored: Node) -> Node | Skip:
    """MatMul(x, DequantizeLinear(q, s, z)) -> matmul_narrow(x, q', s', z')."""
    return _narrowed(matmul, stored, transposed=False)


@rule(op("MatMul", ANY, _TURNED))
def integer_weights_transposed_matmul(
    matmul: Node, transpose: Node, stored: Node
) -> Node | Skip | None:
    """MatMul(x, Transpose(DequantizeLinear(q, s, z))) -> matmul_narrow(x, q', s', z')."""
    return _narrowed(matmul, stored, transposed=True) if perm_of(transpose) == (1, 0) else None


def _narrowed(matmul: Node, stored: Node, *, transposed: bool) -> Node | Skip:
    x = matmul.operands[0]
    parts = _parts(stored)
    if isinstance(parts, Skip):
        return parts
    codes, scale, zero, group = parts
    if x.dtype != "float32" or not x.type.static or x.type.rank < 2 or codes.ndim != 2:
        return Skip(f"a product of {x.type} and {stored.type}")
    axis = 1 if transposed else 0
    rows = _by_rows(scale, zero, codes.shape, group, axis)
    if rows is None:
        return Skip("its scales are not per block of a column")
    scale, zero, group = rows
    if transposed:
        codes, scale, zero = codes.T, scale.T, zero.T
    least = int(codes.min(initial=0))
    span = int(codes.max(initial=0)) - least
    bits = next(b for b in (2, 4, 8) if span < 1 << b)
    return make(
        "matmul_narrow",
        x,
        constant((codes - least).astype(np.uint8), stored.operands[0].name),
        constant(scale),
        constant((zero - least).astype(np.float32)),
        bits=bits,
        group=group,
        name=matmul.name,
    )


def _by_rows(
    scale: Numbers, zero: Numbers, shape: tuple[int, ...], group: int, axis: int
) -> tuple[Numbers, Numbers, int] | None:
    """Scales that broadcast to the codes -> [K / group, N] (transposed codes: [N, K / group])."""
    depth = shape[axis]
    if group:  # one per block along an axis
        wanted = list(shape)
        wanted[axis] = -(-depth // group)
        return (scale, zero, group) if scale.shape == tuple(wanted) else None
    spread = [np.broadcast_to(a, np.broadcast_shapes(a.shape, (1, 1))) for a in (scale, zero)]
    if any(a.shape[axis] != 1 for a in spread):
        return None
    columns = [1, 1]
    columns[1 - axis] = shape[1 - axis]
    full = [np.ascontiguousarray(np.broadcast_to(a, columns)) for a in spread]
    return full[0], full[1], depth


def _parts(stored: Node) -> tuple[Numbers, Numbers, Numbers, int] | Skip:
    """A dequantized constant -> integers, scales and zero points that broadcast to them, and the
    block size (0: not blocked).
    """
    if stored.dtype != "float32" or not all(i.is_constant for i in stored.operands):
        return Skip("its weights are not constant")
    q, scale = stored.operands[:2]
    given = input_at(stored, 2)
    if q.dtype not in NARROW:
        return Skip(f"weights of {q.dtype}")
    codes = q.array.astype(np.int32)
    scales: Numbers = scale.array.astype(np.float32)
    zeros = np.zeros_like(scales) if given is None else given.array.astype(np.float32)
    if stored.op == "dequantize":
        both = np.broadcast_arrays(scales, zeros)
        return codes, both[0], both[1], 0
    rank, axis = codes.ndim, stored.int("axis") % max(codes.ndim, 1)
    size = stored.int("block_size")
    if scales.ndim == rank and size and scales.size > 1:
        return codes, scales, np.broadcast_to(zeros, scales.shape), size
    shape = () if scales.size == 1 else channel_shape(rank, axis)
    return codes, scales.reshape(shape), np.broadcast_to(zeros, scales.shape).reshape(shape), 0


@rule(op("Conv", ANY, _STORED, OPTIONAL))
def integer_weights_conv(conv: Node, stored: Node) -> Node | Skip:
    """Conv(x, DequantizeLinear(q, s), b) -> Conv(x, float(q)) * s + b."""
    parts = _parts(stored)
    if isinstance(parts, Skip):
        return parts
    codes, scale, zero, group = parts
    each = None if group else per_channel(scale, codes.ndim, 0)
    if each is None or conv.operands[0].dtype != "float32":
        return Skip("its scales are not per output channel")
    attrs: dict[str, Any] = dict(conv.attrs)
    weights = constant((codes - zero).astype(np.float32), stored.operands[0].name)
    product = make("Conv", conv.operands[0], weights, name=conv.name, **attrs)
    made: Node = scaled(product, each, input_at(conv, 2))
    return made
