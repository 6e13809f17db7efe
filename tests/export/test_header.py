"""Headers of models with any names and dtypes are C and C++."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.artifact.artifact import Value
from qcompiler.artifact.manifest import Symbol
from qcompiler.errors import Error
from qcompiler.export.header import Facts, Scale, header, members, wrapper
from qcompiler.export.names import identifier

ODD = (
    *("class", "a b", "A.b", "ä/*\\", "*/", "??/", '"', "1st", "", "weights", "x\ny"),
    *("EOF", "INT8_MAX", "I", "NET_OK", "INT", "size_t", "uint8_t", "requires", "typeof", "stdin"),
)
DTYPES = ("float32", "float16", "bfloat16", "float64", "bool", "int8", "uint8", "int64", "uint32")
USE = """
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "net.h{pp}"
int main(void) {{
    const struct net_tensor *t = net_input(2);
    return !t || strcmp(t->name, "A.b") || t->rank != 2 || t->shape[1] != 3 || t->elements != 6 ||
           net_input({count}) || net_output(0)->scale != 0.5f || net_output(0)->zero_point != -3 ||
           NET_OUTPUT_Y_BYTES != 1;
}}
"""


def header_facts(in_file: bool) -> Facts:
    inputs = [Value(n, DTYPES[i % len(DTYPES)], (2, 3)) for i, n in enumerate(ODD)]
    outputs = [Value("y", "int8", ())]
    scales = {"y": Scale(0.5, -3)}
    return Facts(
        "net", "*/ /* odd", "t", ["a"], inputs, outputs, 64, 0, "0", in_file, scales=scales
    )


@pytest.mark.parametrize("compiler", ["gcc", "clang", "g++", "clang++"])
@pytest.mark.parametrize("in_file", [False, True])
def test_any_names_make_a_header(compiler: str, in_file: bool, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    cpp = compiler.endswith("++")
    facts = header_facts(in_file)
    (tmp_path / "net.h").write_text(header(facts))
    (tmp_path / "net.hpp").write_text(wrapper(facts))
    source = tmp_path / ("use.cpp" if cpp else "use.c")
    source.write_text(USE.format(pp="", count=len(ODD)))
    standard = "-std=c++17" if cpp else "-std=c11"
    words = [compiler, standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-I", str(tmp_path)]
    subprocess.run([*words, str(source), "-o", str(tmp_path / "use")], check=True, timeout=120)
    subprocess.run([tmp_path / "use"], check=True, timeout=60)


SIZES = (
    "class",
    "EOF",
    "INT8_MAX",
    "I",
    "INPUTS",
    "_inputs",
    "workspace",
    "_threads",
    "size_t",
    "N",
    "n",
    "NET_OK",
    "new",
)


@pytest.mark.parametrize("compiler", ["gcc", "g++"])
def test_any_sizes_make_a_function(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    symbols = [Symbol(n, 1, 4, 4) for n in SIZES]
    x = Value("x", "float32", (4,) * len(SIZES), open=SIZES)
    facts = replace(header_facts(False), inputs=[x], symbols=symbols)
    (tmp_path / "net.h").write_text(header(facts))
    (tmp_path / "net.hpp").write_text(wrapper(facts))
    (tmp_path / "use.cpp").write_text('#include <cstdio>\n#include "net.hpp"\n')
    (tmp_path / "use.c").write_text('#include <stdio.h>\n#include "net.h"\n')
    words = [compiler, "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]
    source = tmp_path / ("use.cpp" if compiler == "g++" else "use.c")
    subprocess.run([*words, str(source)], check=True, timeout=120)


def test_members_differ_in_capitals_too() -> None:
    values = [Value(n, "int8", (1,)) for n in ("a", "A", "a!", "a_2")]
    assert members(values) == ["a", "A_2", "a_3", "a_2_2"]
    assert identifier("my-net.v2") == "my_net_v2"


def test_what_c_has_no_type_for_is_refused() -> None:
    facts = Facts("n", "m", "t", [], [Value("x", "int4", (2,))], [], 64, 0, "0", False)
    with pytest.raises(Error, match="int4"):
        header(facts)


def test_scales_of_integers_stand_in_the_header(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        net (uint8[1, 8] x, float[1, 8] z) => (int8[1, 4] y) {
            s = Constant <value = float {0.25}> ()
            p = Constant <value = uint8[1] {7}> ()
            q = Squeeze (p)
            xf = DequantizeLinear (x, s, q)
            sum = Add (xf, z)
            w = Constant <value = float[8, 4] {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1,
                1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}> ()
            yf = MatMul (sum, w)
            t = Constant <value = float {0.5}> ()
            n = Constant <value = int8[1] {-3}> ()
            m = Squeeze (n)
            y = QuantizeLinear (yf, t, m)
        }
    """)
    onnx.save(model, tmp_path / "net.onnx")
    made = qcompiler.export_c(tmp_path / "net.onnx", tmp_path / "net")
    assert made.facts.scales == {"x": Scale(0.25, 7), "y": Scale(0.5, -3)}
    text = (tmp_path / "net" / "net.h").read_text()
    assert "#define NET_INPUT_X_SCALE 0.25f" in text
    assert "#define NET_OUTPUT_Y_ZERO_POINT (-3)" in text
    assert "NET_INPUT_Z_SCALE" not in text
    assert np.float32(0.25) == 0.25
