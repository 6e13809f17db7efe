"""How the command line ends when it cannot go on: a clear status, one line, no half file."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qcompiler import cli
from qcompiler.cli import commands
from qcompiler.demo import MODEL
from qcompiler.files import replacing

COMMAND = [sys.executable, "-m", "qcompiler"]


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [
        (["inspect", "digits.onnx"], ""),
        (["inspect", "digits.onnx"], "1"),
        (["inspect", "digits.onnx", "--json"], ""),
        (["--version"], ""),  # unbuffered, argparse keeps the error to itself
    ],
)
def test_an_answer_that_nobody_could_read_is_no_success(
    words: list[str], unbuffered: str, tmp_path: Path
) -> None:
    shutil.copy(MODEL, tmp_path / "digits.onnx")
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [*COMMAND, *words],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            check=False,
        )
    assert (run.returncode, run.stderr) == (1, "error: No space left on device\n")


@pytest.mark.parametrize("kilobytes", [1, 8, 100])
def test_a_limit_of_the_size_of_files_is_one_error(kilobytes: int, tmp_path: Path) -> None:
    words = ["compile", str(MODEL), "--input-shape", "image=1x1x8x8", "-o", "out.qc"]
    command = f"ulimit -f {kilobytes} && exec " + shlex.join([*COMMAND, *words])
    run = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: code: files may have ")
    assert len(run.stderr.splitlines()) == 2  # the hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_no_half_file(
    sent: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(arguments: object) -> int:
        with replacing(tmp_path / "out.qc") as file:
            file.write(b"half")
            os.kill(os.getpid(), sent)
            threading.Event().wait(10)  # the signal ends this
        return 0

    monkeypatch.setitem(commands.COMMANDS, "targets", write)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    # What runs in the background may have been started with interrupts ignored.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        ended = cli.main(["targets"])
    except SystemExit as e:
        ended = int(e.code or 0)
    finally:
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGHUP, hang_up)
    assert ended == code
    assert list(tmp_path.iterdir()) == []
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before


def test_a_hang_up_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(arguments: object) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 0

    monkeypatch.setitem(commands.COMMANDS, "targets", sent)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.main(["targets"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
