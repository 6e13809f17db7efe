"""Steps that move values: transposes, reshapes, pieces, padding, gathers, scatters."""

from __future__ import annotations

import numpy as np

from qcompiler.errors import Error

from .builder import Builder, Value


def ranked(b: Builder, least: int = 1, most: int = 5, dtype: str = "float32") -> Value:
    """A value of `least` to `most` dimensions."""
    return b.pick(lambda v: least <= v.rank <= most, dtype)


def transpose(b: Builder) -> None:
    x = ranked(b, 2)
    perm = [int(i) for i in b.rng.permutation(x.rank)]
    y = b.add("Transpose", x, perm=perm)
    if b.chance(0.2):
        b.add("Transpose", y, perm=[int(i) for i in np.argsort(perm)])


def reshape(b: Builder) -> None:
    x = b.pick()
    left, dims = int(np.prod(x.shape)), []
    while left > 1 and len(dims) < 3:
        factors = [d for d in range(1, min(left, 70) + 1) if left % d == 0]
        dims.append(b.choose(factors))
        left //= dims[-1]
    dims.append(left)
    if b.chance(0.3):
        dims.insert(b.between(0, len(dims)), 1)
    if b.chance(0.5):
        dims[b.between(0, len(dims) - 1)] = -1
    b.add("Reshape", x, b.ints(*dims))


def flatten(b: Builder) -> None:
    x = ranked(b)
    b.add("Flatten", x, axis=b.between(-x.rank, x.rank))


def unit_axes(b: Builder) -> None:
    x = b.pick(lambda v: v.rank < 5)
    ones = [i for i, d in enumerate(x.shape) if d == 1]
    if ones and b.chance(0.5):
        b.add("Squeeze", x, b.ints(b.choose(ones)))
    else:
        b.add("Unsqueeze", x, b.ints(b.between(-x.rank - 1, x.rank)))


def concat(b: Builder) -> None:
    x = ranked(b)
    axis = b.between(0, x.rank - 1)

    def fits(v: Value) -> bool:
        rest = (v.shape[:axis], v.shape[axis + 1 :])
        return v.rank == x.rank and rest == (x.shape[:axis], x.shape[axis + 1 :])

    parts = [x, *(b.pick(fits) for _ in range(b.between(1, 2)))]
    if b.chance(0.3):
        shape = (*x.shape[:axis], b.choose((1, 3)), *x.shape[axis + 1 :])
        parts.insert(b.between(0, 1), b.constant(b.numbers(*shape)))
    b.add("Concat", *parts, axis=axis - (x.rank if b.chance(0.3) else 0))


def piece(b: Builder) -> None:
    """Slice along some axes, with steps of either sign, ends far outside."""
    x = ranked(b)
    axes = [int(a) for a in b.rng.permutation(x.rank)[: b.between(1, x.rank)]]
    starts, ends, steps = [], [], []
    for axis in axes:
        length, step = x.shape[axis], b.choose((1, 1, 1, 2, 3, -1, -2))
        start = b.between(0, length - 1)
        end = b.choose((length, 1 << 40, max(start + 1, length - 1)))
        if step < 0:
            end = -(1 << 40)
        starts.append(start - (length if b.chance(0.2) else 0))
        ends.append(end)
        steps.append(step)
    b.add("Slice", x, *(b.ints(*v) for v in (starts, ends, axes, steps)))


def shifted(b: Builder) -> None:
    """A cut and a piece put on: what causal models do."""
    x = ranked(b, 2, 4)
    axis = b.between(0, x.rank - 1)
    if x.shape[axis] < 2:
        raise Error("nothing to cut")
    y = b.add("Slice", x, b.ints(0), b.ints(x.shape[axis] - 1), b.ints(axis))
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    if b.chance(0.5):
        b.add("Concat", b.constant(np.zeros(shape, np.float32)), y, axis=axis)
    else:
        b.add("Pad", y, b.ints(1, 0), None, b.ints(axis))


def pad(b: Builder) -> None:
    x = b.pick(lambda v: 0 < v.rank < 5 and v.node.type.size < 4000)
    mode = b.choose(("constant", "constant", "reflect", "edge", "wrap"))
    begin = [b.choose((0, 0, 1, 2)) for _ in x.shape]
    end = [b.choose((0, 0, 1, 3)) for _ in x.shape]
    if mode in ("reflect", "wrap"):
        begin = [min(p, d - 1) for p, d in zip(begin, x.shape, strict=True)]
        end = [min(p, d - 1) for p, d in zip(end, x.shape, strict=True)]
    elif mode == "constant" and b.chance(0.3):
        begin = [-1 if d > 3 and b.chance(0.5) else p for p, d in zip(begin, x.shape, strict=True)]
    fill = b.constant(np.float32(b.choose((0, 1.5, -1)))) if mode == "constant" else None
    given = [x, b.ints(*begin, *end)] + ([fill] if fill is not None and b.chance(0.7) else [])
    b.add("Pad", *given, mode=mode)


def split(b: Builder) -> None:
    x = ranked(b)
    axis = b.between(0, x.rank - 1)
    length = x.shape[axis]
    if length < 2:
        raise Error("nothing to split")
    first = b.between(1, length - 1)
    b.add_all("Split", x, b.ints(first, length - first), outputs=2, axis=axis)


def halves(b: Builder) -> None:
    """Split in two, of which one gates the other."""
    x = b.pick(lambda v: v.rank > 0 and v.shape[-1] % 2 == 0)
    n = x.shape[-1] // 2
    y, z = b.add_all("Split", x, b.ints(n, n), outputs=2, axis=x.rank - 1)
    b.add("Mul", y, b.add(b.choose(("Sigmoid", "Tanh", "Gelu")), z))


def expand(b: Builder) -> None:
    x = b.pick(lambda v: v.rank < 5 and v.node.type.size < 2000)
    shape = [b.choose((2, 3, 5)) if d == 1 else d for d in x.shape]
    if b.chance(0.3):
        shape.insert(0, b.choose((1, 2)))
    b.add("Expand", x, b.ints(*shape))


def tile(b: Builder) -> None:
    x = b.pick(lambda v: 0 < v.rank < 5 and v.node.type.size < 2000)
    b.add("Tile", x, b.ints(*(b.choose((1, 1, 2, 3)) for _ in x.shape)))


def gather(b: Builder) -> None:
    """By constants, or by indices that are an input."""
    x = ranked(b, 1, 4)
    axis = b.between(0, x.rank - 1)
    length = x.shape[axis]
    if not length:
        return  # no index is in range
    shape = b.choose(((), (1,), (3,), (2, 2)))
    if b.chance(0.3):
        i = indices(b, shape or (1,), length)
    else:
        i = b.constant(np.array(b.rng.integers(-length, length, shape), np.int64))
    b.add("Gather", x, i, axis=axis)


def indices(b: Builder, shape: tuple[int, ...], length: int) -> Value:
    """Runtime indices below a length: an input of whole numbers, brought in range."""
    x = b.input(shape, b.choose(("int64", "int32")))
    return b.add("Mod", x, b.constant(length, x.dtype))


def gather_elements(b: Builder) -> None:
    x = ranked(b, 1, 4)
    axis = b.between(0, x.rank - 1)
    if 0 in x.shape:
        return  # no index is in range, or there is nothing to index
    shape = tuple(b.between(1, d) if i != axis else b.between(1, 5) for i, d in enumerate(x.shape))
    length = x.shape[axis]
    i = b.constant(b.rng.integers(-length, length, shape).astype(np.int64))
    b.add("GatherElements", x, i, axis=axis)


def scatter(b: Builder) -> None:
    """No index twice: which one wins is not said."""
    x = ranked(b, 1, 3)
    axis = b.between(0, x.rank - 1)
    count = b.between(1, x.shape[axis])
    order = b.rng.permutation(x.shape[axis])[:count]
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    at = [1] * x.rank
    at[axis] = count
    i = np.broadcast_to(order.reshape(at), shape).astype(np.int64)
    reduction = b.choose(("none", "none", "add", "max", "min", "mul"))
    updates = b.constant(b.numbers(*shape))
    b.add("ScatterElements", x, b.constant(i), updates, axis=axis, reduction=reduction)


def scatter_nd(b: Builder) -> None:
    x = ranked(b, 2, 4)
    count = b.between(1, x.shape[0])
    i = b.rng.permutation(x.shape[0])[:count].reshape(-1, 1).astype(np.int64)
    b.add("ScatterND", x, b.constant(i), b.constant(b.numbers(count, *x.shape[1:])))


def shuffle(b: Builder) -> None:
    """Channels in groups, the groups exchanged."""
    x = ranked(b, 3, 4)
    groups = [g for g in (2, 3, 4) if x.shape[1] % g == 0]
    if not groups:
        raise Error("no groups")
    g = b.choose(groups)
    n, c, *rest = x.shape
    y = b.add("Reshape", x, b.ints(n, g, c // g, *rest))
    y = b.add("Transpose", y, perm=[0, 2, 1, *range(3, x.rank + 1)])
    b.add("Reshape", y, b.ints(n, c, *rest))


def blocks(b: Builder) -> None:
    x = ranked(b, 4, 4)
    _, c, h, w = x.shape
    if c % 4 == 0 and b.chance(0.5):
        b.add("DepthToSpace", x, blocksize=2, mode=b.choose(("DCR", "CRD")))
    elif h % 2 == 0 and w % 2 == 0:
        b.add("SpaceToDepth", x, blocksize=2)
    else:
        raise Error("no blocks")


def triangle(b: Builder) -> None:
    b.add("Trilu", ranked(b, 2, 4), upper=b.choose((0, 1)))


def one_hot(b: Builder) -> None:
    depth = b.between(2, 9)
    i = indices(b, b.choose(((3,), (2, 2), (5,))), depth)
    values = b.constant(np.array([0, 1], np.float32))
    b.add("OneHot", i, b.ints(depth), values, axis=b.choose((-1, 0)))


def reverse(b: Builder) -> None:
    x = ranked(b, 2, 3)
    lengths = b.constant(b.rng.integers(1, x.shape[0] + 1, x.shape[1]).astype(np.int64))
    b.add("ReverseSequence", x, lengths, batch_axis=1, time_axis=0)
