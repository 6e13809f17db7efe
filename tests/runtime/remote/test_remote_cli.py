"""`qcompiler serve-device`, and --remote on the commands that know it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from oracles import onnxruntime_runs

from qcompiler import load
from qcompiler.cli import main
from qcompiler.demo import MODEL


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text("a token of enough characters")
    path.chmod(0o600)
    return path


@pytest.fixture
def address(token: Path, tmp_path: Path) -> Iterator[str]:
    """A device in a process of its own, which ends without a trace."""
    (tmp_path / "room").mkdir()
    words = ["serve-device", "--port", "0", "--token-file", str(token), "--json"]
    served = subprocess.Popen(
        [sys.executable, "-m", "qcompiler", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path / "room")},
    )
    assert served.stdout
    said = "".join(served.stdout.readline() for _ in range(3))
    try:
        yield json.loads(said)["address"]
    finally:
        served.send_signal(signal.SIGTERM)
        _, errors = served.communicate(timeout=60)
    assert (served.returncode, errors) == (143, "")
    assert not list((tmp_path / "room").iterdir())


def say(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(w) for w in words]) == 0
    return capsys.readouterr().out


def test_commands_run_on_a_device(
    address: str, token: Path, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["--remote", address, "--token-file", token]
    x = np.random.default_rng(2).standard_normal((2, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    inputs = ["--inputs", tmp_path / "x.npz"]
    say(capsys, "run", artifact, *there, *inputs, "--outputs", tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as found:
        np.testing.assert_array_equal(found["y"], load(artifact).run({"x": x})["y"])
    told = json.loads(
        say(capsys, "bench", artifact, *there, "--iterations", 3, "--per-step", "--json")
    )
    assert (told["runs"], told["device"]) == (3, address)
    assert [s["name"] for s in told["steps"]] == [s.name for s in load(artifact).variant.steps]
    assert all(s["bound"] is None for s in told["steps"])  # that machine's limits are unknown
    assert address in say(capsys, "bench", artifact, *there, "--duration", "0.01", "--per-step")


def test_an_artifact_on_a_device_is_compared_with_onnxruntime_here(
    address: str, token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not onnxruntime_runs(MODEL):
        pytest.skip("onnxruntime does not run here")
    digits = tmp_path / "digits.qc"
    say(capsys, "compile", MODEL, "--input-shape", "image=1x1x8x8", "-o", digits)
    words = ["compare", digits, MODEL, "--remote", address, "--token-file", token, "--atol", "1e-3"]
    assert re.search(rf"this artifact at {address} .* ms, onnxruntime here", say(capsys, *words))


def test_mistakes_are_one_error(
    token: Path, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, says in (
        (["run", artifact, "--remote", "127.0.0.1:9"], "share a token"),
        (["run", artifact, "--remote", "127.0.0.1:9", "--token-file", token], "cannot be reached"),
        (["run", artifact, "--remote", "no port:x", "--token-file", token], "no host:port"),
        (["serve-device", "--host", "192.0.2.1", "--token-file", token], "cannot listen there"),
        (["serve-device", "--port", "0"], "share a token"),
    ):
        assert main([str(w) for w in words]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert len(error.splitlines()) == (1 if "listen" in says else 2)


def test_listening_to_others_warns(
    token: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from qcompiler.runtime.remote.device import Server

    monkeypatch.setattr(Server, "serve", lambda self: None)
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        caplog.clear()
        assert (
            main(["serve-device", "--host", host, "--port", "0", "--token-file", str(token)]) == 0
        )
        assert bool(caplog.records) == warned
