"""Predicted times of steps: what they are made of is counted, not guessed."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from emulator import load_or_skip

from benchmarks.prediction.__main__ import predict, report, whole
from benchmarks.prediction.assembly import COUNTS, instrument, loops
from qcompiler import plugins
from qcompiler.ir import Graph, Type, constant, placeholder
from qcompiler.ops import make
from qcompiler.plan.plan import plan

plugins.load_all()

SUM = """
	.text
	.globl sum
sum:
	xorl %eax, %eax
	testl %esi, %esi
	jle .LBB0_2
.LBB0_1:
	addl (%rdi), %eax
	addq $4, %rdi
	decl %esi
	jne .LBB0_1
.LBB0_2:
	retq
"""


@pytest.fixture(autouse=True)
def _tools() -> None:
    load_or_skip()
    if not any(shutil.which(t) for t in ("llvm-mca-19", "llvm-mca")):
        pytest.skip("no llvm-mca")


def test_blocks_are_counted_and_nothing_else_is_changed(tmp_path: Path) -> None:
    counted, functions = instrument(SUM)
    (tmp_path / "sum.s").write_text(counted)
    library = tmp_path / "sum.so"
    subprocess.run(["gcc", "-shared", "-o", library, tmp_path / "sum.s"], check=True)
    code = ctypes.CDLL(str(library))
    numbers = np.arange(7, dtype=np.int32)
    for counts, passed in (([1, 7, 1], 7), ([2, 7, 2], 0)):
        assert code.sum(ctypes.c_void_p(numbers.ctypes.data), passed) == numbers[:passed].sum()
        assert list((ctypes.c_uint64 * 3).in_dll(code, COUNTS)) == counts
    (function,) = functions
    (loop,) = loops(function).inner
    assert [b.number for b in loop.own] == [1]


def test_products_and_rows_of_a_matmul_are_those_of_its_tiles() -> None:
    device = plugins.device("sapphire_rapids", 2)
    load_or_skip(device.isa.cpu_flags)
    weights = constant(np.ones((128, 64), np.int8))
    x = placeholder("x", Type("uint8", (64, 128)))
    made = plan(Graph((x,), (make("matmul", x, weights),), ("y",)), device)
    steps = predict(made, {"x": np.ones((64, 128), np.uint8)})
    (step,) = steps
    assert "_tiles" in step.step.kernel.name
    products = sum(c.times["products"] for c in step.tasks)
    assert products == 64 // 16 * (128 // 64) * (64 // 16) * 16  # tiles, 16 rows each
    cost = step.cost
    assert cost.total >= max(cost.times.values()) > 0
    assert whole(steps) == pytest.approx(step.microseconds, rel=0.5)
    assert "PREDICTED, not measured" in report(steps, peak=1e12)
