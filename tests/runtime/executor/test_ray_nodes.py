"""A job on four nodes of a Ray cluster, all on this machine: one of them is lost, and the job is
stopped and started again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler import Executor

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")

pytestmark = pytest.mark.slow  # four nodes take half a minute to start

NODES, SAMPLES = 4, 2000


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(NODES - 1):
        made.add_node(**node)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, configure_logging=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_job_of_2000_samples_outlives_a_node(doubling: Path, cluster: Any) -> None:
    samples = (np.full(8, i, np.float32) for i in range(SAMPLES))
    with Executor(doubling, engine="ray") as executor:
        assert executor.choice.streams == NODES
        for number, found in enumerate(executor.map(samples)):
            np.testing.assert_array_equal(found, np.full(8, 2 * number, np.float32))
            if number == SAMPLES // 2:
                cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        counts = executor.counts
    assert (counts.answered, counts.failed) == (SAMPLES, 0)
    assert counts.restarted >= 1


def test_a_job_of_files_that_is_killed_goes_on(
    doubling: Path, cluster: Any, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for part in range(20):
        x = np.arange(part * 800, part * 800 + 800, dtype=np.float32).reshape(100, 8)
        np.savez(data / f"part{part:02}.npz", x=x)
    words = ["run", doubling, "--inputs", data / "*.npz", "--outputs", out, "--engine", "ray"]
    command = [sys.executable, "-m", "qcompiler", *map(str, words)]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        while process.poll() is None and len(list(out.glob("*.done"))) < 5:
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    finished = {p: p.stat().st_mtime_ns for p in out.glob("*.done")}
    assert len(finished) >= 5
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert all(p.stat().st_mtime_ns == when for p, when in finished.items())
    for source in data.iterdir():
        with np.load(source) as given, np.load(out / source.name) as made:
            np.testing.assert_array_equal(made["y"], 2 * given["x"])
