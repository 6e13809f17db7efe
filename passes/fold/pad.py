"""Fold a Pad into the padding of a convolution or a pool.

Conv(Pad(x, p, 0), pads=q)         ->  Conv(x, pads=p + q)            p: spatial axes only
MaxPool(Pad(x, p, -inf), pads=q)   ->  MaxPool(x, pads=p + q)
AveragePool(Pad(x, p, 0))          ->  AveragePool(x, pads=p), including the padding
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node
from qcompiler.rewrite import ANY, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.matching import input_at, ints, rebuilt


@rule(op("Conv|ConvInteger", op("Pad"), ANY, OPTIONAL, OPTIONAL))
def fold_pad_into_conv(conv: Node, pad: Node) -> Node | Skip:
    """Conv(Pad(x, p)) -> Conv(x, pads=p + q)."""
    zero = input_at(conv, 2) if conv.op == "ConvInteger" else None
    wanted = 0 if zero is None else int(zero.array.reshape(-1)[0]) if zero.is_constant else None
    return _padded(conv, pad, (wanted,))


@rule(op("MaxPool", op("Pad")))
def fold_pad_into_max_pool(pool: Node, pad: Node) -> Node | Skip:
    """MaxPool(Pad(x, p, lowest)) -> MaxPool(x, pads=p + q)."""
    if pad.dtype in ("uint8", "int8"):
        return _padded(pool, pad, (np.iinfo(pad.dtype).min,))
    return _padded(pool, pad, (-np.inf,))


@rule(op("AveragePool", op("Pad")))
def fold_pad_into_average_pool(pool: Node, pad: Node) -> Node | Skip:
    """AveragePool(Pad(x, p, 0)) -> AveragePool(x, pads=p), including the padding."""
    if any(own_pads(pool)) and not pool.int("count_include_pad"):
        return Skip("the pool excludes its own padding from the average")
    padded = _padded(pool, pad, (0,))
    return padded if isinstance(padded, Skip) else rebuilt(padded, count_include_pad=1)


def _padded(node: Node, pad: Node, wanted: tuple[float | None, ...]) -> Node | Skip:
    """The node reading what the Pad reads, with the Pad's amounts added to its own."""
    x, rank = pad.operands[0], pad.type.rank
    if pad.str("mode") != "constant":
        return Skip(f"the padding is {pad.str('mode')}")
    value = _value(pad)
    if value is None or value not in wanted:
        return Skip(f"it pads with {value}")
    amounts = _amounts(pad)
    if amounts is None:
        return Skip("the amounts are not constant")
    begins, ends = amounts[:rank], amounts[rank:]
    if any(begins[:2]) or any(ends[:2]):
        return Skip("it pads the batch or the channels")
    if min(amounts) < 0:
        return Skip("it crops")
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or node.attrs.get(
        "ceil_mode"
    ):
        return Skip("the reader's own padding depends on its input's size")
    pads = tuple(a + b for a, b in zip(own_pads(node), (*begins[2:], *ends[2:]), strict=True))
    return rebuilt(node, (x, *node.inputs[1:]), pads=pads)


def own_pads(node: Node) -> tuple[int, ...]:
    """A convolution's or pool's pads; zeros if omitted."""
    return (
        node.ints("pads") if node.attrs["pads"] else (0,) * (2 * (node.operands[0].type.rank - 2))
    )


def _value(pad: Node) -> float | None:
    """A Pad's value; None if it is not constant."""
    value = input_at(pad, 2)
    if value is None:
        return 0.0
    return float(value.array.reshape(-1)[0]) if value.is_constant else None


def _amounts(pad: Node) -> tuple[int, ...] | None:
    """A Pad's amounts for all axes: begins, then ends."""
    rank, given = pad.type.rank, ints(input_at(pad, 1))
    if given is None:
        return None
    axes_input = input_at(pad, 3)
    axes = tuple(range(rank)) if axes_input is None else ints(axes_input)
    if axes is None:
        return None
    amounts = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        amounts[axis % rank] = given[i]
        amounts[axis % rank + rank] = given[i + len(axes)]
    return tuple(amounts)
