"""A report -> one self-contained HTML page without scripts or external fonts and images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from qcompiler.files import size
from qcompiler.pruning.sparsity import LEVELS
from qcompiler.quality.mixed_precision import Found
from qcompiler.quality.report import LayerReport, Report, Sensitivity, Spread

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --faint: #8883; --a: #8a8f98;
  --b: #1f6feb; --c: #d9480f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181d; --a: #9aa0aa;
  --b: #58a6ff; --c: #ff8b5e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 84rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--faint);
  white-space: nowrap; }
th:first-child, td:first-child, td.t { text-align: left; }
.wide { overflow-x: auto; } .facts { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; }
.facts b { display: block; font-size: 1.35rem; } small { color: var(--a); }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; } svg { display: block; }
.before { fill: var(--a); } .after { fill: var(--b); } .line { stroke: var(--faint); }
.frame { fill: none; stroke: var(--faint); } .curve { fill: none; stroke: var(--b); }
.curves { display: flex; flex-wrap: wrap; gap: .6rem; } figure { margin: 0; width: 130px; }
figcaption { font-size: 11px; overflow-wrap: anywhere; }
.mark { fill: var(--c); } details { margin: 1rem 0; } summary { cursor: pointer; }
"""
_SPARK = (120, 28)
_CURVE = (130, 60)
_PLOT = (640, 300)
_MARGIN = (56, 16, 24, 40)  # left, right, top, bottom


def html(report: Report) -> str:
    """The page."""
    pruned = [f"pruned {v}" for k, v in sorted(report.notes.items()) if k.startswith("pruned")]
    title = f"{report.model}: {', '.join([*pruned, report.quantization])}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(report),
        _stages(report),
        _accuracy(report.found),
        _layers(report.layers),
        _sensitivity(report.sensitivity),
        _skips(report.skips),
        _notes(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(p for p in parts if p)
        + "\n</body></html>\n"
    )


def _facts(r: Report) -> str:
    facts = []
    if r.stages:
        whole, last = r.stages[0], r.stages[-1]
        gain = whole.ms / last.ms if last.ms else math.nan
        facts = [
            (f"{last.ms:.3f} ms", f"per run; float32 {whole.ms:.3f} ms, {gain:.2f}x"),
            (size(last.bytes), f"artifact; float32 {size(whole.bytes)}"),
        ]
    facts += [
        (size(r.bytes_model) if r.bytes_model else "-", "the ONNX file"),
        (_energy(r.energy["int8"]), f"energy per run; float32 {_energy(r.energy['float32'])}"),
        (r.target, f"target, {r.threads} threads"),
    ]
    if r.found is not None:
        exact = r.found.exact
        facts.insert(0, (f"{r.found.chosen.score:.2f}", f"{r.found.metric}; float32 {exact:.2f}"))
    cells = "".join(f"<div><b>{escape(a)}</b><small>{escape(b)}</small></div>" for a, b in facts)
    return f'<div class="facts">{cells}</div>'


def _stages(r: Report) -> str:
    """The score, size and time of each stage."""
    rows = [
        [
            ("t", s.name),
            ("", "-" if math.isnan(s.score) else f"{s.score:.2f}"),
            ("", "-" if math.isinf(s.sqnr) else f"{s.sqnr:.1f}"),
            ("", f"{s.cosine:.5f}"),
            ("", size(s.bytes)),
            ("", f"{s.ms:.3f}"),
        ]
        for s in r.stages
    ]
    if not rows:
        return ""
    head = ("network", r.metric, "SQNR dB", "cosine", "artifact", "ms")
    return (
        "<h2>Stage by stage</h2><p>Scores, SQNR and cosine of the outputs, compared with the"
        " original float network.</p>" + _table(head, rows)
    )


def _accuracy(found: Found | None) -> str:
    if found is None:
        return ""
    rows = [
        [
            ("t", t.method),
            ("", str(len(t.ranges))),
            ("", str(len(t.halves))),
            ("", str(len(t.floats))),
            ("", f"{t.score:.2f}"),
            ("", f"{t.loss:.3g}"),
            ("", f"{t.seconds * 1e3:.3f}"),
            ("t", "measured" if t.measured else "predicted"),
        ]
        for t in found.trials
    ]
    head = (
        "calibration",
        "other ranges",
        "in bfloat16",
        "kept in float",
        found.metric,
        "divergence",
        "ms",
        "time",
    )
    return (
        "<h2>What was tried</h2>"
        f"<p>The score must be at least {found.floor:.2f}. {escape(found.unsure)}</p>"
        + _pareto(found)
        + _table(head, rows)
    )


def _pareto(found: Found) -> str:
    """Score over time of every trial; the chosen one is marked, the limit is a line."""
    points = [(t.seconds * 1e3, t.score, t) for t in found.trials if math.isfinite(t.seconds)]
    if not points:
        return ""
    width, height = _PLOT
    left, right, top, bottom = _MARGIN
    xs, ys = [p[0] for p in points], [p[1] for p in points] + [found.floor]
    x = _Scale(min(xs), max(xs), left, width - right)
    y = _Scale(min(ys), max(ys), height - bottom, top)
    level = y(found.floor)
    drawn = [
        f'<line class="line" x1="{left}" y1="{level:.1f}" x2="{width - right}" y2="{level:.1f}"/>',
        f'<text x="{left + 4}" y="{level - 4:.1f}">limit</text>',
        f'<text x="{width / 2:.0f}" y="{height - 6}" text-anchor="middle">ms per run</text>',
        f'<text x="4" y="{top - 8}">{escape(found.metric)}</text>',
        *_ticks(xs, x, height - bottom + 14, None),
        *_ticks(ys, y, None, left - 6),
    ]
    for ms, score, trial in points:
        chosen = trial is found.chosen or trial == found.chosen
        forms = f"{len(trial.halves)} in bfloat16, {len(trial.floats)} in float"
        told = f"{trial.method}, {forms}: {score:.2f}, {ms:.3f} ms"
        kind, size = ("mark", 6) if chosen else ("after", 4)
        drawn.append(
            f'<circle class="{kind}" cx="{x(ms):.1f}" cy="{y(score):.1f}" r="{size}">'
            f"<title>{escape(told)}</title></circle>"
        )
    return _svg(width, height, drawn)


def _layers(layers: Sequence[LayerReport]) -> str:
    if not layers:
        return ""
    pruned = any(x.sqnr_original is not None for x in layers)
    rows = [
        [
            ("t", x.name),
            ("t", x.op),
            ("t", x.dtype),
            ("", f"{x.sqnr:.1f}"),
            *([("", _decibels(x.sqnr_original))] if pruned else []),
            ("", f"{x.cosine:.5f}"),
            ("", f"{x.float_us:.1f}"),
            ("", f"{x.int8_us:.1f}"),
            ("", size(x.bytes_before)),
            ("", size(x.bytes_after)),
            ("svg", _spark(x.weights)),
            ("svg", _spark(x.values)),
        ]
        for x in layers
    ]
    head = ("layer", "", "multiplies", "SQNR dB", *(["to the original"] if pruned else []))
    times = ("cosine", "float us", "us")
    sizes = ("weights", "now", "weights", "values")
    against = "the pruned float network" if pruned else "the float network"
    return (
        "<h2>Layers</h2><p>SQNR and cosine compare a layer's value in the final network with that"
        f" in {against}, including all errors of earlier layers; the other columns compare with the"
        " original float network. Histograms:"
        ' <b style="color:var(--a)">before</b>, <b style="color:var(--b)">after</b>,'
        " counts on a logarithmic scale.</p>"
        + _bars([(x.name, x.sqnr) for x in layers])
        + _table((*head, *times, *sizes), rows)
    )


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _sensitivity(curves: Sequence[Sensitivity]) -> str:
    """A small plot per layer: energy lost over the fraction of its weights removed."""
    if not curves:
        return ""
    plots = "".join(
        f"<figure>{_curve(c)}<figcaption>{escape(c.name)}</figcaption></figure>" for c in curves
    )
    return (
        "<h2>Sensitivity to pruning</h2><p>For each layer alone, without repair: the fraction of"
        " its output's energy (vertical, 0 to 100 %) that is lost with a fraction of its weights"
        f" (horizontal, 0 to {100 * LEVELS[-1]:.0f} %), the smallest first. The number is the loss"
        " with half of them.</p>"
        f'<div class="curves">{plots}</div>'
    )


def _curve(curve: Sensitivity) -> str:
    width, height = _CURVE
    points = [
        f"{width * level / LEVELS[-1]:.1f},{height - 1 - (height - 2) * min(lost, 1.0):.1f}"
        for level, lost in zip(LEVELS, curve.lost, strict=True)
    ]
    half = curve.lost[LEVELS.index(0.5)]
    drawn = [
        f'<rect class="frame" x="0" y="0" width="{width}" height="{height}"/>',
        f'<polyline class="curve" points="{" ".join(points)}"/>',
        f'<text x="4" y="12">{100 * half:.1f} %</text>',
    ]
    return _svg(width, height, drawn)


def _bars(values: Sequence[tuple[str, float]]) -> str:
    """SQNR of the layers, in order."""
    width, height, left = _PLOT[0], 120, 40
    most = max((v for _, v in values if math.isfinite(v)), default=1.0)
    step = (width - left) / len(values)
    drawn = [f'<text x="0" y="12">{most:.0f} dB</text><text x="0" y="{height}">0</text>']
    for i, (name, value) in enumerate(values):
        tall = (height - 8) * max(min(value, most), 0.0) / (most or 1.0)
        drawn.append(
            f'<rect class="after" x="{left + i * step:.1f}" y="{height - tall:.1f}"'
            f' width="{max(step - 1, 0.5):.1f}" height="{tall:.1f}">'
            f"<title>{escape(name)}: {value:.1f} dB</title></rect>"
        )
    return _svg(width, height, drawn)


def _spark(spread: Spread | None) -> str:
    """Two overlaid histograms; "-" if there are none."""
    if spread is None:
        return "-"
    width, height = _SPARK
    most = math.log1p(max(*spread.before, *spread.after, 1))
    step = width / len(spread.before)
    drawn = []
    for kind, counts in (("before", spread.before), ("after", spread.after)):
        for i, count in enumerate(counts):
            if count:
                tall = height * math.log1p(count) / most
                half = step / 2
                at = i * step + (half if kind == "after" else 0)
                drawn.append(
                    f'<rect class="{kind}" x="{at:.1f}" y="{height - tall:.1f}"'
                    f' width="{half:.1f}" height="{tall:.1f}"/>'
                )
    told = f"<title>{spread.low:.4g} to {spread.high:.4g}</title>"
    return _svg(width, height, [told, *drawn])


def _skips(skips: Sequence[tuple[str, str, str]]) -> str:
    if not skips:
        return ""
    rows = [[("t", cell) for cell in row] for row in skips]
    table = _table(("rule or kernel", "node", "not used because"), rows)
    return f"<h2>Skipped</h2><details><summary>{len(skips)} times</summary>{table}</details>"


def _notes(r: Report) -> str:
    rows = [[("t", k), ("t", v)] for k, v in sorted(r.notes.items())]
    return ("<h2>Notes</h2>" + _table(("note", ""), rows)) if rows else ""


def _table(head: Iterable[str], rows: Iterable[Sequence[tuple[str, str]]]) -> str:
    """Cells are (kind, text); "svg" is inserted as it is, all else escaped."""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}">{text if kind == "svg" else escape(text)}</td>'
            for kind, text in row
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


class _Scale:
    """A number -> a position between two ends."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        self.low, self.high = low - room, high + room
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _ticks(
    values: Sequence[float], scale: _Scale, below: float | None, beside: float | None
) -> list[str]:
    """Labels at the ends of an axis."""
    made = []
    for value in dict.fromkeys((min(values), max(values))):
        at = scale(value)
        place = (
            f'x="{at:.1f}" y="{below:.1f}" text-anchor="middle"'
            if below is not None
            else f'x="{beside:.1f}" y="{at + 4:.1f}" text-anchor="end"'
        )
        made.append(f"<text {place}>{value:.4g}</text>")
    return made


def _svg(width: float, height: float, drawn: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        + "".join(drawn)
        + "</svg>"
    )


def _energy(value: float | str) -> str:
    return "not available" if isinstance(value, str) else f"{value:.3g} mJ"
