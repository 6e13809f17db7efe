"""Requests of a few samples are gathered into runs of a batch, and get what is theirs."""

from __future__ import annotations

import time
from concurrent.futures import wait
from pathlib import Path

import models
import numpy as np
import pytest
from clients import together
from onnx import TensorProto, helper, numpy_helper
from test_executor import Gate, occupied

from qcompiler import Artifact, Error, Executor, compile, load
from qcompiler.artifact.artifact import open_artifact

ONE = {"streams": 1, "threads": 1}


def test_a_compiled_batch_says_whether_its_samples_are_apart(batched: Path) -> None:
    assert open_artifact(batched).manifest.apart
    assert not models.mixing().manifest.apart
    assert not models.product(batch=1).manifest.apart


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
def test_requests_of_any_size_get_their_own(batched: Path, rows: int) -> None:
    model = load(batched)
    samples = [models.sample(i, rows) for i in range(30)]
    with Executor(batched, max_batch=8, **ONE) as executor:
        futures = [executor.submit(x) for x in samples]
        for x, future in zip(samples, futures, strict=True):
            whole = np.concatenate([x, np.zeros((8 - rows, models.WIDTH), np.float32)])
            for found, wanted in zip(future.result(), model(whole), strict=True):
                assert found.shape == (rows, models.WIDTH)
                np.testing.assert_array_equal(found, wanted[:rows])


def test_what_waits_is_gathered(batched: Path) -> None:
    gate = Gate()
    with Executor(batched, max_batch=8, pool=gate.pool, **ONE) as executor:
        first = occupied(executor, models.sample(0, 1))
        futures = [executor.submit(models.sample(i, 1)) for i in range(1, 18)]
        gate.open()
        wait([first, *futures])
        counts = executor.counts
    assert (counts.runs, counts.rows) == (4, 18)  # 1, 8, 8, 1


def test_a_request_that_does_not_fit_comes_next(batched: Path) -> None:
    gate = Gate()
    with Executor(batched, max_batch=8, pool=gate.pool, **ONE) as executor:
        futures = [occupied(executor, models.sample(0, 1))]
        futures += [executor.submit(models.sample(i, 5)) for i in range(1, 4)]
        gate.open()
        wait(futures)
        assert executor.counts.runs == 4
        assert all(f.exception() is None for f in futures)


def test_a_request_waits_for_others_as_long_as_it_may(batched: Path) -> None:
    hour = 3_600_000_000
    with Executor(batched, max_batch=2, max_queue_delay_us=hour, **ONE) as executor:
        first = executor.submit(models.sample(0, 1))
        time.sleep(0.05)
        assert not first.done()
        second = executor.submit(models.sample(1, 1))
        wait([first, second], timeout=30)
        assert executor.counts.runs == 1
    with Executor(batched, max_batch=8, max_queue_delay_us=1000, **ONE) as executor:
        executor.submit(models.sample(0, 1)).result(30)


def test_closing_does_not_wait_for_more(batched: Path) -> None:
    hour = 3_600_000_000
    executor = Executor(batched, max_batch=8, max_queue_delay_us=hour, streams=3, threads=1)
    future = executor.submit(models.sample(0, 1))
    time.sleep(0.05)
    executor.close()
    assert future.exception() is None


def test_any_number_of_samples_is_split_and_put_together(batched: Path) -> None:
    x = models.sample(3, 53)
    model = load(batched)
    whole = np.concatenate([x, np.zeros((3, models.WIDTH), np.float32)])
    wanted = [np.concatenate(each) for each in zip(*map(model, np.split(whole, 7)), strict=True)]
    with Executor(batched, max_batch=8, streams=2, threads=1) as executor:
        for found in (executor.run(x), executor.run({"x": x}).values(), executor.run(x[:53])):
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b[:53])


def test_what_is_wrong_fails_alone_among_others(batched: Path) -> None:
    wrong = [
        np.zeros((0, models.WIDTH), np.float32),
        np.zeros((9, models.WIDTH), np.float32),
        np.zeros((1, models.WIDTH + 1), np.float32),
        np.zeros((1, models.WIDTH), np.float64),
        np.zeros(models.WIDTH, np.float32),
    ]
    good = [models.sample(i, 1) for i in range(len(wrong))]
    with Executor(batched, max_batch=8, **ONE) as executor:
        pairs = [(executor.submit(a), executor.submit(b)) for a, b in zip(wrong, good, strict=True)]
        assert all(isinstance(bad.exception(), Error) for bad, _ in pairs)
        assert all(ok.exception() is None for _, ok in pairs)


def test_a_cancelled_request_is_not_in_the_batch(batched: Path) -> None:
    gate = Gate()
    with Executor(batched, max_batch=8, pool=gate.pool, **ONE) as executor:
        first = occupied(executor, models.sample(0, 1))
        futures = [executor.submit(models.sample(i, 1)) for i in range(9)]
        for future in futures[::2]:
            future.cancel()
        gate.open()
        wait([first, *futures[1::2]])
        assert executor.counts.rows == 1 + 4


def test_not_a_number_stays_with_its_sample(batched: Path) -> None:
    gate = Gate()
    bad = np.full((1, models.WIDTH), np.nan, np.float32)
    with Executor(batched, max_batch=8, pool=gate.pool, **ONE) as executor:
        occupied(executor, bad)
        futures = [executor.submit(x) for x in (bad, models.sample(1, 1), bad)]
        gate.open()
        assert np.isnan(futures[0].result()[1]).all()
        assert np.isfinite(futures[1].result()[0]).all()


def test_samples_that_mix_are_not_gathered() -> None:
    with pytest.raises(Error, match="every sample by itself"):
        Executor(models.mixing(), max_batch=4, **ONE)
    with pytest.raises(Error, match="a batch of 1"):
        Executor(models.product(batch=1), max_batch=4, **ONE)
    with pytest.raises(Error, match="no batch in common"):
        Executor(_scalar(), max_batch=4, **ONE)


def _scalar() -> Artifact:
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    opsets = [helper.make_opsetid("", 20)]
    return compile(helper.make_model(graph, opset_imports=opsets, ir_version=10), threads=1)


def test_rows_that_meet_by_rounding_are_not_gathered() -> None:
    """Strassen's products pair neighbouring rows: a value that is not finite shows in both."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [768, 768])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [768, 768])],
        [numpy_helper.from_array(np.ones((768, 768), np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    made = compile(model, target="zen4", threads=1).manifest
    assert "strassen" in made.steps[0].kernel
    assert not made.apart


def test_many_clients_get_what_is_theirs(batched: Path) -> None:
    model = load(batched)

    def client(seed: int, executor: Executor) -> None:
        rng = np.random.default_rng(seed)
        for turn in range(60):
            rows = int(rng.integers(1, 9))
            x = models.sample(1000 * seed + turn, rows)
            whole = np.concatenate([x, np.zeros((8 - rows, models.WIDTH), np.float32)])
            for found, wanted in zip(executor.run(x), model(whole), strict=True):
                np.testing.assert_array_equal(found, wanted[:rows])

    with Executor(batched, max_batch=8, max_queue_delay_us=200, streams=2, threads=1) as executor:
        together(lambda seed: client(seed, executor))
