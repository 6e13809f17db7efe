"""Counts of executors -> Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qcompiler.runtime.executor import Executor
from qcompiler.runtime.executor.tally import BOUNDS, Histogram

TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OUTCOMES = ("answered", "failed", "late", "cancelled", "refused")
_TOTALS: Mapping[str, str] = {
    "retried": "Requests that were run again because a worker process died.",
    "restarted": "Worker processes that were started again.",
    "runs": "Runs of the model.",
    "rows": "Samples of all runs.",
}


def text(executors: Mapping[str, Executor], responses: Mapping[int, int]) -> str:
    """Executors by their model's name, and HTTP responses by their status -> the page."""
    return "\n".join((*_lines(executors, responses), ""))


def _lines(executors: Mapping[str, Executor], responses: Mapping[int, int]) -> Iterator[str]:
    counts = {name: e.counts for name, e in executors.items()}
    yield from _head("requests_total", "counter", "Requests, by what became of them.")
    for name, c in counts.items():
        for outcome in _OUTCOMES:
            labels = _labels(model=name, outcome=outcome)
            yield f"qcompiler_requests_total{labels} {getattr(c, outcome)}"
    for what, about in _TOTALS.items():
        yield from _head(f"{what}_total", "counter", about)
        for name, c in counts.items():
            yield f"qcompiler_{what}_total{_labels(model=name)} {getattr(c, what)}"
    yield from _head("waiting", "gauge", "Requests that wait now.")
    for name, e in executors.items():
        yield f"qcompiler_waiting{_labels(model=name)} {e.waiting}"
    for what, about in (("waited", "From request to run."), ("ran", "Of a run.")):
        yield from _head(f"{what}_seconds", "histogram", about)
        for name, c in counts.items():
            yield from _histogram(f"qcompiler_{what}_seconds", name, getattr(c, what))
    yield from _head("http_responses_total", "counter", "HTTP responses, by their status.")
    for status, count in sorted(responses.items()):
        yield f"qcompiler_http_responses_total{_labels(status=str(status))} {count}"


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP qcompiler_{name} {about}"
    yield f"# TYPE qcompiler_{name} {kind}"


def _histogram(name: str, model: str, found: Histogram) -> Iterator[str]:
    total = 0
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), found.counts):
        total += count
        yield f"{name}_bucket{_labels(model=model, le=bound)} {total}"
    yield f"{name}_sum{_labels(model=model)} {found.seconds}"
    yield f"{name}_count{_labels(model=model)} {total}"


def _labels(**labels: str) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
