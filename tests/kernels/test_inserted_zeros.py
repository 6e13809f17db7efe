"""Zeros that a lowering inserts are not multiplied by what is infinite, or no number: these show in
the outputs that they are part of, and in no other.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracles import onnxruntime_outputs

import qcompiler
from tests.rewrite.test_padding import model_of

UP = "(float[1,4,5,6] x) => (float[1,n,h,w] y)"
MODELS = {
    "phases of unlike lengths": f"""{UP} <float[4,3,3,3] k = {{@108}}, float[3] b = {{@3}}> {{
        y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,0]>(x, k, b) }}""",
    "phases that begin in the padding": f"""{UP} <float[4,3,4,4] k = {{@192}}> {{
        y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, k) }}""",
    "more padding than a window": f"""{UP} <float[4,3,3,5] k = {{@180}}> {{
        y = ConvTranspose<strides=[2,3], pads=[3,2,2,1]>(x, k) }}""",
    "phases of no input": f"""{UP} <float[4,3,2,1] k = {{@24}}, float[3] b = {{@3}}> {{
        y = ConvTranspose<strides=[3,3], pads=[1,0,0,0]>(x, k, b) }}""",
    "dilated phases": f"""{UP} <float[4,3,3,3] k = {{@108}}> {{
        y = ConvTranspose<strides=[3,2], dilations=[2,4], pads=[1,2,0,1]>(x, k) }}""",
    "one dimension": """(float[2,4,7] x) => (float[2,3,n] y) <float[4,3,5] k = {@60}> {
        y = ConvTranspose<strides=[3], pads=[2,1], output_padding=[1]>(x, k) }""",
    "three dimensions": """(float[1,2,3,2,4] x) => (float[1,2,d,h,w] y) <float[2,2,3,2,3] k = {@72}>
        { y = ConvTranspose<strides=[2,2,1]>(x, k) }""",
    "pixels beside an image": """(float[1,2,4,5] x) => (float[1,2,1,6] y)
        <float[1,1,6,2] at = {-1.5,-1.5,0.3,0.2,1.9,0.1,-0.9,-0.9,2.0,-7.0,0.0,0.0}> {
        y = GridSample<align_corners=1>(x, at) }""",
}


@pytest.mark.parametrize("name", MODELS)
def test_only_windows_of_what_is_infinite_show_it(name: str) -> None:
    model = model_of(f"g {MODELS[name]}", opset=20)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = tuple(d.dim_value for d in dims)
    x = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    loaded = qcompiler.load(qcompiler.compile(model, threads=1))
    finite = onnxruntime_outputs(model, {"x": x})["y"]
    np.testing.assert_allclose(loaded.run({"x": x})["y"], finite, 1e-4, 1e-4)
    x.reshape(-1)[0], x[..., -2] = np.inf, np.nan
    with np.errstate(invalid="ignore"):
        wanted = onnxruntime_outputs(model, {"x": x})["y"]
        found = loaded.run({"x": x})["y"]
    assert not np.isfinite(wanted).all()
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted))
