"""Remove whole channels (filters, neurons, attention heads), which makes the graph smaller.

Conv(Relu(Conv(x, w1[O,C,..])), w2[P,O,..])  ->  Conv(Relu(Conv(x, w1'[O',C,..])), w2'[P,O',..])

Channels tied by residual sums, concats, groups, depthwise convolutions or reshapes are removed
together (pruning/channels.py, after Fang et al., "DepGraph", CVPR 2023). A channel's importance, as
a fraction of its layers' total:

    magnitude     squares of the weights that make and read it (Li et al., "Pruning Filters for
                  Efficient ConvNets", 2017, over the whole group as in DepGraph)
    activation    its contribution to its readers' outputs: E[x^2] times squares of the weights that
                  read it (instead of Taylor's gradients, which are not available here)
    second_order  its readers' output error after the remaining channels compensate: the Optimal
                  Brain Surgeon's cost for a whole block of weights (Hassibi & Stork 1993; Kurtic et
                  al., "ZipLM", 2023)

Then every layer is refitted to the dense network's outputs (pruning/recover.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from qcompiler.passes.prune.common import asked, noted, shares

from qcompiler.data.calibrate import Calibration
from qcompiler.data.columns import rows, takes
from qcompiler.errors import Error
from qcompiler.hardware.isa import Device
from qcompiler.ir import Graph, Node
from qcompiler.ops.kinds import PRODUCTS
from qcompiler.pruning.channels import FIXED, Ids, Labels, label
from qcompiler.pruning.recover import Seen, Twin, copied, nearest, recover
from qcompiler.pruning.slimming import Mask, without
from qcompiler.pruning.sparsity import IMPORTANCES
from qcompiler.quantization.reconstruct import Floats, damped, moments
from qcompiler.rewrite import Explain, graph_pass

SCOPES = ("layer", "global")
_STEP = 4


@graph_pass
class PruneChannels:
    """Structured pruning of channels.

    sparsity: the fraction of channels to remove. scope: of each group of tied channels ("layer"),
    or all below one threshold ("global"). importance: as above; "" is second_order if there is
    data, else magnitude. recovery: "least_squares", "none"; "" is the first if there is data. most:
    no group loses more than this fraction. multiple: the number of remaining channels is a multiple
    of this (0: of what suits the device, in large enough groups). steps: number of rounds of
    removal and recovery, each removing less. include, exclude: the products whose outputs may lose
    channels.
    """

    sparsity: float = 0.5
    scope: str = "layer"
    importance: str = ""
    recovery: str = ""
    most: float = 0.875
    multiple: int = 0
    steps: int = 1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    data: Calibration | None = None
    device: Device | None = None
    explain: Explain | None = None
    default: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> Graph:
        """The smaller graph; itself if this has been done before."""
        if "pruned_channels" in graph.notes:
            return graph
        self.check()
        made, outputs = graph, _all_outputs(graph)
        sizes: list[int] = []
        for share in shares(self.steps):
            made, outputs = self.pruned(graph, made, outputs, sizes, self.sparsity * share)
        pairs = zip(_all_outputs(graph), outputs, strict=True)
        fewer = [n for n, (a, b) in zip(_products(graph), pairs, strict=True) if len(b) < len(a)]
        how = f"{self.sparsity} {self.scope}"
        return made if made is graph else noted(made, "pruned_channels", fewer, how)

    def pruned(
        self, dense: Graph, graph: Graph, outputs: list[Ids], sizes: list[int], sparsity: float
    ) -> tuple[Graph, list[Ids]]:
        """`graph`, which is `dense` as pruned so far, and the remaining outputs of the dense
        products -> both with this fraction of the dense network's channels removed. `sizes`: the
        groups' original sizes, set in the first round.
        """
        labels = label(graph)
        allowed = dict.fromkeys(asked(graph, self.include, self.exclude))
        for node, ids in labels.makes.items():
            if node not in allowed:
                labels.fix([ids])
        self.explained(allowed, labels)
        groups = labels.groups()
        sizes[:] = sizes or [len(g) for g in groups]
        scores = self.scores(graph, labels)
        counts = self.counts(groups, scores, sizes, sparsity)
        kept = np.ones(len(labels.parents), bool)
        for group, count in zip(groups, counts, strict=True):
            order = group[np.argsort(-scores[group], kind="stable")]
            kept[order[count:]] = False
        made, new = without(graph, labels, kept)
        if made is graph:
            return graph, outputs
        pairs = zip(outputs, _products(graph), strict=True)
        outputs = [o[_kept(n, labels, kept)] for o, n in pairs]
        if self.recovery != "none" and self.data is not None:
            found = [new[n] for n in _products(graph)]
            made = self.recovered(dense, made, found, outputs)
        return made, outputs

    def explained(self, allowed: Iterable[Node], labels: Labels) -> None:
        """Report which products keep all their channels."""
        if self.explain is None:
            return
        for node in allowed:
            reason = "not a product of an activation and constant weights"
            if node in labels.makes:
                if np.any(labels.roots(labels.makes[node]) != FIXED):
                    continue
                reason = "its readers, or other terms of a sum, need all of its channels"
            self.explain("prune_channels", node, reason)

    def check(self) -> None:
        """Raise Error for invalid options, and for those that need missing data."""
        if not 0 <= self.sparsity < 1:
            raise Error(f"sparsity {self.sparsity} is not in [0, 1)", where="prune_channels")
        if self.steps < 1:
            raise Error(f"{self.steps} steps", where="prune_channels", hint="1 or more")
        for value, known in (
            (self.importance or "magnitude", IMPORTANCES),
            (self.recovery or "none", ("none", "least_squares")),
            (self.scope, SCOPES),
        ):
            if value not in known:
                raise Error(f"unknown choice {value!r}", hint=f"one of {', '.join(known)}")
        if self.data is None and (
            self.importance in IMPORTANCES[1:] or self.recovery == "least_squares"
        ):
            raise Error("this importance or recovery needs calibration data", hint="--calibration")

    def counts(
        self, groups: list[Ids], scores: Floats, sizes: list[int], sparsity: float
    ) -> list[int]:
        """The number of channels each group keeps, given their original sizes."""
        wanted = [(1 - sparsity) * size for size in sizes]
        if self.scope == "global" and groups:
            every = np.sort(np.concatenate([scores[g] for g in groups]))
            left = len(every) - round((1 - sparsity) * sum(sizes))
            limit = every[min(max(left, 0), len(every) - 1)]
            wanted = [float(np.sum(scores[g] >= limit)) for g in groups]
        made = []
        for group, size, count in zip(groups, sizes, wanted, strict=True):
            step = self.step(size)
            stay = max(count, (1 - self.most) * size)
            made.append(min(len(group), max(step, round(stay / step) * step)))
        return made

    def step(self, size: int) -> int:
        """The divisor of the number of remaining channels."""
        if self.multiple:
            return min(self.multiple, size)
        lanes = self.device.isa.lanes(4) if self.device else _STEP
        return next((s for s in (lanes, _STEP) if size >= 4 * s), 1)

    def scores(self, graph: Graph, labels: Labels) -> Floats:
        """The importance of each channel, [channels]; the mean over the products it is part of."""
        kind = self.importance or ("second_order" if self.data else "magnitude")
        total = np.zeros(len(labels.parents))
        times = np.zeros(len(labels.parents))

        def add(ids: Ids, worth: Floats) -> None:
            roots = labels.roots(ids)
            share = worth / max(float(worth.sum()), 1e-300)
            np.add.at(total, roots, share)
            times[np.unique(roots)] += 1

        if kind == "magnitude":
            for node, ids in labels.makes.items():
                add(ids, _squares(node, makes=True))
            for node, ids in labels.reads.items():
                add(ids, _squares(node, makes=False))
        else:
            assert self.data is not None
            readers = [n for n, ids in labels.reads.items() if np.any(labels.roots(ids) != FIXED)]
            price = _lost if kind == "second_order" else _added
            for node, seen in moments(graph, readers, self.data):
                add(labels.reads[node], price(node, seen.second))
        return total / np.maximum(times, 1)

    def recovered(
        self, dense: Graph, made: Graph, products: list[Node], outputs: list[Ids]
    ) -> Graph:
        """Fit every product to the dense network's outputs that remain."""
        assert self.data is not None
        pruned, copies = copied(made)
        twins = {}
        for old, new, kept in zip(_products(dense), products, outputs, strict=True):
            now = copies.get(new)
            if now is not None and takes(old) and takes(now):
                twins[now] = Twin(old, kept)
        return recover(dense, pruned, twins, self.data.samples, _fit)


def _products(graph: Graph) -> list[Node]:
    """All products, in an order unchanged by pruning and recovery."""
    return [n for n in graph.nodes if n.op in PRODUCTS]


def _all_outputs(graph: Graph) -> list[Ids]:
    """The output indices of each product; empty for those that are not fitted."""
    widths = (n.type.dims[1 if n.op == "Conv" else -1] if takes(n) else 0 for n in _products(graph))
    return [np.arange(w) for w in widths]


def _kept(node: Node, labels: Labels, kept: Mask) -> Ids:
    """The remaining outputs of a product."""
    if not takes(node):
        return np.arange(0)
    ids = labels.makes.get(node)
    outputs = node.type.dims[1 if node.op == "Conv" else -1]
    return np.arange(outputs) if ids is None else np.flatnonzero(kept[labels.roots(ids)])


def _fit(node: Node, seen: Seen, w: Floats) -> Floats:
    return nearest(w, seen)


def _inputs_first(node: Node) -> Floats:
    """A product's weights -> [inputs of a group, the rest]."""
    w = node.operands[1].array.astype(np.float64)
    if node.op == "Conv":
        w = np.moveaxis(w, 1, 0)
    return w.reshape(len(w), -1)


def _squares(node: Node, *, makes: bool) -> Floats:
    """Sums of squares of the weights of each output, or of each input."""
    w = node.operands[1].array.astype(np.float64)
    outputs = 0 if node.op == "Conv" else 1
    axis = outputs if makes else 1 - outputs
    made: Floats = np.square(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)).sum(1)
    return made


def _added(node: Node, second: Floats) -> Floats:
    """For each input of a group: E[x^2] times the squares of its weights, over all groups."""
    taps = second.shape[1] // len(_inputs_first(node))
    power = np.einsum("gkk->gk", second)
    w = rows(node, node.operands[1].array)
    worth = (np.square(w).sum(1) * power).reshape(len(second), -1, taps)
    made: Floats = worth.sum((0, 2))
    return made


def _lost(node: Node, second: Floats) -> Floats:
    """For each input of a group: the least loss without it, w_s inv(inv(h)_ss) w_sT."""
    inputs = len(_inputs_first(node))
    taps = second.shape[1] // inputs
    w = rows(node, node.operands[1].array)
    made = np.zeros(inputs)
    for part, h in zip(w, second, strict=True):
        inverse = np.linalg.inv(damped(h)).reshape(inputs, taps, inputs, taps)
        blocks = inverse[np.arange(inputs), :, np.arange(inputs), :]
        each = part.reshape(len(part), inputs, taps).transpose(1, 2, 0)
        made += np.einsum("cto,cto->c", each, np.linalg.solve(blocks, each))
    return made
