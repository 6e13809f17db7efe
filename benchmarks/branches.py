"""What do branches gain that run side by side? Networks whose layers alone do not fill the threads,
compiled with and without, in turn in one process.

    python -m benchmarks.branches --threads 2

A ratio above 1 is a gain. Run it where nothing else runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.options import Options
from qcompiler.plan.plan import plan
from qcompiler.runtime import Model, load

TURNS, TURN_SECONDS = 31, 0.02


@dataclass
class Wide:
    """A network as it grows."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node -> its output."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def weight(self, *shape: int) -> str:
        """Add random weights, scaled so that values keep their size."""
        rng = np.random.default_rng(len(self.weights))
        scale = 1 / np.sqrt(np.prod(shape[1:]) if len(shape) == 4 else shape[0])
        name = f"w{len(self.weights)}"
        array = (rng.standard_normal(shape) * scale).astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, x: str, ins: int, outs: int, size: int, stride: int = 1) -> str:
        """A convolution and ReLU."""
        w = self.weight(outs, ins, size, size)
        shape = {"kernel_shape": [size] * 2, "pads": [size // 2] * 4, "strides": [stride] * 2}
        return self.op("Relu", self.op("Conv", x, w, **shape))

    def model(
        self, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]]
    ) -> onnx.ModelProto:
        """The model, of inputs and outputs of these shapes."""
        reads, makes = (
            [helper.make_tensor_value_info(name, 1, shape) for name, shape in side.items()]
            for side in (inputs, outputs)
        )
        graph = helper.make_graph(self.nodes, "wide", reads, makes, self.weights)
        opsets = [helper.make_opsetid("", 20)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def inception() -> onnx.ModelProto:
    """Six Inception modules on 8 x 8 pixels."""
    b, x, ins = Wide(), "x", 64
    for _ in range(6):
        first = b.conv(x, ins, 32, 1)
        second = b.conv(b.conv(x, ins, 24, 1), 24, 32, 3)
        third = b.conv(b.conv(b.conv(x, ins, 16, 1), 16, 24, 3), 24, 32, 3)
        pooled = b.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
        x = b.op("Concat", first, second, third, b.conv(pooled, ins, 32, 1), axis=1)
        ins = 128
    return b.model({"x": (1, 64, 8, 8)}, {x: (1, 128, 8, 8)})


def heads() -> onnx.ModelProto:
    """Classes and boxes of a detector on 8 x 8, 4 x 4, 2 x 2 pixels, of one value each."""
    b, outputs = Wide(), {}
    inputs = {f"x{size}": (1, 64, size, size) for size in (8, 4, 2)}
    for x, (_, _, size, _) in inputs.items():
        for outs in (24, 80):
            y = b.conv(b.conv(x, 64, 64, 3), 64, outs, 1)
            outputs[y] = (1, outs, size, size)
    return b.model(inputs, outputs)


def subnets() -> onnx.ModelProto:
    """Classes and boxes as RetinaNet has them, five convolutions each, on the same pixels."""
    b, outputs = Wide(), {}
    inputs = {f"x{size}": (1, 32, size, size) for size in (8, 4, 2)}
    for x, (_, _, size, _) in inputs.items():
        for outs in (36, 80):
            y = x
            for _ in range(4):
                y = b.conv(y, 32, 32, 3)
            y = b.conv(y, 32, outs, 3)
            outputs[y] = (1, outs, size, size)
    return b.model(inputs, outputs)


def towers() -> onnx.ModelProto:
    """Two towers of six layers of 8 x 256 values, joined at the end."""
    b, ends = Wide(), []
    for x in ("a", "b"):
        for _ in range(6):
            x = b.op("Relu", b.op("MatMul", x, b.weight(256, 256)))
        ends.append(x)
    y = b.op("Concat", *ends, axis=1)
    return b.model({"a": (8, 256), "b": (8, 256)}, {y: (8, 512)})


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "inception": inception,
    "heads": heads,
    "subnets": subnets,
    "towers": towers,
}


def main(words: Sequence[str] | None = None) -> None:
    """Print a line for each network and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args(words)
    sys.stdout.write("network, precision: in turn us, side by side us, gain +- noise\n")
    for name in a.networks:
        for precision in ("float32", "int8"):
            data = "synthetic" if precision == "int8" else None
            options = Options(threads=a.threads, precision=precision, calibration=data)
            sys.stdout.write(f"{name} {precision}: {compared(NETWORKS[name](), options)}\n")
            sys.stdout.flush()


def compared(model: onnx.ModelProto, options: Options) -> str:
    """A model with and without, in turn."""
    made = Compilation(model, options)
    plans = [plan(made.lowered, made.device, branches=b) for b in (False, True)]
    models = [load(assemble(p), threads=options.threads) for p in plans]
    times: list[list[float]] = [[], []]
    for turn in range(TURNS + 1):
        for runs, one in zip(times, models, strict=True):
            found = _seconds(one)
            runs += [found] if turn else []  # the first one warms up
    ratios = [a / b for a, b in zip(*times, strict=True)]
    middle = median(ratios)
    noise = median(abs(r - middle) for r in ratios)
    beside = sum(s.branch is not None for s in plans[1].steps)
    before, after = (median(runs) * 1e6 for runs in times)
    return (
        f"{before:.1f}, {after:.1f}, {middle:.3f} +- {noise:.3f}"
        f" ({beside} of {len(plans[1].steps)} steps side by side)"
    )


def _seconds(model: Model) -> float:
    """Median seconds of runs on random numbers, for a moment."""
    rng = np.random.default_rng(0)
    inputs = {v.name: rng.random(v.shape, np.float32) for v in model.inputs}
    found: list[float] = []
    end = time.perf_counter() + TURN_SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter()
        model.run(inputs)
        found.append(time.perf_counter() - begin)
    return median(found)


if __name__ == "__main__":
    main()
