"""What was measured decides which candidate is built, and lies in a file that is checked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from kernel_harness import device, isas, region_of

from qcompiler import plugins
from qcompiler.errors import Error, Skip
from qcompiler.ir import Graph, Type, constant, placeholder
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import (
    GENERATORS,
    Candidate,
    Kernel,
    Record,
    Region,
    choose,
    setting,
)
from qcompiler.ops import make
from qcompiler.plan.plan import plan
from qcompiler.tune import records
from qcompiler.tune.records import Key, Measured, described

plugins.load_all()
DEVICE = device(isas()[-1])


def graph() -> Graph:
    x = placeholder("x", Type("float32", (64, 64)))
    root = make("matmul", x, constant(np.ones((64, 96), np.float32), "w"))
    return Graph((x,), (root,), ("y",))


def region() -> Region:
    made = graph()
    return sealed(region_of(made, made.outputs[0]), DEVICE)


def ways(name: str) -> list[Candidate]:
    (generator,) = (g for g in GENERATORS["matmul"] if g.name == name)
    found = generator.ways(region(), DEVICE)
    assert not isinstance(found, Skip)
    return sorted(found, key=lambda c: c.seconds)


def record(
    generator: str, candidate: Candidate, seconds: float = 1e-6, version: int = 1
) -> Measured:
    key = Key(region().key, described(DEVICE), generator, version)
    return Measured({key: Record(setting(candidate.knobs), seconds)})


def test_the_least_predicted_seconds_win_and_losers_are_kept() -> None:
    how = choose(region(), DEVICE)
    assert how.chosen is not None
    assert not how.recorded
    assert how.chosen.generator == "tiled"
    assert [o.candidate.seconds for o in how.lost] == sorted(o.candidate.seconds for o in how.lost)
    assert all(o.candidate.seconds >= how.chosen.candidate.seconds for o in how.lost)
    assert {"tiled", "plain"} <= {o.generator for o in how.lost}
    assert dict(how.skips)["sparse"] == "its weights have few zero blocks"


def test_what_was_measured_beats_what_is_predicted() -> None:
    last = ways("tiled")[-1]
    how = choose(region(), DEVICE, record("tiled", last))
    assert how.recorded
    assert how.chosen is not None
    assert how.chosen.candidate.knobs == last.knobs
    assert how.chosen.candidate.knobs not in [o.candidate.knobs for o in how.lost]


def test_of_several_generators_the_one_measured_to_be_fastest_wins() -> None:
    both = {
        **record("tiled", ways("tiled")[0], 2e-6).records,
        **record("plain", ways("plain")[0], 1e-6).records,
    }
    how = choose(region(), DEVICE, Measured(both))
    assert isinstance(how.kernel, Kernel)
    assert how.kernel.name.startswith("matmul_plain")


def test_records_of_others_decide_nothing() -> None:
    last = ways("tiled")[-1]
    knobs = setting(last.knobs)
    mine = Key(region().key, described(DEVICE), "tiled", 1)
    for key, said in (
        (Key(mine.region + " ", mine.device, "tiled", 1), knobs),
        (Key(mine.region, described(device(isas()[-1], 2)), "tiled", 1), knobs),
        (Key(mine.region, mine.device, "tiled", 2), knobs),
        (mine, {**knobs, "rows": 1000}),
    ):
        how = choose(region(), DEVICE, Measured({key: Record(said, 1e-6)}))
        assert not how.recorded
        assert how.chosen is not None
        assert how.chosen.candidate.knobs != last.knobs


def test_those_of_other_versions_are_named() -> None:
    best = ways("tiled")[0]
    old, now = record("tiled", best, version=0), record("tiled", best)
    gone = record("vanished", best)
    all_ = Measured({**old.records, **now.records, **gone.records})
    assert {(k.generator, k.version) for k in all_.stale} == {("tiled", 0), ("vanished", 1)}


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    measured = record("tiled", ways("tiled")[-1])
    records.write(path, measured)
    assert records.read(path) == measured
    slower = records.read(path).added(
        *next(iter(record("tiled", ways("tiled")[0], 1.0).records.items()))
    )
    assert slower == measured
    step = plan(graph(), DEVICE, records=records.read(path)).steps[0]
    assert step.decision is not None
    assert step.decision.recorded
    records.write(path, Measured())
    assert records.read(path) == Measured()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2, not 1"),
        ({"records": 3}, "no tuning records"),
        ({"records": [{}]}, "record 0 is broken"),
        ({"records": [{"version": True}]}, "record 0 is broken"),
        ({"records": [{"knobs": {"rows": 1.5}}]}, "its knobs are no whole numbers"),
        ({"records": [{"seconds": float("nan")}]}, "its seconds are no time"),
        ({"records": [{"seconds": "1"}]}, "its seconds are no number"),
    ],
)
def test_what_is_no_file_of_records_is_refused(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = tmp_path / "records.json"
    records.write(path, record("tiled", ways("tiled")[0]))
    document = json.loads(path.read_text())
    entry = document["records"][0]
    if isinstance(change.get("records"), list):
        new = [{**entry, **r} if r else r for r in change["records"]]  # type: ignore[attr-defined]
        change = {"records": new}
    path.write_text(json.dumps({**document, **change}))
    with pytest.raises(Error, match=said) as e:
        records.read(path)
    assert e.value.where == str(path)


def test_candidates_are_listed_without_any_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise AssertionError("code is written before a candidate is chosen")

    monkeypatch.setattr(tir.Builder, "__init__", none)
    for name in ("tiled", "strassen", "plain"):
        assert ways(name)
