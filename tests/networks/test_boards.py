"""Whole networks, compiled here for ARM and RISC-V and run on processors that qemu emulates: int8
gives bit for bit what its graph means in numpy, floats what it means up to rounding."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import board
import numpy as np
import pytest
from board import with_bytes

from qcompiler import Artifact, Error, compile, load, plugins
from qcompiler.artifact.artifact import reading
from qcompiler.demo import DATA, MODEL
from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.hardware import cpu
from qcompiler.hardware.isa import ISAS
from qcompiler.ir import Array
from qcompiler.ops import evaluate
from qcompiler.options import Options
from qcompiler.runtime.choosing import fitting

plugins.load_all()
IMAGES = 5
POISONS = (0xFF, 0xAA)
TUNED = [i for i in board.CPUS if ISAS[i].triple.startswith("aarch64")]
CASES = [
    pytest.param(isa, cpu, marks=() if cpu == cpus[0] else pytest.mark.slow)
    for isa, cpus in board.CPUS.items()
    for cpu in cpus
]
LARGER = [
    pytest.param(isa, cpu, marks=() if isa in TUNED else pytest.mark.slow)
    for isa, cpus in board.CPUS.items()
    for cpu in cpus
]
ORDERED = (("raspberry_pi_4", "cortex-a72"), ("rk3568", "cortex-a76"))
"""Devices whose files name a core to LLVM, and processors that can run their code."""


def same(made: Compilation, samples: list[dict[str, Array]], cpu: str) -> None:
    """What `with_bytes` gives, on a processor, against what its graph means: integers exactly."""
    plan, artifact = made.plan, made.built
    threads = max(s.kernel.tasks for s in plan.steps)
    close = 1e-4 if made.options.precision != "float16" else 1e-2
    runs = [board.run_artifact(artifact, samples, cpu, threads=threads, poison=p) for p in POISONS]
    for sample, *found in zip(samples, *runs, strict=True):
        want = evaluate(plan.graph, sample)
        for name, array in ((n, a) for got in found for n, a in got.items()):
            if array.dtype.kind in "iu":
                assert np.array_equal(array, want[name])
            else:
                np.testing.assert_allclose(array, want[name], rtol=close, atol=close)


@cache
def demo(target: str, precision: str) -> Compilation:
    """The demo's network; several processors of an instruction set run it."""
    with np.load(DATA, allow_pickle=False) as digits:
        calibration = [{"image": i[None]} for i in digits["calibration"][:16]]
    options = Options(
        target=target,
        precision=precision,
        calibration=calibration,
        input_shapes={"image": (1, 1, 8, 8)},
        threads=2,
    )
    return with_bytes(Compilation(MODEL, options))


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("isa", "cpu"), CASES)
def test_the_demo_network(isa: str, cpu: str, precision: str) -> None:
    board.demand_for(isa)
    with np.load(DATA, allow_pickle=False) as digits:
        images = [{"image": i[None]} for i in digits["test_images"][:IMAGES]]
    same(demo(isa, precision), images, cpu)


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.slow), "int8"])
@pytest.mark.parametrize(("device", "cpu"), ORDERED)
def test_the_demo_network_in_the_order_for_a_core(device: str, cpu: str, precision: str) -> None:
    board.demand()
    with np.load(DATA, allow_pickle=False) as digits:
        images = [{"image": i[None]} for i in digits["test_images"][:IMAGES]]
    same(demo(device, precision), images, cpu)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("isa", "cpu"), LARGER)
def test_resnet8(material: Path, isa: str, cpu: str, precision: str) -> None:
    board.demand_for(isa)
    with np.load(material / "cifar10" / "cifar10.npz") as data:
        images = np.moveaxis(data["x_train"][:9], -1, 1).astype(np.float32)
    model = material / "cifar10" / "resnet8_cifar10.onnx"
    name = Compilation(model, Options()).float_graph.inputs[0]
    samples = [{name.name: i[None].reshape(name.type.dims)} for i in images]
    options = Options(target=isa, precision=precision, calibration=samples[1:], threads=1)
    same(with_bytes(Compilation(model, options)), samples[:1], cpu)


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


OF_ARM = (
    ("cortex-a53", "asimd", "arm_neon"),
    ("cortex-a76", "asimd fphp asimdhp asimddp atomics", "arm_dotprod"),
    ("max", "asimd fphp asimdhp asimddp i8mm bf16", "arm_bf16"),
)
"""Processors, what they report, and which variant suits them best."""


def test_one_artifact_picks_its_variant_on_each_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which gives bit for bit what an artifact for it alone gives."""
    board.demand()
    with np.load(DATA, allow_pickle=False) as digits:
        images = [{"image": i[None]} for i in digits["test_images"][:IMAGES]]
        calibration = [{"image": i[None]} for i in digits["calibration"][:16]]

    def made(target: str) -> Artifact:
        shapes = {"image": (1, 1, 8, 8)}
        given = {"precision": "int8", "calibration": calibration, "threads": 1}
        return compile(MODEL, target=target, input_shapes=shapes, **given)

    path = made("aarch64:all").save(tmp_path / "fat.qc")
    alone = {isa: made(isa) for _, _, isa in OF_ARM}
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    for processor, features, isa in OF_ARM:
        have = frozenset(features.split())
        monkeypatch.setattr(cpu, "features", lambda have=have: have)
        with reading(path) as file:
            chosen = file.only(fitting(file.manifest)[0])
        assert chosen.manifest.variants[0].isa == isa
        found = board.run_artifact(chosen, images, processor)
        want = board.run_artifact(alone[isa], images, processor)
        for one, other in zip(found, want, strict=True):
            assert np.array_equal(one["scores"], other["scores"])


def test_one_artifact_for_two_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = ["haswell", "raspberry_pi_3", "graviton2"]
    both = compile(MODEL, target=targets, input_shapes={"image": (1, 1, 8, 8)})
    path = both.save(tmp_path / "both.qc")
    have = frozenset({"asimd", "fphp", "asimdhp", "asimddp", "avx2"})
    monkeypatch.setattr(cpu, "features", lambda: have)
    for machine, isa in (("aarch64", "arm_dotprod"), ("", "arm_dotprod")):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        with reading(path) as file:
            assert file.manifest.variants[fitting(file.manifest)[0]].isa == isa
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    with pytest.raises(Error, match="for aarch64 and x86_64, this machine is s390x"):
        load(path)
