"""Triton's own client talks to `qcompiler serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from clients import together
from served import Server

from qcompiler import load

http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")


def client(server: Server, **options: Any) -> Any:
    return http.InferenceServerClient(server.url.removeprefix("http://"), **options)


def inputs(x: Any, *, binary: bool = True) -> list[Any]:
    made = http.InferInput("x", list(x.shape), "FP32")
    made.set_data_from_numpy(x, binary_data=binary)
    return [made]


def test_the_client_finds_the_server_ready(server: Server) -> None:
    with client(server) as triton:
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready("two")
        assert triton.is_model_ready("two", "1")
        assert not triton.is_model_ready("three")
        assert triton.get_server_metadata()["name"] == "qcompiler"
        assert triton.get_model_metadata("two")["outputs"][0]["name"] == "y"
        assert len(triton.get_model_repository_index()) == 2


@pytest.mark.parametrize("into", [True, False])
@pytest.mark.parametrize("out", [True, False])
def test_results_are_those_of_the_model(
    server: Server, batched: Path, into: bool, out: bool
) -> None:
    x = models.sample(1, 8)
    x[0, 0] = np.inf if into else 1e-45
    with client(server) as triton:
        outputs = [http.InferRequestedOutput(n, binary_data=out) for n in ("z", "y")]
        found = triton.infer("batched", inputs(x, binary=into), outputs=outputs if into else None)
    for name, wanted in zip(("y", "z"), load(batched)(x), strict=True):
        np.testing.assert_array_equal(found.as_numpy(name), wanted)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_requests_may_be_compressed(server: Server, batched: Path, algorithm: str) -> None:
    x = models.sample(2, 8)
    with client(server) as triton:
        found = triton.infer(
            "batched",
            inputs(x),
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
            request_id="9",
            priority=1,
            timeout=60_000_000,
        )
    assert found.get_response()["id"] == "9"
    np.testing.assert_array_equal(found.as_numpy("z"), -x)


def test_the_client_is_told_what_is_wrong(server: Server) -> None:
    from tritonclient.utils import InferenceServerException

    with client(server) as triton, pytest.raises(InferenceServerException, match="shape"):
        triton.infer("two", inputs(np.zeros(7, np.float32)))
    with client(server) as triton, pytest.raises(InferenceServerException, match="no model"):
        triton.infer("three", inputs(np.zeros(8, np.float32)))


def test_many_clients_at_once_are_all_answered(server: Server) -> None:
    def work(seed: int) -> None:
        with client(server) as triton:
            for turn in range(25):
                x = np.full(8, 100 * seed + turn, np.float32)
                np.testing.assert_array_equal(triton.infer("two", inputs(x)).as_numpy("y"), 2 * x)

    together(work)


def test_requests_in_flight_are_answered_each(server: Server) -> None:
    with client(server, concurrency=8) as triton:
        samples = [np.full(8, i, np.float32) for i in range(40)]
        flying = [triton.async_infer("two", inputs(x)) for x in samples]
        for x, each in zip(samples, flying, strict=True):
            np.testing.assert_array_equal(each.get_result().as_numpy("y"), 2 * x)
