"""A GPU that is lost, memory that ends, somebody else's context, forks: what users then see."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from emulation import put_for_this_cpu
from test_cuda_runtime import AMPLE, counts

import qcompiler
from qcompiler.artifact.artifact import Artifact
from qcompiler.errors import Error
from qcompiler.runtime.cuda import CudaModel, load
from qcompiler.runtime.cuda import driver as drivers

X = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32)


def network(formula: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        small (float[4, 9] x) => (float[4, 9] y) {{ y = {formula} }}
    """)


@pytest.fixture(scope="module")
def artifacts() -> list[Artifact]:
    with pytest.MonkeyPatch.context() as patch:
        put_for_this_cpu(patch)
        return [qcompiler.compile(network(f), target="sm_80") for f in ("Neg(x)", "Exp(x)")]


@pytest.fixture
def models(artifacts: list[Artifact], fake: ctypes.CDLL, library: str) -> Iterator[list[CudaModel]]:
    yield [load(a, library=library) for a in artifacts]
    fake.fake_lost(-1)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("calls", range(12))
def test_a_gpu_that_is_lost_in_the_middle_is_an_error_each_time(
    models: list[CudaModel], fake: ctypes.CDLL, calls: int
) -> None:
    models[0](X)
    fake.fake_lost(calls)

    def until_lost() -> None:
        for _ in range(12):
            models[0](X)

    with pytest.raises(Error, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        until_lost()
    with pytest.raises(Error, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        models[0](X)
    with pytest.raises(Error, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        models[1](X)
    models.clear()
    gc.collect()  # frees what it held, without a word


def test_memory_that_ends_while_loading_or_in_a_run_is_given_back(
    artifacts: list[Artifact], fake: ctypes.CDLL, library: str
) -> None:
    model = load(artifacts[0], library=library)
    model(X)
    before = counts(fake)
    fake.fake_set(13050, 8, 0, ctypes.c_int64(before[0]))
    with pytest.raises(Error, match="CUDA_ERROR_OUT_OF_MEMORY") as e:
        load(artifacts[1], library=library)
    assert "smaller batch" in e.value.hint
    del e  # it holds what the call had
    with model._context(), pytest.raises(Error, match="CUDA_ERROR_OUT_OF_MEMORY"):
        model(X)  # a second context at the same time
    after = counts(fake)
    assert (after[:4], after[6:]) == (before[:4], before[6:])
    np.testing.assert_array_equal(model(X), -X)
    fake.fake_set(13050, 8, 0, ctypes.c_int64(AMPLE))
    np.testing.assert_array_equal(model(X), -X)


def test_somebody_elses_context_stays_current(
    models: list[CudaModel], fake: ctypes.CDLL, library: str
) -> None:
    call = drivers.driver(library)
    fake.fake_other_context.restype = ctypes.c_void_p
    other, found = fake.fake_other_context(), ctypes.c_void_p()
    call("cuCtxPushCurrent_v2", ctypes.c_void_p(other))
    try:
        np.testing.assert_array_equal(models[0](X), -X)
        call("cuCtxGetCurrent", ctypes.byref(found))
        assert found.value == other
        with pytest.raises(Error):
            models[0](X[:2])
        call("cuCtxGetCurrent", ctypes.byref(found))
        assert found.value == other
    finally:
        call("cuCtxPopCurrent_v2", ctypes.byref(found))


def test_two_models_run_side_by_side(models: list[CudaModel]) -> None:
    wants = [-X, models[1](X)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: models[i % 2](X), range(24)))
    for i, one in enumerate(made):
        np.testing.assert_array_equal(one, wants[i % 2])


def test_a_process_that_was_forked_is_told_so(
    models: list[CudaModel], artifacts: list[Artifact], library: str
) -> None:
    models[0](X)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            told = 0
            for work in (lambda: models[0](X), lambda: load(artifacts[0], library=library)):
                try:
                    work()
                except Error as e:
                    told += "forked" in str(e) and "spawn" in e.hint
            models.clear()
            gc.collect()
            status = 0 if told == 2 else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    np.testing.assert_array_equal(models[0](X), -X)


def test_models_end_in_any_order(
    artifacts: list[Artifact], fake: ctypes.CDLL, library: str
) -> None:
    before = counts(fake)
    one, other = (load(a, library=library) for a in artifacts)
    one(X)
    with one._context():
        one.close()
        one.close()
        with pytest.raises(Error, match="the model is closed"):
            one(X)
        other(X)
    del other, one
    after = counts(fake)
    assert (after[:4], after[6:]) == (before[:4], before[6:])
