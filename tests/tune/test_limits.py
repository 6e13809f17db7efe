"""The limits that steps are held against: measured by code that does what it says."""

from __future__ import annotations

import math

import pytest
from kernel_harness import isas

from qcompiler import plugins
from qcompiler.artifact.artifact import StepFact
from qcompiler.emit.machine import compile_functions
from qcompiler.hardware.isa import ISAS, Cpu, Isa
from qcompiler.kernels.cpu.code.tir import Builder
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

    def keep(b: Builder, device: Cpu, source: int, out: int) -> list[float]:
        nonlocal text
        text += compile_functions([(b.name, b.function())], device.isa).inspect_source("asm")
        return [1.0]

    monkeypatch.setattr(limits, "times", keep)
    for mac in isa.inherited:
        limits.products(Cpu("test", isa, 1), mac)
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
