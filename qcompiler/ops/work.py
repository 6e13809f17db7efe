"""The cost of a node's numpy definition, in numbers read or written.

A small file can demand anything: a window over a padding of billions, the product of all labels of
an Einsum. So constants and shapes are computed at compile time only if their cost is moderate.
Most operators make a few arrays as large as their inputs and outputs; the others have a rule below.
A number costs about a nanosecond, and a few bytes of temporary memory.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, inf, prod

from qcompiler.ir import Node
from qcompiler.ops.window import Window

ITERATION = 1 << 12
"""Cost of an iteration of a Python loop."""
PACE = 8
"""Products per unit of cost, at least."""

Rule = Callable[[Node], float]
_RULES: dict[str, Rule] = {}


def work(node: Node) -> float:
    """The cost of a node; infinite if its sizes are unknown."""
    types = [*node.types, *(t for i in node.operands for t in i.types)]
    if not all(t.static for t in types):
        return inf
    rule = _RULES.get(node.op)
    return sum(t.size for t in types) + (0 if rule is None else rule(node))


def _takes(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


@_takes("MatMul", "matmul", "Gemm", "MatMulInteger", "QLinearMatMul", "matmul_narrow")
def _product(node: Node) -> float:
    """Every number of the left operand is used once per column."""
    transposed = node.attrs.get("transA") if node.op == "Gemm" else 0
    dims = node.operands[0].type.dims
    return node.type.size * (dims[0] if transposed else dims[-1]) / PACE


@_takes("Einsum")
def _sums_of_products(node: Node) -> float:
    """A loop over all labels and the dimensions of the ellipsis."""
    terms = "".join(node.str("equation").split()).partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    dots = 1
    for term, x in zip(terms, node.operands, strict=True):
        before, _, after = term.partition("...")
        dims = x.type.dims
        ends = len(dims) - len(after)
        sizes.update({c: max(n, sizes.get(c, 1)) for c, n in zip(before, dims, strict=False)})
        sizes.update({c: max(n, sizes.get(c, 1)) for c, n in zip(after, dims[ends:], strict=False)})
        dots = max(dots, prod(dims[len(before) : ends]))
    return dots * prod(sizes.values()) / PACE


@_takes("Conv", "ConvInteger", "QLinearConv")
def _convolution(node: Node) -> float:
    x, w = node.operands[0].type.dims, _weights(node)
    return _windows(node, x[:2], x[2:], w[2:]) * max(w[1] / PACE, 1)


@_takes("conv")
def _convolution_last(node: Node) -> float:
    x, w = node.operands[0].type.dims, node.operands[1].type.dims
    return _windows(node, (x[0], x[-1]), x[1:-1], w[:-2]) * max(w[-2] / PACE, 1)


@_takes("ConvTranspose")
def _transposed(node: Node) -> float:
    """Each input adds a scaled filter to the output, before its padding is cropped."""
    x, w = node.operands[0].type.dims, node.operands[1].type.dims
    window = Window.of(node, ["?"] * len(x[2:]), w[2:])
    spans = zip(x[2:], window.strides, window.reach, node.types[0].dims[2:], strict=True)
    pads = [sum(p) if p is not None else 0 for p in window.pads]
    whole = [max((n - 1) * s + r, out) for n, s, r, out in spans]
    full = prod(n + p for n, p in zip(whole, pads, strict=True))
    products = prod(x) * prod(w[1:]) / PACE
    kept = x[0] * w[1] * node.int("group") * full
    return kept + products + prod(w[2:]) * ITERATION


@_takes("MaxPool", "AveragePool", "LpPool")
def _pool(node: Node) -> float:
    x = node.operands[0].type.dims
    return _windows(node, x[:2], x[2:], None)


@_takes("max_pool", "average_pool")
def _pool_last(node: Node) -> float:
    x = node.operands[0].type.dims
    return _windows(node, (x[0], x[-1]), x[1:-1], None)


def _weights(node: Node) -> tuple[int, ...]:
    return node.operands[3 if node.op == "QLinearConv" else 1].type.dims


def _windows(
    node: Node, others: tuple[int, ...], sizes: tuple[int, ...], kernel: tuple[int, ...] | None
) -> float:
    """The padded input, and every output once per filter position."""
    window = Window.of(node, sizes, kernel)
    pads = [sum(p) if p is not None else 0 for p in window.pads]
    padded = prod(others) * prod(n + p for n, p in zip(sizes, pads, strict=True))
    places = prod(window.kernel)
    return padded + places * (sum(t.size for t in node.types) + ITERATION)


@_takes("Resize")
def _resized(node: Node) -> float:
    """One axis after another, a few numbers per output; more if many inputs contribute to each."""
    before, after = node.operands[0].type.dims, node.type.dims
    whole = prod(max(pair) for pair in zip(before, after, strict=True))
    shrunk = [ceil(n / max(m, 1)) for n, m in zip(before, after, strict=True)]
    taps = 1 if node.str("mode") == "nearest" else 4 * max(shrunk if node.int("antialias") else [1])
    return float(taps * (whole + sum(after) + ITERATION))


@_takes("GridSample")
def _sampled(node: Node) -> float:
    taps: int = (4 if node.str("mode") == "cubic" else 2) ** (node.type.rank - 2)
    return taps * (node.type.size + ITERATION)


@_takes("Attention", "attention")
def _attended(node: Node) -> float:
    """A score for each pair of query and key, and their products; q, k and v may be packed in one
    operand.
    """
    sizes = sorted(i.type.size for i in node.operands[:3])
    return sizes[-1] * sizes[-min(2, len(sizes))] * 4 / PACE


@_takes("RNN", "GRU", "LSTM", "recurrent")
def _steps(node: Node) -> float:
    """One iteration per step, each a product by all weights."""
    x, weights = node.operands[0].type.dims, sum(i.type.size for i in node.operands[1:3])
    return 2 * prod(x[:2]) * weights / PACE + x[0] * 8 * ITERATION


@_takes("LRN")
def _neighbours(node: Node) -> float:
    iterations = min(node.int("size"), node.type.size)
    return iterations * (node.type.size + ITERATION)


@_takes("STFT")
def _frames(node: Node) -> float:
    frames = node.type.dims[1] if node.type.rank > 1 else 1
    return 8 * node.type.size + frames * ITERATION


@_takes("DFT", "AffineGrid", "EyeLike", "Range")
def _several(node: Node) -> float:
    return 8 * node.type.size


@_takes("ReverseSequence", "CumProd", "TensorScatter", "OneHot", "recurrent_step")
def _rows(node: Node) -> float:
    return sum(node.types[0].dims) * ITERATION


@_takes("RoiAlign", "roi_align")
def _regions(node: Node) -> float:
    """The number of samples depends on each region's size, which is a value."""
    return inf


@_takes("loop")
def _iterations(node: Node) -> float:
    """How many there are is a value."""
    return inf
