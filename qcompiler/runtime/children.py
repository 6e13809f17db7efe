"""Processes that this one has started."""

from __future__ import annotations

import signal
import subprocess
from contextlib import suppress


def ended(process: subprocess.Popen[bytes], patience: float) -> int | None:
    """The exit status of a child that ends within `patience` seconds; else it is killed."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(patience)
    process.kill()
    process.wait()
    return None


def crash(code: int) -> str:
    """The negative exit status of a child that a signal ended -> that signal's name."""
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name} (its memory may have run out)" if name == "SIGKILL" else name
