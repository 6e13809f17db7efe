"""What is exported to C, built with the compilers at hand and run: bit for bit the artifact's."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import qcompiler
from qcompiler.artifact.abi import GUARD
from qcompiler.artifact.manifest import read as read_manifest
from qcompiler.artifact.manifest import written
from qcompiler.cli import main
from qcompiler.demo import DATA, MODEL
from qcompiler.errors import Error
from qcompiler.export.c import ALLOWED
from qcompiler.export.cost import table
from qcompiler.export.elf import GLOBAL, UNDEFINED, read
from qcompiler.hardware.isa import host

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "c"
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-O1")
C = ("-std=c11", *STRICT)
CPP = ("-std=c++17", *STRICT)
IMAGES = np.load(DATA)["calibration"]
INT8 = {
    "precision": "int8",
    "calibration": [{"image": i[None]} for i in IMAGES],
    "input_shapes": {"image": (1, 1, 8, 8)},
}


def tool(name: str) -> str:
    """The path of a tool; a skip, with the reason, where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here")
    return found


def run(*words: object, code: int = 0) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network in int8, for this machine."""
    folder = tmp_path_factory.mktemp("c") / "digits"
    qcompiler.export_c(MODEL, folder, name="digits", **INT8)
    return folder


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    """What the artifact gives for a few images."""
    model = qcompiler.load(qcompiler.compile(MODEL, threads=1, **INT8))
    return np.concatenate([model.run({"image": i[None]})["scores"] for i in IMAGES[:4]])


def printed(program: Path, folder: Path) -> np.ndarray:
    found = []
    for image in IMAGES[:4]:
        (folder / "image.bin").write_bytes(image.astype(np.float32).tobytes())
        lines = run(program, folder / "image.bin").splitlines()
        found.append([float.fromhex(line.split()[1]) for line in lines])
    return np.array(found, np.float32)


@pytest.mark.parametrize(
    ("compiler", "flags", "source"),
    [
        ("gcc", C, "main.c"),
        ("clang", C, "main.c"),
        ("g++", CPP, "main.cpp"),
        ("clang++", CPP, "main.cpp"),
    ],
)
def test_the_example_gives_what_the_artifact_gives(
    compiler: str,
    flags: tuple[str, ...],
    source: str,
    exported: Path,
    scores: np.ndarray,
    tmp_path: Path,
) -> None:
    program = tmp_path / "classify"
    words = (*flags, "-I", exported, EXAMPLES / source, exported / "digits.o", "-o", program)
    run(tool(compiler), *words)
    np.testing.assert_array_equal(printed(program, tmp_path), scores)


def test_the_example_builds_with_cmake(exported: Path, scores: np.ndarray, tmp_path: Path) -> None:
    cmake = tool("cmake")
    run(cmake, "-S", EXAMPLES, "-B", tmp_path / "build", f"-DMODEL={exported}")
    run(cmake, "--build", tmp_path / "build")
    for program in ("classify", "classify_cpp"):
        np.testing.assert_array_equal(printed(tmp_path / "build" / program, tmp_path), scores)


def test_an_artifact_exports_to_the_same_outputs(scores: np.ndarray, tmp_path: Path) -> None:
    qcompiler.compile(MODEL, threads=1, **INT8).save(tmp_path / "digits.qc")
    words = ["export", "--format", "c", str(tmp_path / "digits.qc"), "-o", str(tmp_path / "out")]
    assert main(words) == 0
    program = tmp_path / "classify"
    out = tmp_path / "out"
    run(tool("gcc"), *C, "-I", out, EXAMPLES / "main.c", out / "digits.o", "-o", program)
    np.testing.assert_array_equal(printed(program, tmp_path), scores)


def test_an_artifact_tells_the_memory_of_its_layers_as_the_model_does(tmp_path: Path) -> None:
    shape = {"input_shapes": {"image": (1, 1, 8, 8)}, "threads": 1}
    of_model = qcompiler.export_c(MODEL, tmp_path / "a", **shape).cost
    qcompiler.compile(MODEL, **shape).save(tmp_path / "a.qc")
    found = qcompiler.export_c(tmp_path / "a.qc", tmp_path / "b").cost
    layers = [(x.name, x.ram, x.weights) for x in of_model.layers]
    assert [(x.name, x.ram, x.weights) for x in found.layers] == layers
    assert all(ram for _, ram, _ in layers[:-1])
    assert sum(weights or 0 for _, _, weights in layers) == of_model.weights == found.weights
    assert max(ram or 0 for _, ram, _ in layers) <= found.workspace


def test_artifacts_of_earlier_versions_do_not_know_the_memory_of_layers(tmp_path: Path) -> None:
    made = qcompiler.compile(MODEL, input_shapes={"image": (1, 1, 8, 8)}, threads=1)
    (variant,) = made.manifest.variants
    steps = tuple(replace(s, ram=None, weights=None) for s in variant.steps)
    older = replace(made.manifest, variants=(replace(variant, steps=steps),))
    raw = json.loads(written(older))
    for step in raw["variants"][0]["steps"]:
        del step["ram"], step["weights"]
    assert read_manifest(json.dumps(raw).encode(), "a.qc") == older
    found = qcompiler.export_c(replace(made, manifest=older), tmp_path / "b").cost
    assert {(x.ram, x.weights) for x in found.layers} == {(None, None)}
    assert "?" in table(found)


def test_of_an_artifact_of_several_variants_one_is_exported(
    scores: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = host().isa.name
    several = [*{"x86_avx2": 0, here: 0, "x86_amx": 0}]
    qcompiler.compile(MODEL, target=several, threads=1, **INT8).save(tmp_path / "digits.qc")
    words = ["export", str(tmp_path / "digits.qc"), "-o", str(tmp_path / "out")]
    assert main(words) == 1
    assert "it has several variants\nhint: --variant, one of" in capsys.readouterr().err
    assert main([*words, "--variant", "vax"]) == 1
    assert "there is no variant 'vax'" in capsys.readouterr().err
    assert main([*words, "--variant", here]) == 0
    program, out = tmp_path / "classify", tmp_path / "out"
    run(tool("gcc"), *C, "-I", out, EXAMPLES / "main.c", out / "digits.o", "-o", program)
    np.testing.assert_array_equal(printed(program, tmp_path), scores)


@pytest.mark.parametrize("target", ["host", "x86_avx2", "x86_avx512vnni", "x86_amx"])
def test_an_object_needs_nothing_but_functions_of_c(target: str, tmp_path: Path) -> None:
    shape = {"input_shapes": {"image": (1, 1, 8, 8)}}
    qcompiler.export_c(MODEL, tmp_path / "model", target=target, **shape)
    qcompiler.compile(MODEL, target=target, **shape).save(tmp_path / "a.qc")
    qcompiler.export_c(tmp_path / "a.qc", tmp_path / "artifact")
    for folder, name in (("model", "digits"), ("artifact", "a")):
        path = tmp_path / folder / f"{name}.o"
        file = read(path.read_bytes())
        shown = {s.name for s in file.symbols if s.bind == GLOBAL and s.section != UNDEFINED}
        assert shown == {f"{name}_run"}
        missing = {s.name for s in file.symbols if s.name and s.section == UNDEFINED}
        assert missing <= ALLOWED
        warned = subprocess.run(
            [tool("readelf"), "-aW", str(path)], capture_output=True, text=True, check=True
        )
        assert not warned.stderr
        tables = [line for line in warned.stdout.splitlines() if " UND " in line]
        assert {line.split()[-1] for line in tables if len(line.split()) == 8} <= ALLOWED | {"UND"}


CANARY = """
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include "digits.h"
_Alignas(DIGITS_ALIGN) static float image[DIGITS_INPUT_IMAGE_ELEMENTS];
_Alignas(DIGITS_ALIGN) static float scores[2][16];
enum { PAGE = 4096, PAGES = (DIGITS_WORKSPACE_BYTES + PAGE - 1) / PAGE };
static unsigned char *between(int at_end) { /* pages that nobody may touch */
    int flags = MAP_PRIVATE | MAP_ANONYMOUS, both = PROT_READ | PROT_WRITE;
    unsigned char *all = mmap(NULL, (PAGES + 2) * PAGE, PROT_NONE, flags, -1, 0);
    if (all == MAP_FAILED || mprotect(all + PAGE, PAGES * PAGE, both)) return NULL;
    return all + PAGE + (at_end ? PAGES * PAGE - DIGITS_WORKSPACE_BYTES : 0);
}
int main(void) {
    static unsigned char changed[DIGITS_WORKSPACE_BYTES];
    for (int i = 0; i < DIGITS_INPUT_IMAGE_ELEMENTS; i++) image[i] = (float)(i % 17) / 16;
    for (int k = 0; k < 4; k++) {
        unsigned char *workspace = between(k & 1), fill = k & 2 ? 0xAA : 0x55;
        struct digits_inputs inputs = {image};
        struct digits_outputs outputs = {scores[k > 0]};
        if (!workspace) return 3;
        memset(workspace, fill, DIGITS_WORKSPACE_BYTES);
        if (digits_run(&inputs, &outputs, workspace) != DIGITS_OK) return 4;
        for (size_t i = 0; i < DIGITS_WORKSPACE_BYTES; i++) changed[i] |= workspace[i] != fill;
        if (memcmp(scores[0], outputs.scores, DIGITS_OUTPUT_SCORES_BYTES)) return 5;
    }
    size_t last = DIGITS_WORKSPACE_BYTES;
    while (last && !changed[last - 1]) last--;
    printf("%zu %d\\n", last, DIGITS_WORKSPACE_BYTES);
    return 0;
}
"""


def test_just_the_declared_workspace_is_used(exported: Path, tmp_path: Path) -> None:
    """No byte before or behind it is touched; what it holds does not matter; and it is no larger
    than what is written to and the guard, to a multiple of the alignment.
    """
    (tmp_path / "canary.c").write_text(CANARY)
    program = tmp_path / "canary"
    flags = ("-std=gnu11", *STRICT, "-I", exported)
    run(tool("gcc"), *flags, tmp_path / "canary.c", exported / "digits.o", "-o", program)
    last, declared = map(int, run(program).split())
    assert last + GUARD <= declared < last + 2 * GUARD


TWO = """
#include <pthread.h>
#include <string.h>
#include "digits.h"
#include "other.h"
struct job {
    _Alignas(64) float image[64], scores[10], others[10];
    _Alignas(64) unsigned char a[DIGITS_WORKSPACE_BYTES], b[OTHER_WORKSPACE_BYTES];
};
static void *work(void *given) {
    struct job *j = given;
    struct digits_inputs in = {j->image};
    struct digits_outputs out = {j->scores};
    struct other_inputs other_in = {j->image};
    struct other_outputs other_out = {j->others};
    float first[20];
    for (int i = 0; i < 2000; i++) {
        if (digits_run(&in, &out, j->a) || other_run(&other_in, &other_out, j->b)) return j;
        if (i && (memcmp(first, j->scores, 40) || memcmp(first + 10, j->others, 40))) return j;
        memcpy(first, j->scores, 40);
        memcpy(first + 10, j->others, 40);
    }
    return NULL;
}
int main(void) {
    static struct job jobs[2];
    pthread_t threads[2];
    for (int t = 0; t < 2; t++)
        for (int i = 0; i < 64; i++) jobs[t].image[i] = (float)((i * (t + 3)) % 17) / 16;
    for (int t = 0; t < 2; t++) pthread_create(threads + t, NULL, work, jobs + t);
    int bad = 0;
    for (int t = 0; t < 2; t++) {
        void *result;
        pthread_join(threads[t], &result);
        bad |= result != NULL;
    }
    float alone[10];
    memcpy(alone, jobs[0].scores, 40);
    work(jobs);
    return bad || memcmp(alone, jobs[0].scores, 40) || !memcmp(alone, jobs[1].scores, 40) ||
           !memcmp(alone, jobs[0].others, 40);
}
"""


def test_two_models_in_one_program_run_from_two_threads(exported: Path, tmp_path: Path) -> None:
    shape = {"input_shapes": {"image": (1, 1, 8, 8)}}
    qcompiler.export_c(MODEL, tmp_path / "other", name="other", **shape)
    (tmp_path / "two.c").write_text(TWO)
    objects = (exported / "digits.o", tmp_path / "other" / "other.o")
    words = ("-I", exported, "-I", tmp_path / "other", tmp_path / "two.c", *objects, "-pthread")
    run(tool("gcc"), "-std=gnu11", *STRICT, *words, "-o", tmp_path / "two")
    run(tmp_path / "two")


FILE = """
#include <stdio.h>
#include "digits.h"
_Alignas(64) static float image[64], scores[10];
_Alignas(64) static unsigned char workspace[DIGITS_WORKSPACE_BYTES], weights[1 << 17];
int main(void) {
    struct digits_inputs in = {image, weights};
    struct digits_outputs out = {scores};
    FILE *file = fopen("digits.weights", "rb");
    if (!file || fread(weights, 1, sizeof weights, file) < DIGITS_WEIGHTS_BYTES) return 2;
    int good = digits_run(&in, &out, workspace);
    for (int i = 0; i < 10; i++) printf("%a\\n", (double)scores[i]);
    weights[DIGITS_WEIGHTS_BYTES] ^= 1;
    int other = digits_run(&in, &out, workspace);
    weights[DIGITS_WEIGHTS_BYTES] ^= 1;
    in.image = (const float *)(const void *)((const char *)image + 4);
    int odd = digits_run(&in, &out, workspace);
    in.image = image;
    out.scores = NULL;
    int null = digits_run(&in, &out, workspace);
    out.scores = scores;
    int unaligned = digits_run(&in, &out, workspace + 32);
    in.weights = NULL;
    int none = digits_run(&in, &out, workspace);
    return good != DIGITS_OK || other != DIGITS_OTHER_WEIGHTS || odd != DIGITS_BAD_POINTER ||
           null != DIGITS_BAD_POINTER || unaligned != DIGITS_BAD_POINTER ||
           none != DIGITS_BAD_POINTER;
}
"""


def test_weights_in_a_file_are_the_models_own_or_refused(
    exported: Path, scores: np.ndarray, tmp_path: Path
) -> None:
    found = qcompiler.export_c(MODEL, tmp_path / "d", name="digits", weights="file", **INT8)
    assert {p.name for p in (tmp_path / "d").iterdir()} == {
        *("digits.h", "digits.hpp", "digits.o", "digits.weights")
    }
    small = (tmp_path / "d" / "digits.o").stat().st_size
    assert small + found.facts.weights_bytes <= (exported / "digits.o").stat().st_size + 1024
    (tmp_path / "d.c").write_text(FILE)
    folder = tmp_path / "d"
    run(tool("gcc"), *C, "-I", folder, tmp_path / "d.c", folder / "digits.o", "-o", folder / "run")
    done = subprocess.run([folder / "run"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0
    blank = qcompiler.load(qcompiler.compile(MODEL, threads=1, **INT8)).run(
        {"image": np.zeros((1, 1, 8, 8), np.float32)}
    )["scores"]
    said = np.array([float.fromhex(line) for line in done.stdout.split()], np.float32)
    np.testing.assert_array_equal(said, blank[0])


def test_budgets_fail_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"RAM \d+ bytes of 1024 .*flash \d+ bytes of 2048") as e:
        qcompiler.export_c(MODEL, tmp_path / "d", ram=1024, flash=2048, **INT8)
    assert "block2" in str(e.value)
    assert not list(tmp_path.iterdir())
    made = qcompiler.export_c(MODEL, tmp_path / "d", ram=1 << 18, flash=1 << 20, **INT8)
    assert made.cost.ram <= 1 << 18
    assert made.cost.stack
    largest = max(x.ram or 0 for x in made.cost.layers)
    assert 0 < largest <= made.cost.workspace
    shares = sum((x.weights or 0) + x.code for x in made.cost.layers)
    assert 0.8 * made.cost.flash < shares <= made.cost.flash


def test_a_folder_is_replaced_only_where_an_export_wrote_it(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--input-shape", "image=1x1x8x8"]
    words = ["export", str(MODEL), "-o", str(tmp_path / "d"), *shape]
    assert main(words) == 0
    assert main(words) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["files"] == [f"digits{end}" for end in (".h", ".hpp", ".o")]
    assert answer["flash_bytes"] == answer["code_bytes"] + answer["weights_bytes"]
    (tmp_path / "d" / "thesis.tex").write_text("of years")
    assert main([*words, "--force"]) == 1
    assert "thesis.tex" in capsys.readouterr().err
    assert (tmp_path / "d" / "thesis.tex").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_flags_of_compiling_are_refused_for_an_artifact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qcompiler.compile(MODEL, input_shapes={"image": (1, 1, 8, 8)}).save(tmp_path / "a.qc")
    words = ["export", str(tmp_path / "a.qc"), "-o", str(tmp_path / "d")]
    assert main([*words, "--precision", "int8"]) == 1
    assert "--precision" in capsys.readouterr().err
    assert main([*words, "--ram", "lots"]) == 1
    assert "--ram" in capsys.readouterr().err


POOL = """
#include <stdio.h>
#include <string.h>
#include "digits_pool.h"
_Alignas(64) static float image[64], alone[16], shared[16];
_Alignas(64) static unsigned char workspace[DIGITS_WORKSPACE_BYTES];
static int asked, units_seen;
static void backwards(void *pool, int units, void (*unit)(void *, int), void *job) {
    if (pool != &asked) return;
    asked++;
    units_seen |= units;
    while (units--) unit(job, units);
}
int main(void) {
    for (int i = 0; i < 64; i++) image[i] = (float)(i % 17) / 16;
    struct digits_inputs in = {image};
    struct digits_outputs one = {alone}, several = {shared};
    if (digits_run(&in, &one, workspace) || alone[0] == alone[1]) return 2;
    struct digits_threads threads = {backwards, &asked};
    if (digits_run_threads(&in, &several, workspace, &threads) || !asked) return 3;
    if (units_seen > DIGITS_UNITS || memcmp(alone, shared, DIGITS_OUTPUT_SCORES_BYTES)) return 4;
    memset(shared, 0, sizeof shared);
    if (digits_run_threads(&in, &several, workspace, NULL)) return 5;
    if (memcmp(alone, shared, DIGITS_OUTPUT_SCORES_BYTES)) return 6;
    for (int count = 1; count < 5; count++) {
        struct digits_pool pool;
        if (digits_pool_start(&pool, count)) return 7;
        threads.parallel_for = digits_pool_for;
        threads.pool = &pool;
        for (int turn = 0; turn < 500; turn++) {
            memset(shared, 0, sizeof shared);
            if (digits_run_threads(&in, &several, workspace, &threads)) return 8;
            if (memcmp(alone, shared, DIGITS_OUTPUT_SCORES_BYTES)) return 9;
        }
        digits_pool_stop(&pool);
    }
    one.scores = NULL;
    return digits_run_threads(&in, &one, workspace, &threads) != DIGITS_BAD_POINTER;
}
"""


@pytest.mark.parametrize("compiler", ["gcc", "clang", "g++"])
@pytest.mark.parametrize("target", ["host", "x86_avx2"])
def test_threads_of_the_callers_share_a_run(compiler: str, target: str, tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    words = ["export", str(MODEL), "-o", str(folder), "--input-shape", "image=1x1x8x8"]
    assert main([*words, "--target", target, "--parallel", "pthread", "--threads", "3"]) == 0
    file = read((folder / "digits.o").read_bytes())
    shown = {s.name for s in file.symbols if s.bind == GLOBAL and s.section != UNDEFINED}
    assert shown == {"digits_run", "digits_run_threads"}
    assert {s.name for s in file.symbols if s.name and s.section == UNDEFINED} <= ALLOWED
    cpp = compiler.endswith("++")
    source = tmp_path / ("pool.cpp" if cpp else "pool.c")
    source.write_text(POOL.replace("_Alignas", "alignas") if cpp else POOL)
    flags = CPP if cpp else ("-std=gnu11", *STRICT)
    program = tmp_path / "pool"
    run(
        tool(compiler),
        *flags,
        "-pthread",
        f"-I{folder}",
        source,
        folder / "digits.o",
        "-o",
        program,
    )
    run(program)


def test_an_artifact_has_no_run_by_threads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qcompiler.compile(MODEL, input_shapes={"image": (1, 1, 8, 8)}).save(tmp_path / "a.qc")
    words = ["export", str(tmp_path / "a.qc"), "-o", str(tmp_path / "d")]
    assert main([*words, "--parallel", "callback"]) == 1
    assert "one thread" in capsys.readouterr().err
