"""Whole networks, compiled here for ARM and run on processors that qemu emulates: int8 gives bit
for bit what its graph means in numpy, float32 what it means up to rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import board
import numpy as np
import pytest

from qcompiler import plugins
from qcompiler.demo import DATA, MODEL
from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.ir import Array
from qcompiler.ops import evaluate
from qcompiler.options import Options

plugins.load_all()
IMAGES = 5
POISONS = (0xFF, 0xAA)
CASES = [(isa, cpu) for isa, cpus in board.CPUS.items() for cpu in cpus]


def with_bytes(made: Compilation) -> Compilation:
    """The same, which also tells the last of its integers, where there are any."""
    graph = made.lowered
    found = [n for n in graph.nodes if n.dtype in ("uint8", "int8") and n.op == "quantize"]
    if not found:
        return made
    outputs, names = (*graph.outputs, found[-1]), (*graph.output_names, "last integers")
    return made.having(lowered=replace(graph, outputs=outputs, output_names=names))


def same(made: Compilation, samples: list[dict[str, Array]], cpu: str) -> None:
    """A compilation's artifact on a processor, against what its graph means: integers exactly."""
    plan = with_bytes(made).plan
    artifact = assemble(plan)
    threads = max(s.kernel.tasks for s in plan.steps)
    runs = [board.run_artifact(artifact, samples, cpu, threads=threads, poison=p) for p in POISONS]
    for sample, *found in zip(samples, *runs, strict=True):
        want = evaluate(plan.graph, sample)
        for name, array in ((n, a) for got in found for n, a in got.items()):
            if array.dtype.kind in "iu":
                assert np.array_equal(array, want[name])
            else:
                np.testing.assert_allclose(array, want[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(("isa", "cpu"), CASES)
def test_the_demo_network(isa: str, cpu: str, precision: str) -> None:
    board.demand()
    with np.load(DATA, allow_pickle=False) as digits:
        images = [{"image": i[None]} for i in digits["test_images"][:IMAGES]]
        calibration = [{"image": i[None]} for i in digits["calibration"][:16]]
    options = Options(
        target=isa,
        precision=precision,
        calibration=calibration,
        input_shapes={"image": (1, 1, 8, 8)},
        threads=2,
    )
    same(Compilation(MODEL, options), images, cpu)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(("isa", "cpu"), CASES)
def test_resnet8(material: Path, isa: str, cpu: str, precision: str) -> None:
    board.demand()
    with np.load(material / "cifar10" / "cifar10.npz") as data:
        images = np.moveaxis(data["x_train"][:9], -1, 1).astype(np.float32)
    model = material / "cifar10" / "resnet8_cifar10.onnx"
    name = Compilation(model, Options()).float_graph.inputs[0]
    samples = [{name.name: i[None].reshape(name.type.dims)} for i in images]
    options = Options(target=isa, precision=precision, calibration=samples[1:], threads=1)
    same(Compilation(model, options), samples[:1], cpu)


def test_code_for_a_newer_processor_ends_on_an_older_one() -> None:
    """What the loader keeps from happening: that processors are told apart here is the point."""
    board.demand()
    options = Options(
        target="arm_dotprod",
        precision="int8",
        calibration="synthetic",
        input_shapes={"image": (1, 1, 8, 8)},
    )
    made = assemble(Compilation(MODEL, options).plan)
    sample = [{"image": np.zeros((1, 1, 8, 8), np.float32)}]
    with pytest.raises(board.Stopped):
        board.run_artifact(made, sample, "cortex-a53")
    assert board.run_artifact(made, sample, "cortex-a76")
