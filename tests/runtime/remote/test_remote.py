"""Models on a device: what they answer, and that whatever goes wrong is one error and no end of
waiting, with nothing left behind.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from remote_proxy import TOKEN, Proxy

import qcompiler
from qcompiler import plugins
from qcompiler.artifact.abi import Table
from qcompiler.artifact.artifact import Artifact, open_artifact
from qcompiler.demo import MODEL
from qcompiler.errors import Error
from qcompiler.hardware import isa
from qcompiler.runtime.remote import RemoteModel, client, connect, wire
from qcompiler.runtime.remote.device import Limits, Server
from qcompiler.runtime.remote.wire import Lost

Data = dict[str, np.ndarray]
Serve = Callable[..., Server]


def children() -> set[int]:
    """Processes in which this one runs artifacts."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread, or a process, that has just ended
            for process in (task / "children").read_text().split():
                if b"remote.child" in Path(f"/proc/{process}/cmdline").read_bytes():
                    found.add(int(process))
    return found


def eventually(holds: Callable[[], object]) -> None:
    """Wait until something holds; a test that waits for ever has found what should end."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came about")


@contextmanager
def running(model: RemoteModel, data: Data) -> Iterator[threading.Thread]:
    """A run of many seconds, begun; it ends with its connection."""
    started, there = children(), model.device

    def run() -> None:
        with pytest.raises(Error):
            model.measure(data, seconds=500.0)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    eventually(lambda: children() - started)
    try:
        yield thread
    finally:
        with suppress(OSError):  # it may have been lost already
            there._channel.socket.shutdown(socket.SHUT_RDWR)
        thread.join(30)
        assert not thread.is_alive()


def test_a_device_runs_open_sizes(device: Server) -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
    net (float[n,m] x) => (float[n,m] y) { y = Abs(x) }""")
    here = qcompiler.compile(model, dims={"n": "1..9", "m": "1..8"}, threads=1)
    with connect(device.address, TOKEN) as there:
        opened = there.load(here)
        for shape in ((1, 1), (9, 8), (4, 3)):
            x = np.full(shape, -2, np.float32)
            answer = opened.measure({"x": x}, steps=1)
            np.testing.assert_array_equal(answer.outputs["y"], -x)
            assert len(answer.steps) == len(opened.variant.steps)
            assert sum(answer.steps) > 0
        with pytest.raises(Error, match="n is 10"):
            opened.run({"x": np.zeros((10, 2), np.float32)})


def test_a_device_answers_outputs_whose_size_data_decide(device: Server) -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
    net (float[3,4] x) => (int64[2,k] places) { places = NonZero(x) }""")
    x = np.eye(3, 4, dtype=np.float32)
    with connect(device.address, TOKEN) as there:
        found = there.load(qcompiler.compile(model, threads=1)).run({"x": x})["places"]
    np.testing.assert_array_equal(found, np.nonzero(x))


def test_a_device_answers_what_this_machine_does(
    device: Server, artifact: Path, data: Data
) -> None:
    here = qcompiler.load(artifact)
    with connect(device.address, TOKEN) as there:
        assert there.facts["version"] == qcompiler.__version__
        model = there.load(artifact)
        for given in (data, {"x": -data["x"]}):
            found, wanted = model.run(given), here.run(given)
            assert list(found) == list(wanted)
            for name, array in wanted.items():
                np.testing.assert_array_equal(found[name], array)
        assert (model.inputs, model.outputs) == (here.inputs, here.outputs)


def test_a_device_times_runs_and_steps(device: Server, artifact: Path, data: Data) -> None:
    with connect(device.address, TOKEN) as there:
        model = there.load(artifact, threads=1)
        found = model.measure(data, iterations=7, warmup=2, steps=3)
        assert len(found.times) == 7
        assert len(found.steps) == len(model.variant.steps)
        assert found.threads == model.threads == 1
        assert min(*found.times, *found.steps, found.first_seconds, found.load_seconds) > 0
        assert len(model.measure(data, seconds=0.01).times) >= 1
        assert len(model.profile(data, repeat=2)) == len(model.variant.steps)
        assert model.measure(data).times == []


def test_an_artifact_in_memory_is_sent_as_well(device: Server, artifact: Path, data: Data) -> None:
    with connect(device.address, TOKEN) as there:
        found = there.load(open_artifact(artifact)).run(data)
    np.testing.assert_array_equal(found["z"], np.abs(data["x"]))


def test_an_artifact_is_sent_once(
    device: Server, artifact: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(device.address, TOKEN) as there:
        there.load(artifact)
    monkeypatch.setattr(device.store, "add", None)
    with connect(device.address, TOKEN) as there:
        there.load(artifact).run(data)
    assert len(list(device.store.folder.iterdir())) == 1


def test_two_devices_work_at_once(serve: Serve, artifact: Path, data: Data) -> None:
    one, other = serve("one"), serve("other")
    with connect(one.address, TOKEN) as first, connect(other.address, TOKEN) as second:
        with running(first.load(artifact), data) as thread:
            found = second.load(artifact).run(data)
            assert thread.is_alive()
        np.testing.assert_array_equal(found["z"], np.abs(data["x"]))


def test_many_connections_take_turns(device: Server, artifact: Path, data: Data) -> None:
    found: list[np.ndarray] = []

    def run() -> None:
        with connect(device.address, TOKEN) as there:
            found.append(there.load(artifact).run(data)["z"])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 4
    eventually(lambda: not children())


def test_a_busy_device_says_so(device: Server, artifact: Path, data: Data) -> None:
    with connect(device.address, TOKEN) as first, connect(device.address, TOKEN) as second:
        waiting = second.load(artifact, wait=0.2)
        busy = pytest.raises(Error, match="busy with another's run")
        with running(first.load(artifact), data), busy:
            waiting.run(data)
        waiting._wait = 60.0  # the first has left in the middle, and the device is free again
        assert waiting.run(data)


def test_a_client_that_leaves_in_the_middle_frees_the_device(
    device: Server, artifact: Path, data: Data
) -> None:
    with connect(device.address, TOKEN) as first:
        with running(first.load(artifact), data):
            pass
        eventually(lambda: not children())
        with pytest.raises(Error, match=r"is lost|connection"):
            first.load(artifact)
    eventually(lambda: not device._run_lock.locked())


def test_a_wrong_token_is_refused(device: Server) -> None:
    with pytest.raises(Error, match="another token") as error:
        connect(device.address, "another token of enough characters")
    assert error.value.where == device.address


def test_the_token_is_never_sent(device: Server, artifact: Path, data: Data) -> None:
    proxy = Proxy(device.address)
    with connect(proxy.address, TOKEN) as there:
        there.load(artifact).run(data)
    assert len(proxy.seen) > artifact.stat().st_size
    for said in (TOKEN.encode(), hashlib.sha256(TOKEN.encode()).digest()):
        assert said not in proxy.seen


def test_half_an_upload_leaves_nothing(device: Server, artifact: Path, data: Data) -> None:
    there = connect(device.address, TOKEN)
    there._channel.send({"do": "upload", "digest": "0" * 64, "size": 3 * wire.PART})
    assert there._answer(there._channel) == {"have": False}
    there._channel.send({}, b"x" * wire.PART)
    eventually(lambda: [p for p in device.store.folder.iterdir() if p.stat().st_size])
    there.close()
    eventually(lambda: not list(device.store.folder.iterdir()))
    with connect(device.address, TOKEN) as again:
        assert again.load(artifact).run(data)


def test_an_upload_that_is_cut_off_is_an_error(device: Server, artifact: Path) -> None:
    left = [2000]

    def cut(data: bytes) -> bytes | None:
        left[0] -= len(data)
        return data if left[0] > 0 else None

    proxy = Proxy(device.address, to_device=cut)
    with connect(proxy.address, TOKEN) as there, pytest.raises(Lost, match="the device is lost"):
        there.load(artifact)
    eventually(lambda: not list(device.store.folder.iterdir()))


def test_another_file_than_was_said_is_not_kept(device: Server, artifact: Path, data: Data) -> None:
    with connect(device.address, TOKEN) as there:
        there._channel.send({"do": "upload", "digest": "0" * 64, "size": 5})
        there._answer(there._channel)
        there._channel.send({}, b"other")
        with pytest.raises(Error, match="did not arrive as it was sent"):
            there._answer(there._channel)
        assert not list(device.store.folder.iterdir())
        assert there.load(artifact).run(data)


def test_a_full_disk_is_an_error_and_the_connection_stays(
    device: Server, artifact: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with connect(device.address, TOKEN) as there:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(Error, match=r"cannot keep the artifact \(No space left"):
                there.load(artifact)
        assert not list(device.store.folder.iterdir())
        assert there.load(artifact).run(data)


def test_an_artifact_that_is_gone_is_sent_again(device: Server, artifact: Path, data: Data) -> None:
    for given in (artifact, open_artifact(artifact)):
        with connect(device.address, TOKEN) as there:
            model = there.load(given)
            for path in device.store.folder.iterdir():
                path.unlink()
            assert model.run(data)


def test_a_device_that_is_lost_in_the_middle_is_an_error(
    device: Server, artifact: Path, data: Data
) -> None:
    address = device.address
    with connect(address, TOKEN) as there:
        with running(there.load(artifact), data):
            device.close()
        eventually(lambda: not children())
    with pytest.raises(Error, match="cannot be reached"):
        connect(address, TOKEN)


def test_a_device_that_falls_silent_is_an_error(
    device: Server, artifact: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = threading.Event()
    proxy = Proxy(device.address, to_client=lambda d: b"" if silent.is_set() else d)
    with connect(proxy.address, TOKEN) as there:
        model = there.load(artifact)
        silent.set()
        monkeypatch.setattr(client, "SILENCE_SECONDS", 0.5)
        with pytest.raises(Lost, match=r"nothing was heard for 0.5 s"):
            model.run(data)


def test_a_run_that_takes_too_long_is_ended(device: Server, artifact: Path, data: Data) -> None:
    with connect(device.address, TOKEN) as there:
        model = there.load(artifact, limit=0.7)
        with pytest.raises(Error, match=r"took more than 0.7 s"):
            model.measure(data, seconds=500.0)
        assert not children()
        model._limit = 60.0
        assert model.run(data)


def test_the_device_sets_limits_of_its_own(serve: Serve, artifact: Path, data: Data) -> None:
    small = serve("small", Limits(artifact_bytes=100))
    with connect(small.address, TOKEN) as there, pytest.raises(Error, match="no more than 100"):
        there.load(artifact)
    few = serve("few", Limits(data_bytes=60, run_seconds=0.5))
    with connect(few.address, TOKEN) as there:
        model = there.load(artifact)
        with pytest.raises(Error, match="64 bytes of inputs; the device takes no more than 60"):
            model.run(data)
    brief = serve("brief", Limits(run_seconds=0.5))
    too_long = pytest.raises(Error, match=r"took more than 0.5 s")
    with connect(brief.address, TOKEN) as there, too_long:
        there.load(artifact).measure(data, seconds=500.0)


def test_connections_are_limited(serve: Serve) -> None:
    device = serve("narrow", Limits(connections=1))
    full = pytest.raises(Error, match="as many connections as it takes")
    with connect(device.address, TOKEN), full:
        connect(device.address, TOKEN)
    eventually(lambda: not device._live)
    connect(device.address, TOKEN).close()


CODE = """
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
int qcompiler_run(long long *table) {{
    if (table[{first}] != table[{last}]) {{ {does}; }}
    return 0;
}}
int qcompiler_launch(void *team, long long *table, int threads) {{ return qcompiler_run(table); }}
int qcompiler_work(void *team, int thread) {{ return 0; }}
int qcompiler_signature(int *found) {{ *found = {signature}; return 0; }}
"""


def doing(what: str, artifact: Path, folder: Path) -> Artifact:
    """The artifact, with other machine code."""
    made = open_artifact(artifact)
    words = Table(len(made.manifest.inputs) + len(made.manifest.outputs))
    text = CODE.format(first=words.first, last=words.last, does=what, signature=made.signatures[0])
    (folder / "code.c").write_text(text)
    library = folder / "code.so"
    build = ["gcc", "-shared", "-fPIC", "-O0", folder / "code.c", "-o", library]
    subprocess.run(build, check=True)
    (binary,) = made.binaries
    return replace(made, binaries=(replace(binary, code=library.read_bytes()),), origin=None)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("*(volatile int *)0 = 1", "it crashed on the device: SIGSEGV"),
        ("abort()", "it crashed on the device: SIGABRT"),
        ("raise(SIGKILL)", r"SIGKILL \(its memory may have run out\)"),
        ("exit(3)", "ended with status 3"),
        ("for (;;) {}", r"took more than 1 s"),
    ],
)
def test_code_that_goes_wrong_is_one_error_and_the_device_goes_on(
    what: str, says: str, device: Server, artifact: Path, data: Data, tmp_path: Path
) -> None:
    with connect(device.address, TOKEN) as there:
        limit = 1.0 if "for" in what else 60.0
        bad = there.load(doing(what, artifact, tmp_path), limit=limit)
        for _ in range(2):
            with pytest.raises(Error, match=says) as error:
                bad.run(data)
            assert error.value.where == device.address
        assert there.load(artifact).run(data)
    assert len(list(device.store.folder.iterdir())) == 2


def test_what_code_prints_is_discarded(
    device: Server, artifact: Path, data: Data, tmp_path: Path
) -> None:
    with connect(device.address, TOKEN) as there:
        model = there.load(doing('puts("hello"); fflush(stdout)', artifact, tmp_path))
        assert list(model.run(data)) == ["y", "z"]


def test_the_device_chooses_among_variants(device: Server, tmp_path: Path) -> None:
    """The best variant for its CPU unless one is asked for; the answer says which."""
    plugins.load_all()
    here = [i.name for i in isa.family(isa.host().isa.family) if not i.lacks]
    shape = {"image": (1, 1, 8, 8)}
    targets = [*dict.fromkeys((here[0], here[-1], "x86_amx"))]
    made = qcompiler.compile(MODEL, target=targets, input_shapes=shape)
    path, data = made.save(tmp_path / "fat.qc"), {"image": np.ones((1, 1, 8, 8), np.float32)}
    with connect(device.address, TOKEN) as there:
        model = there.load(path)
        found = model.measure(data, steps=2)
        assert model.variant.isa == here[-1]
        assert len(found.steps) == len(model.variant.steps)
        for name in here[0], here[-1]:
            model = there.load(path, variant=name)
            want = qcompiler.load(path, variant=name).run(data)["scores"]
            assert np.array_equal(model.run(data)["scores"], want)
            assert model.variant.isa == name
        with pytest.raises(Error, match="there is no variant 'vax'"):
            there.load(path, variant="vax").run(data)


def test_what_the_runtime_refuses_is_reported(
    device: Server, artifact: Path, tmp_path: Path
) -> None:
    made = open_artifact(artifact)
    (variant,) = made.manifest.variants
    strange = replace(made.manifest, variants=(replace(variant, cpu_flags=("wings",)),))
    with connect(device.address, TOKEN) as there:
        model = there.load(replace(made, manifest=strange, origin=None))
        with pytest.raises(Error, match="this CPU lacks wings") as error:
            model.run({"x": np.zeros((2, 8), np.float32)})
    assert error.value.where.startswith(f"{device.address}: ")
    assert error.value.hint


def test_inputs_are_checked_before_they_are_sent(device: Server, artifact: Path) -> None:
    with connect(device.address, TOKEN) as there:
        model = there.load(artifact)
        with pytest.raises(Error, match="input 'x' is missing"):
            model.run({})
        with pytest.raises(Error, match="float64 given, float32 wanted"):
            model.run({"x": np.zeros((2, 8))})


def test_a_file_that_is_no_artifact_is_not_sent(device: Server, tmp_path: Path) -> None:
    (tmp_path / "model.qc").write_bytes(b"PK\x03\x04")
    damaged = pytest.raises(Error, match="not a whole qcompiler artifact")
    with connect(device.address, TOKEN) as there, damaged:
        there.load(tmp_path / "model.qc")
    assert not list(device.store.folder.iterdir())


@pytest.mark.parametrize("address", ["", ":1", "host:", "host:99999", "host:0", "host:x", "[::1"])
def test_strange_addresses_are_errors(address: str) -> None:
    with pytest.raises(Error, match=r"no host:port|cannot be reached"):
        connect(address, TOKEN)


def test_addresses() -> None:
    assert client.split("pi") == ("pi", 8347)
    assert client.split("pi:70") == ("pi", 70)
    assert client.split("[::1]:70") == ("::1", 70)
    assert client.split("[::1]") == ("::1", 8347)
