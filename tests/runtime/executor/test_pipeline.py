"""Stages of a model on threads of their own: samples pass through in order, and come out right."""

from __future__ import annotations

import gc
import json
import os
import random
import threading
from concurrent.futures import wait
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import models
import numpy as np
import pytest
from clients import fork_while_busy
from test_executor import Gate

from qcompiler import Error, Executor, load
from qcompiler.runtime.executor import Closed, Pool, choose
from qcompiler.runtime.executor.pipeline import Line, cut, stages_of
from qcompiler.runtime.library import Code, Frame, Team

TWO = {"pipeline": 2, "threads": 1}


def sample(seed: int) -> np.ndarray:
    return models.sample(seed, 1)


def same(found: object, wanted: object) -> None:
    for a, b in zip(found, wanted, strict=True):  # type: ignore[call-overload]
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("stages", [2, 3, 5, 99])
@pytest.mark.parametrize("threads", [1, 2])
def test_results_are_those_of_the_model_in_order(chain: Path, stages: int, threads: int) -> None:
    model, samples = load(chain), [sample(i) for i in range(40)]
    wanted = [model(x) for x in samples]
    with Executor(chain, pipeline=stages, threads=threads) as executor:
        steps = len(executor.variant.steps)
        assert 2 <= executor.choice.stages <= min(stages, steps)
        assert executor.choice.streams == executor.choice.stages + 1
        assert f"{executor.choice.stages} stages" in str(executor.choice)
        for found, expected in zip(executor.map(samples), wanted, strict=True):
            same(found, expected)
        futures = [executor.submit({"x": x}) for x in samples]
        for future, expected in zip(futures, wanted, strict=True):
            same(future.result().values(), expected)


def test_batches_pass_through_stages(batched: Path) -> None:
    model, x = load(batched), models.sample(3, 21)
    whole = np.concatenate([x, np.zeros((3, models.WIDTH), np.float32)])
    wanted = [
        np.concatenate(each)[:21] for each in zip(*map(model, np.split(whole, 3)), strict=True)
    ]
    with Executor(batched, max_batch=8, **TWO) as executor:
        same(executor.run(x), wanted)


def test_the_longest_stage_is_as_short_as_can_be() -> None:
    luck = random.Random(0)
    for _ in range(300):
        steps, stages = luck.randrange(1, 9), luck.randrange(1, 6)
        seconds = [luck.choice((0.0, 1e-6, luck.random())) for _ in range(steps)]
        bounds = cut(seconds, stages)
        assert (bounds[0], bounds[-1]) == (0, steps)
        assert all(a < b for a, b in pairwise(bounds))
        assert len(bounds) <= stages + 1
        assert longest(seconds, bounds) <= least(seconds, stages) * (1 + 1e-9)


def longest(seconds: list[float], bounds: tuple[int, ...]) -> float:
    return max(sum(seconds[a:b]) for a, b in pairwise(bounds))


def least(seconds: list[float], stages: int) -> float:
    """The longest stage of the best of all ways."""
    steps = len(seconds)
    return min(
        longest(seconds, (0, *inner, steps))
        for count in range(min(stages, steps))
        for inner in combinations(range(1, steps), count)
    )


def test_stages_work_on_different_samples_at_once(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither stage goes on before both are at work, except for the first and the last sample."""
    meeting, launch, met = threading.Barrier(2), Frame.launch, []
    alone = {(0, 0), (1, 9)}
    seen = [0, 0]

    def together(frame: Frame, code: Code, team: Team | None, first: int, last: int) -> None:
        if threading.current_thread().name.startswith("qcompiler-stage-"):
            stage = int(first > 0)
            at = (stage, seen[stage])
            seen[stage] += 1
            if at not in alone:
                meeting.wait(60)
                met.append(at)
        launch(frame, code, team, first, last)

    with Executor(chain, pool=Pool(2), **TWO) as executor:
        monkeypatch.setattr(Frame, "launch", together)
        list(executor.map([sample(i) for i in range(10)]))
    assert len(met) == 18


def test_what_fails_in_a_stage_fails_alone(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, bad = Frame.launch, sample(99)
    wanted = load(chain)(sample(0))

    def failing(frame: Frame, code: Code, team: Team | None, first: int, last: int) -> None:
        if first and frame_input(frame) == bad[0, 0]:
            raise MemoryError("none is left")
        launch(frame, code, team, first, last)

    def frame_input(frame: Frame) -> float:
        import ctypes

        return float(ctypes.c_float.from_address(frame.table[0]).value)

    with Executor(chain, **TWO) as executor:
        monkeypatch.setattr(Frame, "launch", failing)
        futures = [executor.submit(x) for x in (sample(0), bad, sample(0)) * 5]
        for i, future in enumerate(futures):
            if i % 3 == 1:
                assert isinstance(future.exception(60), MemoryError)
            else:
                same(future.result(60), wanted)
        assert executor.counts.failed == 5


def test_a_wrong_request_fails_alone(chain: Path) -> None:
    with Executor(chain, **TWO) as executor:
        bad, good = executor.submit(sample(0)[:, :3]), executor.submit(sample(0))
        assert isinstance(bad.exception(), Error)
        same(good.result(), load(chain)(sample(0)))


def test_stages_wait_for_their_turn_at_the_pool(chain: Path) -> None:
    gate = Gate()
    with Executor(chain, pool=gate.pool, **TWO) as executor:
        future = executor.submit(sample(0))
        cancelled = [executor.submit(sample(1)) for _ in range(20)]
        assert sum(f.cancel() for f in cancelled) >= 17  # three may be on their way
        assert not future.done()
        gate.open()
        same(future.result(60), load(chain)(sample(0)))
        wait(cancelled)


def test_a_closed_pipeline_ends_what_it_began(chain: Path) -> None:
    gate = Gate()
    executor = Executor(chain, pool=gate.pool, **TWO)
    futures = [executor.submit(sample(i)) for i in range(30)]
    executor.close(wait=False)
    gate.open()
    wait(futures)
    errors = [f.exception() for f in futures]
    assert sum(isinstance(e, Closed) for e in errors) >= 27
    assert all(e is None or isinstance(e, Closed) for e in errors)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_pipelines_leave_nothing_behind(chain: Path) -> None:
    def cycle() -> None:
        with Executor(chain, pipeline=3, threads=2, pool=Pool(6)) as executor:
            executor.run(sample(0))

    def held() -> tuple[int, int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("memfd:qcompiler"), len(stages())

    cycle()
    before = held()
    for _ in range(10):
        cycle()
    assert held() == before
    assert stages() == []


def stages() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("qcompiler-stage")]


def test_stages_begin_with_the_first_crew_and_end_with_the_last(chain: Path) -> None:
    model = load(chain)
    line = Line((0, 3, len(model.variant.steps)), Pool(2), threads=1, spin_us=0)
    for _ in range(2):
        one, two = line.caller(model), line.caller(model)
        assert len(stages()) == 2
        one.end()
        same(two.run([sample(1)]), model(sample(1)))
        two.end()
        assert stages() == []
    model.close()
    with pytest.raises(Error, match="closed"):
        line.caller(model)
    assert stages() == []


def test_what_cannot_be_cut_is_refused(chain: Path, opened: Path) -> None:
    with pytest.raises(Error, match="threads of one process"):
        Executor(chain, isolation="processes", **TWO)
    with pytest.raises(Error, match="batch is open"):
        Executor(opened, **TWO)
    artifact = load(chain).artifact
    notes = {"parts": "4"}
    made = replace(artifact, manifest=replace(artifact.manifest, notes=notes), origin=None)
    with pytest.raises(Error, match="4 parts of the batch"):
        Executor(made, **TWO)


def test_one_stage_is_no_pipeline(chain: Path) -> None:
    with Executor(chain, pipeline=1, streams=2, threads=1) as executor:
        assert not executor.choice.bounds
        same(executor.run(sample(0)), load(chain)(sample(0)))


def test_the_hint_takes_a_pipeline_that_is_faster(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried where the cores' caches together hold the weights, and one core's does not."""
    weights = load(chain).artifact.binaries[0].weights.nbytes
    asked = []

    def rate(model: object, arrays: object, setup: choose.Setup, bounds: object) -> float:
        asked.append(setup)
        return 10.0 * setup.stages + setup.threads

    monkeypatch.setattr(choose, "_rate", rate)
    monkeypatch.setattr("qcompiler.hardware.cpu.cores", lambda: 4)
    for share, stages in ((2.5, 3), (0.5, 1), (9, 1)):
        monkeypatch.setattr("qcompiler.hardware.cpu.cache_bytes", lambda _: int(weights / share))  # noqa: B023
        asked.clear()
        with Executor(chain, hint="throughput", remember=False) as executor:
            assert executor.choice.stages == stages
            assert max(s.stages for s in asked) == stages
            same(executor.run(sample(0)), load(chain)(sample(0)))


def test_a_pipeline_that_was_measured_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models.chain().save(tmp_path / "chain.qc")
    weights = load(path).artifact.binaries[0].weights.nbytes
    monkeypatch.setattr("qcompiler.hardware.cpu.cores", lambda: 2)
    monkeypatch.setattr("qcompiler.hardware.cpu.cache_bytes", lambda _: weights // 2 + 64)
    monkeypatch.setattr(choose, "_rate", lambda model, arrays, setup, cut: float(setup.stages))
    with Executor(path, hint="throughput") as executor:
        first = executor.choice
    assert first.stages == 2
    monkeypatch.setattr(choose, "_rate", lambda *_: 1 / 0)
    with Executor(path, hint="throughput") as executor:
        assert executor.choice.bounds == first.bounds
        same(executor.run(sample(0)), load(path)(sample(0)))
    kept = path.with_name("chain.qc.executor.json")
    told = json.loads(kept.read_text())
    last = first.bounds[-1]
    for wrong in ([0, 3], [1, 3, last], [0, 9, 3, last], ["x"], [0, last, last]):
        kept.write_text(json.dumps({k: {**v, "bounds": wrong} for k, v in told.items()}))
        with pytest.raises(ZeroDivisionError):
            Executor(path, hint="throughput")


def test_steps_are_cut_by_what_they_take(chain: Path) -> None:
    model = load(chain)
    bounds = stages_of(model, 3, 1, [sample(0)])
    assert bounds[0] == 0
    assert bounds[-1] == len(model.variant.steps)
    assert len(bounds) <= 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_in_the_middle_of_requests_is_safe(chain: Path) -> None:
    fork_while_busy(chain, 10, pipeline=2)
