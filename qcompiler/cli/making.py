"""Commands that make something from an ONNX model: arguments -> exit code."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.cli import decisions, gpu, quality, show
from qcompiler.cli.flags import read
from qcompiler.cli.places import demand_writable, save_npz
from qcompiler.errors import Error
from qcompiler.files import size, write_text
from qcompiler.options import Options, Watch

if TYPE_CHECKING:
    from qcompiler.artifact.artifact import Artifact
    from qcompiler.artifact.program import Program
    from qcompiler.driver import Compilation
    from qcompiler.ir import Graph, Node
    from qcompiler.plan.plan import Plan
    from qcompiler.quality.mixed_precision import Found
    from qcompiler.quantization.agreement import Agreement


def compile(a: Namespace) -> int:
    """ONNX model -> artifact."""
    from qcompiler.artifact.saving import joined

    if a.dry_run:
        return say_plan(a)
    output = _output(a)
    start = time.perf_counter()
    artifacts, agreements = [], {}
    skips: list[tuple[str, str, str]] = []
    with show.ProgressBar(enabled=not a.no_progress) as bar:
        watch, told = watch_of(a, bar)
        each, found = _compilations(a, output, watch)
        for made in each:
            artifacts.append(made.artifact)
            agreements[made.device.isa.name] = made.agreement
            skips = _skips([*skips, *told], made.plan)
            if a.report is not None:
                quality.report(a, made, skips, found)
    artifact = joined(artifacts)
    artifact.save(output, compress=a.compress)
    seconds = time.perf_counter() - start
    say_skips(a, skips)
    for isa, agreement in agreements.items():
        if agreement is not None:
            which = f"{isa}: " if len(agreements) > 1 else ""
            sys.stderr.write(show.plain(f"{which}{agreement}") + "\n")
    if a.json:
        more = {"skips": skips} if a.explain else {}
        searched = {} if found is None else {"search": quality.told(found)}
        facts = _made_json(a, output, artifact, agreements)
        show.say_json({**facts, "compile_seconds": round(seconds, 3), **more, **searched})
        return 0
    if found is not None:
        quality.say(found)
    _say_made(a, output, artifact, seconds)
    return 0


def _output(a: Namespace) -> Path:
    """Where the artifact goes; an Error, before any long work, for places that cannot be written,
    and for flags that mean nothing together.
    """
    output: Path = a.output or a.model.parent / f"{a.model.stem}.qc"
    if a.max_drop is None and a.report is None and (a.labels or a.metric):
        hint = "add --max-drop, or --report"
        raise Error("--labels and --metric say how a loss is measured", hint=hint)
    data = (a.model, a.calibration, a.evaluation, a.labels)
    demand_writable(output, *data)
    if a.report is not None:
        demand_writable(a.report, *data)
        demand_writable(a.report.with_suffix(".json"), *data)
        if a.report in (output, a.report.with_suffix(".json")):
            raise Error("two files of one name", where=str(a.report), hint="--report FILE.html")
    return output


def _compilations(
    a: Namespace, output: Path, watch: Watch
) -> tuple[Iterable[Compilation], Found | None]:
    """What is compiled, for each target, and what a search found; whoever searches or reports
    decides by one target.
    """
    from qcompiler import driver

    options = read(Options, a)
    if a.max_drop is not None:
        found = quality.search(a, options, output, watch)
        return [found.made], found
    if a.report is not None:
        return [driver.Compilation(a.model, options, watch)], None
    return driver.compilations(a.model, options, watch), None


def _say_made(a: Namespace, output: Path, artifact: Artifact, seconds: float) -> None:
    """What was compiled, in a line or two."""
    variants = artifact.manifest.variants
    steps = "/".join(dict.fromkeys(str(len(v.steps)) for v in variants))
    show.say(
        f"{a.model} -> {output}: {a.precision} for {', '.join(map(str, variants))}, "
        f"{steps} steps, {size(output.stat().st_size)}, compiled in {seconds:.1f} s"
    )
    if len(variants) > 1:
        show.say(show.sharing(artifact))
    _say_batch(artifact.manifest.notes)


def _made_json(
    a: Namespace, output: Path, artifact: Artifact, agreements: Mapping[str, Agreement | None]
) -> dict[str, object]:
    """What was compiled, as --json prints it: one variant's facts in place, several as a list."""
    pairs = zip(artifact.manifest.variants, artifact.binaries, strict=True)
    variants = [
        {
            "target": variant.isa,
            "threads": variant.threads,
            "steps": len(variant.steps),
            "weights_bytes": binary.weights.nbytes,
            "workspace_bytes": variant.workspace_bytes,
            "notes": {**artifact.manifest.notes, **variant.notes},
            **({"agreement": quality.agreed(found)} if (found := agreements[variant.isa]) else {}),
        }
        for variant, binary in pairs
    ]
    facts = {"artifact": str(output), "precision": a.precision, "bytes": output.stat().st_size}
    if len(variants) == 1:
        return {**facts, **variants[0]}
    return {**facts, "shared_bytes": artifact.shared_bytes, "variants": variants}


def quantize(a: Namespace) -> int:
    """ONNX model -> quantized ONNX model, which other engines can run too."""
    from qcompiler import driver
    from qcompiler.onnx_io.writer import save

    output = a.output or a.model.parent / f"{a.model.stem}.qdq.onnx"
    demand_writable(output, a.model, a.calibration)
    with show.ProgressBar(enabled=not a.no_progress) as bar:
        watch, skips = watch_of(a, bar)
        graph = driver.Compilation(a.model, read(Options, a), watch, rolls=False).quantized
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
    small = size(output.stat().st_size)
    show.say(f"{a.model} -> {output}: {graph.notes.get('quantization', a.precision)}, {small}")
    _say_batch(graph.notes)
    return 0


def retrain(a: Namespace) -> int:
    """ONNX model -> the same with weights tuned for quantization or pruning."""
    from qcompiler.onnx_io.writer import save
    from qcompiler.training.request import Training
    from qcompiler.training.retrain import retrain

    output = a.output or a.model.parent / f"{a.model.stem}.retrained.onnx"
    demand_writable(output, a.model, a.calibration, a.data, a.teacher)
    calibration = a.calibration or str(a.data)
    precision = a.precision or ("float32" if a.prune or _small_weights(a) else "int8")
    options = read(Options, a, calibration=calibration, precision=precision)
    with show.ProgressBar(enabled=not a.no_progress) as bar:
        watch, _ = watch_of(a, bar)
        tuned = retrain(a.model, options, read(Training, a, data=str(a.data)), watch)
    save(tuned.graph, output)
    if a.json:
        show.say_json({"model": str(output), "losses": tuned.losses, "best_epoch": tuned.best})
    else:
        first, last = tuned.losses[0], tuned.losses[tuned.best]
        show.say(f"{a.model} -> {output}: loss {first:.4g} -> {last:.4g} in epoch {tuned.best}")
    return 0


def _small_weights(a: Namespace) -> bool:
    return any(p.partition("{")[0].strip() == "quantize_weights" for p in a.passes)


def demo(a: Namespace) -> int:
    """The embedded model, from ONNX to a checked and timed int8 artifact."""
    from qcompiler.demo.main import demo as run_demo

    with show.ProgressBar(enabled=not a.no_progress) as bar:
        report = run_demo(a.output, target=a.target, progress=bar)
    if a.json:
        show.say_json(report.facts)
    else:
        show.say(report.text)
    return 0


def say_plan(a: Namespace) -> int:
    """ONNX model -> the plan that would be compiled, for each target."""
    from qcompiler import driver

    with show.ProgressBar(enabled=not a.no_progress) as bar:
        watch, skips = watch_of(a, bar)
        plans = [c.plan for c in driver.compilations(a.model, read(Options, a), watch)]
    for plan in plans:
        skips = _skips(skips, plan)
    say_skips(a, skips)
    if a.json:
        told = [_plan_json(plan, skips) for plan in plans]
        show.say_json(told[0] if len(told) == 1 else {"plans": told})
        return 0
    show.say("\n\n".join(_plan_text(a, plan) for plan in plans))
    _say_batch(plans[0].graph.notes)
    return 0


def _plan_text(a: Namespace, plan: Plan) -> str:
    """A plan, with --explain also the candidates that its kernels were chosen among; for a GPU also
    what the compiled kernels take.
    """
    parts = [str(plan)]
    if isinstance(program := _program(plan), str):
        parts.append(f"registers and occupancy are not known: {program}")
    elif program is not None:
        parts.append(gpu.text(program, [s.name for s in plan.steps]))
    return "\n\n".join([*parts, decisions.text(plan)] if a.explain else parts)


def _program(plan: Plan) -> Program | str | None:
    """What a plan for a GPU becomes, or why that cannot be compiled here; None for a CPU."""
    from qcompiler.emit import nvrtc, program
    from qcompiler.hardware.gpu import Gpu

    if not isinstance(plan.device, Gpu):
        return None
    return nvrtc.available() or program.program_of(plan)


def _say_batch(notes: Mapping[str, str]) -> None:
    """Report a batch size that was chosen by default."""
    if "batch" in notes:
        show.say(f"batch: {notes['batch']}")


def watch_of(a: Namespace, bar: show.ProgressBar) -> tuple[Watch, list[tuple[str, str, str]]]:
    """The callbacks that the flags request, and the list that --explain fills."""
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
    from qcompiler.ir.text import write

    try:
        folder.mkdir(parents=True, exist_ok=True)
        text, arrays = write(graph)
        write_text(folder / f"{name}.txt", text)
        plain = {k: v for k, v in arrays.items() if v.dtype.kind in "biuf"}
        save_npz(folder / f"{name}.npz", plain)
    except OSError as e:
        raise Error(f"cannot write: {e.strerror}", where=str(folder)) from e


def _plan_json(plan: Plan, skips: list[tuple[str, str, str]]) -> dict[str, object]:
    """A plan, as `inspect --plan --json` prints it."""
    steps = [
        {
            "name": s.name,
            "kernel": s.kernel.name,
            "generic": s.kernel.generic,
            "threads": s.kernel.tasks,
            "reads": [str(p) for p in s.operands],
            "writes": str(s.output),
            "scratch_bytes": s.scratch.bytes if s.scratch else 0,
            "macs": s.kernel.macs,
            "type": str(s.region.output.type),
            "candidates": decisions.as_json(s.decision) if s.decision else [],
        }
        for s in plan.steps
    ]
    program, kernels = _program(plan), {}
    if program is not None and not isinstance(program, str):
        kernels["kernels"] = gpu.as_json(program, [s.name for s in plan.steps])
    return {
        **kernels,
        "target": plan.device.isa.name,
        "threads": plan.device.threads,
        "notes": dict(plan.graph.notes),
        "weights_bytes": plan.weights.nbytes,
        "workspace_bytes": plan.workspace_bytes,
        "parts": plan.parts,
        "steps": steps,
        "skips": skips,
    }


def _skips(skips: list[tuple[str, str, str]], plan: Plan) -> list[tuple[str, str, str]]:
    """(rule or kernel, node, reason): Skips of rules, and of generators when choosing kernels."""
    kernels = [(generator, step, reason) for step, generator, reason in plan.skips]
    return list(dict.fromkeys([*skips, *kernels]))


def say_skips(a: Namespace, rows: list[tuple[str, str, str]]) -> None:
    """Print them, where --explain asks for it and the answer is no JSON (which holds them)."""
    if rows and a.explain and not a.json:
        show.say(show.table(("rule or kernel", "node", "not used because"), rows) + "\n")
