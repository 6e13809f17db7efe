"""Many random cases: `python -m tests.differential --cases 5000 --seed 1`.

Each case runs in its own process; results go to a log next to the reproducers, from which the
same command goes on where it was stopped. `--kind onnx` damages models, `--kind artifact` damages
artifacts. Exit status 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

from . import damage, mutants
from .boards import check_on_board, on_board
from .changed import check_changed
from .checks import Outcome, check
from .exported import check_exported, for_machine
from .fat import check_fat
from .generate import KINDS, Case, generate
from .opened import check_opened
from .opened_sizes import check_sizes, check_two_sizes
from .pruned import check_pruned
from .retyped import check_retyped
from .shards import Job, Result, alone, done_before, results
from .shrink import save, shrink

STRIDE = 1_000_000
"""Seeds of one `--seed` start at this multiple of it."""


def main() -> int:
    """The command line."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser("python -m tests.differential", description=__doc__)
    add = parser.add_argument
    add("--cases", type=int, default=300)
    add("--seed", type=int, default=0)
    add(
        "--kind",
        choices=(
            *("graphs", "passes", "open", "sizes", "pairs", "onnx", "artifact"),
            *(
                "pruned",
                "extreme",
                "extreme-odd",
                "changed",
                "retyped",
                "boards",
                "exported",
                "fat",
            ),
        ),
        default="graphs",
    )
    add("--workers", type=int, default=os.cpu_count() or 1)
    add("--out", type=Path, default=Path("build/differential"))
    add("--tries", type=int, default=120, help="of making a failing case smaller; 0 for none")
    add("--only", type=int, help="one seed, as a log or a test names it")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.only is not None:
        return one(given)
    check(generate(0), passes_only=True)  # loads everything once, before there are processes
    gc.freeze()
    return many(given)


def one(given: argparse.Namespace) -> int:
    """A single case, in this process -> exit status."""
    result = jobs(given)(given.only)
    title = f"{given.kind} {given.only}"
    if given.kind not in ("onnx", "artifact"):
        title = drawn(given.only, given.kind).title
    faults = (f"{where}: {what}" for where, what in result.get("faults", ()))
    print(title, *faults, result.get("refused", ""), sep="\n")
    return bool(result.get("faults"))


def many(given: argparse.Namespace) -> int:
    """All cases of a seed -> exit status."""
    job = jobs(given)
    log = given.out / f"{given.kind}-{given.seed}.jsonl"
    before = done_before(log)
    first = given.seed * STRIDE
    todo = [i for i in range(first, first + given.cases) if i not in before]
    tally = Counter(verdict(r) for i, r in before.items() if i < first + given.cases)
    start, seconds = time.monotonic(), 0.0
    with log.open("a") as file:
        for count, result in enumerate(results(job, todo, workers=given.workers), 1):
            tally[verdict(result)] += 1
            seconds += result["seconds"]
            file.write(json.dumps(result) + "\n")
            file.flush()
            if verdict(result) == "wrong":
                print(told(given, job, result), flush=True)
            if count % 100 == 0 or count == len(todo):
                spent = time.monotonic() - start
                print(f"{count} of {len(todo)} in {spent:.0f} s: {dict(tally)}", flush=True)
    print(f"{given.kind}, seed {given.seed}: {dict(tally)}; {seconds:.0f} CPU seconds; {log}")
    return bool(tally["wrong"])


def jobs(given: argparse.Namespace) -> Job:
    """What is done with an index."""
    if given.kind == "onnx":
        return mutants.job(given.out)
    if given.kind == "artifact":
        return damage.job(given.out)
    return lambda seed: checked(drawn(seed, given.kind), given.kind)


def drawn(seed: int, kind: str) -> Case:
    """The case of a seed, made of what is to be checked."""
    case = generate(seed, kind if kind in KINDS else "")
    aimed = {"boards": on_board, "exported": for_machine}.get(kind)
    return aimed(case)[0] if aimed else case


def checked(case: Case, kind: str = "graphs") -> Result:
    """A case -> its result, as a log has it."""
    outcome: Outcome
    checks = {"open": check_opened, "sizes": check_sizes, "pairs": check_two_sizes}
    checks |= {"pruned": check_pruned, "changed": check_changed, "retyped": check_retyped}
    checks |= {"boards": check_on_board, "exported": check_exported, "fat": check_fat}
    if kind in checks:
        outcome = checks[kind](case)
    else:
        outcome = check(case, passes_only=kind == "passes")
    return {
        "kind": case.kind,
        "isa": case.device.isa.name,
        "faults": [list(f) for f in outcome.faults],
        "refused": outcome.refused,
        "elements": outcome.elements,
        "unknown": outcome.unknown,
        "decibels": outcome.decibels if outcome.decibels != float("inf") else None,
    }


def verdict(result: Result) -> str:
    """A result -> "right", "refused" or "wrong"."""
    if result.get("died") or result.get("faults"):
        return "wrong"
    return "refused" if result.get("refused") else "right"


def told(given: argparse.Namespace, job: Job, result: Result) -> str:
    """What was wrong, and the files that show it, made as small as can be."""
    seed = result["index"]
    text = result.get("died") or "; ".join(f"{w}: {t}" for w, t in result["faults"][:2])
    head = f"seed {seed}: {result.get('kind', '')} {result.get('isa', '')}: {text}"
    if given.kind in ("onnx", "artifact") or not given.tries:
        return head
    case = drawn(seed, given.kind)

    def fails(smaller: Case) -> bool:
        again = alone(lambda _: checked(smaller, given.kind), seed)
        return sign(again) == sign(result)

    small = shrink(case, fails, given.tries)
    path = save(small, given.out / "reproducers", text)
    operators = " ".join(n.op_type for n in small.model.graph.node)
    return f"{head}\n    {path}: {operators}"


def sign(result: Result) -> str:
    """What kind of failure it is: a smaller case must fail in the same way."""
    if result.get("died"):
        return str(result["died"])
    if not result.get("faults"):
        return ""
    where, what = result["faults"][0]
    return what.split(":")[0] if where == "exception" else where.split(",")[0]


if __name__ == "__main__":
    sys.exit(main())
