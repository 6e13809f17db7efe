"""Flags of the accuracy search -> the fastest artifact within the limit, and the report."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, fields
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.cli import show
from qcompiler.cli.flags import read
from qcompiler.errors import Error
from qcompiler.files import write_text
from qcompiler.quality.demand import Demand

if TYPE_CHECKING:
    from qcompiler.driver import Compilation
    from qcompiler.options import Options, Watch
    from qcompiler.quality.mixed_precision import Found
    from qcompiler.quality.mixture import Trial
    from qcompiler.quantization.agreement import Agreement

SHOWN_LAYERS = 12


def agreed(found: Agreement) -> dict[str, object]:
    """The agreement of int8 with float, for JSON: ratios are null if there is no error."""
    return {
        "samples": found.samples,
        "sqnr_db": round(found.decibels, 2) if isfinite(found.decibels) else None,
        "top1": None if found.top1 is None else list(found.top1),
        "worst_layer": found.layer,
        "worst_layer_db": round(found.layer_decibels, 2) if found.layer else None,
        "poor": found.poor,
    }


def search(a: Namespace, options: Options, output: Path, watch: Watch) -> Found:
    """Flags -> what the search found. An interrupted search continues when started again."""
    from qcompiler.quality import mixed_precision

    if a.evaluation is None:
        hint = "--evaluation data.npz (a few hundred samples), with --labels labels.npy if you can"
        raise Error("--max-drop needs data to measure on", hint=hint)
    drop, relative = allowed(a.max_drop)
    state = output.with_name(f"{output.name}.search.json")
    demand = read(Demand, a, drop=drop, data=a.evaluation, relative=relative, state=state)
    return mixed_precision.compile(a.model, options, demand, watch)


def report(
    a: Namespace,
    made: Compilation,
    skips: list[tuple[str, str, str]],
    found: Found | None,
) -> None:
    """A compilation, and how it was found -> two files."""
    from qcompiler.data.samples import samples
    from qcompiler.quality.report import SAMPLES, Judge, examine
    from qcompiler.quality.report_html import html

    wanted = {n.name: (n.dtype, n.shape) for n in made.float_graph.inputs}
    given = a.evaluation or a.calibration or "synthetic"
    data = list(samples(given, wanted, a.count if a.evaluation else SAMPLES))
    curves = None
    if made.is_pruned and a.calibration:
        curves = made.calibration_of(made.float_graph)
    facts = examine(
        a.model.name,
        made,
        data,
        judge=Judge(a.labels, a.metric, found is not None),
        calibration=curves,
        model_bytes=a.model.stat().st_size,
        skips=skips,
        found=found,
    )
    plain = {f.name: getattr(facts, f.name) for f in fields(facts) if f.name != "found"}
    for name in ("stages", "layers", "sensitivity"):
        plain[name] = [asdict(x) for x in getattr(facts, name)]
    plain["search"] = None if found is None else told(found)
    write_text(a.report, html(facts))
    write_text(a.report.with_suffix(".json"), show.json_text(plain))


def allowed(text: str) -> tuple[float, bool]:
    """ "0.5" -> (0.5, False), points; "1%" -> (1.0, True), per cent of the float score."""
    try:
        return float(text.rstrip("%")), text.endswith("%")
    except ValueError:
        raise Error(f"{text!r} is no loss", where="--max-drop", hint="0.5, or 1%") from None


def told(found: Found) -> dict[str, object]:
    """What the search found, for programs."""
    return {
        "metric": found.metric,
        "float": found.exact,
        "floor": found.floor,
        "unsure": found.unsure,
        "chosen": asdict(found.chosen),
        "layers": [asdict(x) for x in found.layers],
        "trials": [asdict(t) for t in found.trials],
    }


def say(found: Found) -> None:
    """The same, for people."""
    rows = [
        (
            t.method,
            len(t.ranges),
            len(t.halves),
            len(t.floats),
            f"{t.score:.2f}",
            f"{t.loss:.2e}",
            _time(t),
        )
        for t in found.trials
    ]
    head = (
        "calibration",
        "other ranges",
        "in bfloat16",
        "in float32",
        found.metric,
        "divergence",
        "ms",
    )
    show.say(show.table(head, rows) + "\n")
    if found.layers:
        worst = [
            (
                x.name,
                x.op,
                f"{x.sensitivity:.2e}",
                f"{x.saved * 1e6:.1f}",
                found.chosen.form(x.name),
            )
            for x in found.layers[:SHOWN_LAYERS]
        ]
        columns = ("product", "operator", "divergence alone", "us saved", "runs in")
        more = len(found.layers) - SHOWN_LAYERS
        show.say(show.table(columns, worst) + (f"\n(and {more} more)" if more > 0 else "") + "\n")
    show.say(
        f"{found.metric}: {found.chosen.score:.2f} of float's {found.exact:.2f}, "
        f"at least {found.floor:.2f} was asked for"
    )
    if found.unsure:
        show.say(f"too little data to be sure: {found.unsure}")


def _time(trial: Trial) -> str:
    return f"{trial.seconds * 1e3:.3f}" if trial.measured else "-"
