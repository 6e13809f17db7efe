"""How many threads a plan is made for, unless somebody asks for a number."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qcompiler.driver import Options, Watch, make_plan
from qcompiler.sharing import LEAST_NS, saving


def products(size: int) -> onnx.ModelProto:
    """Two products of square matrices in a row."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 18]>
        g (float[{size}, {size}] x) => (float[{size}, {size}] y) {{
            a = MatMul(x, w)
            b = Relu(a)
            y = MatMul(b, w)
        }}
    """)
    w = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return model


@pytest.mark.parametrize(("size", "threads"), [(8, 1), (64, 1), (1024, 4)])
def test_threads_are_used_where_they_save_time(size: int, threads: int) -> None:
    device = "x86_avx2"
    asked = make_plan(products(size), Options(target=device, threads=4), Watch())
    assert asked.device.threads == 4
    assert (saving(asked) >= LEAST_NS) is (threads > 1)


def test_a_small_network_has_one_thread_unless_more_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qcompiler.cpu.cores", lambda: 4)
    for size, threads in ((64, 1), (1024, 4)):
        assert make_plan(products(size), Options(), Watch()).device.threads == threads
    assert make_plan(products(64), Options(threads=3), Watch()).device.threads == 3
