"""How many streams there are, and threads of each: as asked, or measured once and remembered."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import models
import numpy as np
import pytest

from qcompiler import Error, Executor, load
from qcompiler.runtime import Model
from qcompiler.runtime.executor import choose


def rates(monkeypatch: pytest.MonkeyPatch, table: dict[tuple[int, int], float]) -> list[object]:
    """Measurements find this; -> what was measured."""
    asked: list[object] = []

    def rate(model: object, arrays: object, setup: choose.Setup, bounds: object) -> float:
        asked.append(setup)
        return table[setup[:2]]

    monkeypatch.setattr(choose, "_rate", rate)
    monkeypatch.setattr("qcompiler.hardware.cpu.cores", lambda: 4)
    return asked


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """An artifact for four threads."""
    return models.product(batch=512, threads=4).save(tmp_path / "four.qc")


def test_throughput_takes_the_most_runs_a_second(
    four: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = rates(monkeypatch, {(4, 1): 100.0, (2, 2): 110.0, (1, 4): 90.0})
    with Executor(four, hint="throughput") as executor:
        choice = executor.choice
        assert (choice.streams, choice.threads) == (2, 2)
        assert choice.measured == ((4, 1, 1, 100.0), (2, 2, 1, 110.0), (1, 4, 1, 90.0))
        assert "110 runs a second" in str(choice)
        assert executor.run(models.sample(0, 512))[0].shape == (512, models.WIDTH)
    assert len(asked) == 9


def test_latency_takes_the_shortest_run_of_one_stream(
    four: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates(monkeypatch, {(1, 1): 100.0, (1, 2): 180.0, (1, 4): 181.0})
    with Executor(four, hint="latency") as executor:
        assert (executor.choice.streams, executor.choice.threads) == (1, 2)  # 4 gain too little


def test_what_was_measured_is_remembered_beside_the_artifact(
    four: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {(4, 1): 100.0, (2, 2): 110.0, (1, 4): 90.0}
    rates(monkeypatch, table)
    Executor(four, hint="throughput").close()
    asked = rates(monkeypatch, table)
    with Executor(four, hint="throughput") as executor:
        assert (executor.choice.streams, executor.choice.threads) == (2, 2)
        assert "as measured before" in str(executor.choice)
    assert not asked
    rates(monkeypatch, {(1, 1): 1.0, (1, 2): 2.0, (1, 4): 3.0})
    Executor(four, hint="latency").close()
    assert len(json.loads(four.with_name("four.qc.executor.json").read_text())) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', "\x00", "nesting"])
def test_a_file_that_is_no_memory_is_written_anew(
    four: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    rates(monkeypatch, {(4, 1): 100.0, (2, 2): 110.0, (1, 4): 90.0})
    path = four.with_name("four.qc.executor.json")
    path.write_text("[" * 100_000 if text == "nesting" else text)
    Executor(four, hint="throughput").close()
    assert any(c["streams"] == 2 for c in json.loads(path.read_text()).values() if c != 1)


def test_a_memory_that_makes_no_sense_is_not_believed(
    four: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = rates(monkeypatch, {(4, 1): 100.0, (2, 2): 110.0, (1, 4): 90.0})
    Executor(four, hint="throughput").close()
    path = four.with_name("four.qc.executor.json")
    kept = json.loads(path.read_text())
    for wrong in ({"streams": 99}, {"threads": "many"}, {"measured": [[1]]}, {"streams": None}):
        path.write_text(json.dumps({k: {**v, **wrong} for k, v in kept.items()}))
        asked.clear()
        Executor(four, hint="throughput").close()
        assert len(asked) == 9


def test_a_folder_that_is_read_only_will_do(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, {(4, 1): 100.0, (2, 2): 110.0, (1, 4): 90.0})

    def refused(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refused)
    with Executor(four, hint="throughput") as executor:
        assert executor.choice.streams == 2
    assert not list(four.parent.glob("*.json"))


def test_nothing_is_written_where_that_is_not_wanted(
    four: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates(monkeypatch, {(4, 1): 100.0, (2, 2): 110.0, (1, 4): 90.0})
    Executor(four, hint="throughput", remember=False).close()
    Executor(load(four).artifact, hint="throughput", remember=False).close()
    assert os.listdir(four.parent) == ["four.qc"]


def test_another_artifact_in_its_place_is_measured_again(
    four: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = rates(monkeypatch, {(4, 1): 100.0, (2, 2): 110.0, (1, 4): 90.0})
    Executor(four, hint="throughput").close()
    other = models.product(batch=256, threads=4).save(tmp_path / "other.qc")
    shutil.copy(other, four)
    asked.clear()
    Executor(four, hint="throughput").close()
    assert len(asked) == 9


def test_what_is_asked_for_is_not_measured(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = rates(monkeypatch, {})
    wanted = [
        ({"streams": 3, "threads": 2}, (3, 2)),
        ({"streams": 2}, (2, 2)),
        ({"streams": 9}, (9, 1)),
        ({"threads": 2, "hint": "throughput"}, (2, 2)),
        ({"threads": 2, "hint": "latency"}, (1, 2)),
    ]
    for options, found in wanted:
        with Executor(four, **options) as executor:  # type: ignore[arg-type]
            assert (executor.choice.streams, executor.choice.threads) == found
    assert not asked


def test_what_fails_while_it_is_measured_is_told(
    product: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    caller = Model.caller

    def scarce(model: Model, **options: int) -> object:
        made.append(options)
        if len(made) > 1:
            raise Error("no memory for its workspace")
        return caller(model, **options)

    monkeypatch.setattr(Model, "caller", scarce)
    with pytest.raises(Error, match="no memory"):
        choose._rate(load(product), [models.sample(0)], choose.Setup(4, 1), ())


def test_a_model_is_measured_in_a_moment(product: Path) -> None:
    with Executor(product, hint="throughput", remember=False) as executor:
        x = np.zeros((models.ROWS, models.WIDTH), np.float32)
        assert len(executor.run(x)) == 2
        assert all(value > 0 for *_, value in executor.choice.measured)
