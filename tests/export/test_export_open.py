"""Models of open sizes, exported to C: for every size what the artifact gives, bit for bit."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.cli import main
from qcompiler.errors import Error
from qcompiler.ir import Array

STRICT = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1")
TOKENS = """<ir_version: 10, opset_import: ["": 21]>
texts (int64[batch,seq] ids, float[batch,seq] keep) => (float[batch,seq,6] h, float[batch,6] y)
    <float[9,6] words = {@54}, float[6,6] w = {@36}> {
    e = Gather(words, ids) last = Constant<value_ints = [-1]>() k = Unsqueeze(keep, last)
    m = Mul(e, k) t = Transpose<perm = [0,2,1]>(m) s = MatMul(m, t) p = Softmax<axis = -1>(s)
    c = MatMul(p, m) h = MatMul(c, w) one = Constant<value_ints = [1]>()
    y = ReduceMean<keepdims = 0>(h, one) }"""
IMAGES = """<ir_version: 10, opset_import: ["": 21]>
images (float[1,2,height,width] x) => (float[1,3,a,b] y) <float[3,2,3,3] w = {@54}> {
    y = Conv<strides = [2,2], pads = [1,1,1,1]>(x, w) }"""
ROWS = """<ir_version: 10, opset_import: ["": 21]>
rows (float[n,24] x) => (float[m,8] y) <float[24,96] w0 = {@2304}, float[32,8] w1 = {@256}> {
    a = MatMul(x, w0) b = Tanh(a) shape = Constant<value_ints = [-1,32]>()
    c = Reshape(b, shape) y = MatMul(c, w1) }"""
CACHE = """<ir_version: 10, opset_import: ["": 21]>
cache (float[1,2,1,4] row, float[1,2,past,4] old) => (float[1,2,all,4] made, float[1,2,1,4] y) {
    made = Concat<axis = 2>(old, row) axes = Constant<value_ints = [2]>()
    y = ReduceSum(made, axes) }"""
STEPS = """<ir_version: 10, opset_import: ["": 17]>
steps (float[2,3] start, float[t,2,3] x) => (float[2,3] end, float[t,2,3] all)
    <float[3,3] w = {@9}> {
    end, all = Scan<num_scan_inputs = 1, body = step (float[2,3] before, float[2,3] a)
        => (float[2,3] after, float[2,3] seen) {
            p = MatMul(before, w) q = Add(p, a) after = Tanh(q) seen = Sub(after, a)
        }>(start, x) }"""
MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include "net.h"
static void *room(size_t bytes) {{ return aligned_alloc(NET_ALIGN, (bytes + 64) / 64 * 64); }}
int main(int count, char **words) {{
    if (count != {count}) return 99;
    {sizes}
    struct net_inputs in = {{{inputs}}};
    struct net_outputs out = {{{outputs}}};
    int status = net_run(&in, &out, room(NET_WORKSPACE_BYTES), {names});
    if (status != NET_OK) return status;
    {writes}
    return 0;
}}
"""


def model_of(text: str) -> onnx.ModelProto:
    """The text of a model, with `{@n}` for n random numbers."""
    random = np.random.default_rng(0)
    parts = text.split("{@")
    made = [parts[0]]
    for part in parts[1:]:
        count, rest = part.split("}", 1)
        numbers = ", ".join(f"{n:.4f}" for n in random.standard_normal(int(count)) / 4)
        made.append(f"{{{numbers}}}{rest}")
    return onnx.parser.parse_model("".join(made))


def program(
    folder: Path, model: qcompiler.Model, compilers: Sequence[str] = ("gcc", "clang")
) -> Path:
    """A program of sizes: it reads arrays from its input, and writes what the model gives."""
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        pytest.skip(f"none of {', '.join(compilers)} here")
    names = [s.name for s in model.manifest.symbols]
    given, made = ([v.name for v in side] for side in (model.inputs, model.outputs))
    call = f"({', '.join(names)})"
    sizes = [f"size_t {n} = strtoul(words[{i}], NULL, 10);" for i, n in enumerate(names, 1)]
    for side, values in (("INPUT", given), ("OUTPUT", made)):
        for n in values:
            size = f"NET_{side}_{n.upper()}_BYTES{call}"
            sizes.append(f"size_t {n}_bytes = {size};")
            sizes.append(f"void *{n} = room({n}_bytes);")
    sizes += [f"if (fread({n}, 1, {n}_bytes, stdin) != {n}_bytes) return 98;" for n in given]
    text = MAIN.format(
        count=len(names) + 1,
        sizes="\n    ".join(sizes),
        inputs=", ".join(given),
        outputs=", ".join(made),
        names=", ".join(names),
        writes="\n    ".join(f"fwrite({n}, 1, {n}_bytes, stdout);" for n in made),
    )
    (folder / "main.c").write_text(text)
    words = [compiler, *STRICT, "-static", "-I", folder, folder / "main.c", folder / "net.o"]
    subprocess.run([*words, "-o", folder / "main"], check=True, timeout=120)
    return folder / "main"


def asked(
    path: Path,
    model: qcompiler.Model,
    sizes: Sequence[int],
    feed: Mapping[str, Array],
    emulator: Sequence[str] = (),
) -> dict[str, Array]:
    """What a program answers."""
    raw = b"".join(feed[v.name].tobytes() for v in model.inputs)
    words = [*emulator, path, *map(str, sizes)]
    done = subprocess.run(words, input=raw, capture_output=True, timeout=60)
    assert done.returncode == 0
    found, at = {}, 0
    known = dict(zip([s.name for s in model.manifest.symbols], sizes, strict=True))
    for value in model.outputs:
        shape, dtype = value.at(known), np.dtype(value.dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        found[value.name] = np.frombuffer(done.stdout[at : at + size], dtype).reshape(shape)
        at += size
    assert at == len(done.stdout)
    return found


def feed_of(model: qcompiler.Model, sizes: Sequence[int]) -> dict[str, Array]:
    random = np.random.default_rng(sum(sizes))
    known = dict(zip([s.name for s in model.manifest.symbols], sizes, strict=True))
    made = {}
    for value in model.inputs:
        shape = value.at(known)
        whole = random.integers(0, 9, shape) if value.dtype == "int64" else None
        made[value.name] = random.random(shape, np.float32) if whole is None else whole
    return made


CASES = {
    "tokens": (TOKENS, {"batch": "1..5", "seq": "1..40"}, [(1, 1), (5, 40), (3, 17), (2, 33)]),
    "images": (IMAGES, {"height": "2..32:2", "width": "1..33"}, [(2, 1), (32, 33), (12, 7)]),
    "rows": (ROWS, {"n": "1.."}, [(1,), (8,), (9,), (15,), (40,)]),
    "steps": (STEPS, {"t": "1..40"}, [(1,), (40,), (19,), (2,)]),
    "cache": (CACHE, {"past": "0..40"}, [(0,), (1,), (19,), (40,)]),
}


@pytest.mark.parametrize("name", CASES)
def test_every_size_gives_what_the_artifact_gives(name: str, tmp_path: Path) -> None:
    text, dims, sizes = CASES[name]
    artifact = qcompiler.compile(model_of(text), dims=dims, threads=1)
    model = qcompiler.load(artifact)
    qcompiler.export_c(artifact, tmp_path / "net", name="net")
    path = program(tmp_path / "net", model)
    for each in sizes:
        feed = feed_of(model, each)
        wanted = model.run(feed)
        for key, value in asked(path, model, each, feed).items():
            np.testing.assert_array_equal(value, wanted[key], err_msg=f"{key} at {each}")


def test_a_model_is_exported_as_its_artifact_is(tmp_path: Path) -> None:
    onnx.save(model_of(TOKENS), tmp_path / "net.onnx")
    dims = ["--dim", "batch=1..5", "--dim", "seq=1..40"]
    words = ["export", "--format", "c", str(tmp_path / "net.onnx"), *dims]
    assert main([*words, "-o", str(tmp_path / "net")]) == 0
    made = qcompiler.compile(
        model_of(TOKENS), dims={"batch": "1..5", "seq": "1..40"}, threads=1
    ).save(tmp_path / "net.qc")
    model = qcompiler.load(made)
    path = program(tmp_path / "net", model)
    feed = feed_of(model, (2, 9))
    found = asked(path, model, (2, 9), feed)
    np.testing.assert_array_equal(found["y"], model.run(feed)["y"])


def test_sizes_out_of_their_ranges_run_nothing(tmp_path: Path) -> None:
    artifact = qcompiler.compile(model_of(IMAGES), dims=CASES["images"][1], threads=1)
    qcompiler.export_c(artifact, tmp_path / "net", name="net")
    header = (tmp_path / "net" / "net.h").read_text()
    assert "#define NET_SIZE_HEIGHT_STEP 2" in header
    source = tmp_path / "main.c"
    source.write_text("""
#include "net.h"
_Alignas(64) static unsigned char memory[3][NET_WORKSPACE_BYTES + 65536];
int main(void) {
    struct net_inputs in = {(float *)memory[0]};
    struct net_outputs out = {(float *)memory[1]};
    size_t wrong[][2] = {{0, 1}, {34, 1}, {3, 1}, {2, 0}, {2, 34}, {2, (size_t)-1},
                         {((size_t)1 << 31) * 2 + 2, 1}};
    for (int i = 0; i < 7; i++)
        if (net_run(&in, &out, memory[2], wrong[i][0], wrong[i][1]) != NET_BAD_SIZE) return i + 1;
    for (int i = 0; i < NET_WORKSPACE_BYTES; i++)
        if (memory[1][i] || memory[2][i]) return 50;
    return net_run(&in, &out, memory[2], 2, 1);
}
""")
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no compiler of C here")
    words = [compiler, *STRICT, "-I", tmp_path / "net", source, tmp_path / "net" / "net.o"]
    subprocess.run([*words, "-o", tmp_path / "main"], check=True, timeout=120)
    assert subprocess.run([tmp_path / "main"], timeout=60).returncode == 0


def test_open_sizes_are_run_by_one_thread(tmp_path: Path) -> None:
    with pytest.raises(Error, match="for one thread"):
        qcompiler.export_c(
            model_of(ROWS), tmp_path / "net", dims={"n": "1.."}, parallel="callback", threads=2
        )
