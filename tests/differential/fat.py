"""A case, compiled for several instruction sets into one artifact -> what is wrong with a variant:
it must have the code and the weights that it has alone, and compute what it means.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from qcompiler import compile, load, plugins
from qcompiler.artifact.artifact import open_artifact
from qcompiler.driver import Compilation
from qcompiler.hardware import isa
from qcompiler.options import Options

from .checks import Outcome, compare, options, outcome_of
from .generate import Case
from .reference import references

FAMILIES = ("x86-64", "x86-64", "x86-64", "aarch64")
MORE = ({}, {"compress": True}, {"prune": ("magnitude:0.7",)}, {"prune": ("2:4",)})


def check_fat(case: Case) -> Outcome:
    """Compile a case for two or three sets of a family, and for each alone; run what this CPU can,
    from a file.
    """
    return outcome_of(lambda outcome: _check(case, outcome))


def _check(case: Case, outcome: Outcome) -> None:
    plugins.load_all()
    rng = np.random.default_rng((case.seed, 0xFA))
    sets = isa.family(FAMILIES[int(rng.integers(len(FAMILIES)))])
    chosen = [sets[int(i)] for i in rng.permutation(len(sets))[: rng.integers(2, 4)]]
    more = MORE[int(rng.integers(len(MORE)))]
    asked = {**vars(options(case)), **more}
    asked.pop("target")
    fat = compile(case.model, target=[one.name for one in chosen], **asked)
    with tempfile.TemporaryDirectory(prefix="qcompiler-fat-") as place:
        path = fat.save(Path(place) / "fat.qc")
        for number, variant in enumerate(fat.manifest.variants):
            made = Compilation(case.model, Options(target=variant.isa, **asked))
            (alone,), (found,) = made.built.binaries, open_artifact(path).only(number).binaries
            if found.code != alone.code:
                outcome.fault(f"{variant.isa}, code", "it differs from that of the variant alone")
            if not np.array_equal(found.weights, alone.weights):
                outcome.fault(f"{variant.isa}, weights", "they differ from the variant's alone")
            if not isa.ISAS[variant.isa].lacks:
                _run(case, path, made, variant.isa, outcome)


def _run(case: Case, path: Path, made: Compilation, name: str, outcome: Outcome) -> None:
    model = load(path, variant=name)
    short = made.device.isa.short
    for feed in case.feeds[:2]:
        wanted = references(made.lowered, feed, kernels=True, short=short)
        outcome.elements += sum(r.value.size for r in wanted.values())
        compare(f"{name}, forced", model.run(feed), wanted, outcome)
