"""A model -> other ways to compile all of it: nodes that stay in float where int8 is slower, passes
that are left out, fewer threads, other parts of a batch. Each way is tried with what was found to
be faster before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from qcompiler.artifact.artifact import Artifact
from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.kernels.registry import Record
from qcompiler.plan.batches import parts_of
from qcompiler.plan.plan import Plan
from qcompiler.plan.repeats import turns
from qcompiler.plan.sharing import VERSION, WHOLE, key_of
from qcompiler.rewrite import PASSES, stage_of
from qcompiler.tune.records import LATE, MODEL, MODEL_VERSION, names_in

SLOWER = 1.05
"""A step is slower in int8 where it takes more than this many times as long as in float."""
LIKELY = 1.1
"""A variant that is predicted to take more than this many times as long is not measured."""
_NEAR = 4
"""Up to this many times more, or fewer, parts of a batch are tried."""


@dataclass(frozen=True)
class Without:
    """Nodes that stay in float, and passes that are left out."""

    exclude: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """A model compiled otherwise, and the record that makes it so again."""

    made: Compilation
    record: Record


Best = Callable[[], tuple[Without, Plan]]
"""What is best so far: what it is without, and its plan."""


def in_float(
    made: Compilation, steps: Mapping[str, float], floats: Mapping[str, float]
) -> Iterator[Variant]:
    """Nodes that take longer in int8 (seconds of `steps`, by name) than in float: all, the half
    that loses most, and the half of that.
    """
    known = {n.name for n in made.float_graph.nodes if n.name}
    lost = {
        name: taken - floats[name]
        for name, taken in steps.items()
        if name in known and name in floats and taken > SLOWER * floats[name]
    }
    ranked = sorted(lost, key=lambda name: -lost[name])
    for size in dict.fromkeys(-(-len(ranked) // part) for part in (1, 2, 4)):
        if size:
            yield variant(made, Without(exclude=tuple(ranked[:size])))


def without_passes(made: Compilation, best: Best) -> Iterator[Variant | None]:
    """Each pass of the late stages left out of what is best by then, where that changes the plan
    and the cost model does not say that it is much slower; None for the others, which take time
    too.
    """
    for name in sorted(PASSES):
        if stage_of(name) not in LATE or not made.choice.wants(name):
            continue
        without, plan = best()
        usual, same = predicted(plan), str(plan)
        other = variant(made, replace(without, disabled=(*without.disabled, name)))
        try:
            idle = key_of(other.made.lowered) == key_of(plan.graph)
            its = plan if idle else other.made.planned()
        except Error:  # it has to run
            yield None
            continue
        fitting = str(its) != same and predicted(its) < LIKELY * usual
        yield other if fitting else None


def variant(made: Compilation, without: Without) -> Variant:
    """A compilation with more nodes in float, or passes left out."""
    knobs = {name: json.dumps(some) for name, some in vars(without).items() if some}
    settled = made.choice.without(without.exclude, without.disabled)
    same = {} if without.exclude else {"quantized": made.quantized}  # late passes come later
    other = made.having(settled=settled, **same)
    return Variant(other, Record(MODEL, MODEL_VERSION, knobs, 0.0))


def without_of(record: Record | None) -> Without:
    """What a record of a model says."""
    if record is None:
        return Without()
    return Without(names_in(record, "exclude"), names_in(record, "disabled"))


def predicted(plan: Plan) -> float:
    """Seconds of all steps, as the cost model has them."""
    often = zip(plan.steps, turns(plan.repeats, len(plan.steps)), strict=True)
    found = [(s.decision.chosen, times) for s, times in often if s.decision is not None]
    return plan.parts * sum(o.candidate.seconds * times for o, times in found if o is not None)


def float_artifact(made: Compilation) -> Artifact | None:
    """The same model in float; None where it is not quantized, or came so."""
    if made.came_quantized or made.quantized is made.calibrated:
        return None
    return made.having(quantized=made.calibrated).built


def plan_choices(made: Compilation, plan: Plan) -> list[Record]:
    """Other numbers of threads, and of parts of a batch, than a plan has."""
    device = made.device
    threads = {device.threads >> i for i in range(device.threads.bit_length())}
    found = [(t, plan.parts) for t in sorted(threads - {plan.device.threads})]
    near = [
        p
        for p in parts_of(plan.graph)
        if p != plan.parts and plan.parts <= p * _NEAR and p <= plan.parts * _NEAR
    ]
    found += [(plan.device.threads, p) for p in near]
    records = [Record(WHOLE, VERSION, {"parts": p}, 0.0, t) for t, p in found]
    if any(s.branch is not None for s in plan.steps):
        knobs = {"parts": plan.parts, "branches": 0}
        records.append(Record(WHOLE, VERSION, knobs, 0.0, plan.device.threads))
    return records
