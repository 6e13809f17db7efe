"""A plan -> why its kernels were chosen: what each step's candidates are predicted to take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qcompiler.cli import show

if TYPE_CHECKING:
    from qcompiler.kernels.registry import Decision, Offer
    from qcompiler.plan.plan import Plan

_HEAD = ("step", "candidate", "", "predicted us", "knobs")


def text(plan: Plan) -> str:
    """A table of all candidates that were weighed, the chosen one of each step first; steps that
    share a kernel are told once.
    """
    return show.table(_HEAD, _rows(plan))


def as_json(decision: Decision) -> list[dict[str, object]]:
    """The same of one step, for programs."""
    from qcompiler.kernels.registry import setting

    return [
        {
            "generator": offer.generator,
            "seconds": offer.candidate.seconds,
            "knobs": dict(setting(offer.candidate.knobs)),
            "verdict": verdict,
        }
        for verdict, offer in _weighed(decision)
    ]


def _rows(plan: Plan) -> Iterator[tuple[str, str, str, str, str]]:
    from qcompiler.kernels.registry import setting

    steps: dict[str, list[str]] = {}
    decisions = {}
    for step in plan.steps:
        if step.decision is not None:
            steps.setdefault(step.kernel.name, []).append(step.name)
            decisions[step.kernel.name] = step.decision
    for kernel, names in steps.items():
        label = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for verdict, offer in _weighed(decisions[kernel]):
            knobs = " ".join(f"{k}={v}" for k, v in setting(offer.candidate.knobs).items())
            seconds = f"{offer.candidate.seconds * 1e6:.2f}"
            yield label, offer.generator, verdict, seconds, knobs or "-"
            label = ""


def _weighed(decision: Decision) -> Iterator[tuple[str, Offer]]:
    if decision.chosen is not None:
        yield decision.origin or "chosen", decision.chosen
    for offer in decision.lost:
        yield "lost", offer
