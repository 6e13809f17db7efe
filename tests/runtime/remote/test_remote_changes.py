"""Artifacts that change, or go, while a device and its clients work with them; and what a device is
sent, or lacks, that no run can use.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from remote_proxy import TOKEN
from test_remote import running

from qcompiler.artifact.artifact import Value, open_artifact
from qcompiler.errors import Error
from qcompiler.runtime.remote import connect, facts, wire
from qcompiler.runtime.remote.device import Server
from qcompiler.runtime.remote.wire import Lost

Data = dict[str, np.ndarray]


@pytest.mark.parametrize("change", [-1000, 0, wire.PART], ids=["cut", "replaced", "grown"])
def test_an_artifact_that_changes_while_it_is_sent_is_an_error(
    device: Server, artifact: Path, data: Data, tmp_path: Path, change: int
) -> None:
    """At once, and the connection stays."""
    path = tmp_path / "changing.qc"
    path.write_bytes(artifact.read_bytes())
    with connect(device.address, TOKEN) as there:
        answer = there._answer

        def changed(*more: Any) -> dict[str, object]:
            if change:
                os.truncate(path, path.stat().st_size + change)
            else:
                path.with_suffix(".new").write_bytes(artifact.read_bytes())
                path.with_suffix(".new").replace(path)
            there._answer = answer  # type: ignore[method-assign]
            return answer(*more)

        there._answer = changed  # type: ignore[method-assign]
        words = "did not arrive as it was sent" if change < 0 else "was replaced while"
        with pytest.raises(Error, match=words) as caught:
            there.load(path)
        assert type(caught.value) is Error
        assert there.load(artifact).run(data)


def test_another_artifact_is_not_sent_in_the_place_of_one_that_is_gone(
    device: Server, artifact: Path, data: Data, tmp_path: Path
) -> None:
    path = tmp_path / "model.qc"
    path.write_bytes(artifact.read_bytes())
    with connect(device.address, TOKEN) as there:
        model = there.load(path)
        for kept in device.store.folder.iterdir():
            kept.unlink()
        open_artifact(path).save(path, compress=True)
        with pytest.raises(Error, match="was replaced while"):
            model.run(data)
        assert there.load(path).run(data)


def test_an_artifact_that_goes_while_its_run_waits_is_sent_again(
    device: Server, artifact: Path, data: Data
) -> None:
    with connect(device.address, TOKEN) as one, connect(device.address, TOKEN) as other:
        model, results = other.load(artifact), []
        with running(one.load(artifact), data):
            waiting = threading.Thread(target=lambda: results.append(model.run(data)), daemon=True)
            waiting.start()
            time.sleep(0.3)
            for kept in device.store.folder.iterdir():
                kept.unlink()
        waiting.join(30)
        assert results


def test_a_device_without_threads_goes_on(
    device: Server, artifact: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(100):  # more than it takes at once
            with pytest.raises(Lost, match="the connection"):
                connect(device.address, TOKEN)
    with connect(device.address, TOKEN) as there:
        assert there.load(artifact).run(data)


@pytest.mark.parametrize("shape", [[1] * 64 + [2, 8], [1 << 50, 1 << 50, 0]], ids=["rank", "sizes"])
def test_a_shape_that_no_array_has_is_an_error(shape: list[int]) -> None:
    value = Value("x", "float32", (2, 8))
    count = 0 if 0 in shape else 16
    with pytest.raises(Error, match="no array has the shape"):
        facts.arrays((value,), bytearray(4 * count), {"shapes": [shape]})
