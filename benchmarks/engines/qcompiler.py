"""qcompiler, through the public functions that its users call."""

from __future__ import annotations

from pathlib import Path

from benchmarks.engines import Build, Job, Run, Settings, Unavailable, engine


def load(artifact: Path, settings: Settings) -> Run:
    """An artifact -> a model."""
    import qcompiler

    model = qcompiler.load(artifact, threads=settings.threads)

    return model.run


def compiled(precision: str) -> Build:
    """-> a `build` that compiles to a precision."""

    def build(job: Job) -> Path:
        import qcompiler

        if precision == "int8-dynamic" and not job.subject.is_transformer():
            raise Unavailable("dynamic int8 is for transformers")
        made = job.folder / "model.qc"
        qcompiler.compile(
            job.subject.model,
            target=job.settings.target,
            precision=precision,
            calibration=job.subject.samples() if precision == "int8" else None,
            input_shapes=job.subject.shapes(),
            threads=job.settings.threads,
        ).save(made)
        return made

    return build


for _precision in ("float32", "bfloat16", "int8", "int8-dynamic"):
    engine("qcompiler", _precision, load=load)(compiled(_precision))
