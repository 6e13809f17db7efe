"""Generated models of 100 to 10,000 nodes -> how long each takes to compile, and what a node costs.

    python -m benchmarks.compile_time [--nodes 100,1000,10000] [--kinds conv,shapes] [--profile]

Beside the time on the clock stands the processor time, which does not count what else the machine
does. A compiler whose time is linear shows the same microseconds a node in every column, once the
imports and the first few kernels are paid for.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import qcompiler

CHANNELS, SIZE, WIDTH = 16, 8, 64


class Model:
    """Nodes of a chain, one after the other."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = list(shape)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def constant(self, array: np.ndarray) -> str:
        """An array -> the name of an initializer."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        """Random weights that keep the size of what goes through them."""
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def add(self, op: str, *inputs: str, **attributes: list[int] | int) -> str:
        """One more node -> the name of its output."""
        out = f"v{len(self.nodes)}"
        node = helper.make_node(op, list(inputs), [out], out)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        return out

    def proto(self, output: str) -> onnx.ModelProto:
        """The model that ends in a value."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, self.shape)
        graph = helper.make_graph(self.nodes, "chain", [x], [y], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def elementwise(nodes: int) -> onnx.ModelProto:
    """Arithmetic with a constant of every channel, and now and then a function."""
    m, at = Model((1, WIDTH, WIDTH)), "x"
    factor = m.constant(np.full(WIDTH, 0.75, np.float32))
    while len(m.nodes) < nodes:
        for op in ("Mul", "Add", "Relu", "Mul", "Sigmoid"):
            at = m.add(op, at, factor) if op in ("Mul", "Add") else m.add(op, at)
    return m.proto(at)


def conv(nodes: int) -> onnx.ModelProto:
    """Convolution, bias, Relu, residual."""
    m, at = Model((1, CHANNELS, SIZE, SIZE)), "x"
    while len(m.nodes) < nodes:
        w, b = m.weight(CHANNELS, CHANNELS, 3, 3), m.weight(CHANNELS)
        made = m.add("Relu", m.add("Conv", at, w, b, pads=[1, 1, 1, 1]))
        at = m.add("Add", at, made)
    return m.proto(at)


def matmul(nodes: int) -> onnx.ModelProto:
    """Product, bias, softmax."""
    m, at = Model((1, WIDTH, WIDTH)), "x"
    while len(m.nodes) < nodes:
        at = m.add("Add", m.add("MatMul", at, m.weight(WIDTH, WIDTH)), m.weight(WIDTH))
        at = m.add("Softmax", at)
    return m.proto(at)


def shapes(nodes: int) -> onnx.ModelProto:
    """What exporters write for x.view(x.shape[0], -1): a shape carried along all nodes."""
    m, at = Model((1, WIDTH, WIDTH)), "x"
    one, two = (m.constant(np.array([i], np.int64)) for i in (1, 2))
    size = m.add("Shape", at)
    while len(m.nodes) < nodes:
        size = m.add("Div", m.add("Mul", size, two), two)
        kept = m.add("Concat", m.add("Gather", size, one), m.add("Gather", size, two), axis=0)
        at = m.add("Relu", m.add("Reshape", at, m.add("Concat", one, kept, axis=0)))
    return m.proto(at)


KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {
    f.__name__: f for f in (elementwise, conv, matmul, shapes)
}


def rows(kinds: Sequence[str], counts: Sequence[int]) -> Iterator[str]:
    """The table, a line at a time."""
    yield f"{'kind':12}" + "".join(f"{n:>8} nodes     CPU{'us a node':>15}" for n in counts)
    for kind in kinds:
        cells = []
        for nodes in counts:
            model = KINDS[kind](nodes)
            begin, used = time.perf_counter(), time.process_time()
            qcompiler.compile(model)
            seconds, used = time.perf_counter() - begin, time.process_time() - used
            each = used / len(model.graph.node) * 1e6
            cells.append(f"{seconds:>12.2f} s{used:>8.2f} s{each:>12.0f}")
        yield f"{kind:12}" + "".join(cells)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", default="100,1000,10000")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    given = parser.parse_args()
    profile = cProfile.Profile(time.process_time)  # whatever else runs
    if given.profile:
        profile.enable()
    qcompiler.compile(elementwise(5))  # the imports
    for line in rows(given.kinds.split(","), [int(n) for n in given.nodes.split(",")]):
        print(line, flush=True)
    if given.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
