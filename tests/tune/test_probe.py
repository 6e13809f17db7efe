"""The facts that a probe finds are within what cores can be, and devices are made of them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from qcompiler import cli, load, plugins
from qcompiler.demo import DATA, MODEL
from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.hardware import cpu
from qcompiler.hardware.core import REFERENCE, Core
from qcompiler.hardware.isa import Cpu, host
from qcompiler.options import Options
from qcompiler.tune import limits, probe
from qcompiler.tune.probe import Probe
from qcompiler.tune.probe_core import Fact, clock, loops, ring

plugins.load_all()

BOUNDS = {
    "hz": (2e8, 8e9),
    "latency_cycles": (1, 30),
    "macs_per_cycle": (0.1, 8),
    "loads_per_cycle": (0.05, 8),
    "load_latency_cycles": (1, 30),
    "stores_per_cycle": (0.05, 8),
    "issue_per_cycle": (0.3, 16),
    "window": (0, 2000),
    "l2_bytes_per_cycle": (0.5, 256),
    "l3_bytes_per_cycle": (0.1, 256),
    "memory_bytes_per_cycle": (0.01, 128),
    "l2_latency_cycles": (3, 200),
    "prefetch_bytes": (256, 1 << 20),
    "line_bytes": (16, 512),
    "way_bytes": (512, 1 << 20),
    "launch_ns": (1, 1e9),
    "wake_ns": (1, 1e9),
    "barrier_ns": (1, 1e9),
}
"""Least and most; wide, since tests run beside others."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `qcompiler targets --probe -o` writes."""
    path = tmp_path_factory.mktemp("probe") / "here.toml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "_ROUNDS", 5)
        assert cli.main(["targets", "--probe", "-o", str(path)]) == 0
    return path


def test_every_fact_is_within_what_cores_can_be(written: Path) -> None:
    core = plugins.device(str(written)).core
    assert {f.name for f in fields(Core)} == set(BOUNDS)
    for name, (least, most) in BOUNDS.items():
        assert least <= getattr(core, name) <= most, name


def test_a_probed_file_is_this_machine(written: Path) -> None:
    found, here = plugins.device(str(written)), host()
    assert (found.isa, found.threads) == (here.isa, here.threads)
    for level in (1, 2, 3):
        assert getattr(found, f"l{level}_bytes") == getattr(here, f"l{level}_bytes")
    if cpu.line_bytes():
        assert found.core.line_bytes == cpu.line_bytes()


def test_every_fact_says_how_it_was_measured(written: Path) -> None:
    _, table = written.read_text().split("[core]\n")
    lines = [line for line in table.splitlines() if not line.startswith("#")]
    assert len(lines) > 10
    assert all(" # " in line for line in lines)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_what_is_compiled_by_a_probed_file_is_right(written: Path, precision: str) -> None:
    found = []
    for target in ("host", str(written)):
        options = Options(
            target=target,
            precision=precision,
            calibration="synthetic" if precision == "int8" else None,
            input_shapes={"image": (1, 1, 8, 8)},
        )
        model = load(assemble(Compilation(MODEL, options).plan))
        with np.load(DATA, allow_pickle=False) as digits:
            found.append([model(image[None]) for image in digits["test_images"][:8]])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_facts_are_read_as_they_were_written(tmp_path: Path) -> None:
    facts = (
        Fact("hz", 3.2e9, "a"),
        Fact("macs_per_cycle", 0.123456, "b"),
        Fact("window", 0, "c"),
        Fact("launch_ns", 123456.0, "d"),
    )
    device = Cpu("host", host().isa, 3, l1_bytes=32768, l2_bytes=1 << 20, l3_bytes=1 << 23)
    path = tmp_path / "mine.toml"
    path.write_text(probe.toml(Probe(device, facts, ("a note",), ("a doubt",)), "2026-01-01"))
    assert path.read_text().startswith("# Doubtful, measure again when nothing else runs: a doubt")
    read = plugins.device(str(path))
    assert read.threads == 3
    want = Core(hz=3.2e9, macs_per_cycle=0.123, window=0, launch_ns=123000)
    assert read.core == want
    assert read.core.latency_cycles == REFERENCE.latency_cycles


def test_innermost_loops_are_counted_in_assembly() -> None:
    text = """
outer:
.LBB0_1:
	xorl	%eax, %eax
.LBB0_2:
	.loc 1 2
	addl	%ebx, %eax # a comment
	# another
	cmpl	$3, %eax
	jne	.LBB0_2
	jmp	.LBB0_1
	.long	.LBB0_1
"""
    assert loops(text) == [["addl	%ebx, %eax # a comment", "cmpl	$3, %eax", "jne	.LBB0_2"]]


def test_a_ring_visits_every_line_once() -> None:
    found = ring(1 << 14, 0)
    at, seen = 0, set()
    while at not in seen:
        seen.add(at)
        at = int(found[at])
    assert at == 0
    assert len(seen) == (1 << 14) // max(cpu.line_bytes(), 64)


def test_a_noisy_machine_is_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "runs", lambda *_: [1e-3, 2e-3, 3e-3])
    _, doubts = clock(Cpu("test", host().isa, 1))
    assert doubts == ("half of the runs took 100% longer than the shortest",)


def test_a_file_is_for_a_probe_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["targets", "-o", str(tmp_path / "a.toml")]) == 1
    assert "-o is for --probe only" in capsys.readouterr().err
