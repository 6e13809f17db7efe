"""A model and its inputs -> what another engine computes; a skip with its reason where it will not.

Engines change under us: a release refuses what the last one took, or has no build for this Python.
Their refusal says nothing about what we make, so no test is red for it; an answer that differs is.
Models of our own writing must pass ONNX's checker before a refusal counts as the engine's.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from qcompiler.ir import Array
from tests.exact_products import exact, saturates

Feed = Mapping[str, Array]
Model = onnx.ModelProto | bytes | Path | str


def peer(name: str) -> ModuleType:
    """A module of another project; a skip where it is not installed, or breaks when imported."""
    with refusals(name):
        return importlib.import_module(name)


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """Whatever an engine raises -> a skip. Only its own calls may stand inside."""
    try:
        yield
    except Exception as e:  # engines have no common class for what they refuse
        pytest.skip(f"{name} refuses: {type(e).__name__}: {' '.join(str(e).split())}")


def session(model: Model, *, plain: bool = False, ours: bool = False) -> Any:
    """onnxruntime's session of a model. plain: operator by operator, without fusions of its own.
    ours: we wrote the model, so that ONNX's checker must take it.
    """
    if ours:
        onnx.checker.check_model(_whole(model), full_check=True)
    engine = peer("onnxruntime")
    source = _exact(model)
    with refusals("onnxruntime"):
        options = engine.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.x64quantprecision", "1")
        if plain:
            options.graph_optimization_level = engine.GraphOptimizationLevel.ORT_DISABLE_ALL
        return engine.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _exact(model: Model) -> bytes | str:
    """What onnxruntime is to load: the file's path, unless integer products would saturate."""
    if not isinstance(model, onnx.ModelProto):
        if not saturates():
            return model if isinstance(model, bytes) else str(model)
        model = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    return exact(model).SerializeToString()


def _whole(model: Model) -> onnx.ModelProto | str:
    """What ONNX's checker takes: a path if weights are in files next to the model."""
    if isinstance(model, bytes):
        return onnx.load_from_string(model)
    return model if isinstance(model, onnx.ModelProto) else str(model)


def onnxruntime_outputs(
    model: Model,
    feed: Feed,
    names: Sequence[str] | None = None,
    *,
    plain: bool = False,
    ours: bool = False,
) -> dict[str, Array]:
    """What onnxruntime computes, by the outputs' names; of all outputs if none are named."""
    made = session(model, plain=plain, ours=ours)
    with refusals("onnxruntime"):
        names = list(names or (o.name for o in made.get_outputs()))
        found = made.run(names, dict(feed))
    return dict(zip(names, found, strict=True))


class _Reader:
    """An onnxruntime CalibrationDataReader."""

    def __init__(self, samples: Iterable[Feed]) -> None:
        self.left = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        sample = next(self.left, None)
        return None if sample is None else dict(sample)


def onnxruntime_quantized(
    model: onnx.ModelProto, samples: Iterable[Feed], folder: Path, **options: Any
) -> Path:
    """onnxruntime's static quantization of a model, as a file in `folder`.

    Options whose values are enumerations of onnxruntime are given by their names.
    """
    quantization = peer("onnxruntime.quantization")
    source, made = folder / "source.onnx", folder / "made.onnx"
    onnx.save(model, source)
    with refusals("onnxruntime.quantization"):
        kinds = {"quant_format": quantization.QuantFormat}
        named = {
            k: getattr(kinds.get(k, quantization.QuantType), v) if isinstance(v, str) else v
            for k, v in options.items()
        }
        quantization.quantize_static(source, made, _Reader(samples), **named)
    return made


def nncf_quantized(model: onnx.ModelProto, samples: Sequence[Feed]) -> onnx.ModelProto:
    """NNCF's static quantization of a model."""
    nncf = peer("nncf")
    with refusals("nncf"):
        made = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))
    assert isinstance(made, onnx.ModelProto)
    return made


def onnxruntime_runs(model: Path) -> bool:
    """Whether onnxruntime takes a model at all, for tests that compare with it themselves."""
    try:
        session(model)
    except pytest.skip.Exception:
        return False
    return True
