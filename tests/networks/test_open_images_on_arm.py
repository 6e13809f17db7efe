"""Kernels that end where a run's images do, on processors of ARM that qemu emulates."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import qcompiler
from qcompiler.plan import open_plan
from tests.export.test_export_open import asked, program
from tests.networks.test_open_images import IMAGES, SIZES, compilation
from tests.networks.test_open_sizes import meant
from tests.rewrite.test_padding import model_of, random_feed

pytestmark = pytest.mark.usefixtures("weights_of_8_bits")

CPUS = {
    "arm_neon": "cortex-a72",
    "arm_fp16": "cortex-a76",
    "arm_dotprod": "cortex-a76",
    "arm_i8mm": "max",
    "arm_bf16": "max",
}
NAMES = ("windows", "strides", "pools", "sums", "joined, picked and repeated")
PRECISIONS = {name: ("float32", "int8") for name in NAMES}
PRECISIONS["a batch"] = ("float32",)  # one of its products is in bfloat16 otherwise
PRECISIONS["many outputs"] = ("float32",)  # Winograd's tiles side by side
QUICK = (
    ("many outputs", "arm_fp16", "float32"),
    ("strides", "arm_fp16", "float32"),
    ("strides", "arm_i8mm", "int8"),
)
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for name, precisions in PRECISIONS.items()
    for case in product([name], CPUS, precisions)
]


@pytest.fixture(autouse=True)
def small_networks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_plan, "MOSTLY", 0.0)


@pytest.mark.parametrize(("name", "isa", "precision"), CASES)
def test_images_of_any_size(name: str, isa: str, precision: str, tmp_path: Path) -> None:
    """int8 as on this machine, bit for bit, float32 as ONNX means it."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("no qemu-aarch64 here")
    model = model_of(f"g {IMAGES[name]}")
    data = [random_feed(model, {"h": 20, "w": 20}, seed) for seed in range(2)]
    data = data if precision == "int8" else None
    here = qcompiler.load(compilation(name, precision=precision, calibration=data).artifact)
    there = compilation(name, precision=precision, calibration=data, target=isa)
    assert any(len(s.region.extents) == 2 for s in there.plan.steps)
    qcompiler.export_c(there.artifact, tmp_path / "net", name="net")
    path = program(tmp_path / "net", here, ["aarch64-linux-gnu-gcc"])
    for seed, (height, width) in enumerate(SIZES):
        feed = random_feed(model, {"h": height, "w": width}, seed)
        named = {"h": height, "w": width}
        sizes = [named[s.name] for s in here.manifest.symbols]
        made = asked(path, here, sizes, feed, [emulator, "-cpu", CPUS[isa]])
        wanted = here.run(feed) if data else meant(model, feed)
        for key, value in wanted.items():
            where = f"{key}, {height} x {width}"
            if data:
                np.testing.assert_array_equal(made[key], value, where)
            else:
                scale = float(np.abs(value).max())
                np.testing.assert_allclose(made[key], value, 1e-4, 5e-5 * scale, err_msg=where)
