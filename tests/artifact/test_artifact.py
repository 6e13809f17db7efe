"""One file on disk: whole, unchanged and for this CPU, or one clear error."""

import hashlib
import io
import json
import mmap
import os
import platform
import random
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler import Artifact, Error, load, plugins
from qcompiler.artifact import artifact as artifact_module
from qcompiler.artifact import members, saving
from qcompiler.artifact.artifact import (
    Binary,
    Manifest,
    StepFact,
    Value,
    Variant,
    open_artifact,
)
from qcompiler.emit.native import emit
from qcompiler.hardware import cpu
from qcompiler.ir import Graph, Type, placeholder
from qcompiler.kernels.cpu.code.tir import Builder
from qcompiler.kernels.registry import Kernel, Region
from qcompiler.plan.places import Place
from qcompiler.plan.plan import Plan, Step

SHAPE = (4, 16)


def doubling(tasks: int) -> Kernel:
    """A kernel that doubles 64 floats."""
    b = Builder("double")
    x, y = b.pointer("x", "float32"), b.pointer("y", "float32")
    with b.parallel(tasks) as task, b.serial(64 // tasks) as i:
        at = task * (64 // tasks) + i
        y.store(at, x.load(at) * 2.0)
    return Kernel("double", b.function(), tasks=tasks)


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    """Two steps, input -> workspace -> output: four times the input."""
    device = plugins.device("host", threads=2)
    x = placeholder("x", Type("float32", SHAPE))
    region, kernel = Region(None, (), (x,), x), doubling(2)
    ends = (Place("input", 0, 256), Place("workspace", 64, 256), Place("output", 0, 256))
    steps = tuple(
        Step(name, region, kernel, (ends[i],), ends[i + 1], None) for i, name in enumerate("ab")
    )
    plan = Plan(Graph((x,), (x,), ("y",)), device, steps, np.zeros(128, np.uint8), 512)
    variant = Variant(
        isa=device.isa.name,
        triple=device.isa.triple,
        cpu_flags=tuple(sorted(device.isa.cpu_flags)),
        threads=2,
        workspace_bytes=512,
        steps=(StepFact("a", "double", 2), StepFact("b", "double", 2)),
    )
    manifest = Manifest(
        name="quadruple",
        inputs=(Value("x", "float32", SHAPE),),
        outputs=(Value("y", "float32", SHAPE),),
        variants=(variant,),
        producer={"qcompiler": "test"},
    )
    return Artifact(manifest, (Binary(emit(plan), plan.weights),))


@pytest.fixture
def saved(artifact: Artifact, tmp_path: Path) -> Path:
    return artifact.save(tmp_path / "model.qc")


X = np.arange(64, dtype=np.float32).reshape(SHAPE)


def test_what_is_saved_loads_and_runs(saved: Path) -> None:
    model = load(saved)
    assert np.array_equal(model(X), 4 * X)
    assert np.array_equal(model.run({"x": X})["y"], 4 * X)
    assert len(model.profile({"x": X}, repeat=3)) == 2


def test_members_are_aligned_so_that_weights_can_be_mapped(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive, saved.open("rb") as file:
        for entry in archive.infolist():
            file.seek(entry.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2")
            assert (entry.header_offset + 30 + int(lengths.sum())) % 64 == 0


def test_weights_are_aligned_and_not_to_be_written(saved: Path) -> None:
    """So kernels read them where they were put when they were hashed: there is no second copy."""
    weights = open_artifact(saved).binaries[0].weights
    assert weights.ctypes.data % 64 == 0
    assert not weights.flags.writeable


@pytest.mark.parametrize("held", [False, True], ids=["alone", "beside another"])
def test_a_file_that_is_overwritten_or_cut_changes_no_model(
    artifact: Artifact, saved: Path, held: bool
) -> None:
    other = load(saved) if held else None
    model = load(saved)
    with saved.open("r+b") as file:
        file.write(b"\x3f" * saved.stat().st_size)
        assert np.array_equal(model(X), 4 * X)
        file.truncate(1)
    assert np.array_equal(model(X), 4 * X)
    with pytest.raises(Error, match="not a whole qcompiler artifact"):
        load(saved)
    assert other is None or np.array_equal(other(X), 4 * X)


def test_a_file_that_changes_while_it_is_read_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is hashed is what is used: between the two nothing is read again."""
    read = members.layout

    def and_change(*args: Any) -> Any:
        found = read(*args)
        place = found[1]["weights.bin"]
        with saved.open("r+b") as file:
            file.seek(place.offset)
            file.write(b"\x3f" * place.size)
        return found

    monkeypatch.setattr(artifact_module, "layout", and_change)
    with pytest.raises(Error, match=r"weights\.bin is not what was compiled"):
        load(saved)


def test_equal_weights_are_in_memory_once(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.qc"
    other.write_bytes(saved.read_bytes())
    first, second = open_artifact(saved), open_artifact(other)
    assert first.binaries[0].weights is second.binaries[0].weights


def test_many_bytes_are_hashed_as_few_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).integers(0, 256, (5 << 20) + 13).astype(np.uint8)
    path = tmp_path / "file"
    path.write_bytes(data.tobytes())
    digest = hashlib.sha256(data).hexdigest()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    for start in (threading.Thread.start, refuse):
        monkeypatch.setattr(threading.Thread, "start", start)
        with path.open("rb") as file:
            member = members.Member(file, members.Place("w", 0, data.size))
            into, found = members.aligned(data.size), hashlib.sha256()
            with members.aside(data.size) as hashed:
                member.fill(into, 0, partial(hashed, found.update))
            assert found.hexdigest() == member.digest == digest
        assert np.array_equal(into, data)
        assert into.ctypes.data % 64 == 0


class Sparse(io.FileIO):
    """A file that leaves holes where it is given megabytes of zeros."""

    def write(self, data: Any) -> int:
        if len(data) > 1 << 20:
            self.seek(len(data), os.SEEK_CUR)
            return len(data)
        return super().write(data)


@pytest.mark.parametrize("size", [1 << 30, (1 << 31) - 64, 1 << 31, (1 << 32) + 64])
def test_members_of_gigabytes_lie_where_they_should(tmp_path: Path, size: int) -> None:
    zeros = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    given = {"manifest.json": b"{}", "code.so": b"code" * 99, "weights.bin": zeros}
    with Sparse(tmp_path / "large.qc", "w+") as file:
        saving.write(file, {k: [memoryview(v)] for k, v in given.items()})
        text, places = members.layout(file, "manifest.json")
        assert text == b"{}"
        assert {n: p.size for n, p in places.items()} == {n: len(d) for n, d in given.items()}
        assert all(p.offset % 64 == 0 for p in places.values())


def test_what_cannot_be_read_again_is_not_saved(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = saving.write

    def losing(file: Any, given: Any) -> None:
        write(file, {**given, "weights.bin": [memoryview(bytes(128))]})

    changed = replace(artifact.binaries[0], weights=np.ones(128, np.uint8))
    monkeypatch.setattr(saving, "write", losing)
    with pytest.raises(Error, match=r"weights\.bin is not what was compiled"):
        replace(artifact, binaries=(changed,)).save(tmp_path / "model.qc")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.qc")
    with pytest.raises(Error, match="not a regular file"):
        load(tmp_path / "pipe.qc")


@pytest.mark.parametrize("given", [None, 7, b"model.qc", ["model.qc"], "nul\0.qc", ""])
def test_what_is_no_path_is_refused(given: Any) -> None:
    with pytest.raises(Error):
        load(given)


@pytest.mark.parametrize("threads", [-1, 1.5, "2", None, True])
def test_threads_that_are_no_count_are_refused(saved: Path, threads: Any) -> None:
    with pytest.raises(Error, match="threads"):
        load(saved, threads=threads)


def test_equal_artifacts_are_equal_files(artifact: Artifact, tmp_path: Path) -> None:
    first, second = (artifact.save(tmp_path / n).read_bytes() for n in ("a.qc", "b.qc"))
    assert first == second


def test_an_unaligned_or_read_only_input_is_copied(saved: Path) -> None:
    model = load(saved)
    raw = np.empty(X.nbytes + 64, np.uint8)
    for shift in (0, 1, 4, 16, 63):
        x = raw[shift : shift + X.nbytes].view(np.float32).reshape(SHAPE)
        x[...] = X
        assert np.array_equal(model(x), 4 * X)
    frozen = X.copy()
    frozen.setflags(write=False)
    assert np.array_equal(model(frozen), 4 * X)
    assert np.array_equal(model(np.asfortranarray(X)), 4 * X)


def test_every_call_returns_arrays_of_its_own(saved: Path) -> None:
    model = load(saved)
    first = model(X)
    second = model(X + 1)
    assert np.array_equal(first, 4 * X)
    assert np.array_equal(second, 4 * (X + 1))


def test_outputs_stay_when_many_more_are_made(saved: Path) -> None:
    """Small outputs of several runs share a block of memory, but no element of it."""
    model = load(saved)
    (value,) = model.inputs
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal(value.shape).astype(value.dtype) for _ in range(400)]
    made = [model(x) for x in feeds]
    again = [model(x).copy() for x in feeds]
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": X.astype(np.float64)}, "float64 given, float32 wanted"),
        ({"x": X[:3]}, "shape [3, 16] given, [4, 16] wanted"),
        ({"x": X, "z": X}, "unknown input 'z'"),
        ({}, "input 'x' is missing"),
    ],
)
def test_wrong_inputs_are_one_clear_error(saved: Path, inputs: dict, words: str) -> None:
    with pytest.raises(Error) as caught:
        load(saved).run(inputs)
    assert words in str(caught.value)
    assert "hint:" in str(caught.value)


def test_several_threads_may_run_one_model(saved: Path) -> None:
    model = load(saved)
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).random(SHAPE, np.float32)
        wrong.extend(i for i in range(200) if not np.array_equal(model(x), 4 * x))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_truncated_file_is_refused(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for length in (0, 1, 30, 200, len(whole) // 2, len(whole) - 1):
        part = tmp_path / "part.qc"
        part.write_bytes(whole[:length])
        with pytest.raises(Error, match="not a whole qcompiler artifact"):
            load(part)


def test_flipped_bits_are_refused_or_harmless(saved: Path, tmp_path: Path) -> None:
    whole, rng = saved.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(200):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path = tmp_path / "changed.qc"
        path.write_bytes(changed)
        try:
            opened = open_artifact(path)
        except Error:
            refused += 1
        else:  # a flip in the padding between members
            assert opened.manifest == open_artifact(saved).manifest
    assert refused > 150


def test_a_damaged_directory_is_refused(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    path = tmp_path / "changed.qc"
    for at in range(whole.find(b"PK\x01\x02"), len(whole)):
        for value in (0, 0xFF, whole[at] ^ 1):  # encrypted, of a later version, elsewhere, ...
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                opened = open_artifact(path)
            except Error:
                continue
            assert opened.manifest == open_artifact(saved).manifest


def test_changed_code_is_named(saved: Path, tmp_path: Path) -> None:
    tampered = tmp_path / "tampered.qc"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(tampered, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry, data[:-1] + b"x" if entry.filename.endswith(".so") else data)
    with pytest.raises(Error, match=r"\w+\.so is not what was compiled"):
        load(tampered)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": ()},
        {"inputs": (Value("x", "object", SHAPE),)},
        {"inputs": (Value("z", "float32", SHAPE),)},
        {"outputs": (Value("z", "float32", SHAPE),)},
        {"outputs": (Value("y", "float32", (1, 1)),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_manifest_that_is_not_the_codes_is_refused(
    artifact: Artifact, tmp_path: Path, change: dict[str, Any]
) -> None:
    edited = replace(artifact, manifest=replace(artifact.manifest, **change))
    path = edited.save(tmp_path / "edited.qc")  # its hashes are right
    with pytest.raises(Error, match="the manifest is not the one of this machine code"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"isa": "another"},
        {"triple": f"{platform.machine()}-another"},
        {"cpu_flags": ()},
        {"workspace_bytes": 0},
        {"threads": 1 << 20},
        {"steps": ()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_variant_that_is_not_the_codes_is_refused(
    artifact: Artifact, tmp_path: Path, change: dict[str, Any]
) -> None:
    variants = (replace(artifact.manifest.variants[0], **change),)
    edited = replace(artifact, manifest=replace(artifact.manifest, variants=variants))
    with pytest.raises(Error, match="the manifest is not the one of this machine code"):
        load(edited.save(tmp_path / "edited.qc"))


@pytest.mark.parametrize("extents", [[("z", 0)], [("y", 1 << 62)], [("y", 504)]], ids=str)
def test_a_size_that_no_run_leaves_is_refused(
    artifact: Artifact, tmp_path: Path, extents: list[tuple[str, int]]
) -> None:
    """The sizes of outputs that data decide: of another output, or outside the workspace."""
    variant = replace(artifact.manifest.variants[0], extents=tuple(extents))
    changed = replace(artifact, manifest=replace(artifact.manifest, variants=(variant,)))
    with pytest.raises(Error, match="the size of the output"):
        load(changed.save(tmp_path / "extents.qc"))


def test_weights_of_another_model_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    """Also where all hashes were made anew."""
    (binary,) = artifact.binaries
    other = replace(artifact, binaries=(replace(binary, weights=binary.weights + 1),))
    with pytest.raises(Error, match="the manifest is not the one of this machine code"):
        load(other)
    with pytest.raises(Error, match="the manifest is not the one of this machine code"):
        load(other.save(tmp_path / "other.qc"))


NUMBERS = [-1, 1 << 31, 1 << 62, 1 << 63, 1 << 64, 1 << 200, 1.5, None, "x", [], {}, True]


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_a_manifest_of_numbers_that_make_no_sense_is_refused_or_harmless(
    saved: Path, tmp_path: Path, number: object
) -> None:
    with zipfile.ZipFile(saved) as archive:
        given = {n: archive.read(n) for n in archive.namelist()}
    facts = json.loads(given["manifest.json"])

    def places(at: Any) -> Iterator[tuple[Any, Any]]:
        for key in range(len(at)) if isinstance(at, list) else list(at):
            yield at, key
            if isinstance(at[key], (list, dict)):
                yield from places(at[key])

    for holder, key in list(places(facts)):
        before, holder[key] = holder[key], number
        with (tmp_path / "lies.qc").open("wb") as file:
            changed = {**given, "manifest.json": json.dumps(facts).encode()}
            saving.write(file, {n: [memoryview(d)] for n, d in changed.items()})
        holder[key] = before
        try:
            model = load(tmp_path / "lies.qc")
        except Error:
            continue
        assert np.array_equal(model(X), 4 * X)
        assert 1 <= model.threads <= 2


def test_other_files_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.qc", "w") as archive:
        archive.writestr("../evil", "x")
    (tmp_path / "text.qc").write_text("hello")
    for name in ("other.qc", "text.qc", "absent.qc", "."):
        with pytest.raises(Error):
            load(tmp_path / name)


def test_features_that_the_cpu_lacks_are_named(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"sse2"}))
    with pytest.raises(Error, match=r"this CPU lacks .*avx2"):
        load(saved)


def test_a_system_that_does_not_tell_its_features_is_named(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "features", frozenset)
    with pytest.raises(Error, match="does not say what its CPU has"):
        load(saved)


def test_a_folder_that_cannot_be_written_leaves_nothing(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(Error, match="cannot write"):
        artifact.save(tmp_path / "absent" / "model.qc")
    (tmp_path / "model.qc").mkdir()
    with pytest.raises(Error, match="cannot write"):
        artifact.save(tmp_path / "model.qc")
    assert [p.name for p in tmp_path.iterdir()] == ["model.qc"]
