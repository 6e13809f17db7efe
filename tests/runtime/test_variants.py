"""One artifact for several instruction sets: the best that this CPU has runs, as it would alone."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator import load_or_skip

from qcompiler import Artifact, Error, compile, driver, load, plugins
from qcompiler.artifact import artifact as artifact_module
from qcompiler.artifact import members
from qcompiler.artifact.artifact import open_artifact
from qcompiler.artifact.saving import joined, write
from qcompiler.data import activations
from qcompiler.demo import DATA, MODEL
from qcompiler.hardware import cpu, isa

plugins.load_all()

FAMILY = "x86-64"
SETS = isa.family(FAMILY)
HERE = [i for i in SETS if not i.lacks]
IMAGES = np.load(DATA)["calibration"].astype(np.float32)[:, None]
SHAPE = (1, 1, 8, 8)
X = IMAGES[40]

pytestmark = pytest.mark.skipif(not HERE, reason="this machine is of another family")


def compiled(target: str | list[str], **more: Any) -> Artifact:
    """The demo network in int8."""
    data = [{"image": i} for i in IMAGES[:8]]
    given: dict[str, Any] = {"precision": "int8", "calibration": data, **more}
    return compile(MODEL, target=target, input_shapes={"image": SHAPE}, threads=2, **given)


@pytest.fixture(scope="module")
def fat() -> Artifact:
    """Of every instruction set of the family."""
    return compiled(f"{FAMILY}:all")


@pytest.fixture(scope="module")
def path(fat: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fat.save(tmp_path_factory.mktemp("variants") / "fat.qc")


@pytest.mark.parametrize("name", [i.name for i in SETS])
def test_a_variant_is_what_is_compiled_for_it_alone(fat: Artifact, path: Path, name: str) -> None:
    """Scales, bits of weights, code and weights: so its results are the same bit for bit."""
    (number,) = (i for i, v in enumerate(fat.manifest.variants) if v.isa == name)
    alone = compiled(name)
    for made in (fat, open_artifact(path)):
        only = made.only(number)
        assert only.binaries[0].code == alone.binaries[0].code
        assert np.array_equal(only.binaries[0].weights, alone.binaries[0].weights)
        (variant,) = only.manifest.variants
        assert {**only.manifest.notes, **variant.notes} == dict(alone.manifest.notes)
        assert variant.steps == alone.manifest.steps


@pytest.mark.parametrize("one", HERE, ids=lambda i: i.name)
def test_every_variant_that_this_cpu_has_can_be_run(path: Path, one: isa.Isa) -> None:
    model = load(path, variant=one.name)
    assert model.variant.isa == one.name
    np.testing.assert_array_equal(model(X), load(compiled(one.name))(X))


def test_what_needs_tile_registers_runs_on_the_emulator(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiled,) = (i for i in SETS if i.permission)
    load_or_skip(tiled.cpu_flags)
    alone = compiled(tiled.name)  # calibrated on this machine, as the other
    monkeypatch.setattr(cpu, "features", lambda: tiled.cpu_flags)
    model = load(path)
    assert model.variant.isa == tiled.name
    np.testing.assert_array_equal(model(X), load(alone)(X))


@pytest.mark.parametrize("one", HERE, ids=lambda i: i.name)
def test_the_most_preferred_that_fits_is_chosen(
    fat: Artifact, path: Path, one: isa.Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "features", lambda: one.cpu_flags | {"sse2", "unheard_of"})
    for source in (fat, path):
        assert load(source).variant.isa == one.name


def test_a_feature_less_is_a_variant_less(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = frozenset().union(*(i.cpu_flags for i in HERE))
    for flag in HERE[-1].cpu_flags - SETS[0].cpu_flags:
        monkeypatch.setattr(cpu, "features", lambda flag=flag: every - {flag})
        left = [i for i in HERE if flag not in i.cpu_flags]
        assert load(path).variant.isa == left[-1].name


def test_what_each_variant_needs_is_named_if_none_fits(
    fat: Artifact, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"fma", "movbe", "sse2"}))
    for source in (fat, path):
        with pytest.raises(Error) as caught:
            load(source)
        said = str(caught.value)
        for one in SETS:
            assert f"{one.name} needs {' '.join(sorted(one.cpu_flags))}" in said
        assert "of these it has fma movbe\nhint: " in said


def test_a_variant_that_the_cpu_lacks_cannot_be_forced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = SETS[-1]
    monkeypatch.setattr(cpu, "features", lambda: SETS[0].cpu_flags)
    with pytest.raises(Error, match=rf"this CPU lacks .*, which the variant {best.name} needs"):
        load(path, variant=best.name)
    with pytest.raises(Error, match=r"there is no variant 'vax'\nhint: one of x86_avx2, "):
        load(path, variant="vax")


REFUSED = """
import errno, sys
import emulator
from qcompiler import Error, load, plugins
from qcompiler.hardware import cpu

emulator.refuse(errno.EPERM)
cpu.features = lambda have=cpu.features() | set(sys.argv[2].split()): have
print(load(sys.argv[1]).variant)
try:
    load(sys.argv[1], variant=sys.argv[3])
except Error as e:
    print(e.what)
"""


def test_a_variant_that_the_system_refuses_is_passed_over(path: Path) -> None:
    (tiled,) = (i for i in SETS if i.permission)
    load_or_skip(tiled.cpu_flags)
    command = [sys.executable, "-c", REFUSED, str(path), " ".join(tiled.cpu_flags), tiled.name]
    tests = Path(__file__).parents[1]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tests)
    best, said = found.stdout.splitlines()
    assert best == HERE[-1 - (HERE[-1] is tiled)].name
    assert said == "the system refuses this process registers that the code needs"


def test_what_another_variant_needs_is_not_read(path: Path, tmp_path: Path) -> None:
    """Opening one of them takes its own members: all others may be anything."""
    whole = bytearray(path.read_bytes())
    manifest = open_artifact(path).manifest
    chosen = load(path).variant
    with path.open("rb") as file:
        _, places = members.layout(file, "manifest.json")
    used = {number for number, _ in chosen.blobs}
    at = places["weights.bin"].offset
    for number, piece in enumerate(manifest.blobs):
        if number not in used:
            whole[at : at + piece.stored] = bytes(piece.stored)
        at += piece.stored
    for variant in manifest.variants:
        place = places[variant.member]
        if variant != chosen:
            whole[place.offset : place.offset + place.size] = bytes(place.size)
    damaged = tmp_path / "damaged.qc"
    damaged.write_bytes(whole)
    model = load(damaged)
    assert model.variant == chosen
    np.testing.assert_array_equal(model(X), load(path)(X))
    with pytest.raises(Error, match="is not what was compiled"):
        open_artifact(damaged)
    for one in HERE:
        if one.name != chosen.isa:
            with pytest.raises(Error, match=r"\.so is not what was compiled"):
                load(damaged, variant=one.name)


def test_constants_that_are_equal_are_kept_once(fat: Artifact, path: Path) -> None:
    every = sum(
        sum(size for size, _ in {(size, digest) for _, size, digest in b.constants})
        for b in fat.binaries
    )
    assert fat.weights_bytes + fat.shared_bytes == every
    assert fat.shared_bytes > 0
    again = open_artifact(path)
    assert sum(p.bytes for p in again.manifest.blobs) == fat.weights_bytes
    assert again.shared_bytes == fat.shared_bytes
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("weights.bin").file_size <= fat.weights_bytes
    pairs = zip(again.binaries, fat.binaries, strict=True)
    assert all(np.array_equal(a.weights, b.weights) for a, b in pairs)


def test_an_entropy_coded_artifact_of_several_gives_the_same(fat: Artifact, tmp_path: Path) -> None:
    small = fat.save(tmp_path / "small.qc", compress=True)
    for one in HERE:
        want = load(fat, variant=one.name)(X)
        np.testing.assert_array_equal(load(small, variant=one.name)(X), want)


def test_a_forced_variant_stays_forced(fat: Artifact, path: Path) -> None:
    """In copies, and in other processes; what was chosen is chosen anew there."""
    for source in (fat, path):
        forced, free = load(source, variant=HERE[0].name), load(source)
        for model in (forced, free):
            again = pickle.loads(pickle.dumps(model))
            assert again.variant == model.variant
            assert again.__copy__().variant == model.variant
            np.testing.assert_array_equal(again(X), model(X))
        assert forced.variant.isa == HERE[0].name


def test_the_model_is_read_and_calibrated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"read": 0, "observed": 0, "samples": 0}

    def counted(name: str, real: Any, *args: Any, **named: Any) -> Any:
        counts[name] += 1
        return real(*args, **named)

    monkeypatch.setattr(driver, "_read", partial(counted, "read", driver._read))
    monkeypatch.setattr(
        activations, "observing", partial(counted, "observed", activations.observing)
    )

    def reported(what: str, done: int, count: int, item: str) -> None:
        counts["samples"] += what == "calibrating"

    made = compiled(["haswell", "zen4", "sapphire_rapids"], progress=reported)
    assert [v.isa for v in made.manifest.variants] == ["x86_avx2", "x86_avx512bf16", "x86_amx"]
    assert counts == {"read": 1, "observed": 1, "samples": 8}


def test_weights_have_the_bits_that_each_product_holds(fat: Artifact) -> None:
    """7 where a sum of two products of bytes saturates, 8 where none does."""
    facts = {v.isa: v.notes["quantization"] for v in fat.manifest.variants}
    for one in SETS:
        best = one.best_product([("u8", "i8", "i32")])
        assert best is not None
        assert f"x int{8 if best.exact else 7}," in facts[one.name]


@pytest.mark.parametrize("target", ["haswell,x86_avx2", "zen4,haswell,zen4,x86_avx512bf16"])
def test_two_targets_that_no_cpu_tells_apart_are_refused(target: str) -> None:
    with pytest.raises(Error, match=r"are both x86_avx\w+: nothing that a CPU reports"):
        compiled(target)


def test_the_order_of_targets_does_not_matter(tmp_path: Path) -> None:
    orders = ("zen4,haswell", "haswell,zen4")
    files = [
        compiled(t, precision="float32", calibration=None).save(tmp_path / t).read_bytes()
        for t in orders
    ]
    assert files[0] == files[1]


def test_artifacts_of_different_models_are_not_joined(fat: Artifact) -> None:
    one, other = fat.only(0), fat.only(1)
    named = replace(other, manifest=replace(other.manifest, inputs=()))
    with pytest.raises(ValueError, match="different models"):
        joined([one, named])


# ------------------------------------------------------------------------------------- damage


def parts_of(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """An artifact -> its manifest, and its other members."""
    with zipfile.ZipFile(path) as archive:
        given = {n: archive.read(n) for n in archive.namelist()}
    return json.loads(given.pop("manifest.json")), given


def forged(path: Path, manifest: Mapping[str, Any], others: Mapping[str, bytes]) -> Path:
    """Such an artifact, and a path for it."""
    made = path.with_name("forged.qc")
    given = {"manifest.json": json.dumps(manifest).encode(), **others}
    with made.open("wb") as file:
        write(file, {n: [memoryview(d)] for n, d in given.items()})
    return made


def _chosen(manifest: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variant that runs here, and another one: the first, which others need less for."""
    chosen, *_ = (v for v in manifest["variants"] if v["isa"] == HERE[-1].name)
    return chosen, next(v for v in manifest["variants"] if v is not chosen)


def no_variants(m: dict[str, Any], _: dict[str, bytes]) -> None:
    m["variants"] = []


def one_left_out(m: dict[str, Any], _: dict[str, bytes]) -> None:
    m["variants"].remove(_chosen(m)[0])


def one_left_out_with_its_code(m: dict[str, Any], others: dict[str, bytes]) -> None:
    m["variants"] = m["variants"][:1]
    for name in [n for n in others if n.endswith(".so") and n != "x86_avx2.so"]:
        del others[name]


def one_twice(m: dict[str, Any], _: dict[str, bytes]) -> None:
    m["variants"].append(m["variants"][0])


def one_of_two_names(m: dict[str, Any], others: dict[str, bytes]) -> None:
    m["variants"].append({**m["variants"][0], "isa": "x86_other"})
    others["x86_other.so"] = others["x86_avx2.so"]


def fewer_features(m: dict[str, Any], _: dict[str, bytes]) -> None:
    for variant in m["variants"]:
        variant["cpu_flags"] = []


def anothers_features(m: dict[str, Any], _: dict[str, bytes]) -> None:
    for variant in m["variants"]:
        variant["cpu_flags"] = m["variants"][0]["cpu_flags"]


def anothers_code(m: dict[str, Any], others: dict[str, bytes]) -> None:
    chosen, first = _chosen(m)
    others[f"{chosen['isa']}.so"] = others[f"{first['isa']}.so"]
    chosen["code"] = hashlib.sha256(others[f"{first['isa']}.so"]).hexdigest()


def anothers_weights(m: dict[str, Any], _: dict[str, bytes]) -> None:
    chosen, first = _chosen(m)
    for name in ("blobs", "weights", "weights_bytes"):
        chosen[name], first[name] = first[name], chosen[name]


def a_constant_that_is_none(m: dict[str, Any], _: dict[str, bytes]) -> None:
    _chosen(m)[0]["blobs"][0][0] = len(m["blobs"])


def a_constant_elsewhere(m: dict[str, Any], _: dict[str, bytes]) -> None:
    _chosen(m)[0]["blobs"][0][1] += 1


def a_constant_outside(m: dict[str, Any], _: dict[str, bytes]) -> None:
    _chosen(m)[0]["blobs"][-1][1] = 1 << 40


def constants_that_overlap(m: dict[str, Any], _: dict[str, bytes]) -> None:
    blobs = _chosen(m)[0]["blobs"]
    blobs[1][1] = blobs[0][1]


def a_constant_less(m: dict[str, Any], _: dict[str, bytes]) -> None:
    _chosen(m)[0]["blobs"].pop()


def a_pair_of_three(m: dict[str, Any], _: dict[str, bytes]) -> None:
    _chosen(m)[0]["blobs"][0].append(0)


def sizes_of_another_file(m: dict[str, Any], others: dict[str, bytes]) -> None:
    others["weights.bin"] += bytes(64)


def much_memory(m: dict[str, Any], _: dict[str, bytes]) -> None:
    _chosen(m)[0]["weights_bytes"] = 1 << 44


def a_member_more(m: dict[str, Any], others: dict[str, bytes]) -> None:
    others["x86_vax.so"] = b"code"


def a_member_less(m: dict[str, Any], others: dict[str, bytes]) -> None:
    del others[f"{_chosen(m)[0]['isa']}.so"]


HARM = [
    no_variants,
    one_left_out,
    one_left_out_with_its_code,
    one_twice,
    one_of_two_names,
    fewer_features,
    anothers_features,
    anothers_code,
    anothers_weights,
    a_constant_that_is_none,
    a_constant_elsewhere,
    a_constant_outside,
    constants_that_overlap,
    a_constant_less,
    a_pair_of_three,
    sizes_of_another_file,
    much_memory,
    a_member_more,
    a_member_less,
]


@pytest.mark.parametrize("harm", HARM, ids=lambda h: h.__name__)
def test_a_damaged_table_of_variants_is_one_clear_error(
    path: Path, harm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_module, "_held", {})
    manifest, others = parts_of(path)
    harm(manifest, others)
    with pytest.raises(Error) as caught:
        load(forged(path, manifest, others))
    assert caught.value.hint


def test_steps_of_several_variants_are_asked_for_by_variant(fat: Artifact) -> None:
    with pytest.raises(Error, match="steps of its own"):
        _ = fat.manifest.steps
