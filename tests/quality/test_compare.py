"""An artifact beside onnxruntime: its numbers are those of exact arithmetic on every CPU."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from qcompiler import compile, load
from qcompiler.quality.compare import against_onnxruntime
from tests.oracles import session


def test_products_of_large_bytes_are_those_of_onnxruntime(tmp_path: Path) -> None:
    """Without VNNI, onnxruntime's fastest sums of two such products saturate at 16 bits."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        dense (float[4, 32] x) => (float[4, 24] y)
        <float one = {1}, uint8 zero = {0}, int8 z = {0}> {
            bytes = QuantizeLinear(x, one, zero)
            a = DequantizeLinear(bytes, one, zero)
            b = DequantizeLinear(w, one, z)
            y = MatMul(a, b)
        }
    """)
    weights = numpy_helper.from_array(np.full((32, 24), 127, np.int8), "w")
    model.graph.initializer.append(weights)
    session(model, ours=True)  # or a skip
    onnx.save(model, tmp_path / "dense.onnx")
    samples = [{"x": np.full((4, 32), 255, np.float32)}]
    report = against_onnxruntime(load(compile(model)), tmp_path / "dense.onnx", samples)
    assert report.outputs[0].max_error == 0
