"""Records of kernels -> those whose steps are faster inside the model, too: what won alone, beside
the default, may lose where the steps around it leave the caches otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qcompiler.autotune.measure import Bench
from qcompiler.autotune.whole import Pair
from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.errors import Error
from qcompiler.kernels.facts import sealed
from qcompiler.plan.choose import APART
from qcompiler.plan.plan import Plan
from qcompiler.plan.regions import split
from qcompiler.tune.records import Key, Line, Measured, described

Seconds = Sequence[float]


def inside(
    bench: Bench, made: Compilation, own: Sequence[Line], lines: Sequence[Line]
) -> list[Line]:
    """A compilation, records that it has, and those of kernels -> of these the ones that count; all
    where its steps cannot be told apart. Raises Gone where the place is lost.
    """
    plain, tuned = (made.planned(Measured((*own, *some))) for some in ((), lines))
    if any(s.branch is not None for s in (*plain.steps, *tuned.steps)):
        return list(lines)
    paths = [bench.builder.folder / f"{name}.qc" for name in ("plain", "tuned")]
    try:
        for plan, path in zip((plain, tuned), paths, strict=True):
            assemble(plan).save(path)
        before, after = bench.start(lambda: _timed(bench, *paths)).result()
    except Error:
        return list(lines)
    return won(plain, (before, after), lines)


def _timed(bench: Bench, before: Path, after: Path) -> tuple[Seconds, Seconds]:
    with Pair(bench.place) as pair:
        return pair.steps(before, after)


def won(plain: Plan, taken: tuple[Seconds, Seconds], lines: Sequence[Line]) -> list[Line]:
    """A plan without records, the seconds of its steps without and with them -> the records whose
    steps take less, all runs together.
    """
    chosen = {x.key: x for x in lines}
    device, gained = described(plain.device), dict.fromkeys(chosen, 0.0)
    before, after = taken
    at = 0
    if len(before) != len(plain.steps):
        return list(lines)
    for step, usual in zip(plain.steps, before, strict=True):
        key = Key(sealed(step.region, plain.device).key, device)
        apart = key in chosen and chosen[key].record.generator == APART
        count = len(split(step.region)) if apart else 1
        if key in chosen:
            gained[key] += usual - sum(after[at : at + count])
        at += count
    if at != len(after):
        return list(lines)
    return [x for x in lines if gained[x.key] > 0]
