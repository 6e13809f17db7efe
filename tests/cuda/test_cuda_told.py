"""What a run on a GPU says of itself: whether its operands fit, and the sizes that data decide; and
models of lists and of text.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.errors import Error
from qcompiler.runtime.cuda import CudaModel, load
from qcompiler.runtime.cuda.capsules import CUDA

pytestmark = pytest.mark.usefixtures("for_this_cpu", "fake")


def made(text: str, library: str) -> CudaModel:
    head = '<ir_version: 10, opset_import: ["": 20]>'
    model = onnx.parser.parse_model(f"{head} told {text}")
    return load(qcompiler.compile(model, target="sm_80"), library=library)


def test_a_run_whose_operands_do_not_fit_is_an_error(library: str) -> None:
    text = "(float[2,3] x, int64[2] shape) => (float[3,2] y) { y = Reshape(x, shape) }"
    model, x = made(text, library), np.arange(6, dtype=np.float32).reshape(2, 3)
    y = model.run({"x": x, "shape": np.array([3, 2])})["y"]
    np.testing.assert_array_equal(y, x.reshape(3, 2))
    with pytest.raises(Error, match="shape"):
        model.run({"x": x, "shape": np.array([2, 3])})
    there = SimpleNamespace(__dlpack_device__=lambda: (CUDA, 0))
    with pytest.raises(Error, match="each run of this model is checked") as e:
        model(there, np.array([3, 2]))
    assert "arrays of the CPU" in e.value.hint


@pytest.mark.slow
def test_outputs_have_the_sizes_that_data_decide(fake: ctypes.CDLL, library: str) -> None:
    model = made("(float[5] x) => (int64[1,n] y) { y = NonZero(x) }", library)
    for values in ([0, 1, 0, 2, 0], [0] * 5, [1] * 5):
        x = np.array(values, np.float32)
        np.testing.assert_array_equal(model.run({"x": x})["y"], np.nonzero(x))


@pytest.mark.slow
def test_lists_go_in_and_out(library: str) -> None:
    text = """(float[4,6] x) => (seq(float[2,6]) s) {
        two = Constant <value = int64 {2}> ()
        s = SplitToSequence <axis = 0> (x, two)
    }"""
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    found = made(text, library).run({"x": x})["s"]
    assert [v.tolist() for v in found] == [x[:2].tolist(), x[2:].tolist()]
