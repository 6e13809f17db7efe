"""LLVM comes to an end over small kernels of bytes, whose vectors it can follow through memory.

LLVM 22 does not over some shuffles of 64 bytes: it lowers each to another, and that one to the
first. A kernel that copies rows shorter than a vector, and reads the copy by words, made such ones.
"""

from __future__ import annotations

import multiprocessing
from itertools import product

import numpy as np
import pytest
from kernel_harness import device, region_of

from qcompiler import plugins
from qcompiler.emit.machine import machine_code, makes
from qcompiler.hardware.isa import ISAS
from qcompiler.ir import Graph, Type, constant, placeholder
from qcompiler.kernels.registry import Kernel, choose
from qcompiler.ops import make

SECONDS = 200
"""It takes a few."""


def compile_all(name: str) -> None:
    """Attention of bytes, of heads of a few, for an instruction set."""
    plugins.load_all()
    isa, scale = ISAS[name], constant(np.float32(1e-3))
    for size, (queries, keys) in product((1, 2, 3, 4, 5), ((15, 15), (1, 7), (16, 5))):
        lengths = {"q": queries, "k": keys, "v": keys}
        inputs = [placeholder(n, Type("int8", (1, 2, at, size))) for n, at in lengths.items()]
        root = make("attention", *inputs, None, scale)
        region = region_of(Graph(tuple(inputs), (root,), ("y",)), root)
        kernel = choose(region, device(isa)).kernel
        assert isinstance(kernel, Kernel)
        machine_code({"kernel": kernel.func}, isa, "").inspect_source("asm")


@pytest.mark.parametrize("name", ["x86_avx512vnni", "x86_avx512bf16"])
def test_code_of_short_rows_of_bytes_is_made_in_seconds(name: str) -> None:
    plugins.load_all()
    if not makes(ISAS[name]):
        pytest.skip(f"the installed LLVM makes no {name}")
    child = multiprocessing.get_context("spawn").Process(target=compile_all, args=(name,))
    child.start()
    child.join(SECONDS)
    ended = not child.is_alive()
    child.kill()
    child.join()
    assert ended, f"LLVM has not come to an end within {SECONDS} s"
    assert child.exitcode == 0
