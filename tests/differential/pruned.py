"""A case with some of its channels removed, against what it means with zeros as the weights that
read them; and as the passes of the prune stage change it, against what they left.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.ir import Graph, Node, constant, substitute
from qcompiler.onnx_io.reader import read
from qcompiler.ops import evaluate, make
from qcompiler.ops.kinds import PRODUCTS
from qcompiler.options import Options
from qcompiler.pruning.channels import Labels, label
from qcompiler.pruning.slimming import Mask, without
from qcompiler.stages import run_stage

from .checks import Outcome, compare, compare_artifact, outcome_of
from .generate import Case
from .reference import references

WISHES = (
    *(("channels:0.3",), ("channels:0.5",), ("magnitude:0.7",), ("2:4",), ("block:0.5",)),
    *(("channels:0.3", "4x4:0.5"), ("channels:0.5", "magnitude:0.5")),
)


def check_pruned(case: Case, *, passes_only: bool = False) -> Outcome:
    """Prune the case. Refused where nothing can be removed; `passes_only`: in numpy alone."""
    return outcome_of(lambda outcome: _check(case, outcome, passes_only))


def _check(case: Case, outcome: Outcome, passes_only: bool) -> None:
    rng = np.random.default_rng((case.seed, 0x9D))
    graph = run_stage(run_stage(read(case.model), "fold"), "fuse")
    _without_channels(case, numbered(headed(graph, rng)), rng, outcome)
    if passes_only or outcome.faults:
        return
    calibration = list(case.feeds) if rng.random() < 0.3 else None
    wish = WISHES[int(rng.integers(len(WISHES)))]
    asked = Options(prune=wish, calibration=calibration, threads=2)
    made = Compilation(case.model, asked).having(device=case.device)
    compare_artifact(case, made.lowered, outcome)


def _without_channels(case: Case, graph: Graph, rng: np.random.Generator, outcome: Outcome) -> None:
    """Remove some channels of every group, but not all."""
    labels = label(graph)
    kept = np.ones(len(labels.parents), bool)
    for group in labels.groups():
        kept[rng.permutation(group)[: rng.integers(len(group))]] = False
    if kept.all():
        outcome.refused = "nothing can be removed"
        return
    try:
        small, _ = without(graph, labels, kept)
    except Error as e:
        outcome.fault("without channels", f"refused: {e}")
        return
    silent = silenced(graph, labels, kept)
    for feed in case.feeds[:2]:
        wanted = references(silent, feed, kernels=False)
        outcome.elements += sum(r.value.size for r in wanted.values())
        compare("without channels", evaluate(small, feed), wanted, outcome)


def headed(graph: Graph, rng: np.random.Generator) -> Graph:
    """With a product that reads one of the axes of each output that have channels: those of the
    outputs themselves have to stay.
    """
    labels = label(graph)

    def head(output: Node) -> Node:
        axes = [i for i, ids in enumerate(labels.values[output, 0]) if ids is not None]
        if not axes or output.dtype != "float32":
            return output
        axis = int(rng.choice(axes))
        rest = [i for i in range(output.type.rank) if i != axis]
        moved = make("Transpose", output, perm=(*rest, axis))
        weights = rng.standard_normal((output.type.dims[axis], 3)).astype(np.float32)
        return make("MatMul", moved if rest else make("Unsqueeze", moved, FIRST), constant(weights))

    return graph.with_outputs(head(o) for o in graph.outputs)


FIRST = constant(np.array([0], np.int64))


def numbered(graph: Graph) -> Graph:
    """With names of their own for all products."""
    count = iter(range(len(graph.nodes)))
    return substitute(
        graph, lambda n: replace(n, name=f"product {next(count)}") if n.op in PRODUCTS else n
    )


def silenced(graph: Graph, labels: Labels, kept: Mask) -> Graph:
    """With zeros as the weights that read what is not kept. Products have names of their own."""
    gone = {n.name: ~kept[labels.roots(ids)] for n, ids in labels.reads.items()}

    def zeroed(node: Node) -> Node:
        if node.op not in PRODUCTS or node.name not in gone:
            return node
        array = node.operands[1].array.copy()
        inputs = np.moveaxis(array, 1, 0) if node.op == "Conv" else array
        inputs[gone[node.name]] = 0
        return node.with_inputs([node.inputs[0], constant(array), *node.inputs[2:]])

    return substitute(graph, zeroed)
