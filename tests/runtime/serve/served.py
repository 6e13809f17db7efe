"""A server of the command line, for as long as a test lasts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Server:
    url: str
    process: subprocess.Popen[str]

    def ask(
        self, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of an answer; a body that is not bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as e:
            return e.code, _json(e.read())

    def end(self) -> int:
        """SIGTERM -> the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.decode()


@contextmanager
def serving(*words: str | Path) -> Iterator[Server]:
    """`qcompiler serve` with these words, at a free port."""
    command = [sys.executable, "-m", "qcompiler", "serve", *map(str, words), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        url = next((line.split()[-1] for line in lines if line.startswith("serving at ")), "")
        try:
            assert url, "the server did not start"
            yield Server(url, process)
        finally:
            process.kill()
