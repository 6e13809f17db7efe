"""Over HTTP, too, every request is answered once or refused clearly, whatever the others do."""

from __future__ import annotations

import http.client
import json
import random
from collections import Counter
from pathlib import Path

import models
import numpy as np
import pytest
from clients import together
from served import Server, serving

from qcompiler import load
from qcompiler.ir import Array

pytest.importorskip("starlette", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

CLIENTS = 16
KINDS = ("plain",) * 6 + ("json", "wrong", "late", "leave", "short")


class Client:
    """Requests of one connection, made anew where it was left."""

    def __init__(
        self, server: Server, name: str, samples: list[Array], wanted: list[Array], seed: int
    ) -> None:
        self._place, self._path = server.url.removeprefix("http://"), f"/v2/models/{name}/infer"
        self._samples, self._wanted = samples, wanted
        self._luck = random.Random(seed)
        self._connection = http.client.HTTPConnection(self._place, timeout=120)
        self.ended: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, requests: int) -> None:
        for _ in range(requests):
            kind = self._luck.choice(KINDS)
            try:
                self.ended[self._one(kind)] += 1
            except BaseException as e:
                self.wrong.append(f"{kind}: {type(e).__name__}: {e}")
                self._leave()

    def _leave(self) -> None:
        self._connection.close()
        self._connection = http.client.HTTPConnection(self._place, timeout=120)

    def _one(self, kind: str) -> str:
        number = self._luck.randrange(len(self._samples))
        x = self._samples[number][:, :3] if kind == "wrong" else self._samples[number]
        told: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": list(x.shape)}
        body = b"" if kind == "json" else x.tobytes()
        told |= {"data": x.tolist()} if kind == "json" else {}
        told |= {"parameters": {"binary_data_size": len(body)}} if body else {}
        parameters = {"binary_data_output": True} | ({"timeout": 1} if kind == "late" else {})
        text = json.dumps({"inputs": [told], "parameters": parameters}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        body = text + (body[:-4] if kind == "short" else body)
        self._connection.request("POST", self._path, body, headers)
        if kind == "leave":
            self._leave()
            return "left"
        answer = self._connection.getresponse()
        found = answer.read()
        expected = {"wrong": {400}, "short": {400}, "late": {504, 503, 200}}.get(kind, {200, 503})
        assert answer.status in expected, found
        if answer.status == 200:
            size = int(answer.headers["Inference-Header-Content-Length"])
            y = np.frombuffer(found[size:], np.float32)[: x.size].reshape(x.shape)
            np.testing.assert_array_equal(y, self._wanted[number])
        else:
            assert json.loads(found)["error"]
        return str(answer.status)


MODES = {
    "threads": ("batched", ("--streams", "2")),
    "processes": ("batched", ("--streams", "2", "--isolation", "processes")),
    "pipeline": ("batched", ("--pipeline", "2")),
    "open": ("opened", ("--streams", "2")),
}


def _alone(path: Path, samples: list[Array]) -> list[Array]:
    model = load(path)
    if not model.manifest.symbols:
        samples = [
            np.concatenate([x, np.zeros((8 - len(x), models.WIDTH), np.float32)]) for x in samples
        ]
    return [model(x)[0] for x in samples]


@pytest.mark.parametrize(
    ("mode", "requests"),
    [
        *((mode, 40) for mode in MODES),
        *(pytest.param(m, 625, marks=pytest.mark.slow) for m in ("threads", "processes", "open")),
    ],
)
def test_everybody_is_answered(mode: str, requests: int, request: pytest.FixtureRequest) -> None:
    path, words = request.getfixturevalue(MODES[mode][0]), MODES[mode][1]
    samples = [models.sample(i, 1 + i % 8) for i in range(24)]
    wanted = [y[: len(x)] for x, y in zip(samples, _alone(path, samples), strict=True)]
    more = ("--threads", "1", "--max-batch", "8", "--max-queue-size", "12")
    with serving(path, *words, *more) as server:
        clients = [Client(server, path.stem, samples, wanted, seed) for seed in range(CLIENTS)]
        together(lambda i: clients[i].run(requests), CLIENTS)
        status, page = server.ask("/metrics")
        assert status == 200
        assert server.end() == 143
    ended = sum((c.ended for c in clients), Counter[str]())
    assert [w for c in clients for w in c.wrong] == []
    assert sum(ended.values()) == CLIENTS * requests
    counts = {
        line.split()[0].partition('outcome="')[2].rstrip('"}'): float(line.split()[1])
        for line in page.splitlines()
        if line.startswith("qcompiler_requests_total")
    }
    assert 0 <= counts["answered"] - ended["200"] <= ended["left"]
    assert counts["failed"] >= 0
    assert ended["400"] > 0
