"""Set weights to zero, singly, n of m, or in blocks, and let the others compensate.

Conv(x, w, b)  ->  Conv(x, w', b')        w' has zeros in the requested pattern
MatMul(x, w)   ->  MatMul(x, w')

The least important weights are removed, by `importance` (see pruning/sparsity.py). Of each layer:
the same fraction (`scope="layer"`), those below one threshold ("global"), or by each layer's
sensitivity curve ("sensitivity"). Recovery works without training, layer by layer on the inputs
computed by the pruned layers before it (pruning/recover.py): "least_squares" finds the optimal
values of the remaining weights; "compensate" selects and compensates column by column (Frantar &
Alistarh, "SparseGPT", 2023), then does the same; "statistics" only keeps the mean and variance of
each channel, as recalibrating batch norms does; "none".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from qcompiler.passes.prune.common import asked, noted, shares

from qcompiler.data.calibrate import Calibration
from qcompiler.data.columns import rows, takes, unrows
from qcompiler.errors import Error
from qcompiler.hardware.isa import Device
from qcompiler.ir import Graph, Node, constant, substitute
from qcompiler.ops.kinds import PRODUCTS
from qcompiler.pruning.recover import Seen, Twin, copied, nearest, recover, with_spread
from qcompiler.pruning.sparsity import (
    Mask,
    Pattern,
    as_taps,
    curves,
    global_levels,
    importance,
    mask,
    sensitive_levels,
)
from qcompiler.quantization.reconstruct import BLOCK, Change, Floats, compensate, moments
from qcompiler.rewrite import Explain, graph_pass

RECOVERIES = ("none", "statistics", "least_squares", "compensate")
SCOPES = ("layer", "global", "sensitivity")


@graph_pass
class PruneWeights:
    """Zeros in constant weights.

    pattern: "element", "2:4", "16x4" (outputs x inputs), or "block" (the device's unit of
    multiplication). sparsity: the fraction of weights to remove (n:m has its own). scope,
    importance, recovery: as above; recovery "" is least_squares if there is data, else none. most:
    no layer loses more than this fraction. include, exclude: operator types, node names, or regular
    expressions of them. elements: smaller layers are not pruned. steps: number of rounds of removal
    and recovery, each removing less (Zhu & Gupta, "To prune, or not to prune", 2017). Depthwise
    convolutions are not pruned: they have few weights, and are sensitive to each.
    """

    pattern: str = "element"
    sparsity: float = 0.5
    scope: str = "layer"
    importance: str = "magnitude"
    recovery: str = ""
    most: float = 0.95
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    elements: int = 256
    steps: int = 1
    data: Calibration | None = None
    device: Device | None = None
    explain: Explain | None = None
    default: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> Graph:
        """The graph with sparse weights; itself if this has been done before."""
        if "pruned_weights" in graph.notes:
            return graph
        pattern = Pattern.read(self.pattern, self.device)
        recovery = self.recovery or ("least_squares" if self.data else "none")
        self.check(recovery)
        products = list(self.products(graph, pattern))
        levels = self.levels(graph, products, pattern)
        if recovery == "none":
            made = self.without(graph, levels, pattern)
        else:
            made = graph
            for share in shares(self.steps):
                now = {n: s * share for n, s in levels.items()}
                made = self.repaired(graph, made, now, pattern, recovery)
        how = f"{pattern} {self.sparsity} {self.scope} {self.importance} {recovery}"
        result: Graph = noted(made, "pruned_weights", products, how)
        return result

    def check(self, recovery: str) -> None:
        """Raise Error for invalid options, and for those that need missing data."""
        if not 0 <= self.sparsity < 1:
            raise Error(f"sparsity {self.sparsity} is not in [0, 1)", where="prune_weights")
        for value, known in ((recovery, RECOVERIES), (self.scope, SCOPES)):
            if value not in known:
                raise Error(f"unknown choice {value!r}", hint=f"one of {', '.join(known)}")
        if self.steps < 1:
            raise Error(f"{self.steps} steps", where="prune_weights", hint="1 or more")
        needs = recovery != "none" or self.importance != "magnitude" or self.scope == "sensitivity"
        if needs and self.data is None:
            hint = "give --calibration; magnitude without recovery needs none"
            raise Error("this importance or recovery needs calibration data", hint=hint)

    def products(self, graph: Graph, pattern: Pattern) -> Iterator[Node]:
        """The products to prune."""
        for node in asked(graph, self.include, self.exclude):
            reason = "it is not a product of constant float32 weights of known shape"
            if takes(node):
                shape = as_taps(node, rows(node, node.operands[1].array)).shape
                refused = pattern.refuse(shape)
                if node.op == "Conv" and node.operands[1].type.dims[1] == 1:
                    reason = "each of its channels has one input"
                elif node.operands[1].type.size < self.elements:
                    reason = f"it has only {node.operands[1].type.size} weights"
                elif refused is not None:
                    reason = refused.reason
                else:
                    yield node
                    continue
            if self.explain is not None:
                self.explain("prune_weights", node, reason)

    def levels(self, graph: Graph, products: list[Node], pattern: Pattern) -> dict[Node, float]:
        """The sparsity of each layer."""
        if self.scope == "layer" or pattern.of or not products:
            return dict.fromkeys(products, min(self.sparsity, self.most))
        seen: dict[Node, Floats] = {}
        losses: dict[Node, Floats] = {}
        if self.scope == "sensitivity" or self.importance != "magnitude":
            assert self.data is not None
            for node, found in moments(graph, products, self.data):
                scores = self.scores(node, rows(node, node.operands[1].array), found.second)
                seen[node] = scores
                if self.scope == "sensitivity":
                    losses[node] = curves(node, found.second, scores, pattern)
        if self.scope == "sensitivity":
            sizes = {n: n.operands[1].type.size for n in products}
            found_levels = sensitive_levels(losses, sizes, self.sparsity)
            return {n: min(s, self.most) for n, s in found_levels.items()}
        scores_of = {
            n: seen[n] if n in seen else self.scores(n, rows(n, n.operands[1].array), None)
            for n in products
        }
        return global_levels(scores_of, pattern, self.sparsity, self.most)

    def repaired(
        self,
        graph: Graph,
        before: Graph,
        levels: dict[Node, float],
        pattern: Pattern,
        recovery: str,
    ) -> Graph:
        """`before`, which is `graph` as pruned and recovered so far, with more weights removed and
        the others fitted to `graph` again.
        """
        assert self.data is not None
        pruned, new = copied(before)
        now = dict(zip(_places(graph), (new[n] for n in _places(before)), strict=True))
        twins = {now[n]: Twin(n, np.arange(_outputs(n))) for n in levels}
        fit = _Fit(self, pattern, {now[n]: s for n, s in levels.items()}, recovery)
        return recover(graph, pruned, twins, self.data.samples, fit)

    def scores(self, node: Node, w: Floats, second: Floats | None) -> Floats:
        """The importance of each weight, [O, C, T]."""
        return as_taps(node, importance(w, second, self.importance))

    def without(self, graph: Graph, levels: dict[Node, float], pattern: Pattern) -> Graph:
        """Only set the zeros."""
        made: dict[int, Node] = {}
        scores: dict[Node, Floats] = {}
        if self.importance != "magnitude":
            assert self.data is not None
            for node, seen in moments(graph, list(levels), self.data):
                scores[node] = self.scores(node, rows(node, node.operands[1].array), seen.second)
        for node, level in levels.items():
            w = rows(node, node.operands[1].array)
            worth = scores[node] if node in scores else self.scores(node, w, None)
            kept = mask(worth, pattern, level).reshape(w.shape)
            array = unrows(node, np.where(kept, w, 0)).astype(node.operands[1].array.dtype)
            made[id(node)] = constant(array, node.operands[1].name)
        by_weights = {id(n.operands[1]): made[id(n)] for n in levels}
        return substitute(graph, lambda n: by_weights.get(id(n), n))


class _Fit:
    """New rows for each product, fitted on its inputs in the pruned network."""

    def __init__(
        self, options: PruneWeights, pattern: Pattern, levels: dict[Node, float], recovery: str
    ) -> None:
        self.options, self.pattern, self.levels = options, pattern, levels
        self.recovery = recovery

    def __call__(self, node: Node, seen: Seen, w: Floats) -> Floats:
        """Rows [G, O, K] -> the pruned and recovered rows."""
        level = self.levels[node]
        kept = self.kept(node, seen, w, level)
        if self.recovery == "statistics":
            return with_spread(np.where(kept, w, 0.0), seen)
        return nearest(np.where(kept, w, 0.0), seen, kept)

    def kept(self, node: Node, seen: Seen, w: Floats, level: float) -> Mask:
        """The mask of weights to keep."""
        if self.recovery == "compensate":
            return np.stack(
                [
                    _swept(a, h, c, self.pattern, level, node)
                    for a, h, c in zip(w, seen.second, seen.cross, strict=True)
                ]
            )
        scores = self.options.scores(node, w, seen.second)
        return mask(scores, self.pattern, level).reshape(w.shape)


def _swept(w: Floats, h: Floats, c: Floats, pattern: Pattern, level: float, node: Node) -> Mask:
    """SparseGPT: in each block of columns, remove those of least cost at the current weights."""
    if pattern != Pattern() and not pattern.of:
        raise Error("compensate supports single weights or n:m", hint='recovery="least_squares"')
    taps = 1 if node.op == "MatMul" else w.shape[1] // node.operands[1].type.dims[1]
    order = np.arange(w.shape[1]).reshape(-1, taps).T.reshape(-1)  # neighbouring inputs together
    zeros = np.zeros(w.shape, bool)

    def begin(first: int, part: Floats, d: Floats) -> Change:
        scores = (part / d) ** 2
        width = part.shape[1]
        one = Pattern(keep=pattern.keep, of=pattern.of) if pattern.of else Pattern()
        here = mask(scores[:, :, None], one, level)[:, :, 0]
        zeros[:, first : first + width] = ~here
        return lambda j, column: np.where(here[:, j - first], column, 0.0)

    size = BLOCK - BLOCK % (pattern.of or 1)
    compensate(w[:, order], h[np.ix_(order, order)], begin, block=size)
    kept = np.empty(w.shape, bool)
    kept[:, order] = ~zeros
    return kept


def _places(graph: Graph) -> list[Node]:
    """All products, in an order unchanged by recovery."""
    return [n for n in graph.nodes if n.op in PRODUCTS]


def _outputs(node: Node) -> int:
    dims = node.operands[1].type.dims
    return dims[0] if node.op == "Conv" else dims[1]
