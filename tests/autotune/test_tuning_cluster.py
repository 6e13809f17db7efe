"""Tuning on the nodes of a Ray cluster, all on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tuning_harness import small

from qcompiler.autotune.request import Tuning
from qcompiler.autotune.tune import Tuner, subject_of
from qcompiler.errors import Error
from qcompiler.tune import records
from qcompiler.tune.journal import Journal

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")

pytestmark = pytest.mark.slow  # a cluster takes a quarter of a minute to start


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    made.add_node(**node)
    made.add_node(**node)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, configure_logging=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_nodes_share_the_work_and_one_may_be_lost(cluster: Any, tmp_path: Path) -> None:
    from qcompiler.autotune.cluster import nodes

    subject = subject_of(small(tmp_path / "small.onnx"))
    path, news = tmp_path / "records.jsonl", 0
    with pytest.raises(Error, match="no node of the cluster has 64 cores"):
        nodes(64)
    places = nodes(1)
    assert len(places) == 3
    assert len({p.host for p in places}) == 1

    def notified(*_: object) -> None:
        nonlocal news
        news += 1
        if news == 2:
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    asked = Tuning(time=20.0, plans=False)
    with Journal(path) as journal, Tuner([subject], asked, journal, places, notified) as tuner:
        report = tuner.run()
    assert report.search.tried > 0
    assert not report.wrong
    assert all(x.host == places[0].host for x in records.read(path).lines)
