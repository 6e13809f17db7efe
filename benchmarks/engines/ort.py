"""onnxruntime: float32 as it is, static int8 (QDQ, per channel), dynamic int8 for transformers.

Its session optimizes the graph when it loads, so `build` is nothing for float32. Integer models are
made as its documentation says: shape inference and fusion first, then quantization. Activations are
uint8: int8 ones, its default, were 1.3 to 3.5 times slower on all four networks with AVX512-VNNI.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.engines import Job, Run, Settings, Unavailable, engine
from benchmarks.subjects import Array, Feed


def load(artifact: Path, settings: Settings) -> Run:
    """An ONNX file -> a session, optimized as far as it goes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spin)))
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(artifact, options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feed: Feed) -> dict[str, Array]:
        return dict(zip(names, session.run(None, feed), strict=True))

    return run


@engine("onnxruntime", "float32", load=load)
def float32(job: Job) -> Path:
    """The model is the artifact."""
    return job.subject.model


@engine("onnxruntime", "int8", load=load)
def static_int8(job: Job) -> Path:
    """Calibrate by the samples' extremes, insert QuantizeLinear and DequantizeLinear."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    made = job.folder / "int8.onnx"
    quantize_static(
        _prepared(job),
        made,
        _reader(job.subject.samples()),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return made


@engine("onnxruntime", "int8-dynamic", load=load)
def dynamic_int8(job: Job) -> Path:
    """Quantize the weights of matrix products now, activations at run time."""
    if not job.subject.is_transformer():
        raise Unavailable("dynamic int8 is for transformers")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = job.folder / "int8-dynamic.onnx"
    quantize_dynamic(_prepared(job), made, per_channel=True, weight_type=QuantType.QInt8)
    return made


def _prepared(job: Job) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    made = job.folder / "prepared.onnx"
    quant_pre_process(job.subject.model, made, skip_symbolic_shape=True)
    return made


def _reader(samples: list[Feed]) -> object:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no type information
        def __init__(self) -> None:
            self.rest: Iterator[Feed] = iter(samples)

        def get_next(self) -> Feed | None:
            return next(self.rest, None)

    return Reader()
