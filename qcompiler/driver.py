"""ONNX model and options -> artifact: read, passes by stage, plan, emit; top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler import plugins
from qcompiler.artifact.artifact import Artifact
from qcompiler.data.calibrate import Calibration, Observe, Run, value_names
from qcompiler.data.samples import samples
from qcompiler.emit.assemble import assemble
from qcompiler.errors import Error
from qcompiler.hardware.isa import Device
from qcompiler.ir import Array, Graph, Node, Type
from qcompiler.ir.refusals import demand_known, demand_static
from qcompiler.onnx_io.inputs import batch_of_one
from qcompiler.onnx_io.reader import read
from qcompiler.options import PRECISIONS, Options, Watch
from qcompiler.plan.plan import Plan
from qcompiler.plan.sharing import planned
from qcompiler.pruning.request import pruning
from qcompiler.quantization.agreement import Agreement, agreement
from qcompiler.rewrite import stage_of
from qcompiler.rewrite.mentions import demand_nodes, mentions
from qcompiler.runtime import load
from qcompiler.stages import Choice, choose, run_stage
from qcompiler.tune import timing

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

_QUANTIZED = frozenset({"DequantizeLinear", "QLinearConv", "QLinearMatMul", "dequantize"})


def compile(model: str | Path | onnx.ModelProto, options: Options, watch: Watch) -> Artifact:
    """ONNX file or model -> artifact for one device. Raises Error on whatever is wrong with the
    model or the options.
    """
    return replace(Compilation(model, options, watch).artifact, compress=options.compress)


@dataclass(frozen=True)
class Compilation:
    """A model, how to compile it, and every form that it takes on the way to an artifact; each is
    made once, when it is first asked for, and raises Error for what is wrong with the model or the
    options. `one_batch`: where no shape is given, a batch that is open is taken as 1, and a note
    says so.
    """

    model: str | Path | onnx.ModelProto
    options: Options
    watch: Watch = field(default_factory=Watch)
    one_batch: bool = True

    def __post_init__(self) -> None:
        """Data that can be read once only is kept: pruning, quantizing and reports all read it."""
        data = self.options.calibration
        if isinstance(data, Iterator):
            object.__setattr__(self, "options", replace(self.options, calibration=list(data)))

    @classmethod
    def of(
        cls,
        graph: Graph,
        device: Device,
        choice: Choice | None = None,
        watch: Watch | None = None,
    ) -> Compilation:
        """A fused graph -> its compilation as it is, neither pruned nor quantized on the way, for
        all threads of a device.
        """
        made = cls(graph.name, Options(threads=device.threads), watch or Watch())
        return made.having(
            device=device,
            choice=choice or Choice(),
            float_graph=graph,
            came_quantized=False,
            pruned=graph,
            calibration=None,
            calibrated=graph,
            quantized=graph,
            agreement=None,
        )

    def having(self, **forms: object) -> Compilation:
        """The same, with other forms in place of those it would make; what comes before the first
        of them (as they are defined below) stays, and what comes behind is made of them.
        """
        made = replace(self)
        order = [n for n, v in vars(Compilation).items() if isinstance(v, cached_property)]
        before = order[: min(map(order.index, forms))]
        kept = {n: v for n, v in vars(self).items() if n in before}
        vars(made).update({**kept, **forms})
        return made

    @cached_property
    def device(self) -> Device:
        """What the artifact is made for."""
        return plugins.device(self.options.target, self.options.threads)

    @cached_property
    def choice(self) -> Choice:
        """The passes that are to run, and their options."""
        return chosen(self.options)

    @cached_property
    def open_graph(self) -> Graph:
        """The float graph, its shapes as open as they are in the model."""
        return self._through(read(self.model, {}), "fold", "fuse", watch=Watch())

    @cached_property
    def float_graph(self) -> Graph:
        """The model as it was trained: read, folded and fused."""
        options = self.options
        asked = choose(options.passes, options.disabled_passes)
        graph = _read(self.model, options, self.one_batch)
        self.watch.saw("read", graph)
        folded = self._through(graph, "fold")
        demand_known(folded)
        made = self._through(folded, "fuse")
        flags = {
            "--exclude": options.exclude,
            "--prune-include": options.prune_include,
            "--prune-exclude": options.prune_exclude,
        }
        demand_nodes(list(mentions(flags, asked.options)), graph, made)
        return made

    @cached_property
    def came_quantized(self) -> bool:
        """Whether others had quantized the model, or some of it."""
        return any(n.op in _QUANTIZED for n in self.float_graph.nodes)

    @cached_property
    def pruned(self) -> Graph:
        """What is left of the float graph after pruning; itself where that was not asked for."""
        graph = self.float_graph
        if not any(stage_of(name) == "prune" for name in self.choice.options):
            return graph
        data = self.calibration_of(graph)
        return self._through(_noted(graph, data), "prune", data=data)

    @cached_property
    def calibration(self) -> Calibration | None:
        """What quantizing calibrates with; None where no data was given and none is needed."""
        return self.calibration_of(self.pruned)

    @cached_property
    def calibrated(self) -> Graph:
        """The pruned graph, with a note of what it is calibrated on."""
        return _noted(self.pruned, self.calibration)

    @cached_property
    def quantized(self) -> Graph:
        """The same in few bits as ONNX has it, QuantizeLinear and DequantizeLinear around float
        operators; itself where nothing was asked for, or others had quantized the model.
        """
        if self.came_quantized:
            return self.calibrated
        return self._through(self.calibrated, "quantize", data=self.calibration)

    @cached_property
    def lowered(self) -> Graph:
        """What the plan is made from: the compiler's own operators, integers among them."""
        stages: tuple[str, ...] = ("integer", "layout")
        if self.came_quantized:
            stages = ("integer", "quantize", *stages)  # what others left in float
        return self._through(self.quantized, *stages, data=self.calibration)

    @cached_property
    def plan(self) -> Plan:
        """Kernels, memory and threads."""
        asked = self.options.threads > 0
        tell, reasons = self.watch.on("choosing kernels"), self.watch.reasons
        return planned(self.lowered, self.device, tell, reasons, asked=asked)

    @cached_property
    def built(self) -> Artifact:
        """The artifact, before it is compared with float."""
        return assemble(self.plan, self.watch)

    @cached_property
    def agreement(self) -> Agreement | None:
        """How well static int8 agrees with float, by a few samples of what it was calibrated on;
        None where it was not calibrated.
        """
        data, graph = self.calibration, self.quantized
        runner = None if data is None or graph is self.calibrated else data.run_by
        if data is None or not isinstance(runner, _Runner) or runner.last is None:
            return None
        found = agreement(*runner.last, graph, self.built, data.samples)
        if found is not None:
            log.info("%s", found)
            if found.poor:
                log.warning("int8 is far from float: %s; %s", found, found.cure)
        return found

    @cached_property
    def artifact(self) -> Artifact:
        """Machine code, weights and manifest."""
        made, found = self.built, self.agreement
        if found is None:
            return made
        notes = {**made.manifest.notes, "agreement": str(found)}
        return replace(made, manifest=replace(made.manifest, notes=notes))

    @property
    def is_pruned(self) -> bool:
        """Whether anything was taken away."""
        return any(note.startswith("pruned") for note in self.pruned.notes)

    def calibration_of(self, graph: Graph) -> Calibration | None:
        """Graph after the fuse stage -> what passes calibrate it with; None where no data was
        given.

        The samples run through a compiled float artifact of the graph at hand that also returns
        every activation, on this machine whatever the target; memory holds one sample's
        activations.
        """
        options, tell = self.options, self.watch.progress
        if options.calibration is None:
            if PRECISIONS[options.precision][0] != "quantize_static":
                return None
            raise Error(
                f"{options.precision} needs calibration data",
                hint="--calibration data.npz (a few dozen typical inputs); or --precision"
                " int8-dynamic, which needs none; or, to try the speed only,"
                " --calibration synthetic",
            )
        wanted = {n.name: (n.dtype, n.shape) for n in graph.inputs}
        found = samples(options.calibration, wanted, options.calibration_samples)
        count = found.count or options.calibration_samples
        return Calibration(
            found,
            _Runner(self.watch),
            options.calibration_method,
            synthetic=found.synthetic,
            progress=None if tell is None else lambda done: tell("calibrating", done, count, ""),
            notes=found.describe(),
        )

    def step_seconds(self, sample: Mapping[str, Array]) -> dict[str, float]:
        """What each step of a run takes on this machine, by name."""
        return timing.of_steps(load(self.artifact), sample)

    def _through(
        self,
        graph: Graph,
        *stages: str,
        data: Calibration | None = None,
        watch: Watch | None = None,
    ) -> Graph:
        """A graph -> the same after some stages, whose passes calibrate with `data`."""
        watch = watch or self.watch
        for stage in stages:
            graph = run_stage(graph, stage, watch.skipped, self.choice, self.device, data)
            watch.saw(stage, graph)
        return graph


def chosen(options: Options) -> Choice:
    """The passes asked for, and those that precision, pruning and compression stand for. Raises
    Error for a pass that is not known.
    """
    asked = choose(options.passes, options.disabled_passes)
    name, given = PRECISIONS[options.precision]
    exclude = tuple(options.exclude)
    extra = dict(pruning(options.prune, options.prune_include, options.prune_exclude))
    if name:
        extra[name] = {**given, "exclude": exclude}
    if name in ("quantize_static", "quantize_dynamic"):
        extra["quantize_tables"] = {"exclude": exclude}
    if options.compress or "quantize_weights" in (name, *asked.options):
        extra["layout_compact"] = {}  # transformed weights would not be few numbers any more
    merged = {k: {**v, **asked.options.get(k, {})} for k, v in extra.items()}
    return Choice({**asked.options, **merged}, asked.disabled)


def tapped(
    graph: Graph, nodes: Sequence[Node], watch: Watch | None = None
) -> Callable[[Mapping[str, Array]], list[Array]]:
    """A fused graph -> a function that runs one sample on this machine and returns these nodes'
    values.
    """
    names = tuple(f"tap{i}" for i in range(len(nodes)))
    whole = replace(graph, outputs=tuple(nodes), output_names=names)
    model = load(Compilation.of(whole, plugins.device("host"), watch=watch).artifact)

    def run(sample: Mapping[str, Array]) -> list[Array]:
        found = model.run({v.name: sample[v.name] for v in model.inputs})
        return [found[n] for n in names]

    return run


def observing(graph: Graph, watch: Watch) -> Run:
    """Graph -> a function that runs one sample on this machine and reports every activation."""
    names = value_names(graph)
    seen = [n for n in names if n.dtype.startswith("float")]
    inner = [n for n in seen if n.op != "input"]
    values = tapped(graph, inner, watch.only("calibration model"))

    def run(sample: Mapping[str, Array], observe: Observe) -> None:
        for node in graph.inputs:
            if node in seen:
                observe(names[node], sample[node.name])
        for node, array in zip(inner, values(sample), strict=True):
            observe(names[node], array)

    return run


@dataclass
class _Runner:
    """Makes a graph run on this machine; keeps the last one, to compare with."""

    watch: Watch
    last: tuple[Graph, Run] | None = None

    def __call__(self, graph: Graph) -> Run:
        self.last = graph, observing(graph, self.watch)
        return self.last[1]


def _noted(graph: Graph, data: Calibration | None) -> Graph:
    return graph if data is None else graph.note(**data.notes)


def _read(model: str | Path | onnx.ModelProto, options: Options, one_batch: bool) -> Graph:
    """ONNX file or model -> its graph, every size a number."""
    shapes = {k: tuple(v) for k, v in (options.input_shapes or {}).items()}
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
