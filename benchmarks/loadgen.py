"""MLPerf's load generator against the executor: what the industry's own client measures.

    pip install mlcommons-loadgen
    python -m benchmarks.loadgen model.qc --scenario Server --rate 500 --latency-ms 10 --seconds 60
    python -m benchmarks.loadgen model.qc --scenario Offline --seconds 60

Server: requests come at random times (a Poisson process), and 99 of 100 have to be answered within
`--latency-ms`. Offline: all samples at once. SingleStream: one after the other. It prints the
generator's own summary, which says whether the result is valid; inputs are random.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import qcompiler
from qcompiler.ir import Array

SCENARIOS = ("Server", "Offline", "SingleStream")
SAMPLES = 64


@dataclass
class Client:
    """Hands the generator's queries to an executor, and the answers back."""

    executor: qcompiler.Executor
    samples: Sequence[Mapping[str, Array]]
    generator: Any
    failures: list[BaseException] = field(default_factory=list)

    def issue(self, queries: Sequence[Any]) -> None:
        """Submit queries; each is complete when its request is answered."""
        for query in queries:
            future = self.executor.submit(self.samples[query.index])
            future.add_done_callback(lambda done, id=query.id: self._complete(done, id))  # type: ignore[misc]

    def _complete(self, done: Any, id: int) -> None:
        if (error := done.exception()) is not None:
            self.failures.append(error)
        self.generator.QuerySamplesComplete([self.generator.QuerySampleResponse(id, 0, 0)])


def measured(
    executor: qcompiler.Executor,
    scenario: str,
    *,
    rate: float,
    latency_ms: float,
    seconds: float,
    queries: int = 100,
) -> str:
    """An executor -> the generator's summary. Raises what a request failed with."""
    import mlperf_loadgen as generator

    settings = generator.TestSettings()
    settings.scenario = getattr(generator.TestScenario, scenario)
    settings.mode = generator.TestMode.PerformanceOnly
    settings.min_duration_ms = int(seconds * 1e3)
    settings.min_query_count = queries
    settings.server_target_qps = settings.offline_expected_qps = rate
    settings.server_target_latency_ns = int(latency_ms * 1e6)
    client = Client(executor, _samples(executor), generator)
    sut = generator.ConstructSUT(client.issue, lambda: None)
    library = generator.ConstructQSL(SAMPLES, SAMPLES, lambda _: None, lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        logs = generator.LogSettings()
        logs.log_output.outdir = folder
        logs.enable_trace = False
        generator.StartTestWithLogSettings(sut, library, settings, logs)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
    generator.DestroyQSL(library)
    generator.DestroySUT(sut)
    if client.failures:
        raise client.failures[0]
    return summary


def _samples(executor: qcompiler.Executor) -> list[dict[str, Array]]:
    """Zeros and ones at random, valid as indices."""
    rng = np.random.default_rng(0)
    return [
        {v.name: rng.integers(0, 2, v.shape).astype(v.dtype) for v in executor.inputs}
        for _ in range(SAMPLES)
    ]


def main(words: Sequence[str] | None = None) -> None:
    """Print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--scenario", choices=SCENARIOS, default="Server")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--latency-ms", type=float, default=10.0, help="of the 99th percentile")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    a = parser.parse_args(words)
    options = {"hint": "throughput", "streams": a.streams, "threads": a.threads}
    with qcompiler.Executor(a.artifact, max_queue_size=0, **options) as executor:
        given = {"rate": a.rate, "latency_ms": a.latency_ms, "seconds": a.seconds}
        sys.stdout.write(measured(executor, a.scenario, **given))


if __name__ == "__main__":
    main()
