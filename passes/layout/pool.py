"""Lower pools to channels last, and global pools to reductions.

MaxPool(x), AveragePool(x)     ->  Transpose(max_pool(Transpose(x)))
GlobalAveragePool(x)           ->  ReduceMean(x, spatial axes)
GlobalMaxPool(x)               ->  ReduceMax(x, spatial axes)
max_pool(x) of a large window  ->  max_pool(max_pool(x) of its columns) of its rows
"""

from __future__ import annotations

from qcompiler.ir import Attr, Node
from qcompiler.ops import make
from qcompiler.ops.window import Window
from qcompiler.rewrite import ANY, Skip, op, rule
from qcompiler.rewrite.layouts import to_first, to_last
from qcompiler.rewrite.matching import int64s, reshape, transpose

NAMES = {"MaxPool": "max_pool", "AveragePool": "average_pool"}
LARGE = 20
"""Size of a window from which on separate passes over columns and rows read less."""
GLOBAL = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}


@rule(op("MaxPool|AveragePool", ANY))
def layout_pool(pool: Node) -> Node | Skip:
    """MaxPool(x), AveragePool(x) -> Transpose(max_pool(Transpose(x)))."""
    x = pool.operands[0]
    if len(pool.types) > 1:
        return Skip("the indices of the maxima are read")
    if not x.type.static or not pool.type.static:
        return Skip(f"the shape {x.type} is unknown")
    window = Window.of(pool, x.shape[2:])
    counted = pool.int("count_include_pad") if pool.op == "AveragePool" else 0
    pads = _whole(window, x.type.dims[2:], pool.type.dims[2:])
    rank, given = x.type.rank, [p for p in window.pads if p is not None]
    if counted and pads != given:
        # Padding added by ceil_mode is excluded from averages: the rest becomes part of the input.
        ends = [(0, end - more) for (_, end), (_, more) in zip(pads, given, strict=True)]
        widths = [0, 0, *(b for b, _ in given), 0, 0, *(e for _, e in given)]
        x, pads, counted = make("Pad", x, int64s(widths)), ends, 0
    numbers = [window.kernel, window.strides, window.dilations, *zip(*pads, strict=True)]
    x = transpose(x, to_last(rank))
    if rank == 3:
        x = reshape(x, (x.type.dims[0], 1, *x.type.dims[1:]))
        numbers = [(n, *v) for n, v in zip((1, 1, 1, 0, 0), numbers, strict=True)]
    kernel, strides, dilations, begin, end = numbers
    attrs: dict[str, Attr] = {"kernel_shape": kernel, "strides": strides, "dilations": dilations}
    if pool.op == "AveragePool":
        attrs["count_include_pad"] = counted
    made = make(NAMES[pool.op], x, name=pool.name, pads=(*begin, *end), **attrs)
    if rank == 3:
        made = reshape(made, (made.shape[0], *made.shape[2:]))
    return transpose(made, to_first(rank))


def _whole(
    window: Window, sizes: tuple[int, ...], counts: tuple[int, ...]
) -> list[tuple[int, int]]:
    """The padding with which floor mode gives as many windows as ceil_mode."""
    pads = []
    for i, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        given = window.pads[i]
        assert given is not None
        end = (count - 1) * window.strides[i] + window.reach[i] - size - given[0]
        pads.append((given[0], max(given[1], end)))
    return pads


@rule(op("GlobalAveragePool|GlobalMaxPool", ANY))
def layout_global_pool(pool: Node) -> Node:
    """GlobalAveragePool(x) -> ReduceMean(x, spatial axes)."""
    x = pool.operands[0]
    return make(GLOBAL[pool.op], x, int64s(range(2, x.type.rank)), keepdims=1)


@rule(op("max_pool", ANY))
def layout_large_window(pool: Node) -> Node | None:
    """max_pool(x) of a large window -> max_pool(max_pool(x) of its columns) of its rows."""
    size, rank = pool.ints("kernel_shape"), pool.type.rank - 2
    if rank != 2 or min(size) == 1 or size[0] * size[1] < LARGE:
        return None
    window = Window.of(pool, pool.operands[0].shape[1:-1])
    made = pool.operands[0]
    for axis in (0, 1):
        pads = [p if a == axis else (0, 0) for a, p in enumerate(window.pads) if p is not None]
        begin, end = zip(*pads, strict=True)
        numbers = {
            key: tuple(n if a == axis else 1 for a, n in enumerate(values))
            for key, values in (
                ("kernel_shape", window.kernel),
                ("strides", window.strides),
                ("dilations", window.dilations),
            )
        }
        made = make("max_pool", made, name=pool.name, pads=(*begin, *end), **numbers)
    return made
