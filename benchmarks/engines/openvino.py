"""OpenVINO: float32, bfloat16 as an inference precision, int8 by NNCF's post-training quantization.

`build` is conversion (and quantization) to its own file format; kernels are made when it loads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.engines import Job, Run, Settings, Unavailable, engine
from benchmarks.subjects import Array, Feed

CAPABILITIES = "OPTIMIZATION_CAPABILITIES"


def loader(precision: str | None) -> Any:
    """-> a `load` with that inference precision, or with the one that the library picks."""

    def load(artifact: Path, settings: Settings) -> Run:
        import openvino

        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", CAPABILITIES):
            raise Unavailable("OpenVINO has no bfloat16 on this CPU")
        options: dict[str, object] = {
            "INFERENCE_NUM_THREADS": settings.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        hint = precision or ("f32" if held_below_bfloat16() else None)
        if hint is not None:
            options["INFERENCE_PRECISION_HINT"] = hint
        compiled = core.compile_model(core.read_model(artifact), "CPU", options)
        request = compiled.create_infer_request()
        names = [output.any_name for output in compiled.outputs]

        def run(feed: Feed) -> dict[str, Array]:
            results = request.infer(feed, share_inputs=True, share_outputs=True)
            return {name: results[name] for name in names}

        return run

    return load


def held_below_bfloat16() -> bool:
    """Whether ONEDNN_MAX_CPU_ISA holds it to instructions without bfloat16. It would then still
    choose bfloat16 where the CPU has it, and emulate it, four times slower than float32.
    """
    held = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    return bool(held) and not any(word in held for word in ("BF16", "AMX", "AVX10", "DEFAULT"))


@engine("openvino", "bfloat16", load=loader("bf16"))
@engine("openvino", "float32", load=loader("f32"))
def as_it_is(job: Job) -> Path:
    """Convert; the weights stay float32."""
    import openvino

    made = job.folder / "model.xml"
    openvino.save_model(openvino.convert_model(job.subject.model), made, compress_to_fp16=False)
    return made


@engine("openvino", "int8", load=loader(None))
def int8(job: Job) -> Path:
    """Convert and quantize with NNCF's defaults; the float rest runs as OpenVINO chooses."""
    import nncf
    import openvino

    samples = job.subject.samples()
    quantized = nncf.quantize(
        openvino.convert_model(job.subject.model),
        nncf.Dataset(samples),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER if job.subject.is_transformer() else None,
    )
    made = job.folder / "int8.xml"
    openvino.save_model(quantized, made, compress_to_fp16=False)
    return made
