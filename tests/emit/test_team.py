"""Threads claim units that no other has begun: each is done once, in order, by any thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from emulator import load_or_skip
from onnx import TensorProto, helper, numpy_helper

from qcompiler import Artifact, Error, compile, load, plugins
from qcompiler.artifact.artifact import Binary, Manifest, StepFact, Value, Variant
from qcompiler.emit.native import emit
from qcompiler.emit.tasks import phases
from qcompiler.hardware import cpu
from qcompiler.hardware.isa import ISAS
from qcompiler.ir import Graph, Type, placeholder
from qcompiler.kernels.cpu.code.tir import Builder, const
from qcompiler.kernels.registry import Kernel, Region
from qcompiler.plan.barriers import SHARED, Slot, Work, slots
from qcompiler.plan.places import Place
from qcompiler.plan.plan import Plan, Step
from qcompiler.runtime import library

N = 512
STEPS = 60


@dataclass(frozen=True)
class Bytes:
    offset: int
    bytes: int = 64
    space: str = "workspace"


def work(reads: str, writes: str, shared: bool = False, cost: float = 1.0) -> Work:
    """A step that reads and writes named values."""
    at = {name: Bytes(64 * i) for i, name in enumerate("abcdefgh")} | {"w": Bytes(0, 64, "weights")}
    return Work(tuple(at[r] for r in reads), tuple(at[w] for w in writes), shared, cost)


def test_a_shared_step_waits_for_the_one_it_reads() -> None:
    found = slots([work("a", "b", True), work("b", "c", True)], 2)
    assert found == [Slot(False, SHARED), Slot(True, SHARED)]


def test_steps_that_touch_nothing_of_each_other_do_not_wait() -> None:
    found = slots([work("aw", "b", True), work("aw", "c", True), work("bc", "d", True)], 2)
    assert [t.waits for t in found] == [False, False, True]


def test_a_chain_of_one_task_never_waits() -> None:
    found = slots([work("a", "b"), work("b", "c"), work("c", "d")], 4)
    assert found == [Slot(False, 0)] * 3


def test_independent_steps_of_one_task_go_to_different_tasks() -> None:
    steps = [work("a", "b", cost=5), work("a", "c"), work("c", "d"), work("bd", "e")]
    assert slots(steps, 2) == [Slot(False, 0), Slot(False, 1), Slot(False, 1), Slot(True, 0)]


def test_writing_what_another_task_still_reads_waits() -> None:
    assert slots([work("a", "b", True), work("c", "a", True)], 2)[1].waits
    assert slots([work("a", "b", True), work("c", "b", True)], 2)[1].waits


def test_after_a_shared_step_one_task_waits_for_all() -> None:
    assert slots([work("a", "b", True), work("b", "c")], 2) == [Slot(False, SHARED), Slot(True, 0)]


def reversing(tasks: int) -> Kernel:
    """Two phases through scratch: y[i] = x[N - 1 - i] + 1, so each task needs the others' half; the
    number one is filled into a register and into memory beside the loops."""
    b = Builder("reversing")
    x, y = b.pointer("x", "float32"), b.pointer("y", "float32")
    scratch = b.pointer("scratch", "uint8").view("float32")
    one = b.let(const(1.0, "float32"))
    scratch.store(N, const(0.0, "float32"))
    each = N // tasks
    with b.parallel(tasks) as task, b.serial(each) as i:
        scratch.store(task * each + i, x.load(task * each + i) + one + scratch.load(N))
    with b.parallel(tasks) as task, b.serial(each) as i:
        y.store(task * each + i, scratch.load(N - 1 - (task * each + i)))
    return Kernel("reversing", b.function(), tasks=tasks, scratch_bytes=4 * N + 64)


def artifact_of(tasks: int) -> Artifact:
    """`reversing` again and again: x + STEPS, for an even number of steps."""
    device = plugins.device("host", threads=tasks)
    x = placeholder("x", Type("float32", (N,)))
    region, kernel = Region(None, (), (x,), x), reversing(tasks)
    size = 4 * N + 64
    places = [Place("workspace", i * size, 4 * N) for i in range(3)]
    ends = [Place("input", 0, 4 * N), *(places[i % 2] for i in range(STEPS - 1))]
    ends.append(Place("output", 0, 4 * N))
    steps = [Step("s", region, kernel, (ends[i],), ends[i + 1], places[2]) for i in range(STEPS)]
    plan = Plan(Graph((x,), (x,), ("y",)), device, tuple(steps), np.zeros(64, np.uint8), 3 * size)
    value = Value("x", "float32", (N,))
    variant = Variant(
        isa=device.isa.name,
        triple=device.isa.triple,
        cpu_flags=tuple(sorted(device.isa.cpu_flags)),
        threads=tasks,
        workspace_bytes=plan.workspace_bytes,
        steps=(StepFact("s", "reversing", tasks),) * STEPS,
    )
    manifest = Manifest(
        name="reversing",
        inputs=(value,),
        outputs=(Value("y", "float32", (N,)),),
        variants=(variant,),
        producer={"qcompiler": "test"},
    )
    return Artifact(manifest, (Binary(emit(plan), plan.weights),))


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return artifact_of(4)


X = np.arange(N, dtype=np.float32)


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 9])
def test_any_number_of_threads_does_all_the_work(artifact: Artifact, threads: int) -> None:
    """Also more threads than cores, and fewer than the artifact was compiled for."""
    model = load(artifact, threads=threads)
    assert model.threads == min(threads, 4)
    for i in range(4):
        assert np.array_equal(model(X + i), X + i + STEPS)


def test_many_callers_each_have_a_team(artifact: Artifact) -> None:
    model = load(artifact, threads=2)
    wrong = []

    def call(seed: int) -> None:
        for i in range(30):
            x = X * seed + i
            if not np.array_equal(model(x), x + STEPS):
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(1, 7)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_workers_that_fell_asleep_are_woken(artifact: Artifact) -> None:
    model = load(artifact, threads=2)
    for _ in range(4):
        assert np.array_equal(model(X), X + STEPS)
        time.sleep(0.1)


def test_a_step_alone_runs_in_all_threads(artifact: Artifact) -> None:
    model = load(artifact, threads=2)
    assert len(model.profile({"x": X}, repeat=2)) == STEPS
    assert np.array_equal(model(X), X + STEPS)


def test_without_threads_to_be_had_the_caller_does_all(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(library, "_teams", [])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert np.array_equal(load(artifact, threads=4)(X), X + STEPS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_workers_of_its_own(artifact: Artifact) -> None:
    model = load(artifact, threads=2)
    model(X)
    pid = os.fork()
    if not pid:
        os._exit(0 if np.array_equal(model(X), X + STEPS) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert np.array_equal(model(X), X + STEPS)


def test_a_run_needs_no_tvm(artifact: Artifact, tmp_path: Path) -> None:
    path = artifact.save(tmp_path / "model.qc")
    code = (
        "import sys, numpy as np, qcompiler\n"
        f"model = qcompiler.load({str(path)!r})\n"
        f"model(np.zeros({N}, np.float32))\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules}"
        " & {'tvm', 'tvm_ffi', 'onnx', 'networkx', 'ml_dtypes'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_cannot_be_shared_is_refused() -> None:
    def both(b: Builder) -> None:
        held = b.registers("float32", 1, 1)
        y = b.pointer("y", "float32")
        with b.serial(4) as i:
            held[0] = const(1.0, "float32")
            y.store(i, held[0])
        with b.parallel(2) as task:
            y.store(task, held[0])

    def inside(b: Builder) -> None:
        y = b.pointer("y", "float32")
        with b.when(y.load(0) > const(0.0, "float32")), b.parallel(2) as task:
            y.store(task, const(1.0, "float32"))

    for write in (both, inside):
        b = Builder("odd")
        write(b)
        with pytest.raises(Error, match="odd"):
            phases(Kernel("odd", b.function(), tasks=2), 2)


@pytest.mark.parametrize("target", ["x86_amx", "x86_avxvnni"])
def test_instructions_that_this_cpu_may_lack_run_in_all_threads(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_or_skip(ISAS[target].cpu_flags)
    rng = np.random.default_rng(0)
    left = rng.integers(0, 256, (2048, 64)).astype(np.uint8)
    right = rng.integers(-128, 128, (64, 64)).astype(np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, left.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, left.shape)],
        [numpy_helper.from_array(right, "b")],
    )
    made = compile(helper.make_model(graph), target=target, threads=2)
    (variant,) = made.manifest.variants
    assert [s.tasks for s in variant.steps] == [2]
    have = cpu.features() | set(variant.cpu_flags)
    monkeypatch.setattr(cpu, "features", lambda: have)
    for threads in (1, 2):
        found = load(made, threads=threads)(left)
        assert np.array_equal(found, left.astype(np.int32) @ right.astype(np.int32))


@pytest.mark.parametrize("threads", [2, 4, 32])
def test_a_team_without_workers_runs_it_all(threads: int) -> None:
    """The caller does not wait for threads that have not begun."""
    made = artifact_of(threads)
    (binary,), (variant,) = made.binaries, made.manifest.variants
    code, weights = library.Code(binary.code), library.aligned_copy(binary.weights)
    frame = library.Frame(2, weights, variant.workspace_bytes)
    x, y = library.aligned_copy(X), library.aligned(np.dtype(np.float32), (N,))
    frame.fill([x, y])
    memory = library.aligned(np.dtype(np.uint8), (256 + 64 * threads,))
    memory.array[:] = 0
    frame.table[frame.words.first], frame.table[frame.words.last] = 0, STEPS
    for _ in range(3):
        frame.workspace.array[:] = 0xFF
        code.launch(memory.address, frame._pointer, threads)
        assert np.array_equal(y.array, X + STEPS)


def test_calls_beyond_the_cores_run_alone(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_cores", lambda: 4)
    monkeypatch.setattr(library, "_teams", [])
    code, hold = library.Code(artifact.binaries[0].code), library.Hold()
    first = library._free_team(3, code, hold)
    assert first is not None
    assert library._free_team(2, code, hold) is None  # five threads on four cores
    first.free()
    wide = library._free_team(9, code, hold)
    assert wide is not None  # asked for, and alone
    wide.free()
    assert not any(team.busy for team in library._teams)


def test_a_team_ends(artifact: Artifact) -> None:
    """Before its workers have begun to wait, while they spin, and when they sleep."""
    code = library.Code(artifact.binaries[0].code)
    for spin_us in (0, 300, 100_000):
        for pause in (0, 0.001, 0.02):
            team = library.Team(4, code, spin_us)
            time.sleep(pause)
            team.end()
            assert not any(w.is_alive() for w in team._workers)


CROWDED = """
import os, sys, threading
import numpy as np
import qcompiler
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
model = qcompiler.load(sys.argv[1], threads=8)
x = np.arange(int(sys.argv[2]), dtype=np.float32)
wrong = []
def call(seed):
    for i in range(150):
        if not np.array_equal(model(x * seed + i), x * seed + i + int(sys.argv[3])):
            wrong.append(seed)
callers = [threading.Thread(target=call, args=(seed,)) for seed in range(1, 6)]
for caller in callers: caller.start()
for caller in callers: caller.join()
sys.exit(len(wrong))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_many_threads_on_one_core_stay_right(tmp_path: Path) -> None:
    path = artifact_of(8).save(tmp_path / "model.qc")
    command = [sys.executable, "-c", CROWDED, str(path), str(N), str(STEPS)]
    subprocess.run(command, check=True, timeout=300)
