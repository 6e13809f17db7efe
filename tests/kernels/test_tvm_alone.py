"""PyTorch is installed beside TVM: it is imported by those who use it only."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

WITHOUT = """
import sys
import {first}
assert "torch" not in sys.modules
assert not [f for f in sys.meta_path if f.__class__.__module__.startswith("qcompiler")]
"""
AFTERWARDS = """
import torch
import tvm
assert torch.ones(3).sum() == 3
assert torch.from_numpy(tvm.runtime.tensor([1.0, 2.0]).numpy()).sum() == 3
"""


@pytest.mark.parametrize(
    ("first", "then"), [("qcompiler.emit.machine", AFTERWARDS), ("qcompiler.targets.x86.avx2", "")]
)
def test_tvm_is_imported_without_torch_which_works_afterwards(first: str, then: str) -> None:
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    subprocess.run([sys.executable, "-c", WITHOUT.format(first=first) + then], check=True)
