"""What was measured decides how kernels are made, and lies in a file that no kill breaks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
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
    offered,
    setting,
)
from qcompiler.ops import make
from qcompiler.plan.choose import APART
from qcompiler.plan.plan import plan
from qcompiler.plan.sharing import VERSION, WHOLE, key_of, planned
from qcompiler.tune import records
from qcompiler.tune.journal import Journal
from qcompiler.tune.records import (
    APART_VERSION,
    CHOSEN,
    MEASURED,
    Key,
    Line,
    Measured,
    described,
)

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


def chosen(
    generator: str,
    candidate: Candidate,
    seconds: float = 1e-6,
    version: int = 1,
    line: str = CHOSEN,
) -> Line:
    made = Record(generator, version, setting(candidate.knobs), seconds)
    return Line(line, Key(region().key, described(DEVICE)), made, 0.9, 0.01, "y")


def record(
    generator: str, candidate: Candidate, seconds: float = 1e-6, version: int = 1
) -> Measured:
    return Measured((chosen(generator, candidate, seconds, version),))


def test_knobs_are_whole_numbers_and_words_in_records() -> None:
    @dataclass(frozen=True)
    class Flagged:
        flag: bool = True
        rows: int = 3
        order: str = "kn"

    found = setting(Flagged())
    assert found == {"flag": 1, "rows": 3, "order": "kn"}
    assert {type(v) for v in found.values()} == {int, str}


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


def test_what_was_chosen_last_counts() -> None:
    both = record("tiled", ways("tiled")[-1], 1e-6) | record("plain", ways("plain")[0], 2e-6)
    how = choose(region(), DEVICE, both)
    assert isinstance(how.kernel, Kernel)
    assert how.kernel.name.startswith("matmul_plain")


def test_a_measurement_alone_decides_nothing() -> None:
    line = chosen("tiled", ways("tiled")[-1], line=MEASURED)
    assert not choose(region(), DEVICE, Measured((line,))).recorded


def test_records_of_others_decide_nothing() -> None:
    line = chosen("tiled", ways("tiled")[-1])
    for key, made in (
        (replace(line.key, region=line.key.region + " "), line.record),
        (replace(line.key, device=described(device(isas()[-1], 2))), line.record),
        (line.key, replace(line.record, version=2)),
        (line.key, replace(line.record, knobs={**line.record.knobs, "rows": 1000})),
    ):
        how = choose(region(), DEVICE, Measured((replace(line, key=key, record=made),)))
        assert not how.recorded
        assert how.chosen is not None
        assert setting(how.chosen.candidate.knobs) != line.record.knobs


def test_those_of_other_versions_are_named() -> None:
    best = ways("tiled")[0]
    all_ = record("tiled", best, version=0) | record("tiled", best) | record("vanished", best)
    assert {x.made_by for x in all_.stale} == {("tiled", 0), ("vanished", 1)}
    assert [x.made_by for x in all_.pruned().lines] == [("tiled", 1)]


def test_a_kernel_may_be_recorded_for_fewer_threads() -> None:
    two = device(isas()[-1], 2)
    x = placeholder("x", Type("float32", (512, 256)))
    root = make("matmul", x, constant(np.ones((256, 512), np.float32), "w"))
    whole = Graph((x,), (root,), ("y",))
    before = plan(whole, two).steps[0]
    assert before.kernel.tasks == 2
    assert before.decision is not None
    assert before.decision.chosen is not None
    (generator,) = (g for g in GENERATORS["matmul"] if g.name == "tiled")
    handed = sealed(before.region, two)
    one = min(offered(generator, handed, two, 1), key=lambda c: c.seconds)
    made = Record("tiled", 1, setting(one.knobs), 1e-6, threads=1)
    line = Line(CHOSEN, Key(handed.key, described(two)), made)
    after = plan(whole, two, records=Measured((line,))).steps[0]
    assert after.kernel.tasks == 1
    assert after.decision is not None
    assert after.decision.recorded


def test_a_region_may_be_recorded_to_run_as_kernels_of_its_own() -> None:
    x = placeholder("x", Type("float32", (8, 64)))
    root = make("matmul", x, constant(np.ones((64, 96), np.float32), "w"))
    whole = Graph((x,), (make("Relu", root),), ("y",))
    (step,) = plan(whole, DEVICE).steps
    key = Key(sealed(step.region, DEVICE).key, described(DEVICE))
    line = Line(CHOSEN, key, Record(APART, APART_VERSION, {}, 1e-6))
    apart = plan(whole, DEVICE, records=Measured((line,)))
    assert [s.region.output.op for s in apart.steps] == ["matmul", "Relu"]


def test_a_plan_may_be_recorded_for_threads_and_parts() -> None:
    x = placeholder("x", Type("float32", (4, 64, 64)))
    whole = Graph((x,), (make("Sqrt", make("Softmax", x, axis=-1)),), ("y",))
    two = device(isas()[-1], 2)
    key = Key(key_of(whole), described(two))
    line = Line(CHOSEN, key, Record(WHOLE, VERSION, {"parts": 2}, 1e-6, threads=1))
    usual = planned(whole, two, None, {}, asked=True)
    assert (usual.parts, usual.device.threads) == (1, 2)
    made = planned(whole, two, None, {}, asked=True, records=Measured((line,)))
    assert (made.parts, made.device.threads) == (2, 1)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    measured = record("tiled", ways("tiled")[-1])
    records.write(path, measured)
    assert records.read(path) == measured
    step = plan(graph(), DEVICE, records=records.read(path)).steps[0]
    assert step.decision is not None
    assert step.decision.recorded
    records.write(path, Measured())
    assert records.read(path) == Measured()


def test_what_a_killed_tuner_did_not_finish_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    first, second = chosen("plain", ways("plain")[0]), chosen("tiled", ways("tiled")[0])
    whole = (records.written(first) + records.written(second)).encode()
    for cut in range(len(records.written(first)), len(whole) + 1, 7):
        path.write_bytes(whole[:cut])
        assert records.read(path).lines == (first,)
        with Journal(path) as journal:
            assert journal.found.lines == (first,)
            journal.add(second)
        assert records.read(path).lines == (first, second)


def test_two_tuners_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Journal(path), pytest.raises(Error, match="another tuner writes this file"):
        Journal(path)
    Journal(path).close()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    line = chosen("tiled", ways("tiled")[0])
    code = (
        "import pathlib, resource, signal, sys\n"
        "from qcompiler import plugins\n"
        "from qcompiler.errors import Error\n"
        "from qcompiler.tune import records\n"
        "from qcompiler.tune.journal import Journal\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "line = records.read(path).lines[0]\n"
        "size = path.stat().st_size\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size + 50, 2 * size + 50))\n"
        "with Journal(path) as journal:\n"
        "    journal.add(line)\n"
        "    try:\n"
        "        journal.add(line)\n"
        "    except Error as e:\n"
        "        print(e.what)\n"
    )
    records.write(path, Measured((line,)))
    said = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "cannot write: File too large" in said.stdout, said.stderr
    assert records.read(path).lines == (line, line)


def test_of_merged_files_the_last_choice_counts() -> None:
    first, second = record("plain", ways("plain")[0]), record("tiled", ways("tiled")[-1])
    kept = records.merged([first, second, first])
    assert [x.record.generator for x in kept.lines] == ["tiled", "plain"]
    best = kept.best(region().key, DEVICE)
    assert best is not None
    assert best.generator == "plain"
    assert kept.pruned().lines == first.lines


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 1}, "format 1, not 2"),
        ({"format": None}, "format None, not 2"),
        ({"line": "guessed"}, "the record is broken"),
        ({"version": True}, "is no count"),
        ({"threads": -1}, "is no count"),
        ({"region": 3}, "is no text"),
        ({"knobs": {"rows": 1.5}}, "its knobs are no whole numbers"),
        ({"seconds": float("nan")}, "is no time"),
        ({"seconds": "1"}, "is no number"),
    ],
)
def test_what_is_no_file_of_records_is_refused(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = tmp_path / "records.jsonl"
    entry = json.loads(records.written(chosen("tiled", ways("tiled")[0])))
    path.write_text(f"{json.dumps({**entry, **change})}\n")
    with pytest.raises(Error, match=said) as e:
        records.read(path)
    assert e.value.where == f"{path}, line 1"
    path.write_text('{"records": []}\n')
    with pytest.raises(Error, match="no tuning record"):
        records.read(path)


def test_candidates_are_listed_without_any_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise AssertionError("code is written before a candidate is chosen")

    monkeypatch.setattr(tir.Builder, "__init__", none)
    for name in ("tiled", "strassen", "plain"):
        assert ways(name)
