"""Activations of a graph, as compiled code computes them on this machine: what calibration and
reports look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qcompiler.artifact.artifact import Artifact
from qcompiler.data.calibrate import Observe, Run, Statistics, fingerprint, value_names
from qcompiler.data.padded import Sampled
from qcompiler.ir import Array, Graph, Node
from qcompiler.runtime import load

Compile = Callable[[Graph], Artifact]
"""A fused graph -> its artifact for this machine."""


def tapped(
    graph: Graph, nodes: Sequence[Node], compiled: Compile
) -> Callable[[Mapping[str, Array]], list[Array]]:
    """A fused graph -> a function that runs one sample and returns the values of these nodes."""
    names = tuple(f"tap{i}" for i in range(len(nodes)))
    model = load(compiled(replace(graph, outputs=tuple(nodes), output_names=names)))

    def run(sample: Mapping[str, Array]) -> list[Array]:
        found = model.run({v.name: sample[v.name] for v in model.inputs})
        return [found[n] for n in names]

    return run


def observing(graph: Graph, compiled: Compile) -> Run:
    """A fused graph -> a function that runs one sample and reports every activation."""
    names = value_names(graph)
    seen = [n for n in names if n.dtype.startswith("float")]
    inner = [n for n in seen if n.op != "input"]
    values = tapped(graph, inner, compiled)

    def run(sample: Mapping[str, Array], observe: Observe) -> None:
        for node in graph.inputs:
            if node in seen:
                observe(names[node], sample[node.name])
        for node, array in zip(inner, values(sample), strict=True):
            observe(names[node], array)

    return run


@dataclass
class Seen:
    """What was compiled to calibrate with, and what it showed: serves every target."""

    ran: tuple[Graph, Run] | None = None
    """The last graph that was made to run on this machine."""
    statistics: list[Statistics] = field(default_factory=list)


@dataclass
class Runner:
    """Makes graphs run on this machine; keeps the last one, for comparison."""

    compiled: Compile
    seen: Seen
    last: tuple[Graph, Run] | None = None
    sampled: Sampled | None = None
    """How samples of any sizes run; None if all have one."""

    def __call__(self, graph: Graph) -> Run:
        """A graph -> a function that runs one sample and reports every activation."""
        ran = self.seen.ran
        if ran is None or not (ran[0] is graph or fingerprint(ran[0]) == fingerprint(graph)):
            run = observing(graph, self.compiled)
            ran = graph, self.sampled.running(run, graph) if self.sampled else run
        self.seen.ran = ran
        self.last = graph, ran[1]
        return ran[1]
