"""A dense graph, a pruned one, samples -> the pruned one with weights that compensate the loss.

Layer by layer, from the inputs on, each product of the pruned network gets the weights (and bias)
whose outputs are closest to the dense network's, in the least squares sense, on the inputs that it
really has: those of the network as pruned and repaired so far. So errors do not accumulate, and a
layer learns to work with fewer inputs (He et al., "Channel Pruning for Accelerating Very
Deep Neural Networks", ICCV 2017; single weights: Hubara et al., "Accelerated Sparse Neural
Training", 2021).
The bias preserves the mean of every channel, which is the purpose of recalibrating batch norms.

Both networks run in numpy, side by side. The values that are needed to continue from a product are
kept for all samples if they fit the budget; otherwise they are recomputed from the last product
whose values did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qcompiler.data.columns import columns_of, rows, some_of, unrows
from qcompiler.ir import Array, Graph, Node, constant
from qcompiler.ops import meaning
from qcompiler.ops.registry import Numbers
from qcompiler.quantization.reconstruct import Floats
from qcompiler.rewrite.matching import input_at, rebuilt

BUDGET_BYTES = 256 << 20
COLUMNS = 64
"""Columns taken from one image (or sentence), if that is enough."""
ENOUGH = 16
"""Columns per weight of a row that there should be, over all images."""
RIDGE = 1e-3
"""Ridge penalty for changing weights, relative to the mean curvature."""
FEW = 0.1
"""If a row has more weights than this fraction of the columns, the penalty grows."""
_MOST_SPREAD = 8.0
DIRECT = 32
"""With more distinct sets of kept weights than this, all rows are solved together, iteratively."""


@dataclass
class Twin:
    """The target of a product of the pruned graph: some outputs of the dense product."""

    dense: Node
    outputs: Array
    """The remaining outputs of the dense product."""


@dataclass
class Seen:
    """Moments of a pruned product's inputs, [G,K,K] and [G,K], and targets, [G,O,K], [O] and [O].

    second = E[x xT] and cross = E[y xT], centred for convolutions, whose bias absorbs the means.
    """

    second: Floats
    cross: Floats
    inputs: Floats
    wanted: Floats
    spread: Floats
    columns: int

    @property
    def ridge(self) -> float:
        """The ridge penalty: larger if there are few columns to fit on."""
        share = float(self.second.shape[1]) / max(self.columns, 1)
        return RIDGE + FEW * max(share - FEW, 0.0)


Fit = Callable[[Node, Seen, Floats], Floats]
"""(Pruned product, moments, centred if it has a bias, its rows [G,O,K]) -> new rows."""
Values = dict[Node, tuple[Array, ...]]


def recover(
    dense: Graph,
    pruned: Graph,
    twins: Mapping[Node, Twin],
    samples: Iterable[Mapping[str, Array]],
    fit: Fit,
    *,
    budget_bytes: int = BUDGET_BYTES,
    columns: int = COLUMNS,
) -> Graph:
    """Refit the weights of `twins`, products of the pruned graph, one after the other."""
    order = _side_by_side(dense, pruned, twins)
    walk = _Walk(order, samples, budget_bytes)
    count = getattr(samples, "count", None)
    pictures = len(samples) if isinstance(samples, Sequence) else count or 0
    changed: dict[Node, Node] = {}
    for place, node in enumerate(order):
        if node not in twins:
            continue
        seen = _Sums(node, twins[node], _wanted(node, pictures, columns))
        walk.to(place, seen.add, changed)
        found = seen.seen()
        centred = node.op == "Conv"
        if centred:
            mean, wanted = found.inputs, found.wanted.reshape(len(found.inputs), -1)
            found.second -= mean[:, :, None] * mean[:, None, :]
            found.cross -= wanted[:, :, None] * mean[:, None, :]
        made = fit(node, found, rows(node, node.operands[1].array))
        bias = None
        if centred:
            bias = found.wanted - np.einsum("gok,gk->go", made, found.inputs).reshape(-1)
        changed[node] = _changed(node, made, bias)
    return _rebuilt(pruned, changed)


def _wanted(node: Node, samples: int, columns: int) -> int:
    """The number of columns to take from each image."""
    pictures = samples * node.type.dims[0]
    depth = node.operands[1].type.size // node.operands[1].type.dims[0 if node.op == "Conv" else 1]
    return max(columns, -(-ENOUGH * depth // pictures)) if pictures else columns


def _changed(node: Node, made: Floats, bias: Floats | None) -> Node:
    old = node.operands[1]
    w = constant(unrows(node, made).astype(old.array.dtype), old.name)
    if bias is None:
        return node.with_inputs([node.inputs[0], w])
    given = input_at(node, 2)
    b = constant(bias.astype(old.array.dtype), "" if given is None else given.name)
    return rebuilt(node, [node.inputs[0], w, b])


def _rebuilt(graph: Graph, changed: Mapping[Node, Node]) -> Graph:
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        source = changed.get(node, node)
        inputs = [None if i is None else new.get(i, i) for i in source.inputs]
        new[node] = source.with_inputs(inputs)
    return graph.with_outputs(new[o] for o in graph.outputs)


def _side_by_side(dense: Graph, pruned: Graph, twins: Mapping[Node, Twin]) -> list[Node]:
    """The nodes of both graphs in one order: each dense product right before its twin."""
    order: list[Node] = []
    done: set[Node] = set()

    def add(root: Node) -> None:
        stack = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if ready and node not in done:
                done.add(node)
                order.append(node)
            elif node not in done:
                stack.append((node, True))
                stack.extend((i, False) for i in reversed(node.operands) if i not in done)

    for node in pruned.nodes:
        if node in twins:
            for i in node.operands:
                add(i)
            add(twins[node].dense)
            add(node)
    return order


def copied(graph: Graph) -> tuple[Graph, dict[Node, Node]]:
    """A graph -> a copy with new nodes (except inputs and constants), and the copy of each node."""
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        moved = (None if i is None else new[i] for i in node.inputs)
        leaf = node.op in ("input", "constant")
        new[node] = node if leaf else replace(node, inputs=tuple(moved))
    return graph.with_outputs(new[o] for o in graph.outputs), new


class _Walk:
    """The values of both graphs for every sample, at a position that moves along the order."""

    def __init__(
        self, order: list[Node], samples: Iterable[Mapping[str, Array]], budget_bytes: int
    ) -> None:
        self.order, self.samples, self.budget = order, samples, budget_bytes
        self.last = {i: p for p, node in enumerate(order) for i in (node, *node.operands)}
        self.place = 0
        self.held: list[Values] = []

    def to(self, place: int, add: Callable[[Values], None], changed: Mapping[Node, Node]) -> None:
        """Run all samples up to a product, and call `add` with its input and its target."""
        following: list[Values] = []
        size = 0
        for number, sample in enumerate(self.samples):
            values = dict(self.held[number]) if self.held else {}
            for p in range(self.place, place):
                node = self.order[p]
                values[node] = _value(changed.get(node, node), node, values, sample)
                for i in node.operands:
                    if self.last[i] <= p:
                        values.pop(i, None)
            add(values)
            values = {n: v for n, v in values.items() if self.last[n] >= place}
            size += sum(a.nbytes for n, v in values.items() if not n.is_constant for a in v)
            if size <= self.budget:
                following.append(values)
        if size <= self.budget:
            self.place, self.held = place, following


def _value(now: Node, node: Node, values: Values, sample: Mapping[str, Array]) -> tuple[Array, ...]:
    """A node's outputs; `now` is the node with its refitted weights."""
    if node.op == "input":
        return (np.asarray(sample[node.name]),)
    if node.is_constant:
        return (node.array,)
    if node.op == "item":
        return meaning(node, values[node.operands[0]])
    arrays: list[Array | None] = []
    for new, old in zip(now.inputs, (*node.inputs, None), strict=False):
        known = new is not None and new is not old and new.is_constant
        arrays.append(new.array if known and new is not None else None)
        if not known and old is not None:
            arrays[-1] = values[old][0]
    return meaning(now, tuple(arrays))


class _Sums:
    """The running sums of one product's moments."""

    def __init__(self, node: Node, twin: Twin, columns: int) -> None:
        self.node, self.twin, self.columns = node, twin, columns
        self.count = 0
        self.random = np.random.default_rng(0), np.random.default_rng(0)
        self.second: Numbers = np.zeros(())
        self.cross: Numbers = np.zeros(())
        self.inputs: Numbers = np.zeros(())
        self.wanted: Numbers = np.zeros(())
        self.squares: Numbers = np.zeros(())

    def add(self, values: Values) -> None:
        """Add one sample."""
        first, second = self.random
        given, y = values[self.node.operands[0]][0], values[self.twin.dense][0]
        x: Numbers = columns_of(self.node, given, self.columns, first)
        most = self.columns * (len(given) if given.ndim > 2 else 1)
        flat = np.moveaxis(y, 1, -1) if self.node.op == "Conv" else y
        flat = flat.reshape(-1, flat.shape[-1])
        flat = flat[some_of(len(flat), most, second)][:, self.twin.outputs]
        wanted = np.ascontiguousarray(flat.T).reshape(len(x), -1, x.shape[2])
        self.second = _added(self.second, x @ x.transpose(0, 2, 1))
        self.cross = _added(self.cross, wanted @ x.transpose(0, 2, 1))
        self.inputs = self.inputs + x.sum(2, dtype=np.float64)
        self.wanted = self.wanted + flat.sum(0, dtype=np.float64)
        self.squares = self.squares + np.square(flat).sum(0, dtype=np.float64)
        self.count += x.shape[2]

    def seen(self) -> Seen:
        """The means of the sums."""
        n = max(self.count, 1)
        wanted = self.wanted / n
        spread = np.sqrt(np.maximum(self.squares / n - wanted**2, 0))
        means = (self.second / n, self.cross / n, self.inputs / n)
        return Seen(*means, wanted, spread, self.count)


def _added(total: Numbers, more: Numbers) -> Numbers:
    """Add an array to a float64 sum, in place unless the sum is still the initial scalar 0."""
    return np.add(total, more, out=total) if total.ndim else more.astype(np.float64)


def with_spread(w: Floats, seen: Seen) -> Floats:
    """Rows [G,O,K] -> rows scaled so that each output has the target's standard deviation."""
    have = np.sqrt(np.maximum(np.einsum("gok,gkl,gol->go", w, seen.second, w, optimize=True), 0))
    wanted = seen.spread.reshape(have.shape)
    factor = np.where(have > 0, wanted / np.maximum(have, 1e-300), 1.0)
    made: Floats = w * np.clip(factor, 1 / _MOST_SPREAD, _MOST_SPREAD)[:, :, None]
    return made


def nearest(w: Floats, seen: Seen, kept: Array | None = None) -> Floats:
    """Rows [G,O,K] -> those whose outputs are closest to the targets, 0 outside `kept` [G,O,K]."""
    made = np.empty_like(w)
    for g in range(len(w)):
        mask = np.ones(w[g].shape, bool) if kept is None else kept[g]
        made[g] = solve(w[g], seen.second[g], seen.cross[g], mask, ridge=seen.ridge)
    return made


def solve(w: Floats, h: Floats, c: Floats, kept: Array, *, ridge: float = RIDGE) -> Floats:
    """The w' [O,K], 0 outside `kept`, that minimise tr(w' h w'T) - 2 tr(w' cT) with a penalty for
    the distance from w.

    Rows that keep the same columns are solved together. If there are very many distinct sets, all
    rows are solved at once, by conjugate gradients.
    """
    mean = float(np.diag(h).mean())
    whole = h + np.eye(len(h)) * (ridge * mean if mean > 0 else 1.0)
    wanted = c + w * (ridge * mean if mean > 0 else 1.0)
    which, index = np.unique(kept, axis=0, return_inverse=True)
    if len(which) > DIRECT:
        return _conjugate(np.where(kept, w, 0.0), whole, wanted, kept)
    made = np.zeros_like(w)
    for number, mask in enumerate(which):
        here = np.flatnonzero(index.reshape(-1) == number)
        if mask.any():
            small = whole[np.ix_(mask, mask)]
            made[np.ix_(here, mask)] = np.linalg.solve(small, wanted[np.ix_(here, mask)].T).T
    return made


def _conjugate(w: Floats, h: Floats, c: Floats, kept: Array, steps: int = 60) -> Floats:
    """Preconditioned conjugate gradients for every row, over the weights that it keeps."""
    inverse = kept / np.diag(h)
    rest = np.where(kept, c - w @ h, 0.0)
    z = rest * inverse
    p, rz = z.copy(), (rest * z).sum(1)
    limit = 1e-10 * np.maximum((np.where(kept, c, 0.0) ** 2 * inverse).sum(1), 1e-300)
    for _ in range(steps):
        if np.all(rz <= limit):
            break
        hp = np.where(kept, p @ h, 0.0)
        alpha = rz / np.maximum((p * hp).sum(1), 1e-300)
        w = w + alpha[:, None] * p
        rest = rest - alpha[:, None] * hp
        z = rest * inverse
        new = (rest * z).sum(1)
        p = z + (new / np.maximum(rz, 1e-300))[:, None] * p
        rz = new
    return w
