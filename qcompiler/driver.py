"""ONNX model and options -> artifact: read, passes by stage, plan, emit; top to bottom, for each
target.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler import plugins
from qcompiler.artifact.artifact import Artifact
from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.saving import joined
from qcompiler.artifact.sizes import Size
from qcompiler.data.activations import Compile, Runner, Seen
from qcompiler.data.calibrate import Calibration
from qcompiler.data.padded import Sampled
from qcompiler.data.samples import samples
from qcompiler.emit.assemble import assemble
from qcompiler.emit.machine import makes
from qcompiler.emit.program import foremost
from qcompiler.errors import Error, Skip
from qcompiler.hardware.isa import Cpu, Device
from qcompiler.ir import SIZE, Dim, Graph
from qcompiler.ir.refusals import demand_known
from qcompiler.kernels.registry import Records
from qcompiler.onnx_io.dims import SAMPLES, error_as_asked, open_symbols, positive, read_pinned
from qcompiler.onnx_io.reader import read
from qcompiler.options import PRECISIONS, Options, Watch
from qcompiler.plan import open_plan
from qcompiler.plan.batches import cut
from qcompiler.plan.opened import fitted, opened
from qcompiler.plan.plan import Opened, Plan
from qcompiler.plan.sharing import planned
from qcompiler.quantization.agreement import Agreement, agreement
from qcompiler.quantization.resized import differences, resized
from qcompiler.rewrite import PASSES, stage_of
from qcompiler.rewrite.mentions import demand_nodes, mentions
from qcompiler.rewrite.padding.pad import Result
from qcompiler.rewrite.padding.pinned import Paddings
from qcompiler.stages import Choice, choose, chosen, run_stage
from qcompiler.tune.records import LATE, MODEL, Measured, joined_records, model_key, names_in
from qcompiler.tune.shipped import known

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

_SEEN = ("quantize_static", "quantize_dynamic")
"""Passes whose scales follow what they see, so that two graphs of one model may have others."""

_QUANTIZED = frozenset({"DequantizeLinear", "QLinearConv", "QLinearMatMul", "dequantize"})


def compile(model: str | Path | onnx.ModelProto, options: Options, watch: Watch) -> Artifact:
    """ONNX file or model -> artifact with a variant for each target. Raises Error if anything is
    wrong with the model or the options.
    """
    made = joined(foremost([c.artifact for c in compilations(model, options, watch)]))
    return replace(made, compress=options.compress)


def compilations(
    model: str | Path | onnx.ModelProto, options: Options, watch: Watch
) -> Iterator[Compilation]:
    """A compilation for each target that the options name, the most preferred of a family last;
    what does not depend on the target is done once. Raises Error as `Compilation`, and for two
    targets between which nobody could choose.
    """
    first, *others = plugins.targeted(options.target, options.threads, makes).items()
    base = Compilation(model, replace(options, target=first[0]), watch)
    vars(base).update(device=first[1])
    if not others:
        yield base
    else:
        yield from (base.aimed(name, device) for name, device in (first, *others))


@dataclass(frozen=True)
class Compilation:
    """A model, how to compile it, and every form that it takes on the way to an artifact. Each form
    is made once, when it is first needed, and raises Error if anything is wrong with the model or
    the options. `one_batch`: if no shape is given, an open batch size defaults to 1, with a note
    that says so; `rolls`: for a CPU, long loops stay loops, which no ONNX file is written with.
    """

    model: str | Path | onnx.ModelProto
    options: Options
    watch: Watch = field(default_factory=Watch)
    one_batch: bool = True
    rolls: bool = True

    def __post_init__(self) -> None:
        """Keep data that can be read only once: pruning, quantizing and reports all read it."""
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
        records: Records | None = None,
    ) -> Compilation:
        """A fused graph -> its compilation as it is, without pruning or quantizing it, for all
        threads of a device.
        """
        made = cls(graph.name, Options(threads=device.threads), watch or Watch())
        return made.having(
            device=device,
            choice=choice or Choice(),
            records=records,
            opened=None,
            paddings=None,
            padding=None,
            float_graph=graph,
            came_quantized=False,
            pruned=graph,
            calibration=None,
            calibrated=graph,
            quantized=graph,
            agreement=None,
        )

    def having(self, **forms: object) -> Compilation:
        """A copy with some forms replaced. Forms defined below before the first of these are kept;
        later ones are made anew from the replacements.
        """
        made = replace(self)
        order = [n for n, v in vars(Compilation).items() if isinstance(v, cached_property)]
        before = order[: min(map(order.index, forms))]
        kept = {n: v for n, v in vars(self).items() if n in before}
        vars(made).update({**kept, **forms})
        return made

    def aimed(self, target: str, device: Device) -> Compilation:
        """The same for another target, whose name --dump tells. They share the model as it was
        trained, what was seen of what calibration data makes of a network, and tuning records (each
        is of one device).
        """
        tell = self.watch.stage
        watch = replace(
            self.watch,
            reasons={},
            stage=tell and (lambda stage, graph: tell(f"{stage}_{device.isa.name}", graph)),
        )
        made = replace(self, options=replace(self.options, target=target), watch=watch)
        shared = ("records", "opened", "paddings", "float_graph", "seen")
        vars(made).update({form: getattr(self, form) for form in shared}, device=device)
        return made

    @cached_property
    def seen(self) -> Seen:
        """What calibration has shown."""
        return Seen()

    @cached_property
    def device(self) -> Device:
        """The device that the artifact is compiled for."""
        return plugins.only_device(self.options.target, self.options.threads, makes)

    @cached_property
    def choice(self) -> Choice:
        """The passes to run, and their options."""
        return chosen(self.options)

    @cached_property
    def records(self) -> Records | None:
        """What was measured to be fastest; None where nothing was."""
        return known(self.options.tuning_records, ships=not self.options.no_shipped_records)

    @cached_property
    def open_graph(self) -> Graph:
        """The float graph with shapes as open as they are in the model."""
        return self._through(read(self.model, {}, rolls=False), "fold", "fuse", watch=Watch())

    @cached_property
    def symbolic(self) -> Graph:
        """The graph as read, with all symbols that are to stay open."""
        sizes = {s.name: Size.of(s.name) for s in _symbols(self.options)}
        return _read(self.model, self.options, False, sizes, rolls=self._rolls)

    @cached_property
    def opened(self) -> Opened | None:
        """The sizes that stay open in the artifact, proven to be right; None if none is to."""
        symbols = _symbols(self.options)
        if not symbols:
            return None
        fold = partial(self._through, self.symbolic, "fold", watch=Watch())
        return opened(self.symbolic, fold, symbols, self.options.opt_dims or {})

    @cached_property
    def paddings(self) -> Paddings | None:
        """The model of the largest sizes, exact for all, and of smaller ones; None if no size but
        the batch is open.
        """
        asked = self.opened
        if asked is None or not asked.inner:
            return None
        inner = [positive(s) for s in asked.inner]
        graph = self.symbolic
        if asked.batched:
            sizes: dict[str, Dim] = {s.name: Size.of(s.name) for s in asked.inner}
            sizes |= {asked.symbol.name: 1}
            graph = _read(self.model, self.options, False, sizes, rolls=self._rolls)
        # Others may not be the same; and a check, or a size that data decide, is in one place.
        own = self.options.prune or self.options.passes
        one = bool(own or graph.checks or graph.extents)
        if one:
            what = "pruned, with passes of its own, or with sizes or checks of every run"
            log.info("%s, the model has the largest sizes alone", what)
        try:
            return Paddings(graph, inner, one=one)
        except Error as e:
            raise error_as_asked(e, asked.inner) from e

    @cached_property
    def padding(self) -> Result | None:
        """That of the largest sizes."""
        return self.paddings.largest if self.paddings else None

    @cached_property
    def float_graph(self) -> Graph:
        """The model as it was trained: read, folded and fused; of an open batch, that of so many
        samples as it is best at.
        """
        options, opened = self.options, self.opened
        asked = choose(options.passes, options.disabled_passes)
        best: dict[str, Dim] = {opened.symbol.name: opened.symbol.best} if opened else {}
        padding = self.padding
        if padding is not None:
            graph = padding.graph
        else:
            graph = _read(self.model, options, self.one_batch, best, rolls=self._rolls)
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
    def settled(self) -> Choice:
        """The passes to run after the model is read and fused, with what records say of it."""
        record = None
        if self.records is not None:
            key = model_key(self.float_graph, self.options.precision)
            record = self.records.best(key, self.device)
        if record is None or record.generator != MODEL:
            return self.choice
        exclude, disabled = (names_in(record, knob) for knob in ("exclude", "disabled"))
        nodes = {n.name for n in self.float_graph.nodes}
        late = {name for name in PASSES if stage_of(name) in LATE}
        if not (nodes.issuperset(exclude) and late.issuperset(disabled)):
            log.warning("a tuning record names nodes or passes that there are not: it is left out")
            return self.choice
        return self.choice.without(exclude, disabled)

    @cached_property
    def came_quantized(self) -> bool:
        """Whether the model, or a part of it, was already quantized by another tool."""
        return any(n.op in _QUANTIZED for n in self.float_graph.nodes)

    @cached_property
    def pruned(self) -> Graph:
        """The float graph after pruning; the same graph if pruning was not requested."""
        graph = self.float_graph
        if not any(stage_of(name) == "prune" for name in self.choice.options):
            return graph
        data = self.calibration_of(graph)
        return self._through(_noted(graph, data), "prune", data=data)

    @cached_property
    def calibration(self) -> Calibration | None:
        """What to calibrate quantization with; None if no data was given and none is needed."""
        return self.calibration_of(self.pruned)

    @cached_property
    def calibrated(self) -> Graph:
        """The pruned graph, with a note of what it is calibrated on."""
        return _noted(self.pruned, self.calibration)

    @cached_property
    def quantized(self) -> Graph:
        """The graph in low precision, as explicit QDQ: QuantizeLinear and DequantizeLinear around
        float operators. The same graph if that was not requested, or the model came quantized.
        """
        if self.came_quantized:
            return self.calibrated
        choice = self.settled
        return self._through(self.calibrated, "quantize", data=self.calibration, choice=choice)

    @cached_property
    def lowered(self) -> Graph:
        """The input of the plan: the compiler's own operators, including integer ones."""
        stages: tuple[str, ...] = ("integer", "layout")
        if self.came_quantized:
            stages = ("integer", "quantize", *stages)  # quantize what the other tool left in float
        choice = self.settled
        return self._through(self.quantized, *stages, data=self.calibration, choice=choice)

    @cached_property
    def smaller(self) -> list[open_plan.Smaller]:
        """The inputs of the plan of smaller sizes than the largest, each made when it is needed."""
        each = self.paddings.smaller if self.paddings is not None else ()
        return [open_plan.Smaller(sizes, partial(self._smaller, sizes)) for sizes in each]

    @cached_property
    def plan(self) -> Plan:
        """Kernels, memory and threads."""
        return self.planned()

    def planned(self, more: Measured | None = None) -> Plan:
        """The plan that its records give, and more of them, which count first."""
        records = joined_records(self.records, more)
        asked = self.options.threads > 0
        tell, reasons = self.watch.on("choosing kernels"), self.watch.reasons
        opened = self.opened
        if opened is None:
            return planned(self.lowered, self.device, tell, reasons, asked=asked, records=records)
        if opened.inner:
            assert self.padding is not None
            opened = fitted(opened, self.padding)
            graphs, smaller = [(1, self.lowered)], self.smaller
        else:
            graphs, smaller = self.sized(opened.symbol), []
        return open_plan.planned(
            graphs,
            opened,
            self.device,
            tell,
            reasons,
            asked=asked,
            records=records,
            smaller=smaller,
        )

    def _smaller(self, sizes: Sequence[int]) -> Graph | Skip:
        """The input of the plan, of smaller sizes; or why its scales would not be the same."""
        assert self.paddings is not None
        padding = self.paddings.at(sizes)
        if isinstance(padding, Skip):
            return padding
        made = self.having(padding=padding)
        vars(made).update(watch=Watch(), device=self.device)
        if PRECISIONS[self.options.precision][0] not in _SEEN:
            return made.lowered
        if self.came_quantized:
            return Skip("a part of the model came quantized")
        same = resized(self.quantized, self.calibrated, made.float_graph)
        if isinstance(same, Skip):
            return same
        lowered = made.having(settled=self.settled, calibration=None, quantized=same).lowered
        others = differences(self.lowered, lowered)
        return Skip(f"integers would be others: {others}") if others else lowered

    def sized(self, symbol: Symbol) -> list[tuple[int, Graph]]:
        """The lowered graphs of an open batch: of so many samples as it is best at, and of one."""
        if symbol.best == 1:
            return [(1, self.lowered)]
        one = cut(self.lowered, symbol.best, 1)
        if not isinstance(one, Skip):
            return [(symbol.best, self.lowered), (1, one)]
        assert self.opened is not None
        opened = replace(self.opened, symbols=(replace(symbol, best=1),))
        alone = replace(self, options=replace(self.options, opt_dims={symbol.name: 1}))
        vars(alone).update(device=self.device, records=self.records, seen=self.seen, opened=opened)
        seen = PRECISIONS[self.options.precision][0] in _SEEN
        if seen or self.options.prune or self.options.passes:
            log.info("samples are computed one by one: %s", one.reason)
            return [(1, alone.lowered)]
        return [(symbol.best, self.lowered), (1, alone.lowered)]

    @cached_property
    def built(self) -> Artifact:
        """The artifact, before it is compared with float."""
        return assemble(self.plan, self.watch)

    @cached_property
    def agreement(self) -> Agreement | None:
        """How well static int8 agrees with float on a few calibration samples; None if it was not
        calibrated.
        """
        data, graph = self.calibration, self.quantized
        runner = None if data is None or graph is self.calibrated else data.run_by
        if data is None or not isinstance(runner, Runner) or runner.last is None:
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
    def _rolls(self) -> bool:
        """Whether long loops stay loops."""
        return self.rolls and isinstance(self.device, Cpu)

    @property
    def is_pruned(self) -> bool:
        """Whether anything was pruned."""
        return any(note.startswith("pruned") for note in self.pruned.notes)

    def calibration_of(self, graph: Graph) -> Calibration | None:
        """Graph after the fuse stage -> what passes calibrate it with; None if no data was given.

        The samples run through a compiled float artifact of the graph that also returns every
        activation, on this machine whatever the target. Memory holds one sample's activations.
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
        wanted: dict[str, tuple[str, Sequence[Dim]]]
        given = [n for n in graph.inputs if not n.name.startswith(SIZE)]
        wanted = {n.name: (n.dtype, n.shape) for n in given}
        sampled = self.sampled
        if sampled is not None:
            shapes = sampled.largest if options.calibration == "synthetic" else sampled.shapes
            wanted = {k: (wanted[k][0], shape) for k, shape in shapes.items()}
        found = samples(options.calibration, wanted, options.calibration_samples)
        count = found.count or options.calibration_samples
        return Calibration(
            found,
            Runner(
                here(self.watch.only("calibration model"), self.records), self.seen, sampled=sampled
            ),
            options.calibration_method,
            synthetic=found.synthetic,
            progress=None if tell is None else lambda done: tell("calibrating", done, count, ""),
            notes=found.describe(),
            known=self.seen.statistics,
            sampled=sampled,
        )

    @property
    def sampled(self) -> Sampled | None:
        """How samples of any sizes run; None if all have one."""
        if self.padding is None:
            return None
        assert self.opened is not None
        given = self.padding.graph.inputs
        names = [n.name for n in given if not n.name.startswith(SIZE)]
        shapes = dict(zip(names, self.opened.shapes[0], strict=True))
        if self.opened.batched:
            shapes = {k: (1, *shape[1:]) for k, shape in shapes.items()}
        return Sampled(self.padding, shapes, self.opened.inner)

    def _through(
        self,
        graph: Graph,
        *stages: str,
        data: Calibration | None = None,
        watch: Watch | None = None,
        choice: Choice | None = None,
    ) -> Graph:
        """A graph -> the graph after some stages, whose passes calibrate with `data`."""
        watch, choice = watch or self.watch, choice or self.choice
        for stage in stages:
            graph = run_stage(graph, stage, watch.skipped, choice, self.device, data)
            watch.saw(stage, graph)
        return graph


def here(watch: Watch | None = None, records: Records | None = None) -> Compile:
    """What compiles fused graphs as they are, for this machine."""

    def made(graph: Graph) -> Artifact:
        device = plugins.device("host")
        return Compilation.of(graph, device, watch=watch, records=records).artifact

    return made


def _noted(graph: Graph, data: Calibration | None) -> Graph:
    return graph if data is None else graph.note(**data.notes)


def _symbols(options: Options) -> tuple[Symbol, ...]:
    """The sizes that stay open, as asked for."""
    calibrated = PRECISIONS[options.precision][0] == "quantize_static"
    return open_symbols(options.dims, options.opt_dims, 1 if calibrated else SAMPLES)


def _read(
    model: str | Path | onnx.ModelProto,
    options: Options,
    one_batch: bool,
    sizes: Mapping[str, Dim],
    *,
    rolls: bool = False,
) -> Graph:
    """ONNX file or model -> its graph, with static shapes but for symbols among `sizes`. `rolls`:
    long loops may stay loops.
    """
    shapes = options.input_shapes or {}
    return read_pinned(model, shapes, options.dims, one_batch, sizes, rolls)
