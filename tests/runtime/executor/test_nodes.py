"""Machines of several NUMA nodes, by a faked /sys: where streams run and their weights lie."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import models
import numpy as np
import pytest

from qcompiler import Executor, load
from qcompiler.hardware import cpu
from qcompiler.runtime import Model
from qcompiler.runtime.executor.nodes import Nodes
from qcompiler.runtime.library import address

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def machine(root: Path, *lists: str) -> Path:
    """A root folder with nodes of these processors."""
    for number, text in enumerate(lists):
        path = root / f"sys/devices/system/node/node{number}/cpulist"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("lists", "wanted"),
    [
        ((), [{0, 1, 2, 3, 8, 9}]),
        (("0-63\n",), [{0, 1, 2, 3, 8, 9}]),
        (("0-1,8\n", "2-3,9\n"), [{0, 1, 8}, {2, 3, 9}]),
        (("0-3\n", "4-7\n", "8-11\n"), [{0, 1, 2, 3}, {8, 9}]),
        (("0-9\n", "\n"), [{0, 1, 2, 3, 8, 9}]),
        (("0-9\n", "what\n"), [{0, 1, 2, 3, 8, 9}]),
    ],
)
def test_nodes_are_those_with_processors_of_this_process(
    tmp_path: Path, lists: tuple[str, ...], wanted: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 8, 9})
    assert cpu.nodes(machine(tmp_path, *lists)) == wanted


def test_nodes_stand_in_the_order_of_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: set(range(24)))
    found = cpu.nodes(machine(tmp_path, *(f"{2 * i}-{2 * i + 1}" for i in range(12))))
    assert found == [frozenset((2 * i, 2 * i + 1)) for i in range(12)]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[int]]:
    """Two nodes, each of one processor: of the same one, where this machine has no more."""
    found = [frozenset((CORES[0],)), frozenset((CORES[-1],))]
    monkeypatch.setattr(cpu, "nodes", lambda: found)
    return found


def streams() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("qcompiler-stream")]


@pytest.mark.parametrize("isolation", ["threads", "processes"])
def test_streams_are_bound_to_the_nodes_in_turn(
    chain: Path, two: list[frozenset[int]], isolation: str
) -> None:
    model, samples = load(chain), [models.sample(i, 1) for i in range(20)]
    before = os.sched_getaffinity(0)
    with Executor(chain, streams=4, threads=1, isolation=isolation) as executor:
        places = [frozenset(os.sched_getaffinity(t.native_id or 0)) for t in streams()]
        assert sorted(map(sorted, places)) == sorted(map(sorted, two * 2))
        for x, found in zip(samples, executor.map(samples), strict=True):
            for a, b in zip(found, model(x), strict=True):
                np.testing.assert_array_equal(a, b)
    assert os.sched_getaffinity(0) == before


def test_streams_wider_than_a_node_are_not_bound(chain: Path, two: list[frozenset[int]]) -> None:
    with Executor(chain, streams=2, threads=2) as executor:
        executor.run(models.sample(0, 1))
        assert all(os.sched_getaffinity(t.native_id or 0) == set(CORES) for t in streams())


def test_each_node_has_one_copy_of_the_weights(chain: Path, two: list[frozenset[int]]) -> None:
    model, nodes = load(chain), Nodes(1)
    found: list[int] = []

    def note(beside: Model) -> None:
        weights = beside.artifact.binaries[0].weights
        found.append(address(weights))
        np.testing.assert_array_equal(weights, model.artifact.binaries[0].weights)

    for _ in range(6):
        thread = threading.Thread(target=nodes.settled, args=(note, model))
        thread.start()
        thread.join()
    assert found == found[:2] * 3  # in turn
    assert len({address(model.artifact.binaries[0].weights), *found}) == 3


def test_a_machine_of_one_node_is_left_alone(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "nodes", lambda: [frozenset(CORES)])
    model, nodes = load(chain), Nodes(1)
    assert nodes.settled(lambda beside: beside, model) is model
    assert os.sched_getaffinity(0) == set(CORES)


def test_two_teams_of_thirty_two_threads_stay_right(tmp_path: Path) -> None:
    """As on two sockets of 32 cores; here they share what cores there are."""
    path = models.product(batch=512, threads=32).save(tmp_path / "wide.qc")
    model, samples = load(path, threads=1), [models.sample(i, 512) for i in range(12)]
    assert load(path).variant.threads == 32
    wanted = [model(x) for x in samples]
    with Executor(path, streams=2, threads=32) as executor:
        assert (executor.choice.streams, executor.choice.threads) == (2, 32)
        for found, expected in zip(executor.map(samples), wanted, strict=True):
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)
