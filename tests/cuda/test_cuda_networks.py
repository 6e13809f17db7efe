"""Whole networks for GPUs by the real plan, artifact and runtime, as one graph of launches over the
emulator, compared with the CPU's.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import encoder, mobilenet, resnet

import qcompiler
from qcompiler.ir import Array
from qcompiler.runtime.cuda import CudaModel

pytestmark = pytest.mark.usefixtures("for_this_cpu", "weights_of_8_bits")
slow = pytest.mark.slow
BOUNDS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 1e-5}
"""Of the largest output."""


def image(pixels: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"image": rng.standard_normal((1, 3, pixels, pixels)).astype(np.float32)}


def words(tokens: int) -> dict[str, Array]:
    mask = np.ones((1, tokens), np.int64)
    mask[0, -3:] = 0
    return {"ids": np.random.default_rng(0).integers(0, 100, (1, tokens)), "mask": mask}


def compare(
    model: onnx.ModelProto, feed: dict[str, Array], precision: str, folder: Path
) -> CudaModel:
    """A network on both, from files -> the one for GPUs."""
    options: dict[str, object] = {"precision": precision}
    if precision == "int8":
        options["calibration"] = [feed]
    want = qcompiler.load(qcompiler.compile(model, **options)).run(feed)
    path = folder / "network.qc"
    qcompiler.compile(model, target="sm_80", **options).save(path)
    loaded = qcompiler.load(path, device="cuda")
    assert isinstance(loaded, CudaModel)
    made = loaded.run(feed)
    for name, value in want.items():
        bound = BOUNDS[precision] * np.abs(value).max()
        np.testing.assert_allclose(made[name], value, rtol=0, atol=bound)
    return loaded


def kernels(model: CudaModel) -> str:
    """The names of all kernels."""
    return " ".join(s.kernel for s in model.variant.steps)


@pytest.mark.parametrize(
    "precision", ["int8", *[pytest.param(p, marks=slow) for p in ("float32", "float16")]]
)
def test_resnet_8(precision: str, installed: ctypes.CDLL, tmp_path: Path) -> None:
    model = compare(resnet(1, 16), image(16), precision, tmp_path)
    assert "plain" not in kernels(model)


@slow
@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_resnet_20(precision: str, installed: ctypes.CDLL, tmp_path: Path) -> None:
    compare(resnet(3, 32), image(32), precision, tmp_path)


@slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_mobilenet(precision: str, installed: ctypes.CDLL, tmp_path: Path) -> None:
    model = compare(mobilenet(32), image(32), precision, tmp_path)
    assert "depthwise3x3" in kernels(model)


@slow
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_an_encoder_of_text(precision: str, installed: ctypes.CDLL, tmp_path: Path) -> None:
    model = compare(encoder(2, 16, 64, 2), words(16), precision, tmp_path)
    assert ("attention_tensor" in kernels(model)) == (precision == "bfloat16")


@slow
def test_an_int8_encoder_differs_less_from_the_cpus_than_that_from_float(
    installed: ctypes.CDLL, tmp_path: Path
) -> None:
    """Sums of floats between its products come in another order, so a byte may round up there and
    down here: no bound of floats holds.
    """
    model, feed = encoder(2, 16, 64, 2), words(16)
    options = {"precision": "int8", "calibration": [feed]}
    real = qcompiler.load(qcompiler.compile(model)).run(feed)
    want = qcompiler.load(qcompiler.compile(model, **options)).run(feed)
    qcompiler.compile(model, target="sm_80", **options).save(tmp_path / "network.qc")
    made = qcompiler.load(tmp_path / "network.qc", device="cuda").run(feed)
    for name, value in want.items():
        loss = np.linalg.norm(value - real[name])
        assert 0 < loss < 0.02 * np.linalg.norm(value)
        assert np.linalg.norm(made[name] - value) < loss
