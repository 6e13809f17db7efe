"""Commands that use or describe artifacts and models: arguments -> exit code."""

from __future__ import annotations

import logging
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.artifact.artifact import Artifact, Binary, Variant, is_artifact, open_artifact
from qcompiler.artifact.program import read
from qcompiler.cli import batch, executing, gpu, remote, show
from qcompiler.cli.arguments import percentiles
from qcompiler.cli.inputs import inputs_of
from qcompiler.cli.places import demand_writable, save_npz
from qcompiler.dtypes import Array
from qcompiler.errors import Error, compiler_missing
from qcompiler.files import size
from qcompiler.runtime.choosing import lacking
from qcompiler.runtime.open_sizes import turns
from qcompiler.runtime.text import NOTE, Program

if TYPE_CHECKING:
    from qcompiler.runtime import Model
    from qcompiler.runtime.cuda import CudaModel
    from qcompiler.runtime.remote import RemoteModel
    from qcompiler.runtime.timing import Measured
    from qcompiler.tune.limits import Gauge

log = logging.getLogger(__name__)


def run(a: Namespace) -> int:
    """Artifact and inputs -> outputs."""
    if batch.wanted(a):
        return batch.run(a)
    if a.outputs:
        demand_writable(a.outputs, a.artifact, a.inputs)
    with load_of(a) as model:
        inputs = next(iter(inputs_of(a, model)))
        start = time.perf_counter()
        outputs = model.run(inputs)
        seconds = time.perf_counter() - start
    if a.outputs:
        save_npz(a.outputs, outputs)
    answer = {n: _summary(v) for n, v in outputs.items()}
    if a.json:
        show.say_json({"outputs": answer, "seconds": seconds, "file": str(a.outputs or "")})
        return 0
    rows = [(n, *s.values()) for n, s in answer.items()]
    show.say(show.table(("output", "dtype", "shape", "min", "mean", "max", "top"), rows))
    if a.print_time:
        show.say(f"ran in {show.milliseconds(seconds)}")
    return 0


def bench(a: Namespace) -> int:
    """Artifact -> its latency, and with --per-step that of every step; or that of many requests."""
    if executing.wanted(a):
        return executing.bench(a)
    wanted = percentiles(a.percentile)
    start = time.perf_counter()
    with load_of(a) as model:
        loaded = time.perf_counter() - start
        inputs = next(iter(inputs_of(a, model)))
        told = _energy_counter(model)
        before = told() if told else 0
        found = _measured(a, model, inputs, loaded)
        energy = (told() - before) / (len(found.times) + a.warmup + 1) if told else 0.0
        arrays = [inputs[v.name] for v in model.inputs] if model.manifest.symbols else []
        often = turns(model.manifest, model.variant, arrays)
        steps = _step_rows(model, inputs, often) if a.per_step else []
    macs = sum(n * s.macs for s, n in zip(model.variant.steps, often))
    answer: dict[str, object] = {
        **({"device": a.remote} if a.remote else {}),
        "runs": len(found.times),
        "variant": model.variant.isa,
        "threads": found.threads,
        "load_ms": found.load_seconds * 1e3,
        "first_run_ms": found.first_seconds * 1e3,
        "mean_ms": float(np.mean(found.times)) * 1e3,
        **{f"p{p:g}_ms": float(np.percentile(found.times, p)) * 1e3 for p in wanted},
        "gops": 2 * macs / float(np.median(found.times)) / 1e9,
        **({"millijoules": energy} if told else {}),
    }
    if a.json:
        show.say_json({**answer, **({"steps": steps} if steps else {})})
        return 0
    shown = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in answer.items()}
    show.say(show.facts(shown))
    if steps:
        head = ("step", "kernel", "threads", "ms", "% of run", "GOP/s", "bound", "% of limit")
        rows = [[_cell(v) for v in s.values()] for s in steps]
        show.say("\n" + show.table(head, rows))
    return 0


def _energy_counter(model: Model | CudaModel | RemoteModel) -> Callable[[], int] | None:
    """What tells the millijoules that a GPU has taken, if it is one and tells."""
    from qcompiler.runtime.cuda import CudaModel

    return model.energy_counter() if isinstance(model, CudaModel) else None


def _measured(
    a: Namespace, model: Model | CudaModel | RemoteModel, inputs: Mapping[str, Array], loaded: float
) -> Measured:
    """What a model takes, here or on its device."""
    from qcompiler.runtime.remote import RemoteModel
    from qcompiler.runtime.timing import Measured, again, once

    asked = {"iterations": a.iterations, "seconds": a.duration, "warmup": a.warmup}
    if isinstance(model, RemoteModel):
        return model.measure(inputs, **asked)
    first = once(lambda: model.run(inputs))
    times = again(lambda: model.run(inputs), **asked)
    return Measured(times, first, loaded, model.threads)


def _step_rows(
    model: Model | CudaModel | RemoteModel, inputs: Mapping[str, Array], often: Sequence[int]
) -> list[dict[str, object]]:
    """Every step that runs, so often: its time, and, where the compiler is installed to measure
    that, how near it comes to what this machine can do.
    """
    gauge = _gauge(model)
    before = gauge and gauge.read()
    seconds = model.profile(inputs)
    most = gauge and before and before | gauge.read()
    whole = sum(seconds)
    rows: list[dict[str, object]] = []
    for step, taken, n in zip(model.variant.steps, seconds, often):
        if not n:
            continue
        arithmetic, traffic = (most.arithmetic(step), most.traffic(step)) if most else (0.0, 0.0)
        rows.append(
            {
                "name": step.name,
                "kernel": step.kernel,
                "threads": step.tasks,
                "ms": taken * 1e3,
                "percent": 100 * taken / whole,
                "gops": 2 * n * step.macs / max(taken, 1e-9) / 1e9,
                "bound": ("arithmetic" if arithmetic > traffic else "memory") if most else None,
                "percent_of_limit": 100 * n * max(arithmetic, traffic) / taken if most else None,
            }
        )
    return rows


def _gauge(model: Model | CudaModel | RemoteModel) -> Gauge | None:
    """What measures how much this machine does at most of what the model's steps do; None where the
    compiler's packages are not installed, and of a GPU or another machine.
    """
    from qcompiler.runtime import Model

    if not isinstance(model, Model):
        return None
    try:
        from qcompiler import plugins
        from qcompiler.hardware.isa import Cpu
        from qcompiler.tune import limits

        device = plugins.device(model.variant.isa, model.threads)
        assert isinstance(device, Cpu)
        return limits.Gauge(device, {limits.kind_of(s.operands) for s in model.variant.steps})
    except ImportError as e:
        if compiler_missing(e) is None:
            raise
        return None


def _cell(value: object) -> object:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else value


def inspect(a: Namespace) -> int:
    """Model or artifact -> its description."""
    if is_artifact(a.model):
        return _inspect_artifact(a, open_artifact(a.model))
    from qcompiler.cli.describing import inspect_model

    return inspect_model(a)


def _inspect_artifact(a: Namespace, artifact: Artifact) -> int:
    manifest = artifact.manifest
    pairs = list(zip(manifest.variants, artifact.binaries))
    if a.json:
        shared = {"weights_bytes": artifact.weights_bytes, "shared_bytes": artifact.shared_bytes}
        kernels = {
            v.isa: gpu.as_json(read(b.code, v.isa), [s.name for s in v.steps])
            for v, b in pairs
            if a.plan and gpu.is_gpu(v)
        }
        show.say_json({**asdict(manifest), **shared, **({"kernels": kernels} if kernels else {})})
        return 0
    head = {
        "artifact": manifest.name,
        "inputs": "; ".join(map(str, manifest.inputs)),
        "outputs": "; ".join(map(str, manifest.outputs)),
        **({"open": ", ".join(map(str, manifest.symbols))} if manifest.symbols else {}),
        **manifest.producer,
        **{k: v for k, v in manifest.notes.items() if k != NOTE},
    }
    if NOTE in manifest.notes:
        text = Program(manifest.notes[NOTE])
        head["inputs"] = "; ".join(text.taken(manifest.inputs))
        head["in Python"] = text.operators
    show.say(show.facts(head))
    if len(pairs) > 1:
        show.say("\n" + show.table(_VARIANT, [_variant_row(v, b) for v, b in pairs]))
        show.say(show.sharing(artifact))
    for variant, binary in pairs:
        show.say("\n" + show.facts(_variant_facts(variant, binary)))
        if a.plan and gpu.is_gpu(variant):
            program = read(binary.code, variant.isa)
            show.say("\n" + gpu.text(program, [s.name for s in variant.steps]))
        elif a.plan:
            rows = [(s.name, s.kernel, s.tasks, s.macs, s.bytes) for s in variant.steps]
            show.say("\n" + show.table(("step", "kernel", "threads", "MACs", "bytes"), rows))
    return 0


_VARIANT = ("variant", "this machine", "code", "weights", "workspace", "threads")


def _variant_row(variant: Variant, binary: Binary) -> tuple[object, ...]:
    missing = lacking(variant)
    return (
        variant.isa,
        f"no ({missing})" if missing else "yes",
        size(len(binary.code)),
        size(binary.weights.nbytes),
        size(variant.workspace_bytes),
        variant.threads,
    )


def _variant_facts(variant: Variant, binary: Binary) -> dict[str, object]:
    rounds = variant.batches and not variant.pinned
    return {
        "target": f"{variant.isa} ({variant.triple}), {variant.threads} threads",
        "needs": " ".join(variant.cpu_flags),
        "code": size(len(binary.code)),
        "weights": size(binary.weights.nbytes),
        "workspace": size(variant.workspace_bytes),
        **({"samples": ", then ".join(map(str, variant.batches))} if rounds else {}),
        **({"sizes": ", ".join(map(str, variant.pinned))} if variant.pinned else {}),
        **variant.notes,
    }


def targets(a: Namespace) -> int:
    """List instruction sets and devices, and which of them this machine can run; if the compiler is
    not installed, describe this machine.
    """
    try:
        from qcompiler.cli.describing import list_targets

        return list_targets(a)
    except ImportError as e:
        if compiler_missing(e) is None:
            raise
        return _say_this_machine(a)


def _say_this_machine(a: Namespace) -> int:
    from qcompiler.hardware import cpu

    features = sorted(cpu.features())
    if a.json:
        machine = {"processors": cpu.cores(), "features": features}
        show.say_json({"instruction_sets": [], "devices": [], "this_machine": machine})
        return 0
    show.say("the compiler is not installed: nothing can be compiled here, only run")
    show.say(show.facts({"processors": cpu.cores(), "features": " ".join(features)}))
    return 0


def load_of(a: Namespace) -> Model | CudaModel | RemoteModel:
    """The artifact, here, or on the GPU that --device names, or on the device of --remote."""
    from qcompiler.runtime import cuda, load

    threads = a.threads if "threads" in a else 0
    if remote.elsewhere(a) and a.device:
        raise Error("--device is a GPU of this machine, --remote another machine")
    if remote.elsewhere(a):
        return remote.model(a, threads)
    device = cuda.place_of(a.artifact, a.device)
    if device == "cpu":
        return load(a.artifact, threads=threads, variant=a.variant)
    return cuda.load(a.artifact, variant=a.variant, device=device)


def _summary(array: Array) -> dict[str, object]:
    if not array.size:
        stats = dict.fromkeys(("min", "mean", "max", "top"), "-")
        return {"dtype": array.dtype.name, "shape": list(array.shape), **stats}
    wide = array.astype(np.float64)
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "min": f"{wide.min():.5g}",
        "mean": f"{wide.mean():.5g}",
        "max": f"{wide.max():.5g}",
        "top": int(wide.reshape(-1).argmax()),
    }
