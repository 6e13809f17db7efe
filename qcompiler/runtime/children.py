"""Processes that this one has started."""

from __future__ import annotations

import subprocess
from contextlib import suppress


def ended(process: subprocess.Popen[bytes], patience: float) -> int | None:
    """The exit status of a child that ends by itself within so many seconds; else it is killed."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(patience)
    process.kill()
    process.wait()
    return None
