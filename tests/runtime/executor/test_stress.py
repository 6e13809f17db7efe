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


MODES = {
    "threads": ("batched", {"streams": 2, "threads": 2}),
    "pipeline": ("batched", {"pipeline": 2, "threads": 2}),
    "open": ("opened", {"streams": 2, "threads": 2}),
}


def many(*values: object) -> object:
    """A case of many requests."""
    return pytest.param(*values, MANY, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("mode", "when_full", "requests"),
    [
        *((mode, full, FEW) for mode in MODES for full in ("wait", "refuse")),
        many("threads", "wait"),
        many("threads", "refuse"),
        many("pipeline", "wait"),
        many("open", "refuse"),
    ],
)
def test_threads(mode: str, requests: int, when_full: str, request: pytest.FixtureRequest) -> None:
    path, options = request.getfixturevalue(MODES[mode][0]), MODES[mode][1]
    stress = Stress(path, requests)
    options = {**options, "max_batch": 8, "max_queue_size": 12}
    with Executor(path, when_full=when_full, **options) as executor:
        stress.run(executor)
        descriptors, memory = held()
        again = Stress(path, requests)
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


@pytest.mark.parametrize(
    ("artifact", "requests"), [("batched", FEW), ("opened", FEW), many("batched")]
)
def test_processes_of_which_some_are_killed(
    artifact: str, requests: int, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(artifact)
    stress = Stress(path, requests)
    options = {"streams": 2, "threads": 1, "max_batch": 8, "isolation": "processes"}
    with Executor(path, **options) as executor:
        descriptors, memory = held()
        with Killer(children, 0.1 if requests == FEW else 0.4) as killer:
            stress.run(executor)
        now, grown = held()
    check(stress, executor)
    # The last one may have died when no request needed it any more.
    assert killer.killed < 2 or executor.counts.restarted > 0
    assert now <= descriptors + 4  # a worker that was just killed, and its successor
    assert grown - memory < 30_000
    assert children() == []
