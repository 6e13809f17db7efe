"""`tune`, and `records`: arguments -> exit code."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from qcompiler.autotune.request import Tuning
from qcompiler.cli import show
from qcompiler.cli.flags import read
from qcompiler.cli.making import watch_of
from qcompiler.cli.places import demand_writable
from qcompiler.errors import Error
from qcompiler.options import Options

if TYPE_CHECKING:
    from qcompiler.autotune.places import Place
    from qcompiler.autotune.search import Point, Search, State
    from qcompiler.autotune.tune import Report, Subject
    from qcompiler.tune.records import Line, Measured

_SHOWN, _EVERY_SECONDS, _BAR = 12, 0.5, 40
_HEAD = ("step", "runs", "share", "default us", "best", "tried", "left", "gain left", "best way")


def tune(a: Namespace) -> int:
    """ONNX models -> records of what is fastest for them; 1 if a candidate computed nonsense."""
    from qcompiler.autotune.tune import Tuner
    from qcompiler.tune.journal import Journal

    tuning = read(Tuning, a)
    output = a.output or a.models[0].parent / f"{a.models[0].stem}.records.jsonl"
    demand_writable(output, *a.models)
    subjects = _subjects(a)
    if a.dry_run:
        return _dry_run(a, subjects, tuning)
    places = _places(a, subjects, tuning.engine)
    live = Live(enabled=not a.no_progress and not a.json)
    with Journal(output) as journal, Tuner(subjects, tuning, journal, places, live) as tuner:
        try:
            report = tuner.run()
        finally:
            live.close()
    if a.json:
        show.say_json(as_json(report, output))
    else:
        show.say(text(report, output))
    return 1 if report.wrong else 0


def _subjects(a: Namespace) -> list[Subject]:
    from qcompiler import driver
    from qcompiler.autotune.sized import sized
    from qcompiler.autotune.tune import subject_of

    found: list[Subject] = []
    with show.ProgressBar(enabled=not a.no_progress) as bar:
        for model in a.models:
            watch, _ = watch_of(a, bar)
            made = list(driver.compilations(model, read(Options, a, tuning_records=""), watch))
            if len(made) > 1:
                hint = "a run for each of them; they may share a file of records"
                raise Error("one target is tuned at a time", where="--target", hint=hint)
            found += map(subject_of, sized(made[0]))
    return found


def _places(a: Namespace, subjects: Sequence[Subject], engine: str) -> list[Place]:
    """The nodes of a cluster, or the devices that --remote names, those that answer; else this
    machine.
    """
    from qcompiler.autotune.places import Here

    if engine:
        from qcompiler.autotune.cluster import nodes

        if a.remote:
            raise Error("measure on devices or in a cluster, not both", where="--engine")
        return _alike(nodes(subjects[0].base.device.threads), "--engine")
    if not a.remote:
        lacks = subjects[0].base.device.isa.lacks
        if lacks:
            what = f"this machine cannot run it: it lacks {' '.join(lacks)}"
            raise Error(what, where="--target", hint="tune on a device that can, with --remote")
        return [Here(subjects[0].base.device.threads)]
    return _alike(_devices(a), "--remote")


def _devices(a: Namespace) -> list[Place]:
    """The devices that answer. Raises Error where none does."""
    from qcompiler.autotune.places import There
    from qcompiler.runtime.remote.token import token

    secret = token(a.token_file)
    found: list[Place] = []
    faults: list[Error] = []
    for address in a.remote:
        try:
            found.append(There(address, secret, a.wait))
        except Error as e:
            faults.append(e)
            sys.stderr.write(f"left out: {show.plain(str(e))}\n")
    if not found:
        raise faults[0]
    return found


def _alike(places: Sequence[Place], where: str) -> list[Place]:
    """Places, unless their hardware differs."""
    if len({p.host for p in places}) > 1:
        raise Error("these devices are not alike", where=where, hint="a run for each kind")
    return list(places)


def _dry_run(a: Namespace, subjects: Sequence[Subject], tuning: Tuning) -> int:
    from qcompiler.autotune.tasks import tasks_of

    tasks = tasks_of([(s.plan, s.target) for s in subjects], tuning.only)
    whole = sum(t.seconds for t in tasks) or 1.0
    rows = [
        {
            "step": t.names[0],
            "runs": t.count,
            "share": t.seconds / whole,
            "predicted_us": t.default.seconds * 1e6,
            "candidates": len(t.choices),
            "default": str(t.default),
            "device": t.key.device,
        }
        for t in tasks
    ]
    count = sum(len(t.choices) for t in tasks)
    answer = {"seconds": tuning.time, "tasks": len(tasks), "candidates": count}
    if a.json:
        show.say_json({**answer, "rows": rows})
        return 0
    head = ("step", "runs", "share", "predicted us", "candidates", "default")
    cells = [
        (
            t.names[0],
            t.count,
            f"{t.seconds / whole:.1%}",
            f"{t.default.seconds * 1e6:.1f}",
            len(t.choices),
            t.default,
        )
        for t in tasks
    ]
    show.say(show.table(head, cells))
    show.say(
        f"\n{len(tasks)} tasks, {count} candidates, {whole * 1e3:.3f} ms predicted; "
        f"{tuning.time:g} s to measure the most promising ones"
    )
    return 0


def _rows(search: Search) -> list[tuple[object, ...]]:
    """A line for each task, those of most time first."""
    whole = sum(s.share for s in search.states) or 1.0
    states = sorted(search.states, key=lambda s: -s.share)
    return [
        (
            s.task.names[0],
            s.task.count,
            f"{s.share / whole:.1%}",
            f"{(s.seconds or s.task.default.seconds) * 1e6:.1f}",
            f"{s.ratio:.3f}",
            len(s.results),
            len(s.left),
            f"{search.gain(s) / whole:.1%}",
            s.broken or _best(s),
        )
        for s in states
    ]


def _best(state: State) -> str:
    if state.settled:
        return "the default" if state.final is None else str(state.final.choice)
    return "the default" if state.best is None else str(state.best.choice)


class Live:
    """A table on a terminal that is drawn again whenever there is news; elsewhere nothing."""

    def __init__(self, stream: TextIO | None = None, *, enabled: bool = True) -> None:
        self.stream = stream or sys.stderr
        self.enabled = enabled and self.stream.isatty()
        self._lines, self._last = 0, 0.0

    def __call__(self, search: Search, left: float) -> None:
        """Draw."""
        now = time.monotonic()
        if not self.enabled or now < self._last + _EVERY_SECONDS:
            return
        self._last = now
        table = show.table(_HEAD, _rows(search)[:_SHOWN]).splitlines()
        more = len(search.states) - _SHOWN
        told = [f"and {more} more"] if more > 0 else []
        told += [f"{search.tried} tried, {search.ratio:.3f} of the time, {max(left, 0):.0f} s left"]
        self.close()
        lines = [show.plain(line)[:160] for line in (*table, *told)]
        self.stream.write("\r\x1b[K" + "\n".join(lines) + "\n")  # a progress bar may be there
        self.stream.flush()
        self._lines = len(lines)

    def close(self) -> None:
        """Clear it."""
        if self._lines:
            self.stream.write(f"\r\x1b[{self._lines}A\x1b[J")
            self.stream.flush()
            self._lines = 0


def text(report: Report, output: Path) -> str:
    """What a run found, for people."""
    lines = [show.table(_HEAD, _rows(report.search)), ""]
    lines += ["best so far, of all kernels' time with the defaults:"]
    lines += [
        f"  {p.seconds:7.1f} s  {p.tried:6} tried  {p.ratio:.4f}  {'#' * round(_BAR * p.ratio)}"
        for p in _curve(report)
    ]
    lines += ["", *map(_verdict, report.subjects)]
    if report.interrupted:
        lines.append("interrupted: run the same command again to go on")
    lines += [f"a candidate was wrong: {path}" for path in report.wrong]
    return "\n".join([*lines, f"{report.search.tried} tried in {report.seconds:.1f} s -> {output}"])


def _curve(report: Report) -> Iterator[Point]:
    """Points where something better was found, and the last one."""
    best = 2.0
    points = report.search.points
    for p in points:
        if p.ratio < best or p is points[-1]:
            best = min(best, p.ratio)
            yield p


def _verdict(subject: Subject) -> str:
    found = subject.verdict
    if found is None:
        return f"{subject.name}: nothing was found to be faster; the defaults stay"
    how = f"{found.ratio:.3f} of {show.milliseconds(found.seconds)} (noise {found.noise:.3f})"
    if found.wrong:
        return f"{subject.name}: its outputs changed ({found.wrong}); the defaults stay"
    if not found.faster:
        return f"{subject.name}: with all that was found {how}: no faster; the defaults stay"
    return f"{subject.name}: {how}, with {subject.chosen} records"


def as_json(report: Report, output: Path) -> dict[str, object]:
    """The same for programs."""
    names = ("step", "runs", "share", "default_us", "ratio", "tried", "left", "gain_left", "best")
    numbers = [
        (
            s.task.names[0],
            s.task.count,
            s.share,
            s.seconds * 1e6,
            s.ratio,
            len(s.results),
            len(s.left),
            report.search.gain(s),
            s.broken or _best(s),
        )
        for s in report.search.states
    ]
    return {
        "records": str(output),
        "seconds": report.seconds,
        "tried": report.search.tried,
        "interrupted": report.interrupted,
        "wrong": [str(p) for p in report.wrong],
        "models": [
            {
                "name": s.name,
                "records": s.chosen,
                **({} if s.verdict is None else vars(s.verdict) | {"faster": s.verdict.faster}),
            }
            for s in report.subjects
        ],
        "tasks": [dict(zip(names, n, strict=True)) for n in numbers],
        "curve": [vars(p) for p in report.search.points],
    }


def records(a: Namespace) -> int:
    """Files of records -> what is in them, or another file."""
    from qcompiler import plugins
    from qcompiler.tune import records as kept

    plugins.load_all()
    found = kept.merged(kept.read(path) for path in a.files)
    if a.do == "show":
        return _show(a, found)
    if a.do == "prune":
        found = found.pruned()
    if a.output is None:
        raise Error("where to write it is missing", where="-o", hint="-o records.jsonl")
    demand_writable(a.output)
    kept.write(a.output, found)
    chosen, lines = len(found.chosen), len(found.lines)
    if a.json:
        show.say_json({"records": str(a.output), "lines": lines, "chosen": chosen})
    else:
        show.say(f"{a.output}: {lines} lines, {chosen} of them chosen")
    return 0


def _show(a: Namespace, found: Measured) -> int:
    """The choices that count, and how much else there is."""
    stale = len(found.stale)
    rest = len(found.lines) - len(found.chosen) - stale
    if a.json:
        rows = [_as_row(x) for x in found.chosen.values()]
        show.say_json({"chosen": rows, "stale": stale, "others": rest})
        return 0
    head = ("step", "device", "way", "us", "of the default")
    told = map(_as_row, found.chosen.values())
    cells = [
        (r["step"], r["device"], r["way"], f"{r['us']:.2f}", f"{r['ratio']:.3f}") for r in told
    ]
    show.say(show.table(head, cells))
    show.say(f"\n{len(cells)} choices, {rest} other lines, {stale} choices of other generators")
    return 0


def _as_row(line: Line) -> dict[str, Any]:
    r = line.record
    knobs = " ".join(f"{k}={v}" for k, v in r.knobs.items())
    threads = f"threads={r.threads}" if r.threads else ""
    return {
        "step": line.step,
        "device": line.key.device,
        "way": " ".join(filter(None, (r.generator, knobs, threads))),
        "us": r.seconds * 1e6,
        "ratio": line.ratio,
        "region": line.key.region,
    }
