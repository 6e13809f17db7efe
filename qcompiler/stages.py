"""Graph and a stage's name -> the graph after that stage's passes, run until none changes anything.

A pass and its options are written `name{field=value, other="text"}`; the types come from the fields
of its dataclass. The caller fills three fields: `device` (what the code is compiled for), `explain`
(called with every Skip) and `data` (what to calibrate with). `statistics` is for Python callers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, get_type_hints

from qcompiler.data.calibrate import Calibration
from qcompiler.errors import Error
from qcompiler.hardware.isa import Device
from qcompiler.ir import Graph, Node
from qcompiler.options import PRECISIONS, Options
from qcompiler.plugins import load_file, load_passes
from qcompiler.pruning.request import pruning
from qcompiler.rewrite import PASSES, Explain, Pass, Rule, rewrite, stage_of
from qcompiler.rewrite.bodies import with_bodies
from qcompiler.rewrite.rules import unsettled

ALONG = {"fuse": ("fold",), "layout": ("fold",)}
"""Stage -> earlier stages whose rules also run in it, so that its results are folded at once."""

IN_BODIES = frozenset({"fold", "fuse", "integer", "layout"})
"""The stages that also change the bodies of loops; these are neither pruned nor quantized."""

_MAX_ROUNDS = 50
_FILLED = ("device", "explain", "data", "statistics")
_SPEC = re.compile(r"\s*(?P<name>[a-z]\w*)\s*(?:\{(?P<fields>.*)\})?\s*", re.DOTALL)


@dataclass(frozen=True)
class Choice:
    """Which passes run: those requested by name (with their options), and disabled ones."""

    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    disabled: frozenset[str] = frozenset()

    def without(self, exclude: Sequence[str], disabled: Sequence[str]) -> Choice:
        """The same, with more nodes that stay in float, and passes that are left out."""
        options = {
            name: {**o, "exclude": (*o["exclude"], *exclude)} if "exclude" in o else o  # type: ignore[misc]  # names
            for name, o in self.options.items()
        }
        return Choice(options, self.disabled | frozenset(disabled))

    def wants(self, name: str) -> bool:
        """A pass runs unless it is disabled; with `default = False` only if requested."""
        usual = getattr(PASSES[name], "default", True)
        return name not in self.disabled and (usual or name in self.options)


def choose(specs: Sequence[str] = (), disabled: Sequence[str] = ()) -> Choice:
    """["quantize_static{percentile=99.99}"], names of disabled passes -> the checked choice."""
    load_passes()
    for file in (s for s in specs if s.endswith(".py")):
        _load_user(Path(file))
    options = dict(parse(s) for s in specs if not s.endswith(".py"))
    for name in disabled:
        _known(name)
    return Choice(options, frozenset(disabled))


_load_user = cache(load_file)
"""Loads a user's file of passes, once per process."""


def chosen(options: Options) -> Choice:
    """The requested passes, and those that implement precision, pruning and compression. Raises
    Error for an unknown pass.
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
        extra["layout_compact"] = {}  # transformed weights would have more distinct values
    merged = {k: {**v, **asked.options.get(k, {})} for k, v in extra.items()}
    return Choice({**asked.options, **merged}, asked.disabled)


def run_stage(
    graph: Graph,
    stage: str,
    explain: Explain | None = None,
    options: Choice | None = None,
    device: Device | None = None,
    data: Calibration | None = None,
) -> Graph:
    """Run a stage's rules to a fixed point, then its graph passes; repeat until nothing changes;
    then do so in the bodies of loops.
    """
    load_passes()
    choice = options or Choice()
    report = _once(explain)
    stages = (stage, *ALONG.get(stage, ()))
    names = [n for n in sorted(PASSES, key=_order) if stage_of(n) in stages and choice.wants(n)]
    rules = [p for n in names if isinstance(p := PASSES[n], Rule)]
    passes = {
        n: build(n, choice.options.get(n, {}), device, report, data)
        for n in names
        if n not in _names(rules)
    }
    for _ in range(_MAX_ROUNDS):
        before = graph
        graph = rewrite(graph, rules, report)
        changed = [] if graph is before else ["its rules"]
        for name, made in passes.items():
            after = made(graph)
            changed += [] if after is graph else [name]
            graph = after
        if graph is before:
            break
    else:
        raise unsettled(changed)
    if stage not in IN_BODIES:
        return graph
    return with_bodies(
        graph,
        partial(run_stage, stage=stage, explain=explain, options=options, device=device, data=data),
    )


def _order(name: str) -> tuple[int, str]:
    """Sort key: a pass's own `order`, then its name."""
    return getattr(PASSES[name], "order", 0), name


def build(
    name: str,
    options: Mapping[str, object] | None = None,
    device: Device | None = None,
    explain: Explain | None = None,
    data: Calibration | None = None,
) -> Pass:
    """A pass's name and options -> the pass, with `device`, `explain` and `data` filled in."""
    made: Any = _known(name)
    if isinstance(made, Rule):
        return made
    filled = {"device": device, "explain": explain, "data": data}
    given = {k: v for k, v in filled.items() if k in {f.name for f in fields(made)}}
    result: Pass = made(**{**given, **(options or {})})
    return result


def parse(spec: str) -> tuple[str, dict[str, object]]:
    """ "name{field=value,...}" -> (name, options with the types of the pass's fields)."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise Error(
            f"cannot read {spec!r}", where="--pass", hint='write name{field=value,other="text"}'
        )
    name, body = match["name"], match["fields"]
    made = _known(name)
    types = {} if isinstance(made, Rule) else get_type_hints(made)
    known = [k for k in types if k not in _FILLED and k not in ("default", "order")]
    options: dict[str, object] = {}
    for part in _split(body or ""):
        key, equals, text = (p.strip() for p in part.partition("="))
        if not equals or key not in known:
            raise Error(
                f"{name} has no option {key!r}",
                where="--pass",
                hint=f"its options are {', '.join(known) or 'none'}",
            )
        options[key] = _value(text, types[key], f"{name}{{{key}}}")
    return name, options


def _split(body: str) -> list[str]:
    """ "a=1, b=[2,3]" -> ["a=1", "b=[2,3]"]: commas inside brackets or quotes do not split."""
    parts = re.findall(r"(?:\[[^\]]*\]|\([^)]*\)|\"[^\"]*\"|'[^']*'|[^,])+", body)
    return [p for p in parts if p.strip()]


def _value(text: str, wanted: object, where: str) -> object:
    """An option's text -> a value of its field's type."""
    if wanted is bool and text in ("true", "false", "True", "False", "0", "1"):
        return text in ("true", "True", "1")
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if wanted is str:
        return value if isinstance(value, str) else text
    if wanted is float and isinstance(value, int):
        return float(value)
    origin = getattr(wanted, "__origin__", None)
    if origin is tuple or wanted is tuple:
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if isinstance(wanted, type) and not isinstance(value, wanted):
        raise Error(f"{text!r} is not of type {wanted.__name__}", where=where)
    return value


def _known(name: str) -> Rule | type[Pass]:
    load_passes()
    if name not in PASSES:
        raise Error(
            f"unknown pass {name!r}",
            where="--pass",
            hint=f"the passes are {', '.join(sorted(PASSES))}",
        )
    return PASSES[name]


def _names(rules: Sequence[Rule]) -> set[str]:
    return {r.name for r in rules}


def _once(explain: Explain | None) -> Explain | None:
    """Nodes are visited many times; report each Skip only once."""
    if explain is None:
        return None
    seen: set[tuple[str, str, str]] = set()

    def report(name: str, node: Node, reason: str) -> None:
        key = (name, node.name, reason)
        if key not in seen:
            seen.add(key)
            explain(name, node, reason)

    return report
