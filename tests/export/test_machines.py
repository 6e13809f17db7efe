"""Whole networks, exported to C and run where they are to run: this machine, ARM of 64 and 32 bits,
and boards with a Cortex-M and nothing else. Integers are what the graph means in numpy, bit for
bit."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

import machines
import numpy as np
import pytest
from board import with_bytes
from machines import MACHINES

from qcompiler import plugins
from qcompiler.cli import main
from qcompiler.demo import DATA, MODEL
from qcompiler.driver import Compilation
from qcompiler.emit.c_entry import Taken, c_entry
from qcompiler.export.c import ALLOWED, export_c
from qcompiler.export.elf import GLOBAL, UNDEFINED, read
from qcompiler.export.request import Exporting
from qcompiler.ir import Array
from qcompiler.ops import evaluate
from qcompiler.options import Options

plugins.load_all()


def same(name: str, made: Compilation, samples: list[dict[str, Array]], folder: Path) -> None:
    """A compilation, exported and run on a machine, against what its graph means."""
    machine = MACHINES[name]
    made = with_bytes(made)
    exported = export_c(made, folder / "net", Exporting(name="net"))
    demand_alone(folder / "net" / "net.o", ALLOWED if not machine.board else {"memcpy", "memset"})
    found = machines.run(machine, exported.facts, folder / "net", samples)
    integers = 0
    for sample, got in zip(samples, found, strict=True):
        want = evaluate(made.plan.graph, sample)
        for key, array in got.items():
            if array.dtype.kind in "iu":
                np.testing.assert_array_equal(array, want[key])
                integers += array.size
            else:
                np.testing.assert_allclose(array, want[key], rtol=1e-4, atol=1e-4)
    assert integers or made.options.precision == "float32"


def options(name: str, precision: str, calibration: list[dict[str, Array]]) -> Options:
    shapes = {k: v.shape for k, v in calibration[0].items()}
    return Options(
        target=MACHINES[name].target,
        precision=precision,
        calibration=calibration,
        input_shapes=shapes,
        threads=1,
    )


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("name", MACHINES)
def test_the_demo_network(name: str, precision: str, tmp_path: Path) -> None:
    machines.demand(MACHINES[name])
    with np.load(DATA, allow_pickle=False) as digits:
        images = [{"image": i[None]} for i in digits["test_images"][:4]]
        calibration = [{"image": i[None]} for i in digits["calibration"][:16]]
    made = Compilation(MODEL, options(name, precision, calibration))
    same(name, made, images, tmp_path)


@pytest.mark.parametrize("name", MACHINES)
def test_resnet8(material: Path, name: str, tmp_path: Path) -> None:
    machines.demand(MACHINES[name])
    with np.load(material / "cifar10" / "cifar10.npz") as data:
        images = np.moveaxis(data["x_train"][:9], -1, 1).astype(np.float32)
    model = material / "cifar10" / "resnet8_cifar10.onnx"
    taken = Compilation(model, Options()).float_graph.inputs[0]
    samples = [{taken.name: i[None].reshape(taken.type.dims)} for i in images]
    made = Compilation(model, options(name, "int8", samples[1:]))
    same(name, made, samples[:1], tmp_path)


@pytest.mark.parametrize("name", MACHINES)
def test_ds_cnn(material: Path, name: str, tmp_path: Path) -> None:
    machines.demand(MACHINES[name])
    with np.load(material / "speech_commands" / "kws_features.npz") as data:
        clips = data["x"][:9].astype(np.float32)
    model = material / "speech_commands" / "dscnn_kws.onnx"
    taken = Compilation(model, Options()).float_graph.inputs[0]
    samples = [{taken.name: c.reshape(taken.type.dims)} for c in clips]
    made = Compilation(model, options(name, "int8", samples[1:]))
    same(name, made, samples[:1], tmp_path)


def demand_alone(path: Path, allowed: Collection[str]) -> None:
    """An object needs these functions only, shows its entry only, has no data that would have to be
    copied to RAM, and is nothing that readelf warns of.
    """
    file = read(path.read_bytes())
    missing = {s.name for s in file.symbols if s.name and s.section == UNDEFINED}
    assert missing <= set(allowed)
    shown = {s.name for s in file.symbols if s.bind == GLOBAL} - missing
    assert shown == {"net_run"}
    assert not [s for s in file.sections if s.flags & 1 and s.size]
    if tool := shutil.which("readelf"):
        words = [tool, "-aW", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
        assert not done.stderr, done.stderr


def test_a_board_without_a_system_has_no_artifacts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compile", str(MODEL), "--target", "cortex_m7", "--input-shape", "image=1x1x8x8"]
    assert main([*words, "-o", str(tmp_path / "a.qc")]) == 1
    assert "export" in capsys.readouterr().err


def test_addresses_are_as_long_as_the_machine_has_them() -> None:
    for target, bits in (("cortex_m4", 32), ("raspberry_pi_4", 64)):
        isa = plugins.device(target).isa
        assert read(c_entry(Taken(2, 1, 3), isa)).bits == bits


@pytest.mark.parametrize("name", ["x86-64", "cortex-a76"])
def test_an_artifact_is_taken_apart_for_the_machine_that_it_was_made_for(
    name: str, tmp_path: Path
) -> None:
    """Its code has the holes of a shared library no more than the tables that it reads need."""
    machine = MACHINES[name]
    machines.demand(machine)
    with np.load(DATA, allow_pickle=False) as digits:
        images = [{"image": i[None]} for i in digits["test_images"][:2]]
        calibration = [{"image": i[None]} for i in digits["calibration"][:16]]
    made = with_bytes(Compilation(MODEL, options(name, "int8", calibration)))
    of_model = export_c(made, tmp_path / "model", Exporting(name="net"))
    found = export_c(made.built, tmp_path / "net", Exporting(name="net"))
    assert found.cost.code < of_model.cost.code + 12 * 1024
    got = machines.run(machine, found.facts, tmp_path / "net", images)
    for sample, row in zip(images, got, strict=True):
        want = evaluate(made.plan.graph, sample)["last integers"]
        np.testing.assert_array_equal(row["last integers"], want)
