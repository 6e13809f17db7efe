"""Whole runs of a tuner: with times that a test makes up, and with what may go wrong in between."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tuning_harness import MadeUp, Scripted, others, product, small, task, tuned

from qcompiler.artifact.artifact import open_artifact
from qcompiler.autotune import again, check, measure, region_file, trial
from qcompiler.autotune.builder import Builder
from qcompiler.autotune.measure import Bench
from qcompiler.autotune.places import Gone, Here, Ran, Runs, There
from qcompiler.autotune.request import Tuning, seconds
from qcompiler.autotune.tasks import tasks_of
from qcompiler.autotune.tune import Report, Tuner, subject_of
from qcompiler.cli import main
from qcompiler.driver import Compilation
from qcompiler.errors import Error, Skip
from qcompiler.ir import Array
from qcompiler.options import Options
from qcompiler.runtime import load
from qcompiler.runtime.remote.device import Limits, Server
from qcompiler.tune import records
from qcompiler.tune.journal import Journal
from qcompiler.tune.records import CHOSEN, MEASURED, Line

TOKEN = b"a token of a test's own"
FLAGS = ["--threads", "1", "--no-progress"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    small(path)
    return path


@pytest.fixture(scope="module")
def first(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Report]:
    """A file that a run wrote, and its report."""
    path = tmp_path_factory.mktemp("tuned") / "records.jsonl"
    report = tuned(model, path, 2.0)
    return path.read_bytes(), report


def test_a_run_finds_what_is_faster_and_the_next_goes_on(
    model: Path, tmp_path: Path, first: tuple[bytes, Report]
) -> None:
    path = tmp_path / "records.jsonl"
    written, report = first
    path.write_bytes(written)
    assert report.search.tried > 0
    assert not report.wrong
    (subject,) = report.subjects
    assert subject.verdict is not None
    assert subject.verdict.ratio == pytest.approx(0.9)
    found = records.read(path)
    assert len(found.chosen) == subject.chosen > 0
    lines = [x for x in found.lines if x.line == MEASURED]
    assert len(lines) >= report.search.tried

    sample = {"x": np.random.default_rng(1).random((40, 64), np.float32)}
    made = [Compilation(model, Options(threads=1, tuning_records=path)) for _ in range(2)]
    artifacts = [m.artifact.save(tmp_path / f"{i}.qc") for i, m in enumerate(made)]
    assert artifacts[0].read_bytes() == artifacts[1].read_bytes()
    assert sum(s.decision is not None and s.decision.recorded for s in made[0].plan.steps) > 0
    for name, output in load(artifacts[0]).run(sample).items():
        usual = load(small(model).artifact).run(sample)[name]
        np.testing.assert_allclose(output, usual, rtol=1e-4, atol=1e-4)

    again_ = tuned(model, path, 0.5)
    assert again_.search.tried >= report.search.tried
    measured = [s for s in again_.search.states for _ in s.results]
    assert len(measured) >= report.search.tried


def test_what_makes_no_model_faster_is_not_chosen(
    model: Path, tmp_path: Path, first: tuple[bytes, Report]
) -> None:
    path, place = tmp_path / "records.jsonl", MadeUp(1)
    path.write_bytes(first[0])
    before = records.read(path).chosen
    assert before
    place.after = 1.0
    report = tuned(model, path, 0.5, place)
    (subject,) = report.subjects
    assert subject.verdict is not None
    assert not subject.verdict.faster
    assert not subject.chosen
    plan = Compilation(model, Options(threads=1, tuning_records=path)).plan
    usual = small(model).plan
    for mine, other in zip(plan.steps, usual.steps, strict=True):
        assert mine.decision is not None
        assert other.decision is not None
        assert mine.decision.chosen is not None
        assert other.decision.chosen is not None
        assert mine.decision.chosen.candidate.knobs == other.decision.chosen.candidate.knobs


class Lucky(MadeUp):
    """Tuned models are fast in the first process that runs them, and no faster in others."""

    def __init__(self, first: dict[bytes, MadeUp] | None = None) -> None:
        super().__init__(1)
        self.first = {} if first is None else first

    def run(self, artifact: Path, inputs: Mapping[str, Array], runs: Runs) -> Ran:
        self.after = 0.9 if self.first.setdefault(artifact.read_bytes(), self) is self else 1.0
        return super().run(artifact, inputs, runs)

    def again(self) -> Lucky:
        return Lucky(self.first)


def test_what_was_luck_is_not_chosen(
    model: Path, tmp_path: Path, first: tuple[bytes, Report]
) -> None:
    path, place = tmp_path / "records.jsonl", Lucky()
    path.write_bytes(first[0])
    report = tuned(model, path, 0.5, place)
    assert place.first
    (subject,) = report.subjects
    assert subject.verdict is not None
    assert not subject.verdict.faster
    assert not subject.chosen


def test_a_plan_is_tuned_as_a_whole(model: Path, tmp_path: Path) -> None:
    subject = subject_of(small(model))
    path = tmp_path / "records.jsonl"
    with Journal(path) as journal, Tuner([subject], Tuning(time=30.0), journal, [MadeUp(1)]) as t:
        t._tune_whole(subject, 30.0)
        (line,) = subject.lines.values()
        assert subject.plan.parts == line.record.knobs["parts"] > 1
    found = records.read(path).lines
    assert {x.line for x in found} == {MEASURED}  # not yet confirmed
    again_ = subject_of(small(model))
    with Journal(path) as journal, Tuner([again_], Tuning(time=30.0), journal, [MadeUp(1)]) as t:
        t._tune_whole(again_, 30.0)
    assert again_.lines == subject.lines
    assert records.read(path).lines == found  # nothing is measured twice


def test_what_crashes_among_others_is_found_and_thrown_away() -> None:
    t = task()
    crashing = {str(c) for c in t.choices[2:3]}
    with Builder() as builder:
        made: dict[Path, list[str]] = {}
        build = builder.trial

        def watched(*a: object, **k: object) -> object:
            path, places = build(*a, **k)  # type: ignore[arg-type]
            made[path] = [str(c) for c in a[1]]  # type: ignore[attr-defined]
            return path, places

        builder.trial = watched  # type: ignore[assignment, method-assign]

        def answer(path: Path, inputs: Mapping[str, Array]) -> Ran:
            if crashing.intersection(made[path]):
                raise Error("it crashed on the device: SIGSEGV")
            manifest = open_artifact(path).manifest
            ran = load(path).run(dict(inputs))
            return Ran(list(ran.values()), [1e-6] * len(manifest.variants[0].steps), [])

        bench = Bench(Scripted(answer), builder)
        found = bench.results(t, t.choices[:4])
        bench.close()
    assert [r.why for r in found] == ["", "", "it crashed on the device: SIGSEGV", ""]
    assert all(r.ratio == 1.0 for r in found if r.counts)


def test_a_place_where_the_default_fails_too_is_lost() -> None:
    calls = 0

    def answer(path: Path, inputs: Mapping[str, Array]) -> Ran:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise Error("the device cannot start a process")
        manifest = open_artifact(path).manifest
        ran = load(path).run(dict(inputs))
        return Ran(list(ran.values()), [1e-6] * len(manifest.variants[0].steps), [])

    t = task()
    bench = Bench(Scripted(answer), Builder())
    bench.baseline(t)
    with pytest.raises(Gone, match="nothing runs there any more"):
        bench.results(t, t.choices[:2])
    bench.close()


def test_what_is_wrong_is_told_kept_and_seen_again(tmp_path: Path) -> None:
    t = task()

    def answer(path: Path, inputs: Mapping[str, Array]) -> Ran:
        manifest = open_artifact(path).manifest
        outputs = list(load(path).run(dict(inputs)).values())
        if len(outputs) > 2:
            outputs[1] = outputs[1] + np.float32(3)
        return Ran(outputs, [1e-6] * len(manifest.variants[0].steps), [])

    bench = Bench(Scripted(answer), Builder())
    first, second = bench.results(t, others(t)[:2])
    bench.close()
    assert first.wrong
    assert "off by 3" in first.why
    assert not second.wrong
    path = check.keep(t, first.choice, first.why, measure.SEED, tmp_path / "wrong")
    assert json.loads(path.read_text())["why"] == first.why
    assert again.again(path) == ""  # the place was wrong, not the kernel


def test_a_default_that_drifts_is_measured_again_and_told() -> None:
    t = task()
    moved = iter([0.0, 0.1, 0.0, 0.0, 0.0, *[0.2] * 20])  # the first is the baseline's

    def answer(path: Path, inputs: Mapping[str, Array]) -> Ran:
        manifest = open_artifact(path).manifest
        ran = load(path).run(dict(inputs))
        steps = [1e-6] * len(manifest.variants[0].steps)
        steps[-1] += 1e-6 * next(moved)
        return Ran(list(ran.values()), steps, [])

    place = Scripted(answer)
    bench = Bench(place, Builder())
    (steady,) = bench.results(t, t.choices[:1])
    assert not steady.drifted
    assert len(place.runs) == 1 + 4
    (drifting,) = bench.results(t, t.choices[1:2])
    assert drifting.drifted
    bench.close()


def test_a_compiler_that_hangs_or_crashes_is_an_error_and_the_next_one_runs() -> None:
    t = task()
    with Builder(seconds=1e-3) as builder:
        with pytest.raises(Error, match=r"it was not compiled within 0\.001 s"):
            builder.trial(t, [t.default])
        builder.seconds = 300.0
        path, _ = builder.trial(t, [t.default])
        assert path.exists()
        process = builder._process
        assert process is not None
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSEGV)
        process.join()
        path, _ = builder.trial(t, [t.default])
        assert path.exists()
    assert not path.exists()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), TOKEN, folder, Limits()) as server:
        threading.Thread(target=server.serve, daemon=True).start()
        yield server


def test_a_fleet_goes_on_without_a_device_that_is_lost(model: Path, tmp_path: Path) -> None:
    subject = subject_of(small(model))
    path = tmp_path / "records.jsonl"
    with serving(tmp_path / "a") as a, serving(tmp_path / "b") as b, serving(tmp_path / "c") as c:
        places = [There(s.address, TOKEN, 60.0) for s in (a, b, c)]
        lost = b.address
        assert len({p.host for p in places}) == 1
        news = 0

        def notified(*_: object) -> None:
            nonlocal news
            news += 1
            if news == 2:
                b.close()

        with Journal(path) as journal:
            asked = Tuning(time=5.0, plans=False)
            with Tuner([subject], asked, journal, places, notified) as tuner:
                report = tuner.run()
                left = [x.place.name for x in tuner.benches]
    assert news > 2
    assert lost not in {x.place.name for x in report.search.benches}
    assert len(left) == 3
    assert report.search.tried > 0
    assert all(x.host == places[0].host for x in records.read(path).lines)


def test_a_killed_run_loses_nothing_that_was_written(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    killed(model, path, lines=3, delay=0.0)
    found = records.read(path).lines
    assert len(found) >= 3
    with Journal(path) as journal:
        assert journal.found.lines == found


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_goes_on_each_time(model: Path, tmp_path: Path) -> None:
    """At random moments: while the model is compiled, a trial is built, runs, or is written."""
    path, chance = tmp_path / "records.jsonl", random.Random(0)
    kept: tuple[Line, ...] = ()
    for _ in range(20):
        killed(model, path, lines=chance.randrange(4), delay=chance.uniform(0, 1))
        found = records.read(path).lines if path.exists() else ()
        assert found[: len(kept)] == kept
        kept = found
    tried = [x for x in kept if x.line != CHOSEN]
    ways = {(x.key, x.record.generator, x.record.threads, str(x.record.knobs)) for x in tried}
    whole = [x for x in tried if x.key.region.startswith("plan ")]
    assert len({str(x.record.knobs) for x in whole}) == len(whole)  # measured once
    report = tuned(model, path, 5.0)
    keys = {s.task.key for s in report.search.states}
    assert report.search.tried >= len([way for way in ways if way[0] in keys])
    assert len(ways) > len(whole)
    assert not report.wrong
    assert records.read(path).lines[: len(kept)] == kept


def killed(model: Path, path: Path, lines: int, delay: float) -> None:
    """Start a run, and kill it so many seconds after so many more lines are there, unless it has
    ended before.
    """
    before = path.read_bytes().count(b"\n") if path.exists() else 0
    words = [sys.executable, "-m", "qcompiler", "tune", model, *FLAGS, "--time", "60s", "-o", path]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            while process.poll() is None:
                if path.exists() and path.read_bytes().count(b"\n") >= before + lines:
                    break
                time.sleep(0.05)
            time.sleep(delay)
            assert process.poll() in (None, 0)
        finally:
            process.kill()


def test_the_command_says_what_there_is_to_tune(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", str(model), *FLAGS, "--dry-run"]
    assert main([*words, "--json", "--time", "5m"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seconds"] == 300.0
    assert told["tasks"] == len(told["rows"])
    assert told["candidates"] == sum(r["candidates"] for r in told["rows"])
    assert main([*words, "--only", "fir.*"]) == 0
    said = capsys.readouterr().out
    assert "first" in said
    assert "second" not in said


def test_the_command_tunes_and_its_file_is_shown_merged_and_pruned(
    model: Path, tmp_path: Path, first: tuple[bytes, Report], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "records.jsonl"
    assert main(["tune", str(model), *FLAGS, "--time", "1s", "--json", "-o", str(path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tried"] > 0
    assert told["tasks"]
    assert told["curve"]
    both = tmp_path / "both.jsonl"
    both.write_bytes(first[0])
    known = records.read(both).chosen
    capsys.readouterr()
    assert main(["records", "merge", str(path), str(both), "-o", str(both)]) == 0
    assert records.read(both).chosen == {**records.read(path).chosen, **known}
    assert main(["records", "prune", str(both), "-o", str(both)]) == 0
    whole = records.read(both)
    assert len([x for x in whole.lines if x.line == CHOSEN]) == len(whole.chosen)
    capsys.readouterr()
    assert main(["records", "show", str(both), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["chosen"]) == len(whole.chosen)
    assert main(["records", "show", str(both)]) == 0
    assert "choices" in capsys.readouterr().out


def test_mistakes_of_the_command_are_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "records.jsonl"
    words = ["tune", str(model), *FLAGS, "--time", "1s", "-o", str(path)]
    with Journal(path):
        assert main(words) == 1
    assert "another tuner writes this file" in capsys.readouterr().err
    assert main([*words, "--target", "haswell,zen4"]) == 1
    assert "one target is tuned at a time" in capsys.readouterr().err
    assert main(["records", "merge", str(path)]) == 1
    assert "where to write it is missing" in capsys.readouterr().err
    path.write_text("nonsense\n")
    assert main(words) == 1
    assert "no JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "meant"), [("60s", 60), ("5m", 300), ("1.5h", 5400), ("10", 10), ("2min", 120)]
)
def test_times_are_read_with_their_units(word: str, meant: float) -> None:
    assert seconds(word) == meant


@pytest.mark.parametrize("word", ["", "s", "-3s", "5 parsecs", "1e99s", "nan"])
def test_what_is_no_time_is_refused(word: str) -> None:
    with pytest.raises(Error, match="no time to spend"):
        seconds(word)


def test_a_trial_on_this_machine_gives_outputs_and_times(tmp_path: Path) -> None:
    t = task()
    with Builder() as builder:
        path, (place,) = builder.trial(t, [t.default])
        assert isinstance(place, trial.Place)
        inputs = trial.values(region_file.alone(t.region), 2)
        here = Here(1)
        ran = here.run(path, inputs, Runs(rounds=2, iterations=3, limit=60.0))
        here.close()
    assert len(ran.times) == 3
    assert len(ran.steps) == len(set(place.steps)) * 2 + 2  # what is read is written, for both
    meant = check.meaning(region_file.alone(t.region), inputs)
    assert meant is not None
    assert not check.difference(ran.outputs[place.output], meant, t.region)


def test_one_file_serves_several_threads_of_a_plan() -> None:
    two = tasks_of([(product(threads=2), "host")])
    one = tasks_of([(product(threads=1), "host")])
    assert two[0].key.region == one[0].key.region
    assert two[0].key.device != one[0].key.device
    assert not isinstance(replace(two[0], names=("x",)), Skip)
