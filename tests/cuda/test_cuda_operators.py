"""What the CPU target runs runs on GPUs too: operators of every kind, each in a small network, by
the real plan and runtime over the emulator, compared with the CPU's.
"""

from __future__ import annotations

import ctypes

import numpy as np
import onnx
import pytest
from onnx import parser

import qcompiler
from qcompiler.runtime.cuda import CudaModel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("for_this_cpu")]

MOVES = (
    "float[2,3,4,6] x, int64[2,2] i",
    {
        "slice": ("float[2,2,2,3]", "Slice(x, starts, ends, axes, steps)"),
        "concat": ("float[2,3,8,6]", "Concat <axis = 2> (x, x)"),
        "pad": ("float[2,3,6,9]", "Pad <mode = 'reflect'> (x, pads)"),
        "tiled": ("float[2,6,4,6]", "Tile(x, repeats)"),
        "gathered": ("float[2,2,2,4,6]", "Gather <axis = 1> (x, i)"),
        "blocks": ("float[2,12,2,3]", "SpaceToDepth <blocksize = 2> (x)"),
        "triangle": ("float[2,3,4,6]", "Trilu <upper = 1> (x)"),
        "flipped": ("float[2,3,4,6]", "Slice(x, last, before, three, back)"),
    },
    """starts = Constant <value = int64[3] {0, 1, 2}> ()
       ends = Constant <value = int64[3] {2, 3, 6}> ()
       axes = Constant <value = int64[3] {1, 2, 3}> ()
       steps = Constant <value = int64[3] {1, 1, 2}> ()
       pads = Constant <value = int64[8] {0, 0, 1, 1, 0, 0, 1, 2}> ()
       repeats = Constant <value = int64[4] {1, 2, 1, 1}> ()
       last = Constant <value = int64[1] {-1}> ()
       before = Constant <value = int64[1] {-1000}> ()
       three = Constant <value = int64[1] {3}> ()
       back = Constant <value = int64[1] {-1}> ()""",
)
SORTED = (
    "float[4,17] x, int64[4,3] j",
    {
        "v": ("float[4,5]", "TopK <axis = 1> (x, k)", "o"),
        "most": ("int64[4,1]", "ArgMax <axis = 1> (x)"),
        "sums": ("float[4,17]", "CumSum(x, one)"),
        "picked": ("float[4,3]", "GatherElements <axis = 1> (x, j)"),
        "put": ("float[4,17]", "ScatterElements <axis = 1, reduction = 'add'> (x, j, u)"),
        "hardest": ("float[4,17]", "Hardmax <axis = 1> (x)"),
        "norm": ("float[4,17]", "LpNormalization <axis = 1> (x)"),
    },
    """k = Constant <value = int64[1] {5}> ()
       one = Constant <value = int64 {1}> ()
       u = Constant <value = float[4,3] {1,2,3,4,5,6,7,8,9,10,11,12}> ()""",
)
WINDOWS = (
    "float[1,4,6,6] x, float[4,3,3,3] w, float[4] s",
    {
        "nearest": ("float[1,4,12,12]", "Resize <mode = 'nearest'> (x, , scales)"),
        "linear": ("float[1,4,12,12]", "Resize <mode = 'linear'> (x, , scales)"),
        "cubic": ("float[1,4,9,9]", "Resize <mode = 'cubic'> (x, , more)"),
        "back": ("float[1,3,13,13]", "ConvTranspose <strides = [2, 2]> (x, w)"),
        "local": ("float[1,4,6,6]", "LRN <size = 3> (x)"),
        "images": ("float[1,4,6,6]", "InstanceNormalization(x, s, s)"),
        "mean": ("float[1,4,1,1]", "GlobalAveragePool(x)"),
        "most": ("float[1,4,2,2]", "MaxPool <kernel_shape = [3, 3], strides = [3, 3]> (x)"),
    },
    """scales = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> ()
       more = Constant <value = float[4] {1.0, 1.0, 1.5, 1.5}> ()""",
)
RECURRENT = (
    "float[5,2,6] x, float[2,32,6] w, float[2,32,8] r, float[2,24,6] gw, float[2,24,8] gr,"
    " float[1,8,6] nw, float[1,8,8] nr",
    {
        "lstm": ("float[5,2,2,8]", "LSTM <hidden_size = 8, direction = 'bidirectional'> (x, w, r)"),
        "gru": ("float[5,2,2,8]", "GRU <hidden_size = 8, direction = 'bidirectional'> (x, gw, gr)"),
        "rnn": ("float[5,1,2,8]", "RNN <hidden_size = 8> (x, nw, nr)"),
    },
    "",
)
INTEGERS = (
    "float[3,16] x, uint8[3,16] a, int8[16,8] b, int64[3,16] n",
    {
        "products": ("int32[3,8]", "MatMulInteger(a, b)"),
        "rest": ("int64[3,16]", "Mod(n, seven)"),
        "bits": ("uint8[3,16]", "BitShift <direction = 'LEFT'> (a, two)"),
        "halves": ("int32[3,16]", "Cast <to = 6> (x)"),
        "powers": ("float[3,16]", "Pow(p, e)"),
        "waves": ("float[3,16]", "Sin(x)"),
        "same": ("bool[3,16]", "Equal(n, n)"),
        "q": ("uint8[3,16]", "DynamicQuantizeLinear(x)", "qs, qz"),
    },
    """seven = Constant <value = int64 {7}> ()
       two = Constant <value = uint8 {2}> ()
       e = Constant <value = float {1.7}> ()
       p = Abs(x)""",
)
KINDS = {
    "moves": MOVES,
    "sorted": SORTED,
    "windows": WINDOWS,
    "recurrent": RECURRENT,
    "integers": INTEGERS,
}


def network(kind: str) -> onnx.ModelProto:
    """All operators of a kind, each with an output."""
    inputs, made, constants = KINDS[kind]
    outputs = ", ".join(f"{t} {n}" for n, (t, *_) in made.items())
    lines = "\n".join(f"{', '.join([n, *more])} = {text}" for n, (_, text, *more) in made.items())
    text = f"""<ir_version: 10, opset_import: ["": 20]>
        every ({inputs}) => ({outputs}) {{
        {constants}
        {lines}
    }}"""
    return parser.parse_model(text.replace("'", '"'))


def values(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Inputs of any dtype; integers are small."""
    rng = np.random.default_rng(0)
    found = {}
    for one in model.graph.input:
        shape = [d.dim_value for d in one.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)
        if dtype.kind == "f":
            found[one.name] = rng.standard_normal(shape).astype(dtype)
        else:
            found[one.name] = rng.integers(0, 3, shape).astype(dtype)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_operator_runs_there(kind: str, installed: ctypes.CDLL) -> None:
    model = network(kind)
    feed = values(model)
    want = qcompiler.load(qcompiler.compile(model)).run(feed)
    loaded = qcompiler.load(qcompiler.compile(model, target="sm_80"), device="cuda")
    assert isinstance(loaded, CudaModel)
    made = loaded.run(feed)
    assert all(f.bound != "latency" for f in loaded.program.forecasts), "run as tasks"
    for name, value in want.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(made[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(made[name], value, err_msg=name)
