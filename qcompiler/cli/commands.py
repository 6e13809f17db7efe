"""One function a command: arguments -> exit code."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.artifact import Artifact, Value, open_artifact
from qcompiler.cli import quality, show
from qcompiler.cli.arguments import input_shapes, percentiles
from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node, numpy_dtype

if TYPE_CHECKING:
    from qcompiler.driver import Options, Watch
    from qcompiler.plan import Plan
    from qcompiler.runtime import Model


def compile(a: Namespace) -> int:
    """ONNX model -> artifact."""
    from qcompiler import driver

    if a.dry_run:
        return _say_plan(a)
    output = a.output or a.model.parent / f"{a.model.stem}.qc"
    if a.max_drop is None and (a.labels or a.metric):
        raise Error("--labels and --metric say how a loss is measured", hint="add --max-drop")
    data = (a.model, a.calibration, a.evaluation, a.labels)
    _demand_writable(output, *data)
    if a.report is not None:
        _demand_writable(a.report, *data)
        _demand_writable(a.report.with_suffix(".json"), *data)
        if a.report in (output, a.report.with_suffix(".json")):
            raise Error("two files of one name", where=str(a.report), hint="--report FILE.html")
    start = time.perf_counter()
    with show.ProgressBar(enabled=not a.no_progress) as bar:
        watch, skips = _watch(a, bar)
        if a.max_drop is None:
            made, found = driver.made(a.model, _options(a), watch), None
        else:
            found = quality.search(a, _options(a), output, watch)
            made = found.made
        artifact, plan = made.artifact, made.plan
        if a.report is not None:
            quality.report(a, made, _skips(skips, plan), found)
    artifact.save(output, compress=a.compress)
    seconds = time.perf_counter() - start
    _say_skips(a, skips, plan)
    answer = {
        "artifact": str(output),
        "precision": a.precision,
        "target": artifact.manifest.isa,
        "threads": artifact.manifest.threads,
        "steps": len(artifact.manifest.steps),
        "bytes": output.stat().st_size,
        "weights_bytes": artifact.weights.nbytes,
        "workspace_bytes": artifact.manifest.workspace_bytes,
        "compile_seconds": round(seconds, 3),
    }
    if a.json:
        said = {"skips": _skips(skips, plan)} if a.explain else {}
        searched = {} if found is None else {"search": quality.told(found)}
        show.say_json({**answer, **said, **searched})
    else:
        if found is not None:
            quality.say(found)
        show.say(
            f"{a.model} -> {output}: {a.precision} for {answer['target']}, "
            f"{answer['steps']} steps, {show.size(output.stat().st_size)}, "
            f"compiled in {seconds:.1f} s"
        )
    return 0


def quantize(a: Namespace) -> int:
    """ONNX model -> the same in few bits, as ONNX: what other engines run too."""
    from qcompiler import driver, plugins
    from qcompiler.onnx_writer import save

    output = a.output or a.model.parent / f"{a.model.stem}.qdq.onnx"
    _demand_writable(output, a.model, a.calibration)
    with show.ProgressBar(enabled=not a.no_progress) as bar:
        watch, skips = _watch(a, bar)
        device = plugins.device(a.target, a.threads)
        graph = driver.quantized(a.model, _options(a), device, watch)
        save(graph, output)
    answer = {
        "model": str(output),
        "precision": a.precision,
        "bytes": output.stat().st_size,
        "quantized_values": sum(n.op == "QuantizeLinear" for n in graph.nodes),
        "notes": dict(graph.notes),
    }
    if a.json:
        show.say_json({**answer, **({"skips": skips} if a.explain else {})})
        return 0
    if a.explain and skips:
        show.say(show.table(("rule", "node", "not used because"), skips) + "\n")
    size = show.size(output.stat().st_size)
    show.say(f"{a.model} -> {output}: {graph.notes.get('quantization', a.precision)}, {size}")
    return 0


def retrain(a: Namespace) -> int:
    """ONNX model -> the same with weights tuned to quantization or pruning."""
    from qcompiler.onnx_writer import save
    from qcompiler.retrain import Training, retrain

    output = a.output or a.model.parent / f"{a.model.stem}.retrained.onnx"
    _demand_writable(output, a.model, a.calibration, a.data, a.teacher)
    a.calibration = a.calibration or str(a.data)
    training = Training(
        data=str(a.data), epochs=a.epochs, rate=a.rate, count=a.batches, teacher=a.teacher
    )
    with show.ProgressBar(enabled=not a.no_progress) as bar:
        watch, _ = _watch(a, bar)
        tuned = retrain(a.model, _options(a), training, watch)
    save(tuned.graph, output)
    best = int(np.argmin(np.nan_to_num(tuned.losses, nan=np.inf)))
    if a.json:
        show.say_json({"model": str(output), "losses": tuned.losses, "best_epoch": best})
    else:
        first, last = tuned.losses[0], tuned.losses[best]
        show.say(f"{a.model} -> {output}: loss {first:.4g} -> {last:.4g} in epoch {best}")
    return 0


def run(a: Namespace) -> int:
    """Artifact and inputs -> outputs."""
    if a.outputs:
        _demand_writable(a.outputs, a.artifact, a.inputs)
    model = _load(a)
    inputs = next(iter(_inputs(a, model)))
    start = time.perf_counter()
    outputs = model.run(inputs)
    seconds = time.perf_counter() - start
    if a.outputs:
        _save_npz(a.outputs, outputs)
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
    """Artifact -> its latency, and with --per-step every step's."""
    wanted = percentiles(a.percentile)
    start = time.perf_counter()
    model = _load(a)
    loaded = time.perf_counter() - start
    inputs = next(iter(_inputs(a, model)))
    start = time.perf_counter()
    model.run(inputs)
    first = time.perf_counter() - start
    for _ in range(a.warmup):
        model.run(inputs)
    times: list[float] = []
    end = time.perf_counter() + a.duration
    while len(times) < a.iterations if a.iterations else time.perf_counter() < end or not times:
        start = time.perf_counter()
        model.run(inputs)
        times.append(time.perf_counter() - start)
    macs = sum(s.macs for s in model.manifest.steps)
    median = float(np.median(times))
    answer: dict[str, object] = {
        "runs": len(times),
        "threads": model.threads,
        "load_ms": loaded * 1e3,
        "first_run_ms": first * 1e3,
        "mean_ms": float(np.mean(times)) * 1e3,
        **{f"p{p:g}_ms": float(np.percentile(times, p)) * 1e3 for p in wanted},
        "gops": 2 * macs / median / 1e9,
    }
    steps = _step_rows(model, inputs) if a.per_step else []
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


def _step_rows(model: Model, inputs: Mapping[str, Array]) -> list[dict[str, object]]:
    """Every step: its time, and how near it comes to what this machine can do."""
    from qcompiler import limits, plugins

    device = plugins.device(model.manifest.isa, model.threads)
    most = limits.measure(device)
    seconds = model.profile(inputs)
    most |= limits.measure(device)
    whole = sum(seconds)
    rows = []
    for step, taken in zip(model.manifest.steps, seconds, strict=True):
        arithmetic, traffic = most.arithmetic(step), most.traffic(step)
        rows.append(
            {
                "name": step.name,
                "kernel": step.kernel,
                "threads": step.tasks,
                "ms": taken * 1e3,
                "percent": 100 * taken / whole,
                "gops": 2 * step.macs / taken / 1e9,
                "bound": "arithmetic" if arithmetic > traffic else "memory",
                "percent_of_limit": 100 * max(arithmetic, traffic) / taken,
            }
        )
    return rows


def _cell(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def inspect(a: Namespace) -> int:
    """Model or artifact -> what it is."""
    if _is_artifact(a.model):
        return _inspect_artifact(a, open_artifact(a.model))
    if a.plan:
        return _say_plan(a)
    from qcompiler.onnx_reader import read
    from qcompiler.text import write

    graph = read(a.model, input_shapes(a.input_shape))
    if a.text:
        show.say(write(graph)[0])
        return 0
    counts: dict[str, int] = {}
    for node in graph.nodes:
        if node.op not in ("input", "constant", "item"):
            counts[node.op] = counts.get(node.op, 0) + 1
    weights = sum(n.type.bytes for n in graph.nodes if n.is_constant)
    inputs = [f"{n.name}: {n.type}" for n in graph.inputs]
    outputs = [f"{n}: {o.type}" for n, o in zip(graph.output_names, graph.outputs, strict=True)]
    if a.json:
        answer = {"name": graph.name, "inputs": inputs, "outputs": outputs, "operators": counts}
        show.say_json({**answer, "weights_bytes": weights, "notes": dict(graph.notes)})
        return 0
    head = {
        "model": graph.name,
        "inputs": "; ".join(inputs),
        "outputs": "; ".join(outputs),
        "weights": show.size(weights),
        **graph.notes,
    }
    show.say(show.facts(head))
    rows = sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    show.say("\n" + show.table(("operator", "nodes"), rows))
    return 0


def _say_plan(a: Namespace) -> int:
    from qcompiler import driver

    with show.ProgressBar(enabled=not a.no_progress) as bar:
        watch, skips = _watch(a, bar)
        plan = driver.make_plan(a.model, _options(a), watch)
    _say_skips(a, skips, plan)
    show.say_json(_plan_json(plan, skips)) if a.json else show.say(str(plan))
    return 0


def _inspect_artifact(a: Namespace, artifact: Artifact) -> int:
    manifest = artifact.manifest
    if a.json:
        show.say_json(asdict(manifest))
        return 0
    head = {
        "artifact": manifest.name,
        "inputs": "; ".join(map(str, manifest.inputs)),
        "outputs": "; ".join(map(str, manifest.outputs)),
        "target": f"{manifest.isa} ({manifest.triple}), {manifest.threads} threads",
        "needs": " ".join(manifest.cpu_flags),
        "code": show.size(len(artifact.code)),
        "weights": show.size(artifact.weights.nbytes),
        "workspace": show.size(manifest.workspace_bytes),
        **manifest.producer,
        **manifest.notes,
    }
    show.say(show.facts(head))
    if a.plan:
        rows = [(s.name, s.kernel, s.tasks, s.macs, s.bytes) for s in manifest.steps]
        show.say("\n" + show.table(("step", "kernel", "threads", "MACs", "bytes"), rows))
    return 0


def compare(a: Namespace) -> int:
    """Artifact and ONNX model on the same inputs -> errors and latencies; 1 when beyond a limit."""
    from qcompiler.compare import against_onnxruntime, beyond

    model = _load(a)
    samples = list(_inputs(a, model, a.samples))
    report = against_onnxruntime(model, a.model, samples)
    failures = beyond(report, atol=a.atol, rtol=a.rtol, cosine=a.cosine, top1=a.top1)
    if a.json:
        show.say_json({**asdict(report), "failures": failures})
    else:
        head = ("output", "max error", "mean error", "/ range", "cosine", "top-1")
        rows = [
            (
                o.name,
                f"{o.max_error:.3g}",
                f"{o.mean_error:.3g}",
                f"{o.relative_error:.3g}",
                f"{o.cosine:.6f}",
                "-" if o.top1 is None else f"{100 * o.top1:.1f}%",
            )
            for o in report.outputs
        ]
        show.say(show.table(head, rows))
        show.say(
            f"{len(samples)} samples; this artifact {show.milliseconds(report.seconds)}, "
            f"onnxruntime {show.milliseconds(report.peer_seconds)} "
            f"({report.peer_seconds / report.seconds:.2f}x)"
        )
        for failure in failures:
            show.say(f"beyond the limit: {failure}")
    return 1 if failures else 0


def targets(a: Namespace) -> int:
    """Instruction sets and devices, and which of them this machine can run."""
    from qcompiler import cpu, isa, plugins

    plugins.load_all()
    for path in a.target:
        plugins.device(path)
    have = cpu.features()
    host = isa.host().isa.name if any(i.cpu_flags <= have for i in isa.ISAS.values()) else ""
    rows = []
    for i in isa.ISAS.values():
        missing = sorted(i.cpu_flags - have)
        here = "host" if i.name == host else "yes" if not missing else f"no ({' '.join(missing)})"
        products = " ".join("x".join(k[:2]) for k in i.mac)
        rows.append((i.name, here, i.triple, i.vector_bytes, i.registers, products))
    devices = [(n, plugins.device(n).isa.name) for n in plugins.devices()]
    if a.json:
        names = ("name", "here", "triple", "vector_bytes", "registers", "products")
        show.say_json(
            {
                "instruction_sets": [dict(zip(names, r, strict=True)) for r in rows],
                "devices": [{"name": n, "isa": i} for n, i in devices],
            }
        )
        return 0
    head = ("instruction set", "this machine", "triple", "vector bytes", "registers", "products")
    show.say(show.table(head, rows))
    if devices:
        show.say("\n" + show.table(("device", "instruction set"), devices))
    return 0


def demo(a: Namespace) -> int:
    """The model inside the package, from ONNX to a checked and timed int8 artifact."""
    from qcompiler.demo.main import demo as run_demo

    with show.ProgressBar(enabled=not a.no_progress) as bar:
        report = run_demo(a.output, target=a.target, progress=bar)
    if a.json:
        show.say_json(report.facts)
    else:
        show.say(report.text)
    return 0


def _options(a: Namespace) -> Options:
    from qcompiler.driver import Options

    return Options(
        target=a.target,
        precision=a.precision,
        calibration=a.calibration,
        calibration_method=a.calibration_method,
        calibration_samples=a.calibration_samples,
        input_shapes=input_shapes(a.input_shape),
        threads=a.threads,
        passes=tuple(a.passes),
        disabled_passes=tuple(a.disabled_pass),
        exclude=tuple(a.exclude),
        prune=tuple(a.prune),
        compress=a.compress,
        prune_include=tuple(a.prune_include),
        prune_exclude=tuple(a.prune_exclude),
    )


def _watch(a: Namespace, bar: show.ProgressBar) -> tuple[Watch, list[tuple[str, str, str]]]:
    """What the flags ask to be told, and the list that --explain fills."""
    from qcompiler.driver import Watch

    skips: list[tuple[str, str, str]] = []

    def explain(rule: str, node: Node, reason: str) -> None:
        skips.append((rule, node.name or node.op, reason))

    count = 0

    def dump(stage: str, graph: Graph) -> None:
        nonlocal count
        _dump(a.dump, f"{count}_{stage}", graph)
        count += 1

    return Watch(bar, explain if a.explain else None, dump if a.dump else None), skips


def _dump(folder: Path, name: str, graph: Graph) -> None:
    from qcompiler.text import write

    try:
        folder.mkdir(parents=True, exist_ok=True)
        text, arrays = write(graph)
        (folder / f"{name}.txt").write_text(text)
        plain = {k: v for k, v in arrays.items() if v.dtype.kind in "biuf"}
        _save_npz(folder / f"{name}.npz", plain)
    except OSError as e:
        raise Error(f"cannot write: {e.strerror}", where=str(folder)) from e


def _plan_json(plan: Plan, skips: list[tuple[str, str, str]]) -> dict[str, object]:
    """A plan as `inspect --plan --json` prints it."""
    steps = [
        {
            "name": s.name,
            "kernel": s.kernel.name,
            "threads": s.kernel.tasks,
            "reads": [str(p) for p in s.operands],
            "writes": str(s.output),
            "scratch_bytes": s.scratch.bytes if s.scratch else 0,
            "macs": s.kernel.macs,
            "type": str(s.region.output.type),
        }
        for s in plan.steps
    ]
    return {
        "target": plan.device.isa.name,
        "threads": plan.device.threads,
        "weights_bytes": plan.weights.nbytes,
        "workspace_bytes": plan.workspace_bytes,
        "steps": steps,
        "skips": _skips(skips, plan),
    }


def _skips(skips: list[tuple[str, str, str]], plan: Plan) -> list[tuple[str, str, str]]:
    """(rule or kernel, node, reason): what rules said, and generators while kernels were chosen."""
    kernels = [(generator, step, reason) for step, generator, reason in plan.skips]
    return list(dict.fromkeys([*skips, *kernels]))


def _say_skips(a: Namespace, skips: list[tuple[str, str, str]], plan: Plan) -> None:
    """Print them, where --explain asks for it and the answer is no JSON (which holds them)."""
    rows = _skips(skips, plan) if a.explain and not a.json else []
    if rows:
        show.say(show.table(("rule or kernel", "node", "not used because"), rows) + "\n")


def _demand_writable(output: Path, *sources: Path | str | None) -> None:
    """Refuse a place that cannot be written, or that holds an input, before any long work."""
    folder = output.parent
    if not folder.is_dir():
        raise Error(f"there is no folder {str(folder)!r}", where=str(output))
    if output.is_dir():
        raise Error("this is a folder", where=str(output), hint="name a file in it")
    if output.exists() and not output.is_file():
        raise Error("this is not a file that can be replaced", where=str(output))
    if not os.access(folder, os.W_OK):
        raise Error(f"the folder {str(folder)!r} cannot be written to", where=str(output))
    read = [Path(s) for s in sources if s]
    if output.exists() and any(s.exists() and output.samefile(s) for s in read):
        raise Error("this would overwrite what is read", where=str(output))


def _load(a: Namespace) -> Model:
    from qcompiler.runtime import load

    return load(a.artifact, threads=a.threads if "threads" in a else 0)


def _inputs(a: Namespace, model: Model, count: int = 1) -> list[dict[str, Array]]:
    """The samples a command is given, or `count` made-up ones."""
    if a.inputs:
        from itertools import islice

        from qcompiler.samples import samples

        types = {v.name: (v.dtype, v.shape) for v in model.inputs}
        found = list(islice(samples(str(a.inputs), types), count))
        if not found:
            raise Error("no samples", where=str(a.inputs))
        return found
    rng = np.random.default_rng(a.seed)
    return [{v.name: _fill(v, a.fill_mode, rng) for v in model.inputs} for _ in range(count)]


def _fill(value: Value, mode: str, rng: np.random.Generator) -> Array:
    dtype = numpy_dtype(value.dtype)
    if mode != "random":
        return np.full(value.shape, 1 if mode == "ones" else 0, dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 100 if dtype.itemsize > 1 else 2, value.shape).astype(dtype)
    return rng.random(value.shape).astype(dtype)


def _is_artifact(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as e:
        raise Error(f"cannot read: {e.strerror}", where=str(path)) from e


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


def _save_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write beside, then rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise Error(f"cannot write: {e.strerror}", where=str(path)) from e
