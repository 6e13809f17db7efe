"""A float graph -> an artifact that holds every product in int8 and in float, and switches:
thousands of choices between the two are tried without compiling again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from qcompiler import driver
from qcompiler.calibrate import Statistics, fingerprint, value_names
from qcompiler.driver import Watch
from qcompiler.ir import Graph, Node, Type, placeholder
from qcompiler.isa import Device
from qcompiler.metrics import Outputs, outputs_of
from qcompiler.ops import make
from qcompiler.plan import plan
from qcompiler.runtime import load
from qcompiler.samples import Sample
from qcompiler.stages import Choice
from qcompiler.storage import MEASURED, MOVES, SMOOTH, wishes

_FLOAT = "/float"
_SWITCH = "switch/"


class Trier:
    """The trial model, on the machine at hand: every product twice, and switches. `after` are the
    passes that follow quantizing.
    """

    def __init__(
        self,
        method: str,
        graph: Graph,
        statistics: Statistics,
        quantize: Callable[..., Graph],
        after: Choice,
        here: Device,
    ) -> None:
        self.method = method
        doubled, self.units, self.carriers = switched(graph, statistics, quantize)
        lowered = driver.lowered(doubled, after, here, Watch())
        self.model = load(driver.build(plan(lowered, here), Watch()))

    def outputs(self, floats: Sequence[str], data: Sequence[Sample]) -> Outputs:
        """Samples -> outputs, with these products in float."""
        kept = frozenset(floats)
        switches = {_SWITCH + u: np.array(u not in kept) for u in self.units}
        switches |= {_SWITCH + c: np.array(bool(by - kept)) for c, by in self.carriers.items()}
        return outputs_of(self.model, [{**sample, **switches} for sample in data])


def switched(
    graph: Graph, statistics: Statistics, quantize: Callable[..., Graph]
) -> tuple[Graph, dict[str, str], dict[str, frozenset[str]]]:
    """A float graph -> one with every product that int8 is possible for twice, in int8 and float,
    the boolean inputs `switch/NAME` choosing; {product: its operator}; and, for each operator that
    works on int8 for the sake of products behind it, a switch of its own and those products.

    With all switches off nothing is rounded: it is the float model.
    """
    units = _units(graph, quantize(graph, statistics))
    names = value_names(graph)
    new: dict[Node, Node] = {}
    switches: list[Node] = []
    integer: list[str] = []
    for node in graph.nodes:
        moved = node.with_inputs(None if i is None else new[i] for i in node.inputs)
        if node.name in units and node.op == units[node.name]:
            switch = placeholder(_SWITCH + node.name, Type("bool", ()))
            switches.append(switch)
            integer.append(f"{node.name}/int8")
            int8, exact = (replace(moved, name=f"{node.name}{x}") for x in ("/int8", _FLOAT))
            moved = make("Where", switch, int8, exact, name=node.name)
        elif node in names and node.op != "input":
            moved = replace(moved, name=names[node])  # its own, which statistics know it by
        new[node] = moved
    inputs = (*(new[i] for i in graph.inputs), *switches)
    doubled = replace(graph, inputs=inputs, outputs=tuple(new[o] for o in graph.outputs))
    known = replace(statistics, graph=fingerprint(doubled))
    chosen = "|".join(map(re.escape, integer)) or "(?!)"
    made = quantize(doubled, known, include=(f"(?:{chosen})",), exclude=())
    loose, readers = _loosened(made, frozenset(integer))
    wanted = _wanted(graph, units)
    return loose, units, {name: wanted.get(name, frozenset()) for name in readers}


def _loosened(graph: Graph, integer: frozenset[str]) -> tuple[Graph, list[str]]:
    """Operators other than the products named so read rounded values only by a switch of their own;
    the graph, and their names.
    """
    new: dict[Node, Node] = {}
    switches: dict[str, Node] = {}
    for node in graph.nodes:
        inputs = [None if i is None else new[i] for i in node.inputs]
        if node.name not in integer and node.op not in ("QuantizeLinear", "DequantizeLinear"):
            for place, i in enumerate(node.inputs):
                if i is None or i.op != "DequantizeLinear" or i.operands[0].is_constant:
                    continue
                if node.name not in switches:
                    switches[node.name] = placeholder(_SWITCH + node.name, Type("bool", ()))
                value = new[i.operands[0].operands[0]]
                inputs[place] = make("Where", switches[node.name], new[i], value)
        new[node] = node.with_inputs(inputs)
    made = graph.with_outputs(new[o] for o in graph.outputs)
    inputs_ = (*(new[i] for i in graph.inputs), *switches.values())
    return replace(made, inputs=inputs_), list(switches)


def _wanted(graph: Graph, units: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Operators that work on int8 if products behind them do, by name -> those products."""
    names = value_names(graph)
    found: dict[str, frozenset[str]] = {}
    for unit in graph.nodes:
        if units.get(unit.name) != unit.op:
            continue
        read = unit.operands[: 3 if unit.op == "Attention" else 1]
        wanted = wishes(graph, {unit: read}, lambda n: n.op in MOVES or n.op in SMOOTH)
        for node in wanted.values:
            if node in names:
                found[names[node]] = found.get(names[node], frozenset()) | {unit.name}
    return found


def _units(graph: Graph, quantized: Graph) -> dict[str, str]:
    """The products that quantization made integer, by name: no other product may have it."""
    count = Counter(n.name for n in graph.nodes if n.op in MEASURED)
    return {
        n.name: n.op
        for n in quantized.nodes
        if n.op in MEASURED
        and n.name
        and count[n.name] == 1
        and n.operands[0].op == "DequantizeLinear"
    }
