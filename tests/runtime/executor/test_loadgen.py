"""MLPerf's load generator as a client of the executor."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.loadgen import SCENARIOS, measured
from qcompiler import Executor

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_query_is_completed(doubling: Path, scenario: str) -> None:
    load = {"rate": 200.0, "latency_ms": 1e4, "seconds": 0.2, "queries": 50}
    with Executor(doubling, streams=2, threads=1, max_queue_size=0) as executor:
        summary = measured(executor, scenario, **load)
        counts = executor.counts
    assert f"Scenario : {scenario}" in summary
    assert "Result is" in summary
    assert counts.answered == counts.accepted >= 50
