"""How to compile: what users may ask for, and what they may want to be told meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from qcompiler.errors import Error
from qcompiler.ir import Graph, Node
from qcompiler.pruning.request import pruning
from qcompiler.rewrite import Explain
from qcompiler.stages import Choice, choose

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
    """What to take away: "channels:0.5", "magnitude:0.7", "2:4", "block:0.5" (see
    pruning/request.py).
    """
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

    def saw(self, stage: str, graph: Graph) -> None:
        """Take in the graph after a stage."""
        log.info("after %s: %d nodes", stage, len(graph.nodes))
        if self.stage is not None:
            self.stage(stage, graph)

    def on(self, what: str) -> Callable[[int, int, str], None] | None:
        """Who is told how far one kind of work is: (done, all, the item at hand)."""
        tell = self.progress
        return None if tell is None else lambda done, count, item: tell(what, done, count, item)


def chosen(options: Options) -> Choice:
    """The passes asked for, and those that precision, pruning and compression stand for. Raises
    Error for a precision, or a pass, that is not known.
    """
    if options.precision not in PRECISIONS:
        raise Error(
            f"unknown precision {options.precision!r}",
            hint=f"choose one of {', '.join(PRECISIONS)}",
        )
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
