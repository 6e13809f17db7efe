"""ONNX model -> how much memory calibration takes, beyond the compiled float model.

    python -m benchmarks.calibration_memory MODEL.onnx --samples 1000 --method mse
    python -m benchmarks.calibration_memory MODEL.onnx --samples 1000 --moments

The samples are made up, one at a time. `--moments` collects what GPTQ and AdaRound need as well.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.subjects import Array
from qcompiler.data.activations import observing
from qcompiler.data.calibrate import Calibration
from qcompiler.driver import Compilation, here
from qcompiler.ir import Graph
from qcompiler.onnx_io.reader import read
from qcompiler.options import METHODS, Options
from qcompiler.quantization.reconstruct import moments

_STATUS = Path("/proc/self/status")
_MB = 1 << 20


class Made:
    """So many samples of a graph's inputs, each made when it is asked for."""

    def __init__(self, graph: Graph, count: int) -> None:
        self.graph, self.count = graph, count

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        random = np.random.default_rng(0)
        for _ in range(self.count):
            yield {
                n.name: random.standard_normal(n.type.dims).astype(np.float32)
                for n in self.graph.inputs
            }


def kept(field: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS, VmHWM."""
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    assert found
    return int(found[1]) * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """1 if calibration takes more than one set of activations and 200 MB."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--method", choices=METHODS, default="mse")
    parser.add_argument("--moments", action="store_true")
    given = parser.parse_args(argv)
    shapes = {  # dimensions that the model leaves open are 1
        n.name: tuple(d if isinstance(d, int) else 1 for d in n.shape)
        for n in read(given.model, {}).inputs
    }
    graph = Compilation(given.model, Options(input_shapes=shapes)).float_graph
    run = observing(graph, here())
    data = Calibration(Made(graph, given.samples), lambda _: run, given.method)
    run(next(iter(data.samples)), lambda name, array: None)  # its workspace and first outputs
    activations = sum(t.bytes for n in graph.nodes if not n.is_constant for t in n.types)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, started = kept("VmRSS"), time.perf_counter()
    data.statistics(graph)
    if given.moments:
        for _ in moments(graph, graph.nodes, data):
            pass
    more = kept("VmHWM") - before
    print(
        f"{given.samples} samples, {given.method}{', moments' if given.moments else ''}: ", end=""
    )
    print(f"{time.perf_counter() - started:.0f} s; {before / _MB:.0f} MB before, ", end="")
    print(f"{more / _MB:.0f} MB more; one set of activations is {activations / _MB:.0f} MB")
    return int(more > activations + 200 * _MB)


if __name__ == "__main__":
    raise SystemExit(main())
