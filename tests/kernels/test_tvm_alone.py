"""PyTorch is installed beside TVM: it is imported by those who use it only."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

PROGRAM = """
import sys
import {first}
assert "torch" not in sys.modules
assert not [f for f in sys.meta_path if f.__class__.__module__.startswith("qcompiler")]
import torch
import tvm
assert torch.ones(3).sum() == 3
assert torch.from_numpy(tvm.runtime.tensor([1.0, 2.0]).numpy()).sum() == 3
"""


@pytest.mark.parametrize("first", ["qcompiler.emit.machine", "qcompiler.targets.x86.avx2"])
def test_tvm_is_imported_without_torch_which_works_afterwards(first: str) -> None:
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    subprocess.run([sys.executable, "-c", PROGRAM.format(first=first)], check=True)
