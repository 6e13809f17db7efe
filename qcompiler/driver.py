"""ONNX model and options -> artifact: read, passes by stage, plan, emit; top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler import isa, plugins
from qcompiler.agreement import Agreement, agreement
from qcompiler.artifact import Artifact, Manifest, StepFact, Value
from qcompiler.calibrate import Calibration, Observe, Run, value_names
from qcompiler.emit.native import emit
from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node, Type
from qcompiler.mentions import demand_nodes, mentions
from qcompiler.onnx_inputs import batch_of_one
from qcompiler.onnx_reader import read
from qcompiler.plan import Plan, Step, plan
from qcompiler.pruning import pruning
from qcompiler.refusals import demand_known, demand_static
from qcompiler.rewrite import PASSES, STAGES, Explain, stage_of
from qcompiler.runtime import load
from qcompiler.samples import samples
from qcompiler.sharing import planned
from qcompiler.stages import Choice, choose, run_stage
from qcompiler.version import __version__

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

PRECISIONS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "float32": ("", {}),
    "bfloat16": ("quantize_half", {"dtype": "bfloat16"}),
    "float16": ("quantize_half", {"dtype": "float16"}),
    "int8": ("quantize_static", {}),
    "int8-dynamic": ("quantize_dynamic", {}),
    "int8-weights": ("quantize_weights", {"bits": 8, "group": 0}),
    "int4": ("quantize_static", {"weight_bits": 4, "rounding": "gptq", "correct_bias": "full"}),
    "int4-weights": ("quantize_weights", {"bits": 4, "group": 64}),
}
"""Precision -> the pass that makes it, and its options."""
_PRUNE, _QUANTIZE = STAGES.index("prune"), STAGES.index("quantize")
_QUANTIZED = frozenset({"DequantizeLinear", "QLinearConv", "QLinearMatMul", "dequantize"})
Progress = Callable[[str, int, int, str], None]
"""Told how far long work is: (what, done, all, the item at hand)."""


@dataclass(frozen=True)
class Options:
    """How to compile. Every field is a keyword of `qcompiler.compile` and a flag of the command
    line.
    """

    target: str = "host"
    precision: str = "float32"
    calibration: object = None
    """Data for static int8: a path (.npz, .npy, a folder), an iterable of {name: array}, an
    onnxruntime CalibrationDataReader, or the word "synthetic"."""
    calibration_method: str = "output"
    calibration_samples: int = 300
    """At most this many samples are used."""
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Of inputs whose shape the model leaves open; an open batch alone is taken as 1."""
    threads: int = 0
    passes: Sequence[str] = ()
    """Passes to add or to give options: "quantize_static{percentile=99.99}", or the path of a
    Python file of passes.
    """
    disabled_passes: Sequence[str] = ()
    exclude: Sequence[str] = ()
    """Nodes kept in float: names, regular expressions, or operator types."""
    prune: Sequence[str] = ()
    """What to take away: "channels:0.5", "magnitude:0.7", "2:4", "block:0.5" (see pruning.py)."""
    compress: bool = False
    """A small file: weights stay in forms that take few bytes, and are entropy-coded."""
    prune_include: Sequence[str] = ()
    prune_exclude: Sequence[str] = ()
    """The only nodes that may be pruned, those that may not; as `exclude`."""


@dataclass
class Watch:
    """What the caller wants to be told while compiling."""

    progress: Progress | None = None
    explain: Explain | None = None
    stage: Callable[[str, Graph], None] | None = None
    """Called with the graph after each stage (--dump)."""
    reasons: dict[str, str] = field(default_factory=dict)
    """A node's name -> why a rule left it alone last, for whoever has to refuse it."""

    def skipped(self, rule: str, node: Node, reason: str) -> None:
        """Take in a Skip."""
        self.reasons[node.name] = reason
        if self.explain is not None:
            self.explain(rule, node, reason)


@dataclass(frozen=True)
class Made:
    """A compiled model: its float graph, the same pruned (itself where that was not asked for), the
    same in few bits as ONNX has it (again itself where nothing was asked for), the plan made of
    that, and the artifact.
    """

    original: Graph
    exact: Graph
    coarse: Graph
    plan: Plan
    artifact: Artifact
    agreement: Agreement | None = None
    """How well it agrees with float on its calibration data, where it was calibrated."""

    @property
    def pruned(self) -> bool:
        """Whether anything was taken away."""
        return any(note.startswith("pruned") for note in self.exact.notes)


@dataclass(frozen=True)
class Prepared:
    """A model on its way to a plan: its float graph, the same pruned (itself where that was not
    asked for), the same in few bits as ONNX has it (again itself where nothing was asked for), and
    what the plan is made from.
    """

    original: Graph
    exact: Graph
    coarse: Graph
    lower: Graph
    data: Calibration | None = None


def compile(model: str | Path | onnx.ModelProto, options: Options, watch: Watch) -> Artifact:
    """ONNX file or model -> artifact for one device. Raises Error on whatever is wrong with the
    model or the options.
    """
    return replace(made(model, options, watch).artifact, compress=options.compress)


def made(model: str | Path | onnx.ModelProto, options: Options, watch: Watch) -> Made:
    """`compile`, and what is between."""
    device = plugins.device(options.target, options.threads)
    graphs = prepare(model, options, device, watch)
    made_plan = _planned(graphs.lower, device, options, watch)
    artifact = build(made_plan, watch)
    found = _compared(graphs, artifact)
    if found is not None:
        notes = {**artifact.manifest.notes, "agreement": str(found)}
        artifact = replace(artifact, manifest=replace(artifact.manifest, notes=notes))
    return Made(graphs.original, graphs.exact, graphs.coarse, made_plan, artifact, found)


def _compared(graphs: Prepared, artifact: Artifact) -> Agreement | None:
    """How well static int8 agrees with float, by a few samples of what it was calibrated on."""
    data = graphs.data
    runner = None if data is None else data.run_by
    if data is None or graphs.coarse is graphs.exact or not isinstance(runner, _Runner):
        return None
    if runner.last is None:
        return None
    found = agreement(*runner.last, graphs.coarse, artifact, data.samples)
    if found is not None:
        log.info("%s", found)
        if found.poor:
            log.warning("int8 is far from float: %s; %s", found, found.cure)
    return found


def make_plan(model: str | Path | onnx.ModelProto, options: Options, watch: Watch) -> Plan:
    """ONNX file or model -> the plan that would be emitted."""
    device = plugins.device(options.target, options.threads)
    return _planned(prepare(model, options, device, watch).lower, device, options, watch)


def _planned(graph: Graph, device: isa.Device, options: Options, watch: Watch) -> Plan:
    asked = options.threads > 0
    progress = _on(watch, "choosing kernels")
    return planned(graph, device, progress, watch.reasons, asked=asked)


def prepare(
    model: str | Path | onnx.ModelProto, options: Options, device: isa.Device, watch: Watch
) -> Prepared:
    """ONNX file or model -> its graphs on the way to a plan: all stages run."""
    original, exact, choice, data = _begun(model, options, device, watch)
    coarse = in_the_open(exact, choice, device, watch, data)
    rest = choice
    if coarse is not exact:  # else nothing was done yet: others had quantized the model
        left = {n: v for n, v in choice.options.items() if stage_of(n) != "quantize"}
        rest = Choice(left, choice.disabled)
    return Prepared(original, exact, coarse, lowered(coarse, rest, device, watch, data), data)


def quantized(
    model: str | Path | onnx.ModelProto, options: Options, device: isa.Device, watch: Watch
) -> Graph:
    """ONNX file or model -> the graph in few bits as ONNX has it (QuantizeLinear and
    DequantizeLinear around float operators), before the compiler's own operators are made of it.
    """
    _, exact, choice, data = _begun(model, options, device, watch)
    return in_the_open(exact, choice, device, watch, data)


def _begun(
    model: str | Path | onnx.ModelProto, options: Options, device: isa.Device, watch: Watch
) -> tuple[Graph, Graph, Choice, Calibration | None]:
    """ONNX file or model -> its float graph, the same pruned, which quantizing begins with, the
    passes that are wanted from there on, and what they calibrate with.
    """
    options = _read_twice(options)
    choice = choose(options.passes, options.disabled_passes)
    original = fused(model, options, choice, device, watch)
    graph = pruned(original, options, choice, device, watch)
    graph, data = calibration(graph, options, watch)
    return original, graph, quantization(choice, options), data


def fused(
    model: str | Path | onnx.ModelProto,
    options: Options,
    choice: Choice,
    device: isa.Device,
    watch: Watch,
    *,
    one_batch: bool = True,
) -> Graph:
    """ONNX file or model -> its float graph: read, folded and fused. `one_batch`: where no shape is
    given, a batch that is open is taken as 1, and a note says so.
    """
    if options.precision not in PRECISIONS:
        raise Error(
            f"unknown precision {options.precision!r}",
            hint=f"choose one of {', '.join(PRECISIONS)}",
        )
    graph = _read(model, options, one_batch)
    _seen(watch, "read", graph)
    folded = _through(graph, STAGES[:1], choice, device, watch)
    demand_known(folded)
    made = _through(folded, STAGES[1:_PRUNE], choice, device, watch)
    flags = {
        "--exclude": options.exclude,
        "--prune-include": options.prune_include,
        "--prune-exclude": options.prune_exclude,
    }
    demand_nodes(list(mentions(flags, choice.options)), graph, made)
    return made


def _read(model: str | Path | onnx.ModelProto, options: Options, one_batch: bool) -> Graph:
    """ONNX file or model -> its graph, every size a number."""
    shapes = {k: tuple(v) for k, v in options.input_shapes.items()}
    batch = ""

    def settle(types: dict[str, Type]) -> dict[str, Type]:
        nonlocal batch
        if one_batch and not shapes:
            types, batch = batch_of_one(types)
        demand_static(types)
        return types

    try:
        graph = read(model, shapes, settle)
    except Error as e:
        if not batch or e.hint:
            raise
        raise Error(e.what, where=e.where, hint=f"the batch is {batch}") from e
    return graph.note(batch=batch) if batch else graph


def pruned(
    graph: Graph, options: Options, choice: Choice, device: isa.Device, watch: Watch
) -> Graph:
    """A float graph -> what is left of it after pruning; itself where that was not asked for."""
    asked = pruning(options.prune, options.prune_include, options.prune_exclude)
    merged = {k: {**v, **choice.options.get(k, {})} for k, v in asked.items()}
    choice = Choice({**choice.options, **merged}, choice.disabled)
    if not any(stage_of(name) == "prune" for name in choice.options):
        return graph
    graph, data = calibration(graph, options, watch)
    return _through(graph, STAGES[_PRUNE:_QUANTIZE], choice, device, watch, data)


def _read_twice(options: Options) -> Options:
    """Data that can be read once only is kept: pruning, quantizing and reports all read it."""
    once = isinstance(options.calibration, Iterator)
    return replace(options, calibration=list(options.calibration)) if once else options  # type: ignore[call-overload]


def in_the_open(
    graph: Graph,
    choice: Choice,
    device: isa.Device,
    watch: Watch,
    data: Calibration | None = None,
) -> Graph:
    """A fused graph -> the same after the passes of the quantize stage that were asked for, before
    those that always run; what others have quantized stays as it is.
    """
    if is_quantized(graph):
        return graph
    usual = {n for n, p in PASSES.items() if getattr(p, "default", True)}
    asked = Choice(choice.options, choice.disabled | usual)
    return _through(graph, ("quantize",), asked, device, watch, data)


def is_quantized(graph: Graph) -> bool:
    """Whether others have quantized a graph, or some of it."""
    return any(n.op in _QUANTIZED for n in graph.nodes)


def lowered(
    graph: Graph,
    choice: Choice,
    device: isa.Device,
    watch: Watch,
    data: Calibration | None = None,
) -> Graph:
    """A fused graph, and what its passes calibrate with -> the graph that the plan is made from."""
    return _through(graph, STAGES[_QUANTIZE:], choice, device, watch, data)


def _through(
    graph: Graph,
    stages: Sequence[str],
    choice: Choice,
    device: isa.Device,
    watch: Watch,
    data: Calibration | None = None,
) -> Graph:
    for stage in stages:
        graph = run_stage(graph, stage, watch.skipped, choice, device, data)
        _seen(watch, stage, graph)
    return graph


def quantization(choice: Choice, options: Options) -> Choice:
    """The passes asked for -> the same and those that precision and compression stand for."""
    name, given = PRECISIONS[options.precision]
    extra: dict[str, Mapping[str, object]] = (
        {name: {**given, "exclude": tuple(options.exclude)}} if name else {}
    )
    if name in ("quantize_static", "quantize_dynamic"):
        extra["quantize_tables"] = {"exclude": tuple(options.exclude)}
    if options.compress or "quantize_weights" in (name, *choice.options):
        extra["layout_compact"] = {}  # transformed weights would not be few numbers any more
    merged = {k: {**v, **choice.options.get(k, {})} for k, v in extra.items()}
    return Choice({**choice.options, **merged}, choice.disabled)


def calibration(graph: Graph, options: Options, watch: Watch) -> tuple[Graph, Calibration | None]:
    """Graph after the fuse stage, the data asked for -> a graph with a note of what it was
    calibrated on, and what passes calibrate with; None where no data was given.

    The samples run through a compiled float artifact of the graph at hand that also returns every
    activation, on this machine whatever the target; memory holds one sample's activations.
    """
    if options.calibration is None:
        if PRECISIONS[options.precision][0] != "quantize_static":
            return graph, None
        raise Error(
            f"{options.precision} needs calibration data",
            hint="--calibration data.npz (a few dozen typical inputs); or --precision int8-dynamic,"
            " which needs none; or, to try the speed only, --calibration synthetic",
        )
    wanted = {n.name: (n.dtype, n.shape) for n in graph.inputs}
    found = samples(options.calibration, wanted, options.calibration_samples)
    count = found.count or options.calibration_samples
    tell = watch.progress
    made = Calibration(
        found,
        _Runner(watch),
        options.calibration_method,
        synthetic=found.synthetic,
        progress=None if tell is None else lambda done: tell("calibrating", done, count, ""),
    )
    return graph.note(**found.describe()), made


@dataclass
class _Runner:
    """Makes a graph run on this machine; keeps the last one, to compare with."""

    watch: Watch
    last: tuple[Graph, Run] | None = None

    def __call__(self, graph: Graph) -> Run:
        self.last = graph, observing(graph, self.watch)
        return self.last[1]


def observing(graph: Graph, watch: Watch) -> Callable[[Mapping[str, Array], Observe], None]:
    """Graph -> a function that runs one sample on this machine and reports every activation."""
    names = value_names(graph)
    seen = [n for n in names if n.op != "input" and n.dtype.startswith("float")]
    tapped = replace(graph, outputs=tuple(seen), output_names=tuple(names[n] for n in seen))
    here = plugins.device("host")
    lowered = run_stage(tapped, "layout", None, Choice(), here)
    model = load(build(plan(lowered, here, _on(watch, "calibration model")), watch))

    def run(sample: Mapping[str, Array], observe: Observe) -> None:
        for node in graph.inputs:
            if node.dtype.startswith("float"):
                observe(names[node], sample[node.name])
        for name, array in model.run(sample).items():
            observe(name, array)

    return run


def build(made: Plan, watch: Watch) -> Artifact:
    """Plan -> artifact: machine code, weights, and a manifest that says how it was made."""
    if watch.progress is not None:
        watch.progress("machine code", 0, 1, made.device.isa.name)
    code = emit(made)
    graph, device = made.graph, made.device
    steps = tuple(
        StepFact(
            s.name,
            s.kernel.name,
            s.kernel.tasks,
            s.kernel.macs * made.parts,
            step_bytes(s) * made.parts,
            multiplied(s),
        )
        for s in made.steps
    )
    manifest = Manifest(
        name=graph.name,
        inputs=tuple(Value(n.name, n.dtype, n.type.dims) for n in graph.inputs),
        outputs=tuple(
            Value(name, n.dtype, n.type.dims)
            for name, n in zip(graph.output_names, graph.outputs, strict=True)
        ),
        isa=device.isa.name,
        triple=device.isa.triple,
        cpu_flags=tuple(sorted(device.isa.cpu_flags)),
        threads=device.threads,
        workspace_bytes=made.workspace_bytes,
        steps=steps,
        producer={"qcompiler": __version__, "apache-tvm": version("apache-tvm")},
        notes=dict(graph.notes),
    )
    return Artifact(manifest, code, made.weights, made.blocks)


def step_bytes(step: Step) -> int:
    """Bytes a step reads and writes, each operand once."""
    return sum(p.bytes for p in (*step.operands, step.output))


def multiplied(step: Step) -> str:
    """The dtype a step multiplies: its anchor's first operand's."""
    root = step.region.root
    return root.operands[0].dtype if step.kernel.macs and root is not None else ""


def _seen(watch: Watch, stage: str, graph: Graph) -> None:
    log.info("after %s: %d nodes", stage, len(graph.nodes))
    if watch.stage is not None:
        watch.stage(stage, graph)


def _on(watch: Watch, what: str) -> Callable[[int, int, str], None] | None:
    tell = watch.progress
    return None if tell is None else lambda done, count, item: tell(what, done, count, item)
