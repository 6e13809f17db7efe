"""Every request is answered exactly once or fails clearly, whatever else happens."""

from __future__ import annotations

from pathlib import Path

import pytest
from stress import Killer, Stress, held
from test_processes import children

from qcompiler import Executor

FEW, MANY = 1_000, 10_000
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")

pytestmark = NEEDS_PROC


def check(stress: Stress, executor: Executor) -> None:
    """The clients' counts are the executor's, and nothing was unexpected."""
    counts, ended = executor.counts, stress.ended
    assert stress.wrong == []
    assert sum(ended.values()) == stress.requests
    assert counts.refused == ended["refused"]
    assert counts.accepted == stress.requests - ended["refused"]
    assert counts.answered == ended["answered"]
    assert counts.late == ended["late"]
    assert counts.cancelled == ended["cancelled"]
    assert counts.failed == ended["wrong"] + ended["lost"]
    assert min(ended[k] for k in ("answered", "late", "cancelled", "wrong")) > 0


@pytest.mark.parametrize("when_full", ["wait", "refuse"])
@pytest.mark.parametrize("requests", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_threads(batched: Path, requests: int, when_full: str) -> None:
    stress = Stress(batched, requests)
    options = {"streams": 2, "threads": 2, "max_batch": 8, "max_queue_size": 12}
    with Executor(batched, when_full=when_full, **options) as executor:
        stress.run(executor)
        descriptors, memory = held()
        again = Stress(batched, requests)
        again.run(executor)
        now, grown = held()
    check_two(stress, again, executor)
    assert now <= descriptors
    assert grown - memory < 30_000


def check_two(first: Stress, second: Stress, executor: Executor) -> None:
    """Both runs of one executor."""
    first.requests += second.requests
    first.ended += second.ended
    first.wrong += second.wrong
    check(first, executor)


@pytest.mark.parametrize("requests", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_processes_of_which_some_are_killed(batched: Path, requests: int) -> None:
    stress = Stress(batched, requests)
    options = {"streams": 2, "threads": 1, "max_batch": 8, "isolation": "processes"}
    with Executor(batched, **options) as executor:
        descriptors, memory = held()
        with Killer(children, 0.4) as killer:
            stress.run(executor)
        now, grown = held()
    check(stress, executor)
    assert killer.killed == 0 or executor.counts.restarted > 0
    assert now <= descriptors + 4  # a worker that was just killed, and its successor
    assert grown - memory < 30_000
    assert children() == []
