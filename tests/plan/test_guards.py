"""Steps of the branch that a run does not take are skipped, and so are those of a loop that has
ended: their memory is not written, and the result is right.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser
from oracles import onnxruntime_outputs

import qcompiler
from qcompiler.driver import Compilation
from qcompiler.options import Options

EITHER = """<ir_version: 8, opset_import: ["": 17]>
g (float[4, 8] x, bool c) => (float[4, 8] y) <float[8, 8] w> {
  y = If(c) <
    then_branch = a () => (float[4, 8] p) { m = MatMul(x, w)  p = Softmax(m) },
    else_branch = b () => (float[4, 8] q) { n = MatMul(w, w)  k = MatMul(x, n)  q = LogSoftmax(k) }
  >
}"""

UNTIL = """<ir_version: 8, opset_import: ["": 17]>
g (float[2, 8] x, float limit) => (float[2, 8] y)
<float[8, 8] w, int64 most = {4}, bool yes = {1}> {
  y = Loop <body = turn (int64 i, bool going, float[2, 8] now) => (bool on, float[2, 8] next) {
      m = MatMul(now, w)
      next = Softmax(m)
      top = ReduceMax<keepdims = 0>(next)
      on = Less(top, limit)
    }> (most, yes, x)
}"""


def _model(text: str) -> onnx.ModelProto:
    model = parser.parse_model(text)
    w = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return model


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("text", [EITHER, UNTIL])
def test_a_run_skips_what_it_does_not_select(text: str, threads: int) -> None:
    model = _model(text)
    plan = Compilation(model, Options(threads=threads)).plan
    assert sum(bool(s.guards) for s in plan.steps) >= len(plan.steps) // 3
    loaded = qcompiler.load(qcompiler.compile(model, threads=threads))
    x = np.random.default_rng(2).standard_normal((4, 8)).astype(np.float32)
    other = [i.name for i in model.graph.input][1]
    for value in (True, False) if other == "c" else (0.0, 0.2, 0.5, 2.0):
        kind = np.bool_ if other == "c" else np.float32
        given = {"x": x[: loaded.inputs[0].shape[0]], other: np.array(value, kind)}
        want = onnxruntime_outputs(model, given)["y"]
        np.testing.assert_allclose(loaded.run(given)["y"], want, rtol=1e-4, atol=1e-5)
