"""A hint -> how many streams, threads of each, and stages: measured for a moment, and remembered.

What was measured is kept in a file beside the artifact, by all that it depends on: the artifact's
digest and variant, the hint, the cores of this process, and the CPU's features.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qcompiler.errors import Error
from qcompiler.files import contents, parsed, write_text
from qcompiler.hardware import cpu
from qcompiler.runtime.arrays import Array
from qcompiler.runtime.caller import Caller
from qcompiler.runtime.executor.pipeline import Line, demand_stages, parts, stages_of
from qcompiler.runtime.executor.pool import Pool
from qcompiler.runtime.library import SPIN_US
from qcompiler.runtime.model import Model, input_specs
from qcompiler.version import __version__

log = logging.getLogger(__name__)

SUFFIX = ".executor.json"
_SECONDS, _ROUNDS = 0.12, 3
"""Each candidate runs for this long, this many times, interleaved with the others."""
_CLEARLY = 1.03
"""A candidate that takes more threads a stream must be this many times better."""
_MOST_KEPT = 64


class Setup(NamedTuple):
    """Streams, and threads of each; where there are several stages, these have the threads."""

    streams: int
    threads: int
    stages: int = 1


@dataclass(frozen=True)
class Choice:
    """How many streams there are, and threads of each; why; and what was measured of each."""

    streams: int
    threads: int
    why: str
    measured: tuple[tuple[int, int, int, float], ...] = ()
    """(Streams, threads, stages, seconds of a run for latency, runs a second for throughput)."""
    bounds: tuple[int, ...] = ()
    """Of a pipeline: the first step of every stage, and the one after the last. Each stage has so
    many threads, and so many streams of samples are on their way.
    """

    @property
    def stages(self) -> int:
        """Stages of a pipeline; 1: there is none."""
        return max(1, len(self.bounds) - 1)

    @property
    def busy(self) -> int:
        """Threads that may run at once."""
        return self.threads * (self.stages if self.bounds else self.streams)

    def __str__(self) -> str:
        if self.bounds:
            what = f"{self.stages} stages of {self.threads} threads, {self.streams} samples in them"
        else:
            what = f"{self.streams} streams of {self.threads} threads"
        return f"{what}: {self.why}"


def piped(model: Model, stages: int, *, streams: int, threads: int, cores: int) -> Choice:
    """The stages that are asked for. Raises Error for a model that has none."""
    demand_stages(model)
    threads = model.useful(threads or max(1, cores // stages))
    bounds = stages_of(model, stages, threads, _inputs(model))
    return Choice(streams or len(bounds), threads, "stages as asked", bounds=bounds)


def chosen(
    model: Model,
    hint: str,
    *,
    streams: int,
    threads: int,
    cores: int,
    remember: bool,
    stages: bool = True,
) -> Choice:
    """What is asked for (0: not), by the hint where it is not; `stages`: a pipeline, too, if that
    may be the best.
    """
    if streams and threads:
        return Choice(streams, threads, "as asked")
    if streams:
        each = model.useful(max(1, cores // streams))
        return Choice(streams, each, "as many streams as were asked for share the cores")
    if threads:
        count = 1 if hint == "latency" else max(1, cores // threads)
        return Choice(count, threads, f"threads as asked, streams for {hint}")
    candidates = _candidates(model, hint, cores)
    candidates += _pipelines(model, cores) if stages and hint == "throughput" else []
    if len(candidates) == 1:
        return Choice(*candidates[0][:2], f"all there is to choose for {hint}")
    key, path = _key(model, hint, cores), _path(model) if remember else None
    known = _recalled(path, key, candidates, len(model.variant.steps))
    if known is not None:
        return known
    made = _measured(model, hint, candidates)
    if path is not None:
        _keep(path, key, made)
    log.info("%s: %s", model.manifest.name, made)
    return made


def _candidates(model: Model, hint: str, cores: int) -> list[Setup]:
    """All without stages, the fewest threads first."""
    counts = []
    threads = 1
    while threads < cores:
        counts.append(threads)
        threads *= 2
    useful = sorted({model.useful(t) for t in (*counts, cores)})
    return [Setup(1 if hint == "latency" else max(1, cores // t), t) for t in useful]


def _pipelines(model: Model, cores: int) -> list[Setup]:
    """A pipeline where it may be the best: a core's own cache does not keep all weights, but the
    cores' together do, so each stage finds its part there again and again.
    """
    cache, weights = cpu.cache_bytes(2), model.artifact.binaries[0].weights.nbytes
    if not cache or not cache < weights <= cache * cores or len(model.variant.steps) < 2:
        return []
    if model.manifest.symbols or model.variant.repeats or parts(model) > 1:
        return []
    stages = -(-weights // cache)
    return [Setup(stages + 1, model.useful(cores // stages), stages)]


def _measured(model: Model, hint: str, candidates: Sequence[Setup]) -> Choice:
    arrays = _inputs(model)
    found: list[list[float]] = [[] for _ in candidates]
    bounds = [
        stages_of(model, c.stages, c.threads, arrays) if c.stages > 1 else () for c in candidates
    ]
    for _ in range(_ROUNDS):
        for setup, cut, kept in zip(candidates, bounds, found):
            kept.append(_rate(model, arrays, setup, cut))
    rates = [statistics.median(kept) for kept in found]
    best = 0
    for number in range(1, len(candidates)):
        if rates[number] > _CLEARLY * rates[best]:
            best = number
    latency = hint == "latency"
    measured = tuple((*c, (c[0] / rate if latency else rate)) for c, rate in zip(candidates, rates))
    streams, threads, _ = candidates[best]
    why = (
        f"{1e3 / rates[best]:.3g} ms a run, the least"
        if latency
        else f"{rates[best]:.4g} runs a second, the most"
    )
    return Choice(streams, threads, why, measured, bounds[best])


def _rate(model: Model, arrays: Sequence[Array], setup: Setup, bounds: Sequence[int]) -> float:
    """Runs a second of all streams, each at least once after one that is not counted."""
    streams, threads, _ = setup
    make = partial(model.caller, threads=threads)
    if bounds:
        pool = Pool(threads * setup.stages)
        make = partial(Line(bounds, pool, threads=threads, spin_us=SPIN_US).caller, model)
    return _rate_of(make, arrays, streams)


def _rate_of(make: Callable[[], Caller], arrays: Sequence[Array], streams: int) -> float:
    ready = threading.Barrier(streams)
    spans: list[tuple[float, float, int]] = []
    failures: list[Exception] = []

    def work() -> None:
        try:
            with closing(make()) as caller:
                caller.run(arrays)
                ready.wait()
                spans.append(_span(caller, arrays))
        except Exception as e:
            failures.append(e)
            ready.abort()  # nobody waits for this one

    workers = [threading.Thread(target=work, daemon=True) for _ in range(streams)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    begin, end = min(s[0] for s in spans), max(s[1] for s in spans)
    return sum(s[2] for s in spans) / (end - begin)


def _span(caller: Caller, arrays: Sequence[Array]) -> tuple[float, float, int]:
    """Run for a moment -> its begin and end, and how many runs there were."""
    start = now = time.perf_counter()
    count = 0
    while now < start + _SECONDS:
        caller.run(arrays)
        count += 1
        now = time.perf_counter()
    return start, now, count


def _inputs(model: Model) -> list[Array]:
    """Zeros and ones, alternating: valid as indices, and not all the same."""
    made = []
    for _, _, dtype, shape in input_specs(model.inputs):
        array = np.zeros(shape, dtype)
        array.reshape(-1)[::2] = 1 if dtype.kind != "b" else True
        made.append(array)
    return made


def _key(model: Model, hint: str, cores: int) -> str:
    origin = model.artifact.origin
    facts = [
        __version__,
        origin.digest if origin else "",
        model.variant.isa,
        hint,
        cores,
        sorted(cpu.features()),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _path(model: Model) -> Path | None:
    origin = model.artifact.origin
    return Path(origin.path + SUFFIX) if origin else None


def _recalled(
    path: Path | None, key: str, candidates: Sequence[Setup], steps: int
) -> Choice | None:
    """What was measured before, if it still makes sense."""
    raw = _kept(path).get(key) if path is not None else None
    if not isinstance(raw, dict):
        return None
    with suppress(KeyError, TypeError, ValueError):
        bounds = tuple(int(b) for b in raw["bounds"])
        why, rows = f"{raw['why']}, as measured before", tuple(_rows(raw["measured"]))
        made = Choice(int(raw["streams"]), int(raw["threads"]), why, rows, bounds)
        sound = not bounds or (bounds[0] == 0 and bounds[-1] == steps)
        sound = sound and sorted(set(bounds)) == list(bounds)
        if sound and (made.streams, made.threads, bool(bounds)) in _kinds(candidates):
            return made
    return None


def _kinds(candidates: Sequence[Setup]) -> set[tuple[int, int, bool]]:
    """Without the number of stages, of which there are fewer where there are few steps."""
    return {(c.streams, c.threads, c.stages > 1) for c in candidates}


def _rows(raw: Any) -> Iterator[tuple[int, int, int, float]]:
    for streams, threads, stages, value in raw:
        yield int(streams), int(threads), int(stages), float(value)


def _kept(path: Path) -> dict[str, Any]:
    """All that the file holds; nothing where there is none, or it is no such file."""
    with suppress(Error, ValueError):
        found = parsed(contents(path))
        if isinstance(found, dict):
            return copy.copy(found)
    return {}


def _keep(path: Path, key: str, made: Choice) -> None:
    """Remember it, where that can be: the folder may be read-only."""
    kept = _kept(path)
    kept.pop(key, None)
    kept = dict(list(kept.items())[-_MOST_KEPT + 1 :])
    kept[key] = asdict(made)
    try:
        write_text(path, json.dumps(kept, indent=1) + "\n")
    except Error as e:
        log.debug("what was measured is not remembered: %s", e)
