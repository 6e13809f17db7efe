"""The runtime alone on 64-bit ARM: Debian's CPython for it, on an emulated processor."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runtime_wheel import unpacked

import qcompiler
from qcompiler.artifact.artifact import open_artifact
from qcompiler.autotune import measure
from qcompiler.autotune.places import Ran, There
from qcompiler.autotune.request import Tuning
from qcompiler.autotune.tune import Tuner, subject_of
from qcompiler.demo import DATA, MODEL
from qcompiler.driver import Compilation
from qcompiler.options import Options
from qcompiler.runtime.remote import connect
from qcompiler.tune import records as tuning_records
from qcompiler.tune.journal import Journal

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("weights_of_8_bits")]

log = logging.getLogger(__name__)

TOKEN = "a token of enough characters"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter, with numpy and the runtime alone."""
    if not (shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")):
        pytest.skip("no qemu-aarch64 (Debian: qemu-user)")
    if not shutil.which("apt-get"):
        pytest.skip("not a Debian, whose packages for ARM are unpacked")
    folder = tmp_path_factory.mktemp("arm64")
    script = Path(__file__).with_name("arm64_python.sh")
    subprocess.run([script, folder], check=True, capture_output=True, timeout=600)
    unpacked(folder / "site")
    return folder / "python"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's network in int8, for a Raspberry Pi 5 and for this machine."""
    folder = tmp_path_factory.mktemp("digits")
    with np.load(DATA) as data:
        images = data["calibration"]
    np.savez(folder / "images.npz", image=images)
    for target in ("raspberry_pi_5", "host"):
        qcompiler.compile(
            MODEL,
            target=target,
            precision="int8",
            calibration=[{"image": image[None]} for image in images],
            input_shapes={"image": (1, 1, 8, 8)},
        ).save(folder / f"{target}.qc")
    return folder


def command(python: Path, *words: object, processor: str = "cortex-a76") -> list[str]:
    return ["env", f"QEMU_PROCESSOR={processor}", str(python), "-m", "qcompiler", *map(str, words)]


def say(python: Path, *words: object, processor: str = "cortex-a76") -> tuple[int, str, str]:
    """A command's exit status, and what it says."""
    given = command(python, *words, processor=processor)
    for last in (False, True):
        done = subprocess.run(
            given, capture_output=True, text=True, check=False, timeout=300, cwd=python.parent
        )
        if last or done.returncode not in (139, -11):
            break
        log.warning("the emulator crashed, and is tried once more: %s", done.stderr)
    return done.returncode, done.stdout, done.stderr


def wanted(digits: Path) -> tuple[np.ndarray, np.ndarray]:
    """An image, and its scores on this machine."""
    with np.load(digits / "images.npz") as data:
        image = data["image"][:1]
    return image, qcompiler.load(digits / "host.qc")(image)


def test_artifacts_run_there(python: Path, digits: Path) -> None:
    artifact, out = digits / "raspberry_pi_5.qc", digits / "scores.npz"
    code, said, error = say(
        python, "run", artifact, "--inputs", digits / "images.npz", "--outputs", out
    )
    assert (code, error) == (0, ""), said
    with np.load(out) as found:
        np.testing.assert_array_equal(found["scores"], wanted(digits)[1])
    code, said, error = say(python, "bench", artifact, "--iterations", 2, "--per-step", "--json")
    assert (code, error) == (0, "")
    told = json.loads(said)
    assert len(told["steps"]) == len(open_artifact(artifact).manifest.variants[0].steps)
    assert say(python, "inspect", artifact, "--plan")[0] == 0
    code, said, error = say(python, "targets", "--json")
    assert (code, error) == (0, "")
    machine = json.loads(said)["this_machine"]
    assert {"asimd", "asimddp"} <= set(machine["features"])


def test_what_the_processor_lacks_is_refused(python: Path, digits: Path) -> None:
    older = say(python, "run", digits / "raspberry_pi_5.qc", processor="cortex-a53")
    assert older[0] == 1
    assert "this CPU lacks asimddp" in older[2]
    code, _, error = say(python, "run", digits / "host.qc")
    assert code == 1
    assert "this machine is aarch64" in error


@contextmanager
def serving(python: Path, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A device there: its address, and its process."""
    folder.mkdir(exist_ok=True)
    served = subprocess.Popen(
        command(python, "serve-device", "--port", 0, "--json"),
        stdout=subprocess.PIPE,
        text=True,
        cwd=python.parent,
        env={**os.environ, "QCOMPILER_TOKEN": TOKEN, "TMPDIR": str(folder)},
    )
    assert served.stdout
    try:
        text = "".join(served.stdout.readline() for _ in range(3))
        yield json.loads(text)["address"], served
    finally:
        served.terminate()
        served.communicate(timeout=60)


def test_a_device_serves_there(python: Path, digits: Path, tmp_path: Path) -> None:
    with serving(python, tmp_path) as (address, _):
        image, scores = wanted(digits)
        with connect(address, TOKEN) as device:
            assert device.facts["machine"] == "aarch64"
            model = device.load(digits / "raspberry_pi_5.qc")
            found = model.measure({"image": image}, iterations=2, steps=1)
        np.testing.assert_array_equal(found.outputs["scores"], scores)
        assert len(found.steps) == len(model.variant.steps)
    assert not list(tmp_path.iterdir())


def test_a_fleet_there_is_tuned_and_loses_a_device(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times there mean nothing; what is measured, checked, written and compiled again does."""
    monkeypatch.setattr(measure, "_STARTING_SECONDS", 120.0)  # an emulator starts slowly
    asked = Options(
        target="raspberry_pi_5",
        threads=1,
        precision="int8",
        calibration="synthetic",
        input_shapes={"image": (1, 1, 8, 8)},
    )
    subject = subject_of(Compilation(MODEL, asked))
    records = tmp_path / "records.jsonl"
    with ExitStack() as stack:
        served = [stack.enter_context(serving(python, tmp_path / n)) for n in "abc"]
        places = [There(address, TOKEN.encode(), 120.0) for address, _ in served]

        real, runs = places[1].run, []

        def unplugged(*given: object) -> Ran:
            runs.append(given)
            if len(runs) == 2:  # the first is of a default
                served[1][1].kill()
                served[1][1].wait()
            return real(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(places[1], "run", unplugged)
        journal = stack.enter_context(Journal(records))
        tuning = Tuning(time=10.0, plans=False)
        tuner = stack.enter_context(Tuner([subject], tuning, journal, places))
        report = tuner.run()
        assert report.search.tried > 0
        assert not report.wrong
        assert served[1][0] not in {b.place.name for b in report.search.benches}
        lines = tuning_records.read(records).lines
        assert {x.host for x in lines} == {places[0].host}
        assert places[0].host.startswith("aarch64-")

        with np.load(DATA) as data:
            image = data["calibration"][:1]
        made = Compilation(MODEL, replace(asked, tuning_records=records)).built
        with connect(served[0][0], TOKEN) as device:
            found = device.load(made.save(tmp_path / "tuned.qc")).run({"image": image})
            usual = device.load(subject.base.built.save(tmp_path / "usual.qc")).run(
                {"image": image}
            )
        np.testing.assert_array_equal(found["scores"], usual["scores"])
