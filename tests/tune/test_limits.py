"""The limits that steps are held against: measured by code that does what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kernel_harness import isas

from qcompiler import plugins
from qcompiler.artifact.artifact import StepFact
from qcompiler.emit.machine import compile_functions
from qcompiler.hardware.isa import ISAS, Cpu, Isa
from qcompiler.ir import Array
from qcompiler.kernels.cpu.code.tir import Builder
from qcompiler.runtime.library import Code, Frame, aligned_copy
from qcompiler.tune import limits

PRODUCTS = {
    "x86_avx2": ("vfmadd", "vpmaddwd", "vpmaddubsw"),
    "x86_avx512vnni": ("vfmadd", "vpdpbusd"),
    "x86_avx512bf16": ("vdpbf16ps",),
    "x86_amx": ("tdpbusd", "tdpbssd", "tdpbf16ps"),
}


@pytest.mark.parametrize("isa", isas(), ids=lambda i: i.name)
def test_every_limit_is_measured(isa: Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_ROUNDS", 2)
    monkeypatch.setattr(limits, "_MEMORY_BYTES", 32 << 20)
    found = limits.measure(Cpu("test", isa, 1))
    assert found.ops["f32"] > 1e8
    assert found.ops["integer"] > found.ops["f32"] / 4
    assert [holds for holds, _ in found.levels][-1] == math.inf
    assert all(rate > 1e7 for _, rate in found.levels)


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_products_stand_in_the_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.load_all()
    isa, text = ISAS[name], ""

    def keep(b: Builder, device: Cpu) -> None:
        nonlocal text
        text += compile_functions([(b.name, b.function())], device.isa).inspect_source("asm")

    monkeypatch.setattr(limits, "built", keep)
    limits.Gauge(Cpu("test", isa, 1))
    for product in PRODUCTS[name]:
        assert text.count(product) >= 4


def test_a_step_is_bound_by_the_slower_of_arithmetic_and_memory() -> None:
    machine = limits.Limits({"f32": 100e9, "integer": 400e9}, ((1000.0, 1e12), (math.inf, 1e10)))
    dense = StepFact("a", "k", 1, macs=50_000_000, bytes=800, operands="uint8")
    assert machine.arithmetic(dense) == pytest.approx(100e6 / 400e9)
    assert machine.seconds(dense) == machine.arithmetic(dense)
    moved = StepFact("b", "k", 1, bytes=5000)
    assert machine.seconds(moved) == pytest.approx(5000 / 1e10)
    lacking = StepFact("c", "k", 1, macs=50, operands="bfloat16")
    assert machine.arithmetic(lacking) == pytest.approx(100 / 100e9)


def test_the_higher_of_two_measurements_counts() -> None:
    a = limits.Limits({"f32": 1.0}, ((8.0, 5.0), (math.inf, 2.0)))
    b = limits.Limits({"f32": 3.0}, ((8.0, 4.0), (math.inf, 3.0)))
    assert a | b == limits.Limits({"f32": 3.0}, ((8.0, 5.0), (math.inf, 3.0)))


def test_only_wanted_products_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "built", lambda b, device: None)
    monkeypatch.setattr(limits, "runs", lambda code, threads, *operands: [1.0])
    device = plugins.device("x86_avx512bf16")
    assert isinstance(device, Cpu)
    assert set(limits.Gauge(device, {"f32"}).read().ops) == {"f32"}
    assert set(limits.Gauge(device, {"integer"}).read().ops) == {"f32", "integer"}
    assert set(limits.Gauge(device).read().ops) == {"f32", "integer", "bf16"}


def test_all_bytes_of_the_size_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel keeps the sum, modulo two, of what it reads."""
    device, found = Cpu("test", isas()[0], 2), []

    def run(code: Code, threads: int, *operands: int | Array) -> list[float]:
        size, sizes, out = operands
        assert isinstance(size, int)
        assert isinstance(sizes, np.ndarray)
        assert isinstance(out, int)
        words = np.random.default_rng(0).integers(0, 1 << 30, size // 4, np.int32)
        memory = [aligned_copy(a) for a in (words, sizes, np.zeros(out // 4, np.int32))]
        frame = Frame(len(memory), memory[0], 0)
        frame.fill(memory)
        frame.run(code, threads, 0, 1)
        assert sizes[1] % 2 == 1  # an even number of times leaves nothing
        found.append(np.bitwise_xor.reduce(memory[2].array) == np.bitwise_xor.reduce(words))
        return [1.0]

    monkeypatch.setattr(limits, "runs", run)
    monkeypatch.setattr(limits, "_PASS_BYTES", 3 << 19)  # of each of two threads
    assert limits.bandwidth(device, 1 << 20) == 3 << 20
    assert found == [True]
