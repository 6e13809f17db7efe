"""Requests in a closed and in an open loop are counted once each, and timed from when they come."""

from __future__ import annotations

import json
import threading
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler import Error, Executor
from qcompiler.cli import main
from qcompiler.runtime.executor import Pool
from qcompiler.runtime.executor.load import closed, poisson

X = np.ones(8, np.float32)
TWO = {"streams": 2, "threads": 1}


@pytest.mark.parametrize("concurrency", [1, 2, 7])
def test_a_closed_loop_asks_as_often_as_it_is_told(doubling: Path, concurrency: int) -> None:
    with Executor(doubling, **TWO) as executor:
        load = closed(executor, X, concurrency=concurrency, requests=500, seconds=0)
    assert (len(load.latencies), load.failed, load.late) == (500, 0, 0)
    assert executor.counts.answered == 500
    assert 0 < load.answered_per_second < 1e6


def test_a_closed_loop_ends_by_time(doubling: Path) -> None:
    with Executor(doubling, **TWO) as executor:
        load = closed(executor, X, concurrency=3, requests=0, seconds=0.1)
    assert len(load.latencies) == executor.counts.answered > 0
    assert load.seconds >= 0.1


def test_a_closed_loop_cannot_have_more_under_way_than_may_wait(doubling: Path) -> None:
    with (
        Executor(doubling, max_queue_size=2, **TWO) as executor,
        pytest.raises(Error, match="may wait"),
    ):
        closed(executor, X, concurrency=3, requests=1, seconds=0)


def test_what_fails_is_counted(doubling: Path) -> None:
    with Executor(doubling, **TWO) as executor:
        load = closed(executor, X[:1], concurrency=2, requests=2000, seconds=0)
        assert (load.failed, load.latencies) == (2000, [])
        executor._tally.predicted = 10.0
        load = poisson(executor, X, rate=1e5, requests=5, seconds=0, deadline_ms=1)
        assert load.late == 5


def test_latencies_of_an_open_loop_count_from_the_arrival(doubling: Path) -> None:
    """While nobody is answered, requests still come, and all of them wait."""
    pool = Pool(1)
    pool.enter(1)
    timer = threading.Timer(0.3, pool.leave, [1])
    with Executor(doubling, streams=1, threads=1, pool=pool) as executor:
        timer.start()
        load = poisson(executor, X, rate=1000, requests=100, seconds=0)
    assert len(load.latencies) == 100
    assert min(load.latencies) > 0.02  # the last comes about 0.2 s before the first is answered


def test_what_an_open_loop_cannot_submit_is_refused(doubling: Path) -> None:
    pool = Pool(1)
    pool.enter(1)
    options = {"streams": 1, "threads": 1, "max_queue_size": 2, "pool": pool}
    timer = threading.Timer(0.2, pool.leave, [1])
    with Executor(doubling, when_full="refuse", **options) as executor:
        timer.start()
        load = poisson(executor, X, rate=1e4, requests=50, seconds=0)
    assert load.refused + len(load.latencies) == 50
    assert load.refused in (47, 48)  # two wait, and the stream has one, once it has looked


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["bench", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_bench_times_an_executor(batched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(capsys, str(batched), "--streams", "2", "--threads", "1", "--requests", "50")
    assert (found["requests"], found["streams"], found["threads"]) == (50, 2, 1)
    assert found["concurrency"] == 2
    assert found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert sum(found["histogram"]["counts"]) == 50
    points = ("--percentile", "50,99.9")
    found = bench(capsys, str(batched), "--rate", "500", "--requests", "20", *points)
    assert (found["requests"], found["rate"]) == (20, 500)
    assert "p99.9_ms" in found
    options = ("--max-batch", "8", "--concurrency", "16", "--streams", "1", "--threads", "1")
    assert bench(capsys, str(batched), *options, "--requests", "64")["requests"] == 64
    found = bench(capsys, str(batched), "--hint", "latency", "--duration", "0.05")
    assert found["streams"] == 1


def test_bench_without_these_flags_times_single_runs(
    doubling: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "runs" in bench(capsys, str(doubling), "--iterations", "3")


def test_bench_refuses_what_does_not_go_together(
    doubling: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(doubling), "--hint", "latency", "--per-step"]) == 1
    assert "single runs" in capsys.readouterr().err


def test_bench_writes_a_page_with_plots(doubling: Path, tmp_path: Path) -> None:
    file = tmp_path / "load.html"
    words = ["--requests", "50", "--streams", "1", "--threads", "1", "--report", str(file)]
    assert main(["bench", str(doubling), *words]) == 0
    text = file.read_text()
    assert text.count("<rect") > 0
    assert "doubling: requests under load" in text
    assert all(word in text for word in ("p50", "p90", "p99", "requests_per_second"))
    assert "http" not in text  # nothing is loaded from elsewhere
    xml.etree.ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    assert main(["bench", str(doubling), "--requests", "1", *words[2:]]) == 0
