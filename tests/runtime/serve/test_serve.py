"""`qcompiler serve` as its clients see it: the protocol, its limits, its end."""

from __future__ import annotations

import gzip
import http.client
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from clients import together
from served import Server, serving

from qcompiler import load
from qcompiler.cli import main

X = [1.0, 2.5, -3.0, 0.0, 1e-3, 7.0, 8.0, -0.5]


def tensor(**more: object) -> dict[str, object]:
    """The input of the model that doubles."""
    return {"name": "x", "datatype": "FP32", "shape": [8], "data": X, **more}


def infer(server: Server, *inputs: object, **more: object) -> tuple[int, Any]:
    return server.ask("/v2/models/two/infer", {"inputs": list(inputs), **more})


def test_health_and_metadata(server: Server) -> None:
    assert server.ask("/v2/health/live") == (200, "")
    assert server.ask("/v2/health/ready") == (200, "")
    assert server.ask("/v2/models/two/ready") == (200, "")
    assert server.ask("/v2/models/two/versions/1/ready") == (200, "")
    status, told = server.ask("/v2")
    assert (status, told["name"]) == (200, "qcompiler")
    status, told = server.ask("/v2/models/batched")
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [8, models.WIDTH]}]
    assert [o["name"] for o in told["outputs"]] == ["y", "z"]
    status, index = server.ask("/v2/repository/index", {})
    assert [(m["name"], m["state"]) for m in index] == [("batched", "READY"), ("two", "READY")]


def test_numbers_in_json_come_back_doubled(server: Server) -> None:
    status, told = infer(server, tensor(), id="seven")
    assert status == 200
    assert (told["model_name"], told["id"]) == ("two", "seven")
    (output,) = told["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [8])
    np.testing.assert_array_equal(np.array(output["data"], np.float32), 2 * np.float32(X))
    nested = infer(server, tensor(data=[X[:4], X[4:]]))
    assert nested[1]["outputs"] == told["outputs"]


def test_binary_comes_in_and_goes_out(server: Server) -> None:
    x = np.float32(X)
    head = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [8], "parameters": {"binary_data_size": 32}}
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head).encode()
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    headers = {"Inference-Header-Content-Length": str(len(text))}
    connection.request("POST", "/v2/models/two/infer", text + x.tobytes(), headers)
    answer = connection.getresponse()
    body, size = answer.read(), int(answer.headers["Inference-Header-Content-Length"])
    (told,) = json.loads(body[:size])["outputs"]
    assert told["parameters"] == {"binary_data_size": 32}
    np.testing.assert_array_equal(np.frombuffer(body[size:], np.float32), 2 * x)


@pytest.mark.parametrize(
    ("encoding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_bodies_may_be_compressed(server: Server, encoding: str, encode: Any) -> None:
    body = encode(json.dumps({"inputs": [tensor()]}).encode())
    headers = {"Content-Encoding": encoding}
    assert server.ask("/v2/models/two/infer", body, headers)[0] == 200
    assert server.ask("/v2/models/two/infer", body[:-5], headers)[0] == 400
    assert server.ask("/v2/models/two/infer", b"{}", headers)[0] == 400
    bomb = encode(b" " * (64 << 20))
    assert server.ask("/v2/models/two/infer", bomb, headers)[0] == 413
    assert server.ask("/v2/models/two/infer", body, {"Content-Encoding": "br"})[0] == 415


WRONG = {
    "no JSON": b"{",
    "deep": b"[" * 100_000,
    "an array": [],
    "no inputs": {},
    "inputs are none": {"inputs": [1]},
    "no such input": {"inputs": [tensor(name="y")]},
    "twice": {"inputs": [tensor(), tensor()]},
    "missing": {"inputs": []},
    "another datatype": {"inputs": [tensor(datatype="INT32")]},
    "an unknown datatype": {"inputs": [tensor(datatype="FP31")]},
    "another shape": {"inputs": [tensor(shape=[2, 4])]},
    "too few numbers": {"inputs": [tensor(data=X[:7])]},
    "too many": {"inputs": [tensor(shape=[4])]},
    "a negative shape": {"inputs": [tensor(shape=[-8])]},
    "a shape beyond measure": {"inputs": [tensor(shape=[1 << 62, 1 << 62])]},
    "a shape of 65 dimensions": {"inputs": [tensor(shape=[1] * 64 + [8])]},
    "a shape of nothing, beyond measure": {
        "inputs": [tensor(shape=[1 << 39, 1 << 39, 0], data=[])]
    },
    "ragged": {"inputs": [tensor(data=[X[:4], X[:3]])]},
    "words": {"inputs": [tensor(data=["a"] * 8)]},
    "nothing": {"inputs": [tensor(data=[None] * 8)]},
    "no data": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [8]}]},
    "bytes that are not there": {"inputs": [tensor(parameters={"binary_data_size": 32})]},
    "a size that is not the shape's": {"inputs": [tensor(parameters={"binary_data_size": 3})]},
    "shared memory": {"inputs": [tensor(parameters={"shared_memory_region": "a"})]},
    "no such output": {"inputs": [tensor()], "outputs": [{"name": "q"}]},
    "a class": {
        "inputs": [tensor()],
        "outputs": [{"name": "y", "parameters": {"classification": 3}}],
    },
    "a negative time": {"inputs": [tensor()], "parameters": {"timeout": -1}},
    "a priority that is a word": {"inputs": [tensor()], "parameters": {"priority": "high"}},
    "an id that is none": {"inputs": [tensor()], "id": 3},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(server: Server, name: str) -> None:
    status, told = server.ask("/v2/models/two/infer", WRONG[name])
    assert status == 400
    assert isinstance(told["error"], str)
    assert told["error"]
    assert infer(server, tensor())[0] == 200


def test_headers_that_lie_are_refused(server: Server) -> None:
    body = {"inputs": [tensor()]}
    for length in ("-1", "x", "99999", "9" * 30):
        headers = {"Inference-Header-Content-Length": length}
        assert server.ask("/v2/models/two/infer", body, headers)[0] == 400
    text = json.dumps(body).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    assert server.ask("/v2/models/two/infer", text + b"more", headers)[0] == 400


def test_what_is_not_there_is_not_found(server: Server) -> None:
    for path in ("/", "/v2/models/three", "/v2/models/two/versions/2", "/v2/models/two/config"):
        status, told = server.ask(path)
        assert status == 404
        assert "error" in told
    assert server.ask("/v2/models/three/infer", {})[0] == 404
    assert server.ask("/v2/models/two/infer")[0] == 405


def test_a_body_that_is_too_long_is_refused(server: Server) -> None:
    assert server.ask("/v2/models/two/infer", b" " * (2 << 20))[0] == 413
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    parts = (b" " * (1 << 16) for _ in range(200))
    try:
        connection.request("POST", "/v2/models/two/infer", parts, encode_chunked=True)
        assert connection.getresponse().status == 413
    except ConnectionError:
        pass  # it was closed while we still sent
    assert infer(server, tensor())[0] == 200


def test_a_deadline_that_cannot_be_met(server: Server) -> None:
    infer(server, tensor())
    assert infer(server, tensor(), parameters={"timeout": 0.001})[0] == 504
    assert infer(server, tensor(), parameters={"timeout": 60_000_000, "priority": 1})[0] == 200


def test_metrics_are_prometheus_text(server: Server) -> None:
    before = _metric(server, 'qcompiler_requests_total{model="two",outcome="answered"}')
    infer(server, tensor())
    assert _metric(server, 'qcompiler_requests_total{model="two",outcome="answered"}') == before + 1
    runs = _metric(server, 'qcompiler_ran_seconds_count{model="two"}')
    assert _metric(server, 'qcompiler_ran_seconds_bucket{model="two",le="+Inf"}') == runs
    assert _metric(server, 'qcompiler_http_responses_total{status="200"}') > 0


def _await(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _metric(server: Server, name: str) -> float:
    status, page = server.ask("/metrics")
    assert status == 200
    (line,) = [each for each in page.splitlines() if each.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])


def test_batches_are_gathered_for_clients(batched: Path) -> None:
    pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
    model = load(batched)
    x = models.sample(3, 8)
    wanted, found = model(x)[0], {}
    words = ("--streams", "1", "--threads", "1", "--max-batch", "8", "--max-queue-delay-us", "5000")
    with serving(batched, *words) as server:
        assert server.ask("/v2/models/batched")[1]["inputs"][0]["shape"] == [-1, models.WIDTH]

        def client(number: int) -> None:
            data = x[number : number + 1].tolist()
            told = {"name": "x", "datatype": "FP32", "shape": [1, models.WIDTH], "data": data}
            found[number] = server.ask("/v2/models/batched/infer", {"inputs": [told]})

        together(client)
        for number, (status, told) in found.items():
            assert status == 200
            np.testing.assert_array_equal(
                np.array(told["outputs"][0]["data"], np.float32), wanted[number]
            )
        assert server.end() == 143


SIDE = 768
"""Of the matrices that take half a second."""


def _slow_request() -> tuple[bytes, dict[str, str]]:
    """Body and headers."""
    size = 4 * SIDE * SIDE
    head = {"name": "x", "datatype": "FP32", "shape": [SIDE, SIDE]}
    told = {"inputs": [{**head, "parameters": {"binary_data_size": size}}]}
    text = json.dumps({**told, "parameters": {"binary_data_output": True}}).encode()
    return text + bytes(size), {"Inference-Header-Content-Length": str(len(text))}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("starlette", reason="the extra [serve] is not installed")
    pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
    return models.slow(size=SIDE).save(tmp_path_factory.mktemp("slow") / "slow.qc")


def _connections(server: Server, count: int) -> list[http.client.HTTPConnection]:
    """So many, each with a request under way, of which at least one waits."""
    body, headers = _slow_request()
    place = server.url.removeprefix("http://")
    made = [http.client.HTTPConnection(place, timeout=60) for _ in range(count)]
    for each in made:
        each.request("POST", "/v2/models/slow/infer", body, headers)
    _await(lambda: _metric(server, 'qcompiler_waiting{model="slow"}') >= 1)
    return made


def test_requests_that_were_begun_are_answered_before_the_end(slow: Path) -> None:
    with serving(slow, "--streams", "1", "--threads", "1") as server:
        connections = _connections(server, 4)
        assert server.end() == 143
        statuses = [each.getresponse().status for each in connections]
    assert statuses.count(200) >= 2
    assert set(statuses) <= {200, 503}


def test_a_client_that_leaves_takes_its_request_with_it(slow: Path) -> None:
    with serving(slow, "--streams", "1", "--threads", "1") as server:
        for each in _connections(server, 6):
            each.close()
        _await(lambda: not _metric(server, 'qcompiler_waiting{model="slow"}'))
        name = 'qcompiler_requests_total{model="slow",outcome='
        assert _metric(server, f'{name}"cancelled"}}') >= 1
        assert server.end() == 143


def test_serve_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
    assert main(["serve", str(tmp_path / "none.qc")]) == 1
    assert "none.qc" in capsys.readouterr().err
    assert main(["serve", "a/m.qc", "b/m.qc"]) == 1
    assert "two models" in capsys.readouterr().err
