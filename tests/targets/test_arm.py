"""Instruction sets of ARM: what they need of a processor, what they link to, which instructions
they make."""

from __future__ import annotations

import re
import struct
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
from qcompiler.hardware import cpu
from qcompiler.hardware.isa import ISAS, Cpu, Isa
from qcompiler.ir import Graph, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.cpu.contraction.tiled import tiled
from qcompiler.kernels.registry import Kernel
from qcompiler.ops import make
from qcompiler.options import Options

plugins.load_all()
SETS = [i for i in ISAS.values() if i.triple.startswith("aarch64")]
LIBC = {"sched_yield", "sem_init", "sem_post", "sem_wait", "memcpy", "memset", "memmove"}


def options(target: str) -> Options:
    return Options(target=target, input_shapes={"image": (1, 1, 8, 8)}, threads=2)


def test_every_instruction_set_has_processors_to_be_tried_on() -> None:
    assert {i.name for i in SETS} == set(board.CPUS)


WORDS: Mapping[str, tuple[Mapping[int, int], set[str]]] = {
    "Cortex-A53": ({16: 0b1111_1111}, {"asimd"}),
    "Cortex-A76": ({16: 0x1007FF}, {"asimd", "atomics", "fphp", "asimdhp", "asimddp"}),
    "of matrices": ({16: 1 << 1, 26: 1 << 13 | 1 << 14}, {"asimd", "i8mm", "bf16"}),
    "nothing": ({}, set()),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_kernel_tells_a_process_what_its_processor_has(name: str) -> None:
    words, want = WORDS[name]
    assert cpu.features_of(lambda at: words.get(at, 0)) == want


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
    (at,) = struct.unpack_from("<Q", library, 40)
    size, count = struct.unpack_from("<HH", library, 58)
    heads = [struct.unpack_from("<IIQQQQIIQQ", library, at + i * size) for i in range(count)]
    table = next(h for h in heads if h[1] == 11)  # SHT_DYNSYM
    names = heads[table[6]]
    found = set()
    for i in range(1, table[5] // 24):
        name, _, _, section = struct.unpack_from("<IBBH", library, table[4] + 24 * i)
        start = names[4] + name
        if not section:
            found.add(library[start : library.index(b"\0", start)].decode())
    return found


@pytest.mark.parametrize("isa", SETS, ids=lambda i: i.name)
def test_libraries_ask_for_the_c_library_only(isa: Isa) -> None:
    made = assemble(Compilation(MODEL, options(isa.name)).plan)
    assert undefined(made.binaries[0].code) <= LIBC


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
        if device.isa in SETS:
            found[name] = device
            text = Path(path).read_text()
            assert "source = " in text, name
            assert "[core]" in text, name
    assert len(found) >= 11
    assert plugins.device("raspberry_pi_4").isa.name == "arm_neon"
    assert plugins.device("raspberry_pi_5").isa.name == "arm_dotprod"


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
    ],
)
def test_products_are_the_instructions_meant(
    name: str, pair: tuple[str, str], instruction: str
) -> None:
    found = re.findall(rf"^\s+{instruction}2?\s", assembly(ISAS[name], *pair), re.MULTILINE)
    assert len(found) >= 8


def test_a_small_device_is_any_of_its_kind() -> None:
    """Facts are the device's own, not this machine's."""
    device = plugins.device("generic_armv8", 1)
    assert device.core.in_order
    assert replace(device, threads=4) == plugins.device("generic_armv8")
