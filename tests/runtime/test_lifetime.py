"""Models are closed, dropped, copied, and sent to other processes; nothing is left behind."""

from __future__ import annotations

import copy
import ctypes
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from qcompiler import Artifact, Error, compile, load
from qcompiler.artifact.artifact import open_artifact
from qcompiler.runtime import library, mapping

X = np.linspace(-1, 1, 512 * 64, dtype=np.float32).reshape(512, 64)


def artifact_of(seed: int, threads: int) -> Artifact:
    """A product by weights of its own, and what comes of it by a table of its own."""
    weights = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Relu" if seed % 2 else "Abs", ["p"], ["y"]),
        ],
        f"product {seed}",
        [helper.make_tensor_value_info("x", 1, X.shape)],
        [helper.make_tensor_value_info("y", 1, X.shape)],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return compile(made, threads=threads)


@pytest.fixture(scope="module")
def artifacts() -> list[Artifact]:
    """One for one thread, one for two."""
    return [artifact_of(i, i + 1) for i in range(2)]


@pytest.fixture(scope="module")
def paths(artifacts: list[Artifact], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("lifetime")
    return [a.save(folder / f"{i}.qc") for i, a in enumerate(artifacts)]


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def held() -> tuple[int, int, int]:
    """Mappings, descriptors, threads of this process."""
    gc.collect()
    return mappings(), len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
@pytest.mark.parametrize("end", ["close", "with", "drop"])
def test_a_thousand_loads_leave_nothing_behind(paths: list[Path], end: str) -> None:
    def cycle(turn: int) -> None:
        model = load(paths[turn % 2])
        model(X)
        if end == "close":
            model.close()
        elif end == "with":
            with model:
                model(X)

    for turn in range(4):
        cycle(turn)
    before = held()
    for turn in range(1000):
        cycle(turn)
    after = held()
    assert after[0] - before[0] < 10, "libraries or weights stay mapped"
    assert after[1:] == before[1:]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_equal_code_is_mapped_once(paths: list[Path], artifacts: list[Artifact]) -> None:
    first = load(paths[0])
    before = mappings()
    others = [load(paths[0]) for _ in range(50)] + [load(artifacts[0]) for _ in range(50)]
    assert mappings() - before < 10
    assert all(np.array_equal(m(X), first(X)) for m in others)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_code_is_mapped_until_nobody_holds_it(artifacts: list[Artifact]) -> None:
    one = library.Code(artifacts[0].binaries[0].code)
    address = ctypes.cast(one.run, ctypes.c_void_p).value

    def mapped() -> bool:
        ranges = (line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines())
        ends = ((int(e, 16) for e in r.split("-")) for r in ranges)
        return any(begin <= address < end for begin, end in ends)

    two = one
    del one
    assert mapped()
    del two
    assert not mapped()


def test_libraries_do_not_take_each_others_place(artifacts: list[Artifact]) -> None:
    """The loader knows a library by its path, and a descriptor's number is used again."""
    first, second = (library.shared_code(a.binaries[0].code) for a in artifacts)
    again = library.Code(artifacts[0].binaries[0].code)
    addresses = {ctypes.cast(c.run, ctypes.c_void_p).value for c in (first, second, again)}
    assert len(addresses) == 3
    assert [c.signature for c in (first, second, again)] == [
        artifacts[i].signatures[0] for i in (0, 1, 0)
    ]


def test_a_closed_model_says_so(paths: list[Path]) -> None:
    model = load(paths[0])
    with model as same:
        assert same is model
        want = model(X)
    model.close()
    for call in (
        lambda: model(X),
        lambda: model.run({"x": X}),
        lambda: model.profile({"x": X}),
        lambda: pickle.dumps(model),
        lambda: copy.deepcopy(model),
        model.__enter__,
    ):
        with pytest.raises(Error, match="the model is closed\nhint: load it again"):
            call()
    assert model.inputs[0].shape == X.shape
    np.testing.assert_array_equal(load(paths[0])(X), want)


@pytest.mark.parametrize("threads", [1, 2])
def test_closing_while_others_run_harms_nobody(paths: list[Path], threads: int) -> None:
    """Calls give the right answer or say that it is closed; code is unloaded under none of them."""
    want = [load(p)(X) for p in paths]
    wrong: list[object] = []
    for turn in range(60):
        model = load(paths[turn % 2], threads=threads)
        started = threading.Barrier(4)

        def call(model: Any = model, turn: int = turn, started: Any = started) -> None:
            started.wait()
            try:
                while True:
                    if not np.array_equal(model(X), want[turn % 2]):
                        wrong.append(turn)
            except Error as e:
                if e.what != "the model is closed":
                    wrong.append(e)

        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        started.wait()
        model(X)
        model.close()
        del model
        for caller in callers:
            caller.join()
    assert not wrong


def test_models_that_die_in_a_cycle_are_closed(paths: list[Path]) -> None:
    for turn in range(50):
        model: Any = load(paths[turn % 2])
        model(X)
        model.itself = model
        del model
    gc.collect()


def test_copies_outlive_what_they_were_copied_from(paths: list[Path]) -> None:
    model = load(paths[1], threads=1)
    want = model(X)
    copies = [copy.copy(model), copy.deepcopy(model), copy.deepcopy([model])[0]]
    model.close()
    for other in copies:
        assert other.threads == 1
        np.testing.assert_array_equal(other(X), want)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_model_is_opened_again(
    artifacts: list[Artifact], paths: list[Path], protocol: int
) -> None:
    for source in (paths[1], artifacts[1], open_artifact(paths[1])):
        model = load(source, threads=1)
        sent = pickle.dumps(model, protocol)
        again = pickle.loads(sent)
        assert again.threads == 1
        assert again.manifest == model.manifest
        np.testing.assert_array_equal(again(X), model(X))
        assert (len(sent) < 2000) == (source is not artifacts[1]), "by its file, else by its bytes"


def test_a_pickled_artifact_is_the_same(artifacts: list[Artifact], paths: list[Path]) -> None:
    for artifact in (artifacts[0], open_artifact(paths[0])):
        again = pickle.loads(pickle.dumps(artifact))
        assert again.manifest == artifact.manifest
        np.testing.assert_array_equal(load(again)(X), load(artifact)(X))


def test_a_model_whose_file_changed_is_pickled_by_its_bytes(
    artifacts: list[Artifact], tmp_path: Path
) -> None:
    path = artifacts[0].save(tmp_path / "model.qc")
    model = load(path)
    want, by_file = model(X), pickle.dumps(model)
    artifacts[1].save(path)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model))(X), want)
    with pytest.raises(Error, match="another artifact than when the model was pickled"):
        pickle.loads(by_file)
    path.unlink()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model))(X), want)
    with pytest.raises(Error, match="cannot be read"):
        pickle.loads(by_file)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_model_goes_to_worker_processes(paths: list[Path], method: str) -> None:
    model = load(paths[1])
    want = model(X)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        for found in pool.map(model, [X] * 3):
            np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(model(X), want)


def test_a_model_goes_to_workers_of_joblib(artifacts: list[Artifact]) -> None:
    joblib = pytest.importorskip("joblib")
    model = load(artifacts[0])
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(model)(X) for _ in range(3))
    for one in found:
        np.testing.assert_array_equal(one, model(X))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_may_run_close_and_load(paths: list[Path]) -> None:
    model = load(paths[1])
    want = model(X)
    pid = os.fork()
    if not pid:
        try:
            right = np.array_equal(model(X), want)
            model.close()
            right &= np.array_equal(load(paths[1])(X), want)
            os._exit(0 if right else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    np.testing.assert_array_equal(model(X), want)


# Where machine code is mapped from.


def test_no_folder_is_needed_to_load(paths: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys, tempfile, numpy as np, qcompiler\n"
        "def refuse(*_, **__): raise FileNotFoundError('no usable temporary directory')\n"
        "tempfile.gettempdir = tempfile.mkdtemp = tempfile.mkstemp = refuse\n"
        f"model = qcompiler.load({str(paths[1])!r})\n"
        f"model(np.zeros({X.shape}, np.float32))\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path / "absent")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_without_files_in_memory_a_folder_serves(
    artifacts: list[Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse() -> int:
        raise OSError("no files in memory")

    monkeypatch.setattr(mapping, "_anonymous_file", refuse)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = library.Code(artifacts[0].binaries[0].code)
    assert code.signature == artifacts[0].signatures[0]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert library.Code(artifacts[0].binaries[0].code).signature == artifacts[0].signatures[0]
    monkeypatch.setattr(mapping, "_FOLDERS", (str(tmp_path / "absent, too"),))
    with pytest.raises(Error, match=r"cannot be loaded: no files in memory; .*absent"):
        library.Code(artifacts[0].binaries[0].code)


@pytest.mark.parametrize("code", [b"", b"\x7fELF", b"not code" * 1000])
def test_bytes_that_are_no_library_are_one_error(code: bytes) -> None:
    with pytest.raises(Error, match="the machine code cannot be loaded: "):
        library.shared_code(code)


def test_a_library_of_something_else_is_one_error() -> None:
    found = next((p for p in Path("/usr/lib").rglob("libz.so*") if p.is_file()), None)
    if found is None:
        pytest.skip("no library to take")
    with pytest.raises(Error, match="the machine code lacks"):
        library.shared_code(found.read_bytes())
