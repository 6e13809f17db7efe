"""The measured cost of sharing work in a thread team."""

from __future__ import annotations

import time
from collections.abc import Callable

from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.runtime.library import Code
from qcompiler.tune import limits
from qcompiler.tune.probe_core import ITERATIONS, OUT_BYTES, Fact, Filler

_ROUNDS = 200
_SLEEP_SECONDS = 0.002
"""Longer than workers spin (emit/team.py)."""
_HELPED = 0.85
"""Largest ratio of two threads' time to one's if the second has a core of its own."""


def shared_work(device: Cpu) -> tuple[list[Fact], list[str]]:
    """The costs of sharing work, and reasons to doubt them; empty for one thread."""
    if device.threads == 1:
        return [], []
    barrier, wake = _barrier(device), _wake(device)
    doubts = ["workers got no cores of their own"] if barrier is None or wake is None else []
    found = []
    if barrier is not None:
        how = f"forty times a barrier of threads, {barrier:.0f} ns"
        found.append(Fact("launch_ns", 40 * barrier, how))
        how = "five times a barrier: cache lines move, and shares are uneven"
        found.append(Fact("barrier_ns", 5 * barrier, how))
    if wake is not None:
        how = "additional time of a run whose workers sleep"
        found.append(Fact("wake_ns", wake, how))
    return found, doubts


def _barrier(device: Cpu) -> float | None:
    """Nanoseconds of a barrier, with a microsecond of work per thread and step; None if no thread
    helped the caller.
    """
    b = Builder("barriers")
    source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
    with b.serial(_ROUNDS), b.parallel(device.threads) as task:
        _work(b, source, out, task, ITERATIONS // 10)
    code = limits.built(b, device)
    together, alone = _least(code, device.threads), _least(code, 1)
    if together > _HELPED * alone:
        return None
    return max((together - alone / device.threads) / _ROUNDS, 1.0)


def _wake(device: Cpu) -> float | None:
    """Additional nanoseconds of a run whose workers sleep; None if they did not help."""
    b = Builder("shares")
    source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
    with b.parallel(device.threads) as task:
        _work(b, source, out, task, 5 * ITERATIONS)
    code = limits.built(b, device)
    awake, asleep = (_least(code, device.threads, before) for before in (_go_on, _sleep))
    if max(awake, asleep) > _HELPED * _least(code, 1):
        return None
    return max(asleep - awake, 1.0)


def _work(b: Builder, source: Pointer, out: Pointer, task: Value, iterations: int) -> None:
    """Sixteen cycles per iteration, with one cache line per task."""
    filler = Filler(b, (source.load(0), source.load(1)))
    with b.serial(iterations):
        filler.run(8)
    filler.keep(out + task * 16)


def _least(code: Code, threads: int, before: Callable[[], None] | None = None) -> float:
    """Nanoseconds."""
    return min(limits.runs(code, threads, OUT_BYTES, OUT_BYTES, before=before or _go_on)) * 1e9


def _go_on() -> None:
    """Run at once, while workers still spin."""


def _sleep() -> None:
    """Wait until workers sleep."""
    time.sleep(_SLEEP_SECONDS)
