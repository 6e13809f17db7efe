"""A small artifact, and a device in a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from remote_proxy import TOKEN

from qcompiler import compile
from qcompiler.runtime.remote.device import Limits, Server


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y[2,4] = x[2,8] @ w, z = x + 1."""
    weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Abs", ["x"], ["z"])],
        "product",
        [helper.make_tensor_value_info("x", 1, [2, 8])],
        [
            helper.make_tensor_value_info("y", 1, [2, 4]),
            helper.make_tensor_value_info("z", 1, [2, 8]),
        ],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return compile(model).save(tmp_path_factory.mktemp("artifact") / "model.qc")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """serve(folder name, limits) -> a device that is served until the test ends."""
    with ExitStack() as stack:

        def start(name: str = "device", limits: Limits | None = None) -> Server:
            server = Server(("127.0.0.1", 0), TOKEN.encode(), tmp_path / name, limits)
            stack.enter_context(server)
            threading.Thread(target=server.serve, daemon=True).start()
            return server

        yield start


@pytest.fixture
def device(serve: Callable[..., Server]) -> Server:
    """One device."""
    return serve()


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    """Inputs."""
    return {"x": np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)}
