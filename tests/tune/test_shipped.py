"""Records that ship with the package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qcompiler import plugins
from qcompiler.autotune.tasks import tasks_of
from qcompiler.cli import main
from qcompiler.demo import MODEL
from qcompiler.driver import Compilation
from qcompiler.options import Options
from qcompiler.tune import shipped
from qcompiler.tune.records import CHOSEN, Line, Measured, write

DIGITS = Options(threads=1, input_shapes={"image": (1, 1, 8, 8)}, no_shipped_records=True)


def test_all_that_ships_counts() -> None:
    plugins.load_all()
    found = shipped.shipped()
    assert not found.stale
    assert all(x.line == CHOSEN for x in found.lines)
    assert len(found.chosen) == len(found.lines)


@pytest.fixture
def ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Line, Line]:
    """A record that ships, and another for the same kernel."""
    made = Compilation(MODEL, DIGITS)
    task = max(tasks_of([(made.plan, "host")]), key=lambda t: len(t.choices))
    lines = [Line(CHOSEN, task.key, c.record(1e-6)) for c in task.choices[1:3]]
    write(path := tmp_path / "host.jsonl", Measured((lines[0],)))
    monkeypatch.setattr(shipped, "files", lambda: [path])
    return lines[0], lines[1]


def knobs_of(made: Compilation, line: Line) -> list[tuple[str, object]]:
    from qcompiler.kernels.facts import sealed
    from qcompiler.kernels.registry import setting

    found = []
    for step in made.plan.steps:
        how = step.decision
        if how is not None and sealed(step.region, made.device).key == line.key.region:
            assert how.chosen is not None
            found.append((how.origin, dict(setting(how.chosen.candidate.knobs))))
    return found


def test_a_record_that_ships_decides_unless_a_file_says_otherwise_or_none_shall(
    ships: tuple[Line, Line], tmp_path: Path
) -> None:
    first, other = ships
    usual = replace(DIGITS, no_shipped_records=False)
    mine = Compilation(MODEL, usual)
    assert set(map(str, knobs_of(mine, first))) == {str(("shipped", dict(first.record.knobs)))}
    again = Compilation(MODEL, usual)
    assert (
        mine.built.save(tmp_path / "a").read_bytes()
        == again.built.save(tmp_path / "b").read_bytes()
    )
    write(path := tmp_path / "own.jsonl", Measured((other,)))
    own = Compilation(MODEL, replace(usual, tuning_records=path))
    assert set(map(str, knobs_of(own, first))) == {str(("recorded", dict(other.record.knobs)))}
    none = Compilation(MODEL, DIGITS)
    assert {origin for origin, _ in knobs_of(none, first)} == {""}


def test_explanations_say_what_ships(
    ships: tuple[Line, Line], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["inspect", str(MODEL), "--threads", "1", "--plan", "--explain", "--no-progress"]
    assert main([*words, "--input-shape", "image=1x1x8x8"]) == 0
    assert "shipped" in capsys.readouterr().out
    assert main([*words, "--input-shape", "image=1x1x8x8", "--no-shipped-records"]) == 0
    assert "shipped" not in capsys.readouterr().out
