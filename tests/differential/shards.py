"""Jobs -> their results, each in a process of its own, some at a time; what was done before is not
done again.

A job that dies, hangs or takes too much memory is a result, not the end.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Job = Callable[[int], Result]

SECONDS = 120.0
MEMORY_BYTES = 6 << 30


@dataclass
class _Child:
    """A process at work on a job."""

    index: int
    pid: int
    pipe: int
    end: float
    data: bytes = b""


def alone(job: Job, index: int, seconds: float = SECONDS) -> Result:
    """One job in a process of its own."""
    return next(iter(results(job, [index], workers=1, seconds=seconds)))


def results(
    job: Job, todo: Iterable[int], *, workers: int = 1, seconds: float = SECONDS
) -> Iterator[Result]:
    """The results of jobs in the order they end; each has its `index`, and `died` where it did."""
    waiting = iter(todo)
    running: dict[int, _Child] = {}
    more = True
    while more or running:
        while more and len(running) < workers:
            index = next(waiting, None)
            if index is None:
                more = False
                break
            child = _start(job, index, seconds)
            running[child.pipe] = child
        if not running:
            return
        ready, _, _ = select.select(list(running), [], [], 0.5)
        for pipe in ready:
            chunk = os.read(pipe, 1 << 16)
            running[pipe].data += chunk
            if not chunk:
                yield _ended(running.pop(pipe), late=False)
        for pipe in [p for p, c in running.items() if time.monotonic() > c.end]:
            os.killpg(running[pipe].pid, signal.SIGKILL)
            yield _ended(running.pop(pipe), late=True)


def _start(job: Job, index: int, seconds: float) -> _Child:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES + _mapped(),) * 2)
        try:
            os.write(writer, json.dumps(job(index)).encode())
        except BaseException as e:  # reported to the parent, as nothing else sees it
            os.write(writer, json.dumps({"died": f"{type(e).__name__}: {e}"}).encode())
        os._exit(0)
    os.close(writer)
    return _Child(index, pid, reader, time.monotonic() + seconds)


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _ended(child: _Child, *, late: bool) -> Result:
    os.close(child.pipe)
    _, status, usage = os.wait4(child.pid, 0)
    try:
        result: Result = json.loads(child.data)
    except ValueError:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status}"
        result = {"died": "hangs" if late else how}
    seconds = usage.ru_utime + usage.ru_stime
    return {**result, "index": child.index, "seconds": seconds, "rss": usage.ru_maxrss >> 10}


def done_before(log: Path) -> Mapping[int, Result]:
    """Results that a log has, by index."""
    if not log.exists():
        return {}
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.endswith("}"))
    return {r["index"]: r for r in lines}
