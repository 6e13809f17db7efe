"""`bench` of an executor: many requests at once, in a closed or an open loop."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.cli import flags, show
from qcompiler.cli.arguments import percentiles
from qcompiler.cli.inputs import inputs_of
from qcompiler.errors import Error, compiler_needed
from qcompiler.files import write_text
from qcompiler.runtime.executor.options import Executing

if TYPE_CHECKING:
    from qcompiler.runtime.executor import Executor
    from qcompiler.runtime.executor.load import Load

_WANTED = (
    "hint",
    "streams",
    "pipeline",
    "requests",
    "rate",
    "concurrency",
    "max_batch",
    "report",
)
"""Any of these flags means that an executor is benchmarked, not single runs."""


def wanted(a: Namespace) -> bool:
    """Whether `bench` is of an executor."""
    return any(getattr(a, name) for name in _WANTED) or a.isolation != "threads"


def bench(a: Namespace) -> int:
    """Artifact -> its requests a second and their latencies."""
    from qcompiler.runtime.executor import Executor

    points = percentiles(a.percentile)
    if a.remote or a.tracker or a.per_step or a.iterations:
        raise Error("--remote, --per-step and --iterations time single runs, not requests")
    if a.report:
        with compiler_needed():
            from qcompiler.cli.load_page import page
    hint = a.hint or ("latency" if a.streams == 1 else "throughput")
    keywords = flags.read(Executing, a, hint=hint)
    with Executor(a.artifact, **vars(keywords)) as executor:
        given: Mapping[str, object] = next(iter(inputs_of(a, executor)))
        if keywords.max_batch:
            given = {name: np.asarray(array)[:1] for name, array in given.items()}
        concurrency = a.concurrency or executor.choice.streams * max(1, keywords.max_batch)
        _load(executor, a, given, concurrency, warm=True)
        load = _load(executor, a, given, concurrency)
        answer = _answer(a, executor, load, points, concurrency)
        if a.report:
            times = [s * 1e3 for s in load.latencies]
            write_text(a.report, page(executor.manifest.name, answer, times))
    if a.json:
        show.say_json(answer)
        return 0
    facts = {k: v for k, v in answer.items() if k not in ("histogram", "measured")}
    shown = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in facts.items()}
    show.say(show.facts(shown))
    return 0


def _load(
    executor: Executor,
    a: Namespace,
    given: Mapping[str, object],
    concurrency: int,
    *,
    warm: bool = False,
) -> Load:
    from qcompiler.runtime.executor import load

    if warm:
        count = max(a.warmup, concurrency)
        return load.closed(executor, given, concurrency=concurrency, requests=count, seconds=0)
    if a.rate:
        return load.poisson(
            executor, given, rate=a.rate, requests=a.requests, seconds=a.duration, seed=a.seed
        )
    return load.closed(
        executor, given, concurrency=concurrency, requests=a.requests, seconds=a.duration
    )


def _answer(
    a: Namespace, executor: Executor, load: Load, points: tuple[float, ...], concurrency: int
) -> dict[str, object]:
    from qcompiler.runtime.executor.tally import BOUNDS

    if not load.latencies:
        raise Error("no request was answered", where=executor.manifest.name)
    choice, times = executor.choice, np.array(load.latencies) * 1e3
    counts = np.histogram(times, [0, *(b * 1e3 for b in BOUNDS), np.inf])[0]
    arrivals = {"rate": a.rate} if a.rate else {"concurrency": concurrency}
    return {
        "variant": executor.variant.isa,
        "streams": choice.streams,
        "threads": choice.threads,
        **({"stages": choice.stages} if choice.bounds else {}),
        "chosen": choice.why,
        **arrivals,
        "requests": len(times),
        "seconds": load.seconds,
        "requests_per_second": load.answered_per_second,
        "mean_ms": float(times.mean()),
        **{f"p{p:g}_ms": float(np.percentile(times, p)) for p in points},
        "max_ms": float(times.max()),
        "late": load.late,
        "refused": load.refused,
        "failed": load.failed,
        "measured": choice.measured,
        "histogram": {"bounds_ms": [b * 1e3 for b in BOUNDS], "counts": counts.tolist()},
    }
