"""Tensors of other libraries in a GPU's memory, over a driver that runs kernels on this CPU."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import fake_tensors
import numpy as np
import onnx
import pytest
from emulation import put_for_this_cpu
from fake_tensors import Taken, Tensor

import qcompiler
from qcompiler.artifact.artifact import Artifact
from qcompiler.errors import Error
from qcompiler.runtime.cuda import CudaModel, load
from qcompiler.runtime.cuda import driver as drivers
from qcompiler.runtime.cuda.capsules import Borrowed, capsule_of
from qcompiler.runtime.cuda.tensors import DeviceTensor

GRAPHS, LAUNCHES, GRAPH_LAUNCHES = 3, 4, 5


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    """Two inputs; a Softmax and a sum."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        two (float[4, 40] x, float[40] b) => (float[4, 40] y, float[4, 40] z) {
            z = Add(x, b)
            y = Softmax(z)
        }
    """)
    with pytest.MonkeyPatch.context() as patch:
        put_for_this_cpu(patch)
        return qcompiler.compile(model, target="sm_80")


@pytest.fixture
def gpu(fake: ctypes.CDLL, library: str) -> Iterator[drivers.Gpu]:
    """The fake GPU, with a current stream of the other library."""
    found = drivers.Gpu(drivers.driver(library), 0)
    fake_tensors.current[:] = [drivers.Stream(found)]
    yield found
    fake_tensors.current.clear()
    fake.fake_pools(1)


@pytest.fixture
def model(artifact: Artifact, gpu: drivers.Gpu, library: str) -> CudaModel:
    return load(artifact, library=library)


def held(fake: ctypes.CDLL, gpu: drivers.Gpu) -> list[int]:
    """What is not freed when all work is done, and what was launched."""
    gc.collect()
    with gpu.current() as call:
        call("cuCtxSynchronize")
    found = (ctypes.c_int64 * 8)()
    fake.fake_counts(found)
    return list(found)


def arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(s).astype(np.float32) for s in ((4, 40), (40,)))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("pools", [0, 1], ids=["no pools", "pools"])
def test_tensors_come_and_go_in_the_order_of_streams(
    artifact: Artifact,
    fake: ctypes.CDLL,
    gpu: drivers.Gpu,
    library: str,
    version: int,
    pools: int,
) -> None:
    fake.fake_pools(pools)
    before = held(fake, gpu)
    model = load(artifact, library=library)
    for seed in range(3):
        given = arrays(seed)
        want = model(*given)
        made = model(*(Tensor(gpu, a, version) for a in given))
        assert all(isinstance(t, Taken) for t in made)
        for tensor, array in zip(made, want, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), array)
    del made, tensor, model
    after = held(fake, gpu)
    assert (after[:4], after[6:]) == (before[:4], before[6:])
    assert after[GRAPH_LAUNCHES] - before[GRAPH_LAUNCHES] == 6


def test_a_call_with_tensors_waits_for_nothing(model: CudaModel, gpu: drivers.Gpu) -> None:
    call = gpu.call.library
    x, b = (Tensor(gpu, a) for a in arrays())
    model(x, b)
    before = (ctypes.c_int64 * 8)()
    call.fake_counts(before)
    kept = [model(x, b) for _ in range(3)]
    after = (ctypes.c_int64 * 8)()
    call.fake_counts(after)
    assert after[GRAPH_LAUNCHES] - before[GRAPH_LAUNCHES] == 3
    assert after[LAUNCHES] == before[LAUNCHES]  # what was launched is still to be run
    np.testing.assert_array_equal(kept[0][0].numpy(), model(*arrays())[0])


def test_arrays_and_tensors_may_be_mixed(model: CudaModel, gpu: drivers.Gpu) -> None:
    for seed in range(3):
        x, b = arrays(seed)
        want = model.run({"x": x, "b": b})
        made = model.run({"b": Tensor(gpu, b), "x": x})
        assert list(made) == list(want)
        for name, array in want.items():
            np.testing.assert_array_equal(made[name].numpy(), array)


def test_outputs_of_a_model_are_inputs_of_another(model: CudaModel, gpu: drivers.Gpu) -> None:
    x, b = arrays()
    lone = SimpleNamespace(  # of no library that takes tensors
        __dlpack__=Tensor(gpu, x).__dlpack__, __dlpack_device__=lambda: (2, 0)
    )
    made = model(lone, b)
    assert all(isinstance(t, DeviceTensor) for t in made)
    assert repr(made[0]) == "DeviceTensor(float32[4, 40], cuda:0)"
    again = model(made[1], b)
    np.testing.assert_array_equal(again[1].numpy(), model(model(x, b)[1], b)[1])


def test_threads_with_tensors_do_not_meet(
    artifact: Artifact, model: CudaModel, gpu: drivers.Gpu, library: str
) -> None:
    given = [arrays(seed) for seed in range(60)]
    want = [model(*pair)[0] for pair in given]

    def one(number: int) -> np.ndarray:
        own = load(artifact, library=library) if number % 2 else model  # whose steps are recorded
        return own(*(Tensor(gpu, a) for a in given[number]))[0].numpy()

    with ThreadPoolExecutor(3) as pool:
        for made, array in zip(pool.map(one, range(60)), want, strict=True):
            np.testing.assert_array_equal(made, array)


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "another library's"])
def test_what_cannot_be_freed_while_somebody_records_is_freed_later(
    model: CudaModel, fake: ctypes.CDLL, gpu: drivers.Gpu, ours: bool
) -> None:
    given = [Tensor(gpu, a) for a in arrays()]
    want = model(*given)[0].numpy()
    before, stream = held(fake, gpu), drivers.Stream(gpu)
    made = model(*given)
    with gpu.current() as call, drivers.recording if ours else nullcontext():
        stream.begin(call)
        del made
        gc.collect()
        made = model(*given)
        with nullcontext() if ours else pytest.raises(Error, match="INVALIDATED"):
            stream.end(call)
    np.testing.assert_array_equal(made[0].numpy(), want)
    assert held(fake, gpu)[0] > before[0]
    del made
    model(*given)
    assert held(fake, gpu)[0] == before[0]


def test_a_call_in_somebody_s_recording_is_recorded_with_it(
    model: CudaModel, fake: ctypes.CDLL, gpu: drivers.Gpu
) -> None:
    x, b = (Tensor(gpu, a) for a in arrays())
    model(x, b)
    before = held(fake, gpu)
    stream = fake_tensors.current[-1]
    with gpu.current() as call:
        call("cuStreamBeginCapture_v2", stream.handle, 0)  # in the strictest mode
        made = model(x, b)
        graph = stream.end(call)
    recorded = held(fake, gpu)
    assert recorded[GRAPH_LAUNCHES] == before[GRAPH_LAUNCHES]
    assert recorded[LAUNCHES] == before[LAUNCHES]
    for seed in (1, 2):
        given = arrays(seed)
        x.write(given[0])
        b.write(given[1])
        with gpu.current() as call:
            call("cuGraphLaunch", graph.handle, stream.handle)
        got = made[0].numpy(), made[1].numpy()
        want = model(*given)  # in memory of another call
        for tensor, array in zip(got, want, strict=True):
            np.testing.assert_array_equal(tensor, array)


def test_what_a_model_does_not_take_is_said(
    model: CudaModel, gpu: drivers.Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, b = (Tensor(gpu, a) for a in arrays())
    with pytest.raises(Error, match="float64 given, float32 wanted"):
        model(Tensor(gpu, arrays()[0].astype(np.float64)), b)
    with pytest.raises(Error, match=r"shape \[4, 41\] given, \[4, 40\] wanted"):
        model(Tensor(gpu, np.zeros((4, 41), np.float32)), b)
    with pytest.raises(Error, match="1 arrays for 2 inputs"):
        model(x)
    with pytest.raises(Error, match="input 'b' is missing"):
        model.run({"x": x})
    x.order = "F"
    with pytest.raises(Error, match="do not follow each other"):
        model(x, b)
    x.number = 1
    with pytest.raises(Error, match="the tensor lies on cuda:1, the model on cuda:0"):
        model(x, b)
    monkeypatch.setattr(Tensor, "__dlpack__", lambda self, **_: 1 / 0)
    with pytest.raises(Error, match="Tensor: division by zero"):
        model(b, b)


def test_outputs_are_given_by_the_rules_of_dlpack(model: CudaModel, gpu: drivers.Gpu) -> None:
    x, b = arrays()
    x = SimpleNamespace(__dlpack__=Tensor(gpu, x).__dlpack__, __dlpack_device__=lambda: (2, 0))
    y, _ = model(x, b)
    assert y.__dlpack_device__() == (2, 0)
    for wrong in ({"stream": 0}, {"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError):
            y.__dlpack__(**wrong)
    assert "dltensor_versioned" in repr(y.__dlpack__(stream=-1, max_version=(1, 1)))
    assert '"dltensor"' in repr(y.__dlpack__())


@pytest.mark.parametrize("version", [0, 1])
def test_numpy_reads_our_capsules_and_we_read_numpy_s(version: int) -> None:
    class Owner:
        alive = 0

        def __init__(self) -> None:
            Owner.alive += 1

        def __del__(self) -> None:
            Owner.alive -= 1

    for dtype in ("float32", "float16", "int8", "uint8", "int64", "bool"):
        x = np.arange(24).reshape(2, 3, 4).astype(dtype)

        def given(x: np.ndarray = x, **_: object) -> object:
            at = x.ctypes.data
            return capsule_of(Owner(), at, x.dtype.name, x.shape, (1, 0), bool(version))

        lent = type("Lent", (), {"__dlpack_device__": lambda self: (1, 0)})()
        type(lent).__dlpack__ = lambda self, given=given, **_: given()
        seen = np.from_dlpack(lent)
        assert seen.dtype == x.dtype
        np.testing.assert_array_equal(seen, x)
        assert Owner.alive == 1
        del seen
        given()  # taken by nobody
        gc.collect()
        assert Owner.alive == 0
        more = {"max_version": (1, 0)} if version else {}
        other = SimpleNamespace(__dlpack__=lambda x=x, more=more, **_: x[:, 1:].__dlpack__(**more))
        own = Borrowed(other, 1, "x")
        assert (own.dtype, own.shape) == (dtype, (2, 2, 4))
        assert own.strides == (12, 4, 1)
        assert not own.contiguous
        assert own.address == x[:, 1:].ctypes.data
