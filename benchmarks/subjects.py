"""An ONNX model -> a folder that every engine reads: the model with its shapes pinned, and samples.

The samples are the same for all: the first one is timed, all of them calibrate. They are random
unless `NAME.npz` lies beside `NAME.onnx`; then they are its arrays, one sample in each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Feed: TypeAlias = dict[str, Array]

SAMPLES = 16


@dataclass(frozen=True)
class Subject:
    """A folder with `model.onnx` and `samples.npz`."""

    folder: Path

    @property
    def name(self) -> str:
        """As the tables call it."""
        return self.folder.name

    @property
    def model(self) -> Path:
        """The ONNX file; every dimension of its inputs is a number."""
        return self.folder / "model.onnx"

    def samples(self) -> list[Feed]:
        """What to calibrate with; the first is what is timed."""
        with np.load(self.folder / "samples.npz", allow_pickle=False) as stored:
            columns = {name: stored[name] for name in stored.files}
        count = len(next(iter(columns.values())))
        return [{k: np.asarray(v[i], order="C") for k, v in columns.items()} for i in range(count)]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every input."""
        return {name: array.shape for name, array in self.samples()[0].items()}

    def is_transformer(self) -> bool:
        """Does a Softmax feed a matrix product? Engines then take other settings."""
        nodes = onnx.load(self.model, load_external_data=False).graph.node
        softmaxes = {n.output[0] for n in nodes if n.op_type == "Softmax"}
        return any(n.op_type == "MatMul" and softmaxes & set(n.input) for n in nodes)


def prepare(
    model: onnx.ModelProto, folder: Path, *, batch: int, sizes: Mapping[str, int], given: Feed
) -> Subject:
    """Pin a model's shapes, draw its samples, write both.

    An input's first dimension is the batch where it is symbolic; `sizes` has the other symbols'
    numbers. `given` holds samples by input name, [sample, ...] without the batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pin(model, batch, sizes)
    random = np.random.default_rng(0)
    weights = {w.name for w in model.graph.initializer}
    columns = {}
    for value in model.graph.input:
        if value.name in given:
            rows = given[value.name][:SAMPLES]
            if value.type.tensor_type.shape.dim:  # a single number has no batch
                rows = np.repeat(rows[:, None], batch, axis=1)
            columns[value.name] = rows
        elif value.name not in weights:
            columns[value.name] = draw(model, value, random)
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "samples.npz", allow_pickle=False, **columns)
    return Subject(folder)


def pin(model: onnx.ModelProto, batch: int, sizes: Mapping[str, int]) -> None:
    """Write numbers over the symbols in a model's inputs and outputs, in place."""
    numbers = dict(sizes)
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            if axis == 0:
                numbers.setdefault(dim.dim_param, batch)
            if dim.dim_param not in numbers:
                raise SystemExit(f"{value.name}: say --size {dim.dim_param or '?'}=NUMBER")
            dim.dim_value = numbers[dim.dim_param]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in numbers:
                dim.dim_value = numbers[dim.dim_param]
    del model.graph.value_info[:]  # what an exporter inferred for the symbols


def draw(model: onnx.ModelProto, value: onnx.ValueInfoProto, random: np.random.Generator) -> Array:
    """An input -> SAMPLES random arrays of its shape: floats are normal, indices are in range."""
    tensor = value.type.tensor_type
    shape = (SAMPLES, *(d.dim_value for d in tensor.shape.dim))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if np.issubdtype(dtype, np.floating):
        return random.standard_normal(shape, np.float32).astype(dtype)
    limit = _rows_looked_up(model, value.name)
    return (random.integers(0, limit, shape) if limit else np.ones(shape)).astype(dtype)


def _rows_looked_up(model: onnx.ModelProto, name: str) -> int:
    """How long the table is that an input indexes; 0 where it indexes none."""
    rows = {w.name: w.dims[0] for w in model.graph.initializer if w.dims}
    tables = [n.input[0] for n in model.graph.node if n.op_type == "Gather" and n.input[1] == name]
    return min((rows[t] for t in tables if t in rows), default=0)
