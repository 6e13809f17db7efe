"""Commands that describe models and targets, which needs the compiler: arguments -> exit code."""

from __future__ import annotations

import logging
import time
from argparse import Namespace
from dataclasses import asdict

from qcompiler import plugins
from qcompiler.cli import show
from qcompiler.cli.inputs import inputs_of
from qcompiler.cli.places import demand_writable
from qcompiler.cli.using import load_of
from qcompiler.errors import Error
from qcompiler.files import size, write_text
from qcompiler.hardware import isa

log = logging.getLogger(__name__)


def inspect_model(a: Namespace) -> int:
    """ONNX model -> what it contains, or its plan."""
    if a.plan:
        from qcompiler.cli.making import say_plan

        return say_plan(a)
    from qcompiler.ir.text import write
    from qcompiler.onnx_io.reader import read

    graph = read(a.model, dict(a.input_shapes))
    if a.text:
        show.say(write(graph)[0])
        return 0
    counts: dict[str, int] = {}
    for node in graph.nodes:
        if node.op not in ("input", "constant", "item"):
            counts[node.op] = counts.get(node.op, 0) + 1
    weights = sum(n.type.bytes for n in graph.nodes if n.is_constant)
    inputs = [f"{n.name}: {n.type}" for n in graph.inputs]
    outputs = [f"{n}: {o.type}" for n, o in zip(graph.output_names, graph.outputs)]
    if a.json:
        answer = {"name": graph.name, "inputs": inputs, "outputs": outputs, "operators": counts}
        show.say_json({**answer, "weights_bytes": weights, "notes": dict(graph.notes)})
        return 0
    head = {
        "model": graph.name,
        "inputs": "; ".join(inputs),
        "outputs": "; ".join(outputs),
        "weights": size(weights),
        **graph.notes,
    }
    show.say(show.facts(head))
    rows = sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    show.say("\n" + show.table(("operator", "nodes"), rows))
    return 0


def compare(a: Namespace) -> int:
    """Artifact and ONNX model on the same inputs -> errors and latencies; 1 if over a limit."""
    from qcompiler.quality.compare import against_onnxruntime, beyond

    with load_of(a) as model:
        samples = list(inputs_of(a, model, a.samples))
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
        ours, theirs = show.milliseconds(report.seconds), show.milliseconds(report.peer_seconds)
        if a.remote:
            told = f"at {a.remote} {ours}, onnxruntime here {theirs}"
        else:
            told = f"{ours}, onnxruntime {theirs} ({report.peer_seconds / report.seconds:.2f}x)"
        show.say(f"{len(samples)} samples; this artifact {told}")
        for failure in failures:
            show.say(f"beyond the limit: {failure}")
    return 1 if failures else 0


def list_targets(a: Namespace) -> int:
    """List instruction sets and devices, and which of them this machine can run."""
    plugins.load_all()
    for path in a.target:
        plugins.device(path)
    if a.probe:
        return _probe(a)
    if a.output:
        raise Error("-o is for --probe only")
    needed = {i.name: i.lacks for i in isa.ISAS.values()}
    host = isa.host().isa.name if any(not lacks for lacks in needed.values()) else ""
    rows = []
    for i in isa.ISAS.values():
        missing = needed[i.name]
        here = "host" if i.name == host else "yes" if not missing else f"no ({' '.join(missing)})"
        products = " ".join(dict.fromkeys("x".join(m.key[:2]) for m in reversed(i.inherited)))
        rows.append((i.name, here, i.family, i.triple, i.vector_bytes, i.registers, products))
    devices = [(n, plugins.device(n).isa.name) for n in plugins.devices()]
    if a.json:
        names = ("name", "here", "family", "triple", "vector_bytes", "registers", "products")
        show.say_json(
            {
                "instruction_sets": [dict(zip(names, r)) for r in rows],
                "devices": [{"name": n, "isa": i} for n, i in devices],
            }
        )
        return 0
    head = (
        "instruction set",
        "this machine",
        "family",
        "triple",
        "vector bytes",
        "registers",
        "products",
    )
    show.say(show.table(head, rows))
    if devices:
        show.say("\n" + show.table(("device", "instruction set"), devices))
    return 0


def _probe(a: Namespace) -> int:
    """Measure this machine -> the TOML file of a device."""
    from qcompiler.tune import probe

    if a.output:
        demand_writable(a.output)
    found = probe.probe(isa.host())
    text = probe.toml(found, time.strftime("%Y-%m-%d"))
    if a.output:
        write_text(a.output, text)
    if a.json:
        show.say_json({"core": asdict(found.device.core), "doubts": found.doubts})
    elif not a.output:
        show.say(text.rstrip())
    for doubt in found.doubts:
        log.warning("doubtful, measure again when nothing else runs: %s", doubt)
    return 0
