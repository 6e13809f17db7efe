"""Networks for GPUs by the real plan and runtime, over a driver that runs kernels on this CPU."""

from __future__ import annotations

import ctypes
import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from emulation import put_for_this_cpu

import qcompiler
from qcompiler import demo
from qcompiler.artifact import program
from qcompiler.artifact.artifact import Artifact, reading
from qcompiler.emit.program import foremost
from qcompiler.errors import Error
from qcompiler.runtime.cuda import CudaModel, load
from qcompiler.runtime.cuda import driver as drivers

pytestmark = pytest.mark.usefixtures("for_this_cpu", "weights_of_8_bits")
AMPLE = 1 << 40


def counts(fake: ctypes.CDLL) -> list[int]:
    """Bytes, modules, streams and graphs that are not freed; launches, launches of graphs; events
    and pinned memory that are not freed.
    """
    gc.collect()
    found = (ctypes.c_int64 * 8)()
    fake.fake_counts(found)
    return list(found)


def small() -> onnx.ModelProto:
    return onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        small (float[6, 40] x) => (float[6, 40] y, float[6] z) {
            axes = Constant <value = int64[1] {1}> ()
            e = Exp(x)
            y = Softmax(e)
            z = ReduceMax <axes = [1], keepdims = 0> (e)
        }
    """)


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        put_for_this_cpu(patch)
        return qcompiler.compile(small(), target="sm_80")


def test_a_model_runs_as_one_graph_and_frees_all(
    artifact: Artifact, fake: ctypes.CDLL, library: str, tmp_path: Path
) -> None:
    before = counts(fake)
    path = tmp_path / "small.qc"
    artifact.save(path)
    x = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    with load(path, library=library) as model:
        for _ in range(3):
            made = model.run({"x": x})
        e = np.exp(x.astype(np.float64))
        want = np.exp(e - e.max(1, keepdims=True))
        np.testing.assert_allclose(made["y"], want / want.sum(1, keepdims=True), rtol=1e-5)
        np.testing.assert_allclose(made["z"], e.max(1), rtol=1e-5)
    del model
    after = counts(fake)
    assert (after[:4], after[6:]) == (before[:4], before[6:])
    assert after[5] - before[5] == 3
    assert after[4] - before[4] == 3 * len(artifact.manifest.steps)


def test_threads_have_contexts_of_their_own(
    artifact: Artifact, fake: ctypes.CDLL, library: str
) -> None:
    model = load(artifact, library=library)
    xs = np.random.default_rng(1).standard_normal((8, 6, 40)).astype(np.float32)
    alone = [model.run({"x": x})["y"] for x in xs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: model.run({"x": x})["y"], xs))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ((12080, 8, 0, AMPLE), "driver is for CUDA 12.8, and the artifact needs 13.0"),
        ((13050, 7, 5, AMPLE), "this GPU is sm_75, and the artifact is for sm_80"),
        ((13050, 8, 0, 100), "CUDA_ERROR_OUT_OF_MEMORY"),
    ],
    ids=["old driver", "older GPU", "memory"],
)
def test_what_does_not_fit_is_said(
    artifact: Artifact, fake: ctypes.CDLL, library: str, state: tuple[int, ...], reason: str
) -> None:
    drivers._held.clear()
    fake.fake_set(*state[:3], ctypes.c_int64(state[3]))
    with pytest.raises(Error, match=reason):
        load(artifact, library=library).run({"x": np.zeros((6, 40), np.float32)})


def test_code_of_an_architecture_runs_on_the_later_ones_of_its_kind(
    artifact: Artifact, fake: ctypes.CDLL, library: str
) -> None:
    fake.fake_set(13050, 8, 9, ctypes.c_int64(AMPLE))
    load(artifact, library=library).run({"x": np.zeros((6, 40), np.float32)})


def test_without_a_driver_or_a_gpu_the_error_says_so(artifact: Artifact, library: str) -> None:
    with pytest.raises(Error, match="there is no driver for NVIDIA's GPUs"):
        load(artifact, library="libno_such_driver.so.1")
    with pytest.raises(Error, match="there is no GPU 3: 1 were found"):
        load(artifact, device=3, library=library)


def test_a_closed_model_refuses(artifact: Artifact, fake: ctypes.CDLL, library: str) -> None:
    model = load(artifact, library=library)
    model.close()
    with pytest.raises(Error, match="the model is closed"):
        model(np.zeros((6, 40), np.float32))


def test_damaged_code_is_refused(artifact: Artifact, fake: ctypes.CDLL, library: str) -> None:
    (binary,) = artifact.binaries
    for code in (b"", binary.code[:-1], binary.code.replace(b"QCGPU", b"QCGPX")):
        broken = replace(artifact, binaries=(replace(binary, code=code),))
        with pytest.raises(Error, match="no program for a GPU"):
            CudaModel(broken, library=library)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_demo_network_runs_end_to_end(
    fake: ctypes.CDLL, library: str, precision: str, tmp_path: Path
) -> None:
    folder = Path(demo.__file__).parent
    model = folder / "digits.onnx"
    x = np.random.default_rng(0).random((1, 1, 8, 8)).astype(np.float32)
    data = {} if precision == "float32" else {"calibration": [{"image": x}]}
    options = {"precision": precision, "input_shapes": {"image": (1, 1, 8, 8)}, **data}
    made = qcompiler.compile(model, target="sm_80", **options)
    here = qcompiler.load(qcompiler.compile(model, **options))
    name = made.manifest.outputs[0].name
    got, want = (m.run({"image": x})[name] for m in (load(made, library=library), here))
    if precision == "int8":
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert made.manifest.steps
    with pytest.raises(Error, match=r"nvptx64(.|\n)*--device cuda"):
        qcompiler.load(made)


def test_code_for_c_is_for_cpus(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(Error, match="is a GPU"):
        qcompiler.export_c(artifact, tmp_path / "c")
    with pytest.raises(Error, match="is a GPU"):
        qcompiler.export_c(small(), tmp_path / "c", target="sm_80")


@pytest.mark.parametrize("later", [(9, 0), (8, 7), (12, 1)])
def test_later_gpus_run_what_their_driver_compiles(
    artifact: Artifact, fake: ctypes.CDLL, library: str, later: tuple[int, int]
) -> None:
    fake.fake_set(13050, *later, ctypes.c_int64(AMPLE))
    model = load(artifact, library=library)
    assert model.architecture == "compute_80"
    model(np.zeros((6, 40), np.float32))
    fake.fake_set(13050, 8, 9, ctypes.c_int64(AMPLE))
    assert load(artifact, library=library).architecture == "sm_80"


def test_only_the_newest_architecture_is_for_later_ones(
    artifact: Artifact, fake: ctypes.CDLL, library: str
) -> None:
    newer = replace(artifact, manifest=replace(artifact.manifest))
    kept = foremost([artifact, newer])
    found = [program.read(a.binaries[0].code, "") for a in kept]
    assert [list(p.modules) for p in found] == [["sm_80", "compute_80"], ["sm_80"]]
    assert foremost([artifact]) == [artifact]
    fake.fake_set(13050, 9, 0, ctypes.c_int64(AMPLE))
    with pytest.raises(Error, match="this GPU is sm_90, and the artifact is for sm_80"):
        load(kept[1], library=library)


def test_several_architectures_are_variants_of_one_artifact(
    fake: ctypes.CDLL, library: str, tmp_path: Path
) -> None:
    made = qcompiler.compile(small(), target="sm_80,sm_90")
    path = tmp_path / "both.qc"
    made.save(path)
    with reading(path) as file:
        assert [v.isa for v in file.manifest.variants] == ["sm_80", "sm_90"]
    fake.fake_set(13050, 9, 0, ctypes.c_int64(AMPLE))
    model = load(path, library=library)
    assert model.variant.isa == "sm_90"
    model(np.zeros((6, 40), np.float32))
