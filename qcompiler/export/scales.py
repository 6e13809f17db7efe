"""A quantized graph -> the scales of its integer inputs and outputs."""

from __future__ import annotations

from qcompiler.export.header import Scale
from qcompiler.ir import Graph, Node

_INTO_FLOATS = ("DequantizeLinear", "dequantize")
_INTO_INTEGERS = ("QuantizeLinear", "quantize")


def scales(graph: Graph) -> dict[str, Scale]:
    """Graph -> the scale of each input that is only dequantized, always by one scale, and of each
    output that is quantized last; none for scales of several numbers.
    """
    found: dict[str, Scale] = {}
    for node in graph.inputs:
        readers = [n for n in graph.nodes if any(o is node for o in n.operands)]
        known = {_scale(n) for n in readers if n.op in _INTO_FLOATS and n.operands[0] is node}
        if len(known) == 1 and all(n.op in _INTO_FLOATS for n in readers):
            scale = known.pop()
            if scale is not None:
                found[node.name] = scale
    for name, node in zip(graph.output_names, graph.outputs, strict=True):
        scale = _scale(node) if node.op in _INTO_INTEGERS else None
        if scale is not None:
            found[name] = scale
    return found


def _scale(node: Node) -> Scale | None:
    _, scale, *rest = node.operands
    zero = rest[0] if rest else None
    if not scale.is_constant or scale.type.size != 1:
        return None
    if zero is None or zero.op not in ("constant",):
        return Scale(float(scale.array.item()), 0) if zero is None else None
    return Scale(float(scale.array.item()), int(zero.array.item()))
