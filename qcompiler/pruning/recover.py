"""A dense graph, a pruned one, samples -> the pruned one with weights that make up for the loss.

Layer by layer, inputs first, each product of the pruned network gets the weights (and the bias)
with which its outputs come nearest to the dense network's, in the least squares sense, on the
inputs that it really has: those of the network pruned and repaired so far. So errors do not pile
up, and a layer learns to do with fewer inputs (He et al., "Channel Pruning for Accelerating Very
Deep Neural Networks", ICCV 2017; single weights: Hubara et al., "Accelerated Sparse Neural
Training", 2021).
The mean of every channel is kept by its bias, which is what recalibrating batch norms is for.

Both networks run in numpy, side by side. What is needed to go on from a product is kept of all
samples where that fits the budget; where not, the way from the last such place is gone again.
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
"""So many columns of one picture (or sentence) are looked at, where that is enough."""
ENOUGH = 16
"""Columns for each weight of a row that there should be, of all pictures."""
RIDGE = 1e-3
"""Of the mean curvature: how much weights want to stay what they are."""
FEW = 0.1
"""With more weights in a row than this share of the columns, weights want it more."""
_MOST_SPREAD = 8.0
DIRECT = 32
"""With more different sets of kept weights than this all rows are solved together, by steps."""


@dataclass
class Twin:
    """A product of the pruned graph and what it should give: some outputs of the dense one."""

    dense: Node
    outputs: Array
    """Which of the dense product's outputs are still there."""


@dataclass
class Seen:
    """What a pruned product was fed, [G,K,K] and [G,K], and should have given: [G,O,K], [O], [O].

    second = E[x xT] and cross = E[y xT], about the means for convolutions, whose bias takes these.
    """

    second: Floats
    cross: Floats
    inputs: Floats
    wanted: Floats
    spread: Floats
    columns: int

    @property
    def ridge(self) -> float:
        """How much weights want to stay: the more, the fewer columns there are to fit on."""
        share = float(self.second.shape[1]) / max(self.columns, 1)
        return RIDGE + FEW * max(share - FEW, 0.0)


Fit = Callable[[Node, Seen, Floats], Floats]
"""(Pruned product, what was seen, centred where it has a bias, its rows [G,O,K]) -> new rows."""
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
    """Change the weights of `twins`, products of the pruned graph, one after the other."""
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
    """How many columns of each picture to look at."""
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
    """Nodes of both graphs in one order: a dense product right before its twin."""
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
    """A graph -> the same one of nodes of its own (but for inputs and constants), and which of them
    stands for which.
    """
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        moved = (None if i is None else new[i] for i in node.inputs)
        leaf = node.op in ("input", "constant")
        new[node] = node if leaf else replace(node, inputs=tuple(moved))
    return graph.with_outputs(new[o] for o in graph.outputs), new


class _Walk:
    """Values of both graphs for every sample, at a place of the order that moves on."""

    def __init__(
        self, order: list[Node], samples: Iterable[Mapping[str, Array]], budget_bytes: int
    ) -> None:
        self.order, self.samples, self.budget = order, samples, budget_bytes
        self.last = {i: p for p, node in enumerate(order) for i in (node, *node.operands)}
        self.place = 0
        self.held: list[Values] = []

    def to(self, place: int, add: Callable[[Values], None], changed: Mapping[Node, Node]) -> None:
        """Run all samples up to a product, and hand over what it reads and what it should give."""
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
    """A node's outputs; `now` has the weights it has been given meanwhile."""
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
    """One product's moments while they are summed up."""

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
        """Take in one sample's."""
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
        """Their means."""
        n = max(self.count, 1)
        wanted = self.wanted / n
        spread = np.sqrt(np.maximum(self.squares / n - wanted**2, 0))
        means = (self.second / n, self.cross / n, self.inputs / n)
        return Seen(*means, wanted, spread, self.count)


def _added(total: Numbers, more: Numbers) -> Numbers:
    """A sum in float64 and one array more; the sum is written over, but for a first single 0."""
    return np.add(total, more, out=total) if total.ndim else more.astype(np.float64)


def with_spread(w: Floats, seen: Seen) -> Floats:
    """Rows [G,O,K] -> the same, each times what gives its output the wanted standard deviation."""
    have = np.sqrt(np.maximum(np.einsum("gok,gkl,gol->go", w, seen.second, w, optimize=True), 0))
    wanted = seen.spread.reshape(have.shape)
    factor = np.where(have > 0, wanted / np.maximum(have, 1e-300), 1.0)
    made: Floats = w * np.clip(factor, 1 / _MOST_SPREAD, _MOST_SPREAD)[:, :, None]
    return made


def nearest(w: Floats, seen: Seen, kept: Array | None = None) -> Floats:
    """Rows [G,O,K] -> those nearest to the wanted outputs; outside `kept`, [G,O,K], they are 0."""
    made = np.empty_like(w)
    for g in range(len(w)):
        mask = np.ones(w[g].shape, bool) if kept is None else kept[g]
        made[g] = solve(w[g], seen.second[g], seen.cross[g], mask, ridge=seen.ridge)
    return made


def solve(w: Floats, h: Floats, c: Floats, kept: Array, *, ridge: float = RIDGE) -> Floats:
    """The w' [O,K], 0 outside `kept`, that minimise tr(w' h w'T) - 2 tr(w' cT), and stay near w.

    Rows that keep the same columns are solved together; of very many different sets all at once, by
    conjugate gradients.
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
    """Preconditioned conjugate gradients for every row, within what it keeps."""
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
