"""A candidate that was wrong when it was tuned -> its outputs again, beside the right ones.

python -m qcompiler.autotune.again records.wrong/wrong0.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from qcompiler import plugins
from qcompiler.autotune import check, region_file, trial
from qcompiler.autotune.builder import choice_of
from qcompiler.errors import Error, Skip
from qcompiler.runtime import load


def again(path: Path) -> str:
    """A kept file -> what is wrong with its candidate, or nothing."""
    plugins.load_all()
    region, kept = region_file.load(path)
    if "choice" not in kept:
        raise Error("no candidate that was wrong", where=str(path))
    facts: dict[str, Any] = dict(kept)
    device = plugins.device(str(facts["target"]), int(str(facts["threads"])))
    choices = [choice_of(facts[name]) for name in ("default", "choice")]
    made = trial.trial(region, device, choices)
    if isinstance(made, Skip):
        raise Error(made.reason, where=str(path))
    _, place = made.places
    if not isinstance(place, trial.Place):
        raise Error(place.reason if place else "it is not made", where=str(path))
    inputs = trial.values(region, int(str(facts["seed"])))
    outputs = list(load(made.artifact).run(inputs).values())
    meant = check.meaning(region, inputs)
    return check.difference(outputs[place.output], outputs[0] if meant is None else meant, region)


if __name__ == "__main__":
    sys.stdout.write(f"{again(Path(sys.argv[1])) or 'it is right'}\n")
