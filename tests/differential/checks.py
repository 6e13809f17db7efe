"""Case -> what is wrong with it: every stage, the artifact and onnxruntime against the meaning."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.errors import Error
from qcompiler.ir import Array, Graph
from qcompiler.onnx_io.reader import read
from qcompiler.options import Options, Watch
from qcompiler.plan.plan import plan
from qcompiler.runtime import load
from tests.exact_products import exact

from .generate import Case
from .poison import BYTES, poisoned, stir
from .reference import CENTRED, DRIFTING, Reference, references

References = Mapping[str, Reference]

LEAST_DECIBELS = {"int8": 10, "int8-dynamic": 20, "int8-weights": 20, "bfloat16": 15, "float16": 22}
"""Of a model in few bits against the float one, calibrated on what it is run on. Random models have
twice as many: a wrong scale, or an operator lowered wrongly in every graph alike, has not.
"""
# fmt: off
EDGED = frozenset({
    "ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "GroupNormalization",
    "Hardmax", "InstanceNormalization", "LayerNormalization", "Less", "LessOrEqual",
    "MeanVarianceNormalization", "ReduceProd", "Round", "Shrink", "Sign", "ThresholdedRelu", "TopK",
    "Where",
})
"""Where a small change may become a large one: norms divide by what differs, be it so little; all
factors of a product count, the near zeros of which little is left in bytes.
"""
# fmt: on
FEW = 8
"""All of fewer numbers may happen to be differences of nearly equal ones, all noise."""


@dataclass
class Outcome:
    """What came of a case: its faults, each (where, what), and what could not be looked at."""

    faults: list[tuple[str, str]] = field(default_factory=list)
    refused: str = ""
    unknown: int = 0
    """Elements of which nothing could be said, of `elements`."""
    elements: int = 0
    decibels: float = float("inf")

    def fault(self, where: str, what: str) -> None:
        """One more."""
        self.faults.append((where, what))


def check(case: Case, *, passes_only: bool = False) -> Outcome:
    """Compile a case and compare all that it goes through."""
    return outcome_of(lambda outcome: _check(case, outcome, passes_only))


def outcome_of(run: Callable[[Outcome], None]) -> Outcome:
    """What comes of checks: an Error refuses the case, any other exception is a fault."""
    outcome = Outcome()
    try:
        run(outcome)
    except Error as e:
        outcome.refused = str(e)
    except Exception as e:
        last = traceback.extract_tb(e.__traceback__)[-1]
        place = f"{last.filename.rpartition('/')[2]}:{last.name}"
        outcome.fault("exception", f"{type(e).__name__} in {place}: {str(e)[:200]}")
    return outcome


def _check(case: Case, outcome: Outcome, passes_only: bool) -> None:
    feeds = case.feeds[:2]
    original = read(case.model)
    wanted = [references(original, f, kernels=False) for f in feeds]
    for references_ in wanted:
        outcome.elements += sum(r.value.size for r in references_.values())
        outcome.unknown += sum(int((~_informative(r)).sum()) for r in references_.values())
    _peer(case, wanted, outcome)
    stages: list[tuple[str, Graph]] = []
    watch = Watch(stage=lambda name, graph: stages.append((name, graph)))
    made = Compilation(case.model, options(case), watch).having(device=case.device)
    lowered = made.lowered
    _stages(case, stages, wanted, outcome)
    if made.quantized is not made.calibrated or case.precision == "int8-dynamic":
        _quantized(case, made, outcome)
    if not passes_only:
        compare_artifact(case, lowered, outcome)


def options(case: Case) -> Options:
    """How the case is to be compiled."""
    calibration = list(case.feeds) if case.precision == "int8" else None
    return Options(precision=case.precision, calibration=calibration, threads=2)


def _informative(r: Reference) -> Array:
    """Where the bound is small against the output's values."""
    if r.value.dtype.kind == "b":
        return r.bound < 1
    with np.errstate(all="ignore"):
        wide = np.abs(r.value.astype(np.float64))
    scale = float(wide[np.isfinite(wide)].max(initial=0)) if wide.size else 0.0
    return r.bound <= 0.05 * max(scale, 1e-30)


def differs(got: Array, want: Reference) -> str:
    """How an array differs from a reference by more than its bound; nothing where it does not."""
    if got.dtype != want.value.dtype or got.shape != want.value.shape:
        return f"{got.dtype}{got.shape} instead of {want.value.dtype}{want.value.shape}"
    g, w = got.astype(np.float64), want.value.astype(np.float64)
    with np.errstate(all="ignore"):
        same = (g == w) | (np.isnan(g) & np.isnan(w)) | np.isinf(want.bound)
        tiny = 1e-37 if got.dtype.kind not in "biu" else 0.0
        far = ~same & ~(np.abs(g - w) <= want.bound + tiny)
    if not far.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(far)[0])
    return (
        f"{int(far.sum())} of {far.size} wrong; at {at} {got[at]} instead of {want.value[at]}"
        f" (within {want.bound[at]:.3g})"
    )


def compare(where: str, got: Mapping[str, Array], wanted: References, outcome: Outcome) -> bool:
    """Do all arrays match their references? The first that does not is a fault."""
    for name, reference in wanted.items():
        text = differs(np.asarray(got[name]), reference) if name in got else "is missing"
        if text:
            outcome.fault(where, f"{name}: {text}")
            return False
    return True


def _peer(case: Case, wanted: list[References], outcome: Outcome) -> None:
    """onnxruntime, where it takes the model, against our meaning of it."""
    run = session(case)
    if run is None or case.kind.endswith("odd") or any(map(_otherwise, case.model.graph.node)):
        return
    graph = read(case.model)
    coarser = any(node.op in DRIFTING or node.op in CENTRED for node in graph.nodes)
    for feed, references_ in zip(case.feeds, wanted, strict=False):
        try:
            got = run(feed)
        except Exception:  # it has no common class for what it refuses
            return
        if coarser:
            references_ = references(graph, feed, kernels=False, in_order=True)
        compare("meaning against onnxruntime", got, references_, outcome)


def _otherwise(node: NodeProto) -> bool:
    """What onnxruntime computes otherwise: a Resize to the nearest, whose places it rounds, so that
    it may read a neighbour, one that keeps the aspect of axes counted from the end, which it does
    not find, or one that crops to the size that was there, which it leaves alone, or one by scales
    with aligned corners, whose resized length it rounds; a transposed convolution of auto_pad SAME
    whose windows are shorter than its strides, which becomes less than strides times the input; a
    variance as a difference of squares, which may come out below zero.
    """
    if node.op_type == "MeanVarianceNormalization":
        return True
    attrs = {a.name: a for a in node.attribute}
    if node.op_type == "ConvTranspose":
        reach = (
            (k - 1) * d + 1
            for k, d in zip(attrs["kernel_shape"].ints, attrs["dilations"].ints, strict=True)
        )
        short = any(r < s for r, s in zip(reach, attrs["strides"].ints, strict=True))
        return short and "auto_pad" in attrs and attrs["auto_pad"].s.startswith(b"SAME")
    known = any(a.s in (b"nearest", b"tf_crop_and_resize") for a in node.attribute)
    scaled = len(node.input) > 2 and bool(node.input[2])
    known = known or (scaled and any(a.s == b"align_corners" for a in node.attribute))
    from_end = "axes" in attrs and min(attrs["axes"].ints, default=0) < 0
    return node.op_type == "Resize" and (
        known or (from_end and "keep_aspect_ratio_policy" in attrs)
    )


def session(case: Case) -> Callable[[Mapping[str, Array]], dict[str, Array]] | None:
    """A function that runs the model in onnxruntime as it stands; None where it cannot."""
    import onnxruntime

    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    made.log_severity_level = 4
    made.add_session_config_entry("session.x64quantprecision", "1")  # no sums that saturate
    made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        opened = onnxruntime.InferenceSession(
            exact(case.model).SerializeToString(), made, providers=["CPUExecutionProvider"]
        )
    except Exception:
        return None
    names = [o.name for o in opened.get_outputs()]
    return lambda feed: dict(zip(names, opened.run(None, dict(feed)), strict=True))


def _stages(
    case: Case, stages: list[tuple[str, Graph]], wanted: list[References], outcome: Outcome
) -> None:
    """The graph after each stage, against the one that was read, or before it was quantized."""
    for name, graph in stages:
        if name in ("quantize", "integer") and case.precision != "float32":
            wanted = [references(graph, f, kernels=False) for f in case.feeds[:2]]
            continue
        for feed, references_ in zip(case.feeds, wanted, strict=False):
            if not compare(f"stage {name}", _plain(graph, feed), references_, outcome):
                return


def _plain(graph: Graph, feed: Mapping[str, Array]) -> dict[str, Array]:
    from qcompiler.ops import evaluate

    return evaluate(graph, feed)


def decibels(want: Array, got: Array) -> float:
    """Signal to noise; infinite where there is no noise."""
    w, g = want.astype(np.float64), got.astype(np.float64)
    noise = float(((w - g) ** 2).sum())
    return 10 * np.log10(max(float((w**2).sum()), 1e-30) / noise) if noise else float("inf")


def _quantized(case: Case, made: Compilation, outcome: Outcome) -> None:
    """The model in few bits against the float one: not exactly, but not another model either."""
    feeds = case.feeds  # all that the ranges come from
    wanted = [_plain(made.calibrated, f) for f in feeds]
    got = [_plain(made.lowered, f) for f in feeds]
    found: dict[str, float] = {}
    for name, array in wanted[0].items():
        if array.dtype.kind in "biu" or not any(r[name].any() for r in wanted):
            continue  # nothing but zeros has no ratio to its noise
        if array.size < FEW:
            continue
        both = (np.concatenate([r[name].ravel() for r in runs]) for runs in (wanted, got))
        found[name] = decibels(*both)
    outcome.decibels = min(found.values(), default=outcome.decibels)
    low = [name for name, d in found.items() if d < LEAST_DECIBELS.get(case.precision, 0)]
    if not low or EDGED & {n.op_type for n in case.model.graph.node}:
        return
    runs_ = [references(made.calibrated, f, kernels=False) for f in feeds]
    for name in low:
        if not all((np.abs(r[name].value) <= r[name].bound).all() for r in runs_):
            outcome.fault("quantized", f"{found[name]:.1f} dB against the float model")
            return  # an output that is nothing but rounding errors has others in few bits


def compare_artifact(case: Case, graph: Graph, outcome: Outcome) -> None:
    """The artifact, with one thread and two, each run on poisoned memory, the first input again."""
    with poisoned(BYTES[0]):
        artifact = assemble(plan(graph, case.device))
        wanted = [references(graph, f, kernels=True) for f in case.feeds[:2]]
        for threads in (1, 2):
            model = load(artifact, threads=threads)
            first: dict[str, Array] = {}
            for turn, byte in zip((0, 1, 0), BYTES, strict=True):
                with poisoned(byte):
                    stir(model, byte)
                    got = model.run(case.feeds[turn])
                where = f"artifact, {threads} threads, run {turn}"
                if not compare(where, got, wanted[turn], outcome):
                    return
                if first and turn == 0 and not _same(first, got):
                    outcome.fault(where, "the same inputs gave other bits")
                first = first or got


def _same(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    return all(a[k].tobytes() == b[k].tobytes() for k in a)


def described(outcome: Outcome) -> Iterator[str]:
    """Its faults, a line each."""
    for where, what in outcome.faults:
        yield f"{where}: {what}"
