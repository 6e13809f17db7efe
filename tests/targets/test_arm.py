"""Instruction sets of ARM and RISC-V: what they need of a processor, what they link to, which
instructions they make."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import board
import numpy as np
import pytest
from kernel_harness import made, region_of

from qcompiler import load, plugins
from qcompiler.demo import MODEL
from qcompiler.driver import Compilation
from qcompiler.emit import link
from qcompiler.emit.assemble import assemble
from qcompiler.emit.machine import machine_code
from qcompiler.errors import Error
from qcompiler.export.elf import DYNSYM, UNDEFINED, read
from qcompiler.hardware import cpu
from qcompiler.hardware.isa import ISAS, Cpu, Isa
from qcompiler.ir import Graph, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.cpu.contraction.tiled import tiled
from qcompiler.kernels.registry import Kernel
from qcompiler.ops import make
from qcompiler.options import Options
from qcompiler.runtime.choosing import fitting

plugins.load_all()
SETS = [ISAS[name] for name in board.CPUS]
LIBC = {"sched_yield", "sem_init", "sem_post", "sem_wait", "memcpy", "memset", "memmove"}


def options(target: str) -> Options:
    return Options(target=target, input_shapes={"image": (1, 1, 8, 8)}, threads=2)


def test_every_instruction_set_has_processors_to_be_tried_on() -> None:
    linux = {i for i in ISAS.values() if "linux" in i.triple and i.family != "x86-64"}
    assert linux == set(SETS)


WORDS: Mapping[str, tuple[Mapping[int, int], set[str]]] = {
    "Cortex-A53": ({16: 0b1111_1111}, {"asimd"}),
    "Cortex-A76": ({16: 0x1007FF}, {"asimd", "atomics", "fphp", "asimdhp", "asimddp"}),
    "of matrices": ({16: 1 << 1, 26: 1 << 13 | 1 << 14}, {"asimd", "i8mm", "bf16"}),
    "nothing": ({}, set()),
}
OTHERS: Mapping[str, tuple[str, Mapping[int, int], set[str]]] = {
    "Cortex-A7": ("armv7", {16: 0x7B0D7}, {"simd", "vfpv4"}),
    "Cortex-A9": ("armv7", {16: 0x3EB0D7 & ~(1 << 16)}, {"simd"}),
    "SpacemiT K1": ("riscv64", {16: 0x20112D | 1 << 21}, {"v"}),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_kernel_tells_a_process_what_its_processor_has(name: str) -> None:
    words, want = WORDS[name]
    assert cpu.features_of(lambda at: words.get(at, 0)) == want


@pytest.mark.parametrize("name", OTHERS)
def test_features_of_other_architectures(name: str) -> None:
    machine, words, want = OTHERS[name]
    assert cpu.features_of(lambda at: words.get(at, 0), machine) == want


def test_linux_calls_32_bit_arm_by_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Compilation(MODEL, options("arm_v7")).artifact
    for name in ("armv7l", "armv8l"):
        monkeypatch.setattr("platform.machine", lambda name=name: name)
        monkeypatch.setattr(cpu, "features", lambda: frozenset({"simd", "vfpv4"}))
        assert fitting(made.manifest) == [0]


def test_another_machine_s_artifact_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Compilation(MODEL, options("raspberry_pi_5")).artifact
    with pytest.raises(Error, match=r"for aarch64, this machine is"):
        load(made)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"asimd"}))
    with pytest.raises(Error, match=r"this CPU lacks asimddp, asimdhp, fphp"):
        load(made)


def undefined(library: bytes) -> set[str]:
    """The names that a shared library leaves to others."""
    file = read(library, DYNSYM)
    return {s.name for s in file.symbols if s.section == UNDEFINED and s.name}


@pytest.mark.parametrize("isa", SETS, ids=lambda i: i.name)
def test_libraries_ask_for_the_c_library_only(isa: Isa) -> None:
    made = assemble(Compilation(MODEL, options(isa.name)).plan)
    found = undefined(made.binaries[0].code)
    helpers = {n for n in found if n.startswith("__aeabi_")} if isa.name == "arm_v7" else set()
    assert found - helpers <= LIBC


def test_the_linker_of_a_package_does_where_the_system_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ziglang", reason="the extra [cross] is not installed")
    monkeypatch.setattr(link.shutil, "which", lambda _: None)
    made = assemble(Compilation(MODEL, options("arm_neon")).plan)
    assert undefined(made.binaries[0].code) <= LIBC


def test_a_missing_linker_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link.shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Error, match=r"no linker for aarch64.*\n.*pip install ziglang"):
        link.linker("aarch64-unknown-linux-gnu")


def test_devices_of_arm_have_real_facts() -> None:
    found = {}
    for name, path in plugins.devices().items():
        device = plugins.device(name)
        if device.isa.name in {isa.name for isa in SETS}:
            found[name] = device
            text = Path(path).read_text()
            assert "source = " in text, name
            assert "[core]" in text, name
    assert len(found) >= 11
    assert plugins.device("raspberry_pi_4").isa.name == "arm_neon"
    assert plugins.device("raspberry_pi_5").isa.name == "arm_dotprod"
    assert plugins.device("rk3568").isa.name == "arm_dotprod"


def assembly(isa: Isa, left: str, right: str) -> str:
    """A product of matrices."""
    w = constant(np.zeros((64, 32), numpy_dtype(right)))
    root = make("matmul", placeholder("x", Type(left, (8, 64))), w)
    graph = Graph(root.operands[:1], (root,), ("y",))
    kernel = made(tiled, region_of(graph, root), Cpu("d", isa, 1))
    assert isinstance(kernel, Kernel)
    return str(machine_code({"kernel": kernel.func}, isa, "").inspect_source("asm"))


@pytest.mark.parametrize(
    ("name", "pair", "instruction"),
    [
        ("arm_neon", ("float32", "float32"), "fmla"),
        ("arm_neon", ("int8", "int8"), "smull"),
        ("arm_dotprod", ("int8", "int8"), "sdot"),
        ("arm_dotprod", ("uint8", "uint8"), "udot"),
        ("arm_i8mm", ("uint8", "int8"), "usmmla"),
        ("arm_i8mm", ("int8", "int8"), "smmla"),
        ("arm_i8mm", ("uint8", "uint8"), "ummla"),
        ("arm_bf16", ("bfloat16", "bfloat16"), "bfmmla"),
        ("arm_v7", ("float32", "float32"), "vfma.f32"),
        ("arm_v7", ("int8", "int8"), "vmull.s8"),
        ("riscv_v", ("float32", "float32"), "vfmacc.vf"),
        ("riscv_v", ("int8", "int8"), "vwmul.vv"),
    ],
)
def test_products_are_the_instructions_meant(
    name: str, pair: tuple[str, str], instruction: str
) -> None:
    found = re.findall(
        rf"^\s+{re.escape(instruction)}2?\s", assembly(ISAS[name], *pair), re.MULTILINE
    )
    assert len(found) >= 8


def test_a_small_device_is_any_of_its_kind() -> None:
    """Facts are the device's own, not this machine's."""
    device = plugins.device("generic_armv8", 1)
    assert device.core.in_order
    assert replace(device, threads=4) == plugins.device("generic_armv8")
