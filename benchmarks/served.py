"""`qcompiler serve` as an engine: clients of the Open Inference Protocol, each on a connection of
its own, by Triton's client where it is installed, and by Python's http.client otherwise.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.subjects import Feed
from qcompiler.runtime.serve.protocol import DATATYPES

Ask = Callable[[], object]
"""Makes one request, and waits for the answer."""


@contextmanager
def server(path: Path, *words: str) -> Iterator[str]:
    """`qcompiler serve` of an artifact, as the model `served`, at a free port -> host:port."""
    command = [sys.executable, "-m", "qcompiler", "serve", f"served={path}", *words, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        try:
            yield next(line.split("//")[1].strip() for line in lines if "serving at" in line)
        finally:
            process.terminate()


def client(place: str, feed: Feed) -> tuple[str, Callable[[], Ask]]:
    """A server and an input -> the client's name, and what makes one for a thread."""
    try:
        import tritonclient.http as triton
    except ImportError:
        return "http.client", lambda: _plain(place, feed)

    def make() -> Ask:
        inputs = []
        for name, array in feed.items():
            one = triton.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
            inputs.append(one.set_data_from_numpy(array, binary_data=True))
        connection = triton.InferenceServerClient(place)
        return lambda: connection.infer("served", inputs)

    return "tritonclient", make


def _plain(place: str, feed: Feed) -> Ask:
    told = [
        {
            "name": name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in feed.items()
    ]
    text = json.dumps({"inputs": told, "parameters": {"binary_data_output": True}}).encode()
    body = b"".join((text, *(array.tobytes() for array in feed.values())))
    headers = {"Inference-Header-Content-Length": str(len(text))}
    connection = http.client.HTTPConnection(place)

    def ask() -> None:
        connection.request("POST", "/v2/models/served/infer", body, headers)
        answer = connection.getresponse()
        found = answer.read()
        if answer.status != 200:
            raise RuntimeError(found.decode())

    return ask


class Clients:
    """So many clients, each a thread; `submit` hands the next request to whichever is idle."""

    def __init__(self, make: Callable[[], Ask], count: int) -> None:
        self._make, self._own = make, threading.local()
        self._pool = ThreadPoolExecutor(count)
        self._failures: list[Exception] = []

    def submit(self, done: Callable[[], None]) -> None:
        """Ask, then call back. Raises what went wrong with a request before."""
        if self._failures:
            raise self._failures[0]
        self._pool.submit(self._ask, done)

    def _ask(self, done: Callable[[], None]) -> None:
        try:
            if not hasattr(self._own, "ask"):
                self._own.ask = self._make()
            self._own.ask()
        except Exception as e:
            self._failures.append(e)
        done()
