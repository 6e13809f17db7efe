"""A float graph -> an artifact that contains every product in int8, bfloat16 and float32, and
switches between them: thousands of mixtures, and of ranges, can be tried without compiling again.
With all switches off nothing is rounded: it is the float model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qcompiler.data.calibrate import Statistics, fingerprint, value_names
from qcompiler.data.samples import Sample
from qcompiler.driver import Compilation
from qcompiler.hardware.isa import Device
from qcompiler.ir import Graph, Node, Type, placeholder
from qcompiler.kernels.registry import Records
from qcompiler.ops import make
from qcompiler.ops.kinds import MEASURED, MOVES, SMOOTH
from qcompiler.quality.metrics import Outputs, outputs_of
from qcompiler.quality.mixture import Mixture
from qcompiler.quantization.demand import linked, propagated
from qcompiler.quantization.scales import along
from qcompiler.rewrite.mentions import exactly
from qcompiler.runtime import load
from qcompiler.stages import Choice

_INT8, _HALF, _FLOAT = "/int8", "/bfloat16", "/float"
_SWITCH, _TO_HALF = "switch/", "bfloat16/"


class Trier:
    """The trial model, on this machine: every product in int8, in float32 and, if `halves` names
    it, in bfloat16, with switches. The inputs of int8 products may use the range of any of
    `methods`. `after` are the passes that follow quantizing, `records` decide about kernels.
    """

    def __init__(
        self,
        method: str,
        graph: Graph,
        statistics: Statistics,
        quantize: Callable[..., Graph],
        after: Choice,
        here: Device,
        halves: Collection[str] = (),
        methods: Collection[str] = (),
        records: Records | None = None,
    ) -> None:
        self.method = method
        self.units = _units(graph, quantize(graph, statistics))
        self.halves = frozenset(halves) & self.units.keys()
        doubled = _doubled(graph, self.units, self.halves)
        known = replace(statistics, graph=fingerprint(doubled))
        chosen = {
            "include": tuple(p for n in self.units for p in exactly([n + _INT8])) or ("(?!)",),
            "layers": tuple(f"{p}=16" for n in self.halves for p in exactly([n + _HALF])),
            "exclude": (),
        }
        made = quantize(doubled, known, **chosen)
        others = {
            m: quantize(doubled, replace(known, method=m), **chosen) for m in methods if m != method
        }
        made, readers = _loosened(made, frozenset(n + _INT8 for n in self.units))
        wanted = _wanted(graph, self.units)
        self.carriers = {name: wanted.get(name, frozenset()) for name in readers}
        made, self.spans = adjustable(made, {method: made, **others})
        self.groups = _groups(graph, self.units)
        self.model = load(Compilation.of(made, here, after, records=records).artifact)

    def others(self, name: str) -> list[str]:
        """The calibration methods that give a product's input another range than the usual one."""
        mine = [self.spans[v] for v in self.groups.get(name, ()) if v in self.spans]
        methods = dict.fromkeys(m for by in mine for m in by if m != self.method)
        return [m for m in methods if any(m in by and by[m] != by[self.method] for by in mine)]

    def outputs(self, mixture: Mixture, data: Sequence[Sample]) -> Outputs:
        """Samples -> the outputs of a mixture."""
        left = mixture.left
        feeds = {_SWITCH + u: np.array(u not in left) for u in self.units}
        feeds |= {_TO_HALF + u: np.array(u in mixture.halves) for u in self.halves}
        feeds |= {_SWITCH + c: np.array(bool(by - left)) for c, by in self.carriers.items()}
        for value, by in self.spans.items():
            asked = [m for n, m in mixture.ranges if value in self.groups.get(n, ()) and m in by]
            feeds |= by[(*asked, self.method)[0]].feeds(value)
        return outputs_of(self.model, [{**sample, **feeds} for sample in data])


def _doubled(graph: Graph, units: Mapping[str, str], halves: Collection[str]) -> Graph:
    """A float graph -> one with every unit twice, for int8 and for float, selected by the boolean
    inputs `switch/NAME`; and `halves` a third time, selected by `bfloat16/NAME`.
    """
    names = value_names(graph)
    new: dict[Node, Node] = {}
    switches: dict[str, Node] = {}

    def switch(name: str) -> Node:
        return switches.setdefault(name, placeholder(name, Type("bool", ())))

    for node in graph.nodes:
        moved = node.with_inputs(None if i is None else new[i] for i in node.inputs)
        if units.get(node.name) == node.op:
            made = replace(moved, name=node.name + _FLOAT)
            if node.name in halves:
                half = _half(moved)
                made = make("Where", switch(_TO_HALF + node.name), half, made)
            int8 = replace(moved, name=node.name + _INT8)
            moved = make("Where", switch(_SWITCH + node.name), int8, made, name=names[node])
        elif node in names and node.op != "input":
            moved = replace(moved, name=names[node])  # the unique name that statistics use
        new[node] = moved
    inputs = (*(new[i] for i in graph.inputs), *switches.values())
    return replace(graph, inputs=inputs, outputs=tuple(new[o] for o in graph.outputs))


def _half(product: Node) -> Node:
    """A product whose inputs are rounded to bfloat16, for this product only."""
    count = _READ.get(product.op, 2)
    inputs = [
        i
        if i is None or i.is_constant or place >= count
        else make("Cast", make("Cast", i, to="bfloat16"), to="float32")
        for place, i in enumerate(product.inputs)
    ]
    return replace(product.with_inputs(inputs), name=product.name + _HALF)


_READ = {"Attention": 3}
"""The number of operands that a product multiplies, if it is not two."""


def _loosened(graph: Graph, integer: frozenset[str]) -> tuple[Graph, list[str]]:
    """A graph in which operators other than the `integer` products read rounded values only if a
    switch of their own is on; and the names of these operators.
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


@dataclass(frozen=True)
class Span:
    """How a value is rounded: times `inverse`, to an integer from low to high, times `step`. The
    tuples have one number, or one per channel, and broadcast as `shape`.
    """

    inverse: tuple[float, ...]
    low: float
    high: float
    step: tuple[float, ...]
    shape: tuple[int, ...]

    @staticmethod
    def of(pair: Node) -> Span | None:
        """A DequantizeLinear of a QuantizeLinear -> what the pair does; None if its two scales
        differ.
        """
        made = pair.operands[0]
        step, zero = made.operands[1].array, made.operands[2].array
        if not np.array_equal(step, pair.operands[1].array):
            return None
        axis = pair.int("axis") if step.size > 1 else None
        shape = along(step, pair.type.rank, axis).shape
        info, first = np.iinfo(zero.dtype.name), int(zero.reshape(-1)[0])
        flat = step.astype(np.float32).reshape(-1)
        inverse = np.float32(1) / flat
        low, high = float(info.min - first), float(info.max - first)
        return Span(tuple(inverse.tolist()), low, high, tuple(flat.tolist()), shape)

    def feeds(self, value: str) -> Sample:
        """The arrays for the inputs that hold a value's range."""
        given = {"inverse": self.inverse, "low": self.low, "high": self.high, "step": self.step}
        wide = ("inverse", "step")
        return {
            _span(value, k): np.array(v, np.float32).reshape(self.shape if k in wide else ())
            for k, v in given.items()
        }


def _span(value: str, part: str) -> str:
    return f"range/{value}/{part}"


def adjustable(
    graph: Graph, by_method: Mapping[str, Graph]
) -> tuple[Graph, dict[str, dict[str, Span]]]:
    """A graph with QDQ pairs -> the graph with ranges as inputs; {value: {method: its range}}.

    Products that read such values compute in float on the same rounded numbers. Pairs stay as they
    are if all methods agree, and before attention, whose kernel rounds more than its operands.
    """
    found: dict[str, dict[str, Span]] = {}
    for method, other in by_method.items():
        fixed = {i for n in other.nodes if n.op == "Attention" for i in n.operands}
        for node in other.nodes:
            span = Span.of(node) if _is_pair(node) and node not in fixed else None
            if span is not None:
                found.setdefault(node.name, {})[method] = span
    usual = next(iter(by_method))
    spans = {n: by for n, by in found.items() if usual in by and len(set(by.values())) > 1}
    new: dict[Node, Node] = {}
    inputs: list[Node] = []
    for node in graph.nodes:
        new[node] = node.with_inputs(None if i is None else new[i] for i in node.inputs)
        if _is_pair(node) and node.name in spans:
            shape = spans[node.name][usual].shape
            if any(span.shape != shape for span in spans[node.name].values()):
                del spans[node.name]
                continue
            value = node.name.removesuffix("/dequantize")
            types = [Type("float32", s) for s in (shape, (), (), shape)]
            parts = ("inverse", "low", "high", "step")
            inverse, low, high, step = (
                placeholder(_span(value, p), t) for p, t in zip(parts, types, strict=True)
            )
            inputs += [inverse, low, high, step]
            x = new[node.operands[0].operands[0]]
            whole = make("Round", make("Mul", x, inverse))
            whole = make("Min", make("Max", whole, low), high)
            new[node] = make("Mul", whole, step, name=node.name)
    made = graph.with_outputs(new[o] for o in graph.outputs)
    made = replace(made, inputs=(*(new[i] for i in graph.inputs), *inputs))
    return made, {n.removesuffix("/dequantize"): by for n, by in spans.items()}


def _is_pair(node: Node) -> bool:
    """Whether a node is the output of a QDQ pair."""
    return node.op == "DequantizeLinear" and node.operands[0].op == "QuantizeLinear"


def _groups(graph: Graph, units: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Products -> their input and all values linked to it by data movement: these share a range."""
    names = value_names(graph)
    read = {n: n.operands[:1] for n in graph.nodes if units.get(n.name) == n.op}
    wanted = propagated(graph, read, lambda n: n.op in MOVES or n.op in SMOOTH)
    heads = linked(graph, wanted)
    members: dict[Node, set[str]] = {}
    for node, head in heads.items():
        members.setdefault(head, set()).update([names[node]] if node in names else [])
    found: dict[str, frozenset[str]] = {}
    for node, (value,) in read.items():
        found[node.name] = found.get(node.name, frozenset()) | members.get(heads[value], set())
    return found


def _wanted(graph: Graph, units: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Names of operators that work on int8 if the products after them do -> those products."""
    names = value_names(graph)
    found: dict[str, frozenset[str]] = {}
    for unit in graph.nodes:
        if units.get(unit.name) != unit.op:
            continue
        read = unit.operands[: 3 if unit.op == "Attention" else 1]
        wanted = propagated(graph, {unit: read}, lambda n: n.op in MOVES or n.op in SMOOTH)
        for node in wanted.values:
            if node in names:
                found[names[node]] = found.get(names[node], frozenset()) | {unit.name}
    return found


def _units(graph: Graph, quantized: Graph) -> dict[str, str]:
    """Names of the products that quantization made integer -> their operators. Products of one name
    (parts of a product that was split) are one unit, if all of them became integer.
    """
    count = Counter((n.name, n.op) for n in graph.nodes if n.op in MEASURED)
    taken = Counter(n.name for n in graph.nodes if n.op in MEASURED)
    whole = Counter(
        (n.name, n.op)
        for n in quantized.nodes
        if n.op in MEASURED and n.name and n.operands[0].op == "DequantizeLinear"
    )
    return {
        name: op for (name, op), c in whole.items() if c == count[name, op] and c == taken[name]
    }
