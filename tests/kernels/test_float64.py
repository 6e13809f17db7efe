"""Operators on float64 compute in float64: neither are digits lost, nor is what float32 has not."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

import qcompiler
from qcompiler.onnx_io.reader import read
from qcompiler.ops import evaluate

MODEL = """
    <ir_version: 10, opset_import: ["": 23]>
    net (double[2, 6, 5, 9] x, double[9] s, double[6] c, double[6] v, double[1, 3, 3, 2] g)
        => (double[2, 6, 5, 9] layer, double[2, 6, 5, 9] rms, double[2, 6, 5, 9] softmax,
            double[2, 6, 5, 9] beside, double[2, 6, 5, 9] logarithm, double[2, 6, 5, 9] batch,
            double[2, 6, 3, 7] pool, double[1, 6, 3, 3] grid,
            double[2, 6, 5, 9] attention, double[2, 6, 5, 9] local) {
        layer = LayerNormalization (x, s)
        rms = RMSNormalization (x, s)
        softmax = Softmax (x)
        beside = Softmax <axis = 1> (x)
        logarithm = LogSoftmax <axis = 2> (x)
        batch = BatchNormalization (x, c, c, c, v)
        pool = AveragePool <kernel_shape = [3, 3]> (x)
        zero = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        sample = Slice (x, zero, one, zero)
        grid = GridSample (sample, g)
        attention = Attention (x, x, x)
        local = LRN <size = 3, alpha = 0.3> (x)
    }
"""


@pytest.mark.parametrize("scale", [1.0, 1e60])
def test_no_digits_of_float64_are_lost(scale: float) -> None:
    model, rng = parser.parse_model(MODEL), np.random.default_rng(0)
    dims = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    feed = {name: rng.standard_normal(shape) for name, shape in dims.items()}
    feed["v"] = np.abs(feed["v"]) + 1
    feed["x"] *= scale
    wanted = evaluate(read(model), feed)
    for name, got in qcompiler.load(qcompiler.compile(model, threads=1)).run(feed).items():
        close = 1e-12 * np.abs(wanted[name]).max()
        np.testing.assert_allclose(got, wanted[name], rtol=1e-12, atol=close, err_msg=name)
