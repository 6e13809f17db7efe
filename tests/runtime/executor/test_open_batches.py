"""Executors of artifacts whose batch is open: any number of samples, alone and gathered."""

from __future__ import annotations

import random
import time
from concurrent.futures import wait
from pathlib import Path

import models
import numpy as np
import pytest
from clients import together
from test_executor import Gate, occupied

from qcompiler import Error, Executor, load
from qcompiler.ir import Array

ONE = {"streams": 1, "threads": 1}
SIZES = (1, 7, 8, 9, 40, 64, 2, 1)
WHERE = [{}, {"isolation": "processes"}]


def same(found: object, wanted: object) -> None:
    for a, b in zip(found, wanted, strict=True):  # type: ignore[call-overload]
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("where", WHERE, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_results_are_those_of_the_model(opened: Path, where: dict, threads: int) -> None:
    model, samples = load(opened), [models.sample(i, n) for i, n in enumerate(SIZES)]
    with Executor(opened, streams=2, threads=threads, **where) as executor:
        for x, found in zip(samples, executor.map(samples), strict=True):
            same(found, model(x))
        same(executor.submit({"x": samples[3]}).result().values(), model(samples[3]))


def test_a_number_that_the_artifact_does_not_take_fails_alone(opened: Path) -> None:
    with Executor(opened, **ONE) as executor:
        for count in (0, 65):
            error = executor.submit(models.sample(0, count)).exception()
            assert isinstance(error, Error)
            assert "the artifact takes batch = 1 to 64" in str(error)
        assert executor.submit(models.sample(0, 3)[:, :5]).exception() is not None
        same(executor.run(models.sample(1, 3)), load(opened)(models.sample(1, 3)))


@pytest.mark.parametrize("where", WHERE, ids=str)
def test_what_waits_is_gathered_and_nothing_is_filled_up(opened: Path, where: dict) -> None:
    gate, model = Gate(), load(opened)
    samples = [models.sample(i, 1 + i % 5) for i in range(18)]
    with Executor(opened, max_batch=24, pool=gate.pool, **where, **ONE) as executor:
        first = occupied(executor, models.sample(99, 1))
        futures = [executor.submit(x) for x in samples]
        gate.open()
        wait([first, *futures])
        for x, future in zip(samples, futures, strict=True):
            same(future.result(), rows_of(model, x))
        counts = executor.counts
    assert counts.runs == 4  # 1, then 51 samples by at most 24
    assert counts.rows == 1 + sum(map(len, samples))


def rows_of(model: object, x: Array) -> list[Array]:
    """Every sample as it is computed alone: of this model the same bits in every batch."""
    alone = [model(x[i : i + 1]) for i in range(len(x))]  # type: ignore[operator]
    return [np.concatenate(y) for y in zip(*alone, strict=True)]


def test_any_number_of_samples_is_split_over_the_streams(opened: Path) -> None:
    x, model = models.sample(3, 150), load(opened)
    found = model(x[:64]), model(x[64:128]), model(x[128:])
    wanted = [np.concatenate(y) for y in zip(*found, strict=True)]
    with Executor(opened, max_batch=1000, streams=2, threads=1) as executor:
        same(executor.run(x), wanted)
        same(executor.run({"x": x}).values(), wanted)
        assert executor.counts.rows == 300


@pytest.mark.parametrize("where", WHERE, ids=str)
def test_too_few_samples_are_filled_up(where: dict) -> None:
    made = models.opened("4..16", best=4)
    model = load(made)
    with Executor(made, max_batch=8, **where, **ONE) as executor:
        for rows in (1, 3, 4, 5, 8):
            x = models.sample(rows, rows)
            whole = np.concatenate([x, np.repeat(x[:1], max(0, 4 - rows), axis=0)])
            same(executor.run(x), [y[:rows] for y in model(whole)])
    with Executor(made, **ONE) as executor:
        assert isinstance(executor.submit(models.sample(0, 3)).exception(), Error)


@pytest.mark.parametrize(("asked", "rows"), [((), 8), ((), 16), ((3,), 3), ((3, 5), 5)])
def test_a_preferred_batch_does_not_wait_for_more(
    opened: Path, asked: tuple[int, ...], rows: int
) -> None:
    gate, hour = Gate(), 3_600_000_000
    options = {"max_batch": 60, "preferred_batch": asked, "max_queue_delay_us": hour}
    with Executor(opened, pool=gate.pool, **options, **ONE) as executor:
        first = [executor.submit(models.sample(0, 1)) for _ in range(min((*asked, 8)))]
        while not gate.pool._waiting:
            time.sleep(1e-3)
        futures = [executor.submit(models.sample(i, 1)) for i in range(rows)]
        gate.open()
        done, waiting = wait([*first, *futures], timeout=60)
        assert not waiting
        assert len(done) == len(first) + rows
        assert executor.counts.runs == 2
        last = executor.submit(models.sample(0, 1))
        executor.close()
        assert last.exception() is None


def test_a_preferred_batch_is_at_least_one_sample(opened: Path) -> None:
    with pytest.raises(Error, match="preferred batch"):
        Executor(opened, max_batch=8, preferred_batch=(4, 0))


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_many_clients_of_many_shapes_get_what_is_theirs(precision: str, tmp_path: Path) -> None:
    path = models.opened(precision=precision).save(tmp_path / "model.qc")
    model = load(path)

    def client(seed: int, executor: Executor) -> None:
        luck = random.Random(seed)
        for turn in range(40):
            x = models.sample(1000 * seed + turn, luck.randrange(1, 30))
            same(executor.run(x), rows_of(model, x))

    with Executor(path, max_batch=32, max_queue_delay_us=200, streams=2, threads=1) as executor:
        together(lambda seed: client(seed, executor))


def test_a_worker_that_died_gets_the_run_of_any_size_again(opened: Path) -> None:
    from test_processes import children, kill

    model = load(opened)
    with Executor(opened, isolation="processes", **ONE) as executor:
        for count in (3, 64, 5):
            kill(children())
            same(executor.run(models.sample(count, count)), model(models.sample(count, count)))
        assert executor.counts.restarted == 3


def test_the_server_tells_clients_that_the_batch_is_open(opened: Path) -> None:
    from qcompiler.runtime.serve import protocol

    model = load(opened)
    told = protocol.metadata("opened", model.inputs, model.outputs, any_batch=False)
    assert [v["shape"] for v in (*told["inputs"], *told["outputs"])] == [[-1, models.WIDTH]] * 3  # type: ignore[misc]


@pytest.mark.parametrize("where", WHERE, ids=str)
def test_texts_of_any_length_run_too(where: dict) -> None:
    made = models.lengths()
    model = load(made)
    texts = [models.sample(i, n)[None] for i, n in enumerate((1, 31, 32, 5, 17))]
    with Executor(made, streams=2, threads=1, **where) as executor:
        for x, found in zip(texts, executor.map(texts), strict=True):
            same(found, model(x))
        assert isinstance(executor.submit(models.sample(0, 33)[None]).exception(), Error)
    with pytest.raises(Error, match=r"batch of 1|one shape"):
        Executor(made, max_batch=4, **where)
