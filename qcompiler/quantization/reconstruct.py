"""Layer-wise reconstruction: weights changed so that a product's outputs change least.

A product's output is w x. If a row w of weights is replaced by w', the expected squared error is
(w' - w) h (w' - w)T with h = E[x xT], whatever the samples were. So all that calibration must keep
of a layer is h, [K,K]; rounding, pruning and recovery are then linear algebra on it.
Sources: Hassibi & Stork, "Optimal Brain Surgeon" (1993), for `compensate`; Frantar et al., "GPTQ"
(2022) and "SparseGPT" (2023), for doing it column by column; Nagel et al., "Up or Down? Adaptive
Rounding for Post-Training Quantization" (2020), for the objective of `descend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qcompiler.data.calibrate import Calibration, value_names
from qcompiler.data.columns import columns_of, size_of, takes
from qcompiler.ir import Array, Graph, Node
from qcompiler.ops.registry import Numbers

Floats = NDArray[np.float64]
Change = Callable[[int, Floats], Floats]
"""(column index, its current weights [O]) -> its new weights."""
Begin = Callable[[int, Floats, Floats], Change]
"""(First column, block of columns [O,B], their curvatures [B]) -> how to change each of these
columns.
"""

BUDGET_BYTES = 128 << 20
COLUMNS = 256
"""Most columns used per image (or sequence): its pixels are much alike."""
DAMPING = 0.01
"""Fraction of the mean of h's diagonal that is added to it, as in GPTQ."""
BLOCK = 128


# Calibration: the moments.


@dataclass
class Moments:
    """Sums over the input columns of one product, for each of its groups."""

    groups: int
    depth: int
    count: int = 0
    products: NDArray[np.float32] = field(init=False)
    sums: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.products = np.zeros((self.groups, self.depth, self.depth), np.float32)
        self.sums = np.zeros((self.groups, self.depth))

    def add(self, columns: Numbers) -> None:
        """Add columns [G,K,P]."""
        self.products += columns @ columns.transpose(0, 2, 1)
        self.sums += columns.sum(axis=2, dtype=np.float64)
        self.count += columns.shape[2]

    @property
    def second(self) -> Floats:
        """E[x xT], [G,K,K]."""
        return self.products.astype(np.float64) / max(self.count, 1)

    @property
    def first(self) -> Floats:
        """E[x], [G,K]."""
        return self.sums / max(self.count, 1)

    @property
    def covariance(self) -> Floats:
        """E[x xT] - E[x] E[x]T: for products whose bias absorbs the mean error."""
        mean = self.first
        centred: Floats = self.second - mean[:, :, None] * mean[:, None, :]
        return centred


def moments(
    graph: Graph,
    products: Iterable[Node],
    data: Calibration,
    *,
    budget_bytes: int = BUDGET_BYTES,
    columns: int = COLUMNS,
) -> Iterator[tuple[Node, Moments]]:
    """Float graph, products in it (Conv, MatMul with constant weights), samples -> their moments.

    The products are batched so that all moments held at once fit `budget_bytes` (or are one
    product's); the samples are run once per batch. At most `columns` columns of every image in a
    sample are used.
    """
    todo = [n for n in products if takes(n)]
    run = data.runner(graph) if todo else None
    names = value_names(graph)
    for batch in _batches(todo, budget_bytes):
        held: dict[str, list[tuple[Node, Moments]]] = {}
        made = {n: Moments(*size_of(n)) for n in batch}
        for node, found in made.items():
            held.setdefault(names[node.operands[0]], []).append((node, found))
        random = np.random.default_rng(0)

        def observe(
            name: str,
            array: Array,
            held: dict[str, list[tuple[Node, Moments]]] = held,
            random: np.random.Generator = random,
        ) -> None:
            for node, found in held.get(name, ()):
                found.add(columns_of(node, array, columns, random))

        assert run is not None
        for sample in data.samples:
            run(sample, observe)
        yield from made.items()


def _batches(products: Sequence[Node], budget_bytes: int) -> Iterator[list[Node]]:
    batch: list[Node] = []
    used = 0
    for node in products:
        groups, depth = size_of(node)
        size = 4 * groups * depth * depth
        if batch and used + size > budget_bytes:
            yield batch
            batch, used = [], 0
        batch.append(node)
        used += size
    if batch:
        yield batch


# Linear algebra on the moments. Everywhere w is [O,K] and h [K,K].


def damped(h: Floats, damping: float = DAMPING) -> Floats:
    """h [...,K,K] made invertible: a fraction of its mean diagonal is added to the diagonal."""
    mean = np.einsum("...kk->...k", h).mean(-1)
    more = np.where(mean > 0, damping * mean, 1.0)
    made: Floats = h + np.eye(h.shape[-1]) * more[..., None, None]
    return made


def loss(w: Floats, other: Floats, h: Floats) -> float:
    """The expected squared error of all outputs with `other` in place of w."""
    e = other - w
    return float(np.einsum("ok,ok->", e @ h, e))


def least_squares(
    w: Floats, h: Floats, kept: NDArray[np.bool_], *, damping: float = DAMPING
) -> Floats:
    """Set weights outside `kept`, [K] or [O,K], to 0, and the others to the least-squares solution.

    Rows that keep the same columns are solved together: O different sets cost O * K^3.
    """
    whole = damped(h, damping)
    made = np.zeros_like(w)
    masks = np.broadcast_to(kept, w.shape)
    which, index = np.unique(masks, axis=0, return_inverse=True)
    for number, mask in enumerate(which):
        rows_here = np.flatnonzero(index.reshape(-1) == number)
        if not mask.any():
            continue
        wanted = w[rows_here] @ whole[:, mask]
        made[np.ix_(rows_here, mask)] = np.linalg.solve(whole[np.ix_(mask, mask)], wanted.T).T
    return made


def compensate(
    w: Floats, h: Floats, begin: Begin, *, block: int = BLOCK, damping: float = DAMPING
) -> Floats:
    """Change the weights column by column, compensating each change in the columns to come.

    With u the upper Cholesky factor of inv(h), changing column j by e changes the later columns
    optimally by -e * u[j,later] / u[j,j]. `begin` receives d = u's diagonal; a change of e costs
    (e / d)^2.
    """
    inverse = np.linalg.inv(damped(h, damping))
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    now = w.copy()
    made = np.empty_like(w)
    for first in range(0, w.shape[1], block):
        last = min(first + block, w.shape[1])
        part = now[:, first:last].copy()
        change = begin(first, part.copy(), np.diag(upper)[first:last])
        errors = np.zeros_like(part)
        for j in range(last - first):
            column = change(first + j, part[:, j])
            row = upper[first + j]
            errors[:, j] = (part[:, j] - column) / row[first + j]
            part[:, j:] -= errors[:, j : j + 1] * row[first + j : last]
            made[:, first + j] = column
        now[:, last:] -= errors @ upper[first:last, last:]
    return made


@dataclass(frozen=True)
class Grid:
    """The numbers that weights are rounded to: (q - zero) * scale, with integers q in [low, high].

    scale and zero broadcast with the weights, [O,K].
    """

    scale: Floats
    zero: Floats
    low: int
    high: int

    def steps(self, w: Floats) -> Floats:
        """Weights in units of the grid, not rounded."""
        made: Floats = w / self.scale + self.zero
        return made

    def nearest(self, w: Floats) -> Floats:
        """The nearest integers; ties to even."""
        return np.clip(np.rint(self.steps(w)), self.low, self.high)

    def values(self, q: Floats) -> Floats:
        """Integers -> the weights they represent."""
        made: Floats = (q - self.zero) * self.scale
        return made

    def with_scales(self, scale: Floats, zero: Floats) -> Grid:
        """The same integers with other scales."""
        return Grid(scale, zero, self.low, self.high)

    def part(self, rows: slice, shape: tuple[int, ...]) -> Grid:
        """The grid of some rows of weights of this shape."""
        scale, zero = (
            np.broadcast_to(a, (shape[0], a.shape[1]))[rows] for a in (self.scale, self.zero)
        )
        return self.with_scales(scale, zero)

    def split(self, groups: int, shape: tuple[int, ...]) -> Grid:
        """The grid of weights of shape [O,K], as [groups,O/groups,K]."""
        scale, zero = (
            np.broadcast_to(a, (shape[0], a.shape[1])).reshape(groups, -1, a.shape[1])
            for a in (self.scale, self.zero)
        )
        return self.with_scales(scale, zero)

    def at(self, columns: slice | NDArray[np.int64], shape: tuple[int, ...]) -> Grid:
        """The grid of some columns of weights of this shape."""
        scale, zero = (np.broadcast_to(a, shape)[:, columns] for a in (self.scale, self.zero))
        return self.with_scales(scale, zero)


def gptq(w: Floats, h: Floats, grid: Grid, *, damping: float = DAMPING) -> Floats:
    """Weights -> integers, rounded column by column with compensation.

    Columns of large curvature come first, while most others can still compensate.
    """
    order = np.argsort(-np.diag(h), kind="stable")
    ordered = grid.at(order, w.shape)

    def begin(first: int, part: Floats, d: Floats) -> Change:
        def change(j: int, column: Floats) -> Floats:
            one = ordered.at(slice(j, j + 1), w.shape)
            return one.values(one.nearest(column[:, None]))[:, 0]

        return change

    made = compensate(w[:, order], h[np.ix_(order, order)], begin, damping=damping)
    result = np.empty_like(w)
    result[:, order] = ordered.nearest(made)
    return result


def descend(
    w: Floats, h: Floats, grid: Grid, start: Floats, *, sweeps: int = 6, reach: int = 1
) -> Floats:
    """Integers of weights [...,O,K] -> better ones, at most `reach` away from the weights.

    AdaRound's objective, (w' - w) h (w' - w)T over roundings up or down, by coordinate descent: one
    column at a time takes its best integers while all others are fixed, until none changes. Never
    worse than `start`. h is [...,K,K]; the leading dimensions are independent groups.
    """
    low = np.clip(np.floor(grid.steps(w)) - (reach - 1), grid.low, grid.high)
    high = np.clip(np.ceil(grid.steps(w)) + (reach - 1), grid.low, grid.high)
    low, high = np.minimum(low, start), np.maximum(high, start)
    scale = np.broadcast_to(grid.scale, w.shape)
    q = start.copy()
    gradient = (grid.values(q) - w) @ h
    curved = np.einsum("...kk->...k", h)[..., None, :]
    curved = np.where(curved > 0, curved, np.inf)
    for _ in range(sweeps):
        moved = False
        for first in range(0, w.shape[-1], BLOCK):
            last = min(first + BLOCK, w.shape[-1])
            part, here = gradient[..., first:last].copy(), h[..., first:last, first:last]
            changes = np.zeros_like(part)
            for j in range(last - first):
                k = first + j
                best = np.rint(q[..., k] - part[..., j] / (curved[..., k] * scale[..., k]))
                best = np.clip(best, low[..., k], high[..., k])
                e = (best - q[..., k]) * scale[..., k]
                if e.any():
                    moved = True
                    q[..., k] = best
                    changes[..., j] = e
                    part += e[..., None] * here[..., None, j, :]
            gradient += changes @ h[..., first:last, :]
        if not moved:
            break
    return q
