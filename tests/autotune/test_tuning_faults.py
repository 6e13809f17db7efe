"""What may go wrong while a tuner runs: places that lie or hang, a disk that is full; and records
that another model takes over.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tuning_harness import MadeUp, small, task, tuned

from qcompiler.autotune import measure, region_file, trial
from qcompiler.autotune.builder import Builder
from qcompiler.autotune.places import Here, Ran, Runs
from qcompiler.cli import main
from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.ir import Array
from qcompiler.options import Options
from qcompiler.runtime import load
from qcompiler.tune import records
from qcompiler.tune.journal import Journal
from qcompiler.tune.records import CHOSEN, FAILED


class Lying(MadeUp):
    """What it computes beside the default is wrong."""

    def run(self, artifact: Path, inputs: Mapping[str, Array], runs: Runs) -> Ran:
        found = super().run(artifact, inputs, runs)
        beside = len(found.outputs) > 2
        outputs = [o + np.float32(1) * (beside and i > 0) for i, o in enumerate(found.outputs)]
        return replace(found, outputs=outputs)

    def again(self) -> MadeUp:
        return MadeUp(1)


def test_what_a_place_computes_wrongly_is_never_chosen(tmp_path: Path) -> None:
    small(model := tmp_path / "small.onnx")
    report = tuned(model, path := tmp_path / "records.jsonl", 0.1, Lying(1))
    assert report.wrong
    assert all(p.exists() and p.parent.name == "records.wrong" for p in report.wrong)
    lines = records.read(path).lines
    wrong = [x for x in lines if x.line == FAILED]
    assert wrong
    assert all(x.why.startswith("wrong: off by 1") for x in wrong)
    assert CHOSEN not in {x.line for x in lines}  # others have the default's code, and are right


def test_the_command_fails_where_a_candidate_was_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(model := tmp_path / "small.onnx")
    monkeypatch.setattr("qcompiler.autotune.places.Here", Lying)
    words = ["tune", str(model), "--threads", "1", "--no-progress", "--time", "1s"]
    assert main([*words, "-o", str(tmp_path / "records.jsonl")]) == 1
    said = capsys.readouterr()
    assert "a candidate was wrong: " in said.out


class Full(Journal):
    """No room is left after some lines."""

    room = 3

    def add(self, *lines: records.Line) -> None:
        if len(self.found.lines) >= self.room:
            raise Error("cannot write: No space left on device", where=str(self.path))
        super().add(*lines)


def test_a_full_disk_ends_a_run_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(model := tmp_path / "small.onnx")
    path = tmp_path / "records.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("tuning_harness.Journal", Full)
        with pytest.raises(Error, match="No space left on device"):
            tuned(model, path, 60.0)
    before = records.read(path).lines
    assert len(before) >= Full.room
    report = tuned(model, path, 0.1)
    assert report.search.tried > len(before)
    assert records.read(path).lines[: len(before)] == before


def test_a_process_that_hangs_is_ended_and_the_next_one_runs() -> None:
    t = task()
    with Builder() as builder:
        path, _ = builder.trial(t, [t.default])
        inputs = trial.values(region_file.alone(t.region), measure.SEED)
        here = Here(1)
        here.run(path, inputs, Runs(rounds=1, limit=60.0))
        child = here._worker._child
        assert child is not None
        os.kill(child.process.pid, signal.SIGSTOP)
        with pytest.raises(Error, match=r"it took more than 0\.2 s, and was ended"):
            here.run(path, inputs, Runs(rounds=1, limit=0.2))
        assert child.process.poll() is not None
        assert here.run(path, inputs, Runs(rounds=1, limit=60.0)).steps
        here.close()


def test_records_of_a_model_make_another_that_has_its_kernels(tmp_path: Path) -> None:
    small(model := tmp_path / "small.onnx")
    tuned(model, path := tmp_path / "records.jsonl", 0.1)
    chosen = records.read(path).chosen
    assert chosen
    small(deeper := tmp_path / "deeper.onnx", seed=1, copies=3)
    options = Options(threads=1, tuning_records=path)
    made = [Compilation(deeper, options) for _ in range(2)]
    recorded = [s.decision.recorded for s in made[0].plan.steps if s.decision is not None]
    assert sum(recorded) == 3 * len(chosen)
    artifacts = [m.artifact.save(tmp_path / f"{i}.qc") for i, m in enumerate(made)]
    assert artifacts[0].read_bytes() == artifacts[1].read_bytes()
    x = {"x": np.random.default_rng(1).random((40, 64), np.float32)}
    usual = load(Compilation(deeper, Options(threads=1)).artifact).run(x)
    for name, output in load(artifacts[0]).run(x).items():
        np.testing.assert_allclose(output, usual[name], rtol=1e-4, atol=1e-4)
    small(wider := tmp_path / "wider.onnx", rows=44)
    other = Compilation(wider, options).plan
    assert not any(s.decision and s.decision.recorded for s in other.steps)
    assert {x.line for x in records.read(path).lines} >= {CHOSEN}
