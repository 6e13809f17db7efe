"""`run` of many files: each is a part of the job, and what is finished is not done again.

    data/a.npz, data/b.npz  ->  out/a.npz, out/b.npz, and out/a.npz.done, out/b.npz.done

An output holds the results of all samples of its input, stacked. A `.done` file has the SHA-256 of
the input, of the artifact and of the output; where they still hold, a job that is started again
leaves the part alone.
"""

from __future__ import annotations

import glob
import hashlib
import json
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompiler.cli import flags, show
from qcompiler.cli.places import save_npz
from qcompiler.dtypes import Array
from qcompiler.errors import Error
from qcompiler.files import contents, opened, parsed, write_text
from qcompiler.runtime.executor import Executor
from qcompiler.runtime.executor.options import Executing

_PATTERN = "*?["


@dataclass(frozen=True)
class Part:
    """An input file, and where its results go."""

    source: Path
    output: Path

    @property
    def mark(self) -> Path:
        """Says that it is finished."""
        return self.output.with_name(f"{self.output.name}.done")

    def finished(self, model: str) -> bool:
        """Whether the results are there, of this input and this artifact."""
        with suppress(Error, ValueError):
            told = parsed(contents(self.mark))
            return bool(told == self.facts(model))
        return False

    def facts(self, model: str) -> dict[str, str]:
        """What a finished part was made of, and is."""
        return {"input": _sha256(self.source), "model": model, "output": _sha256(self.output)}


def wanted(a: Namespace) -> bool:
    """Whether `run` is of many files: they are a pattern, or the outputs are a folder."""
    many = a.inputs is not None and any(c in str(a.inputs) for c in _PATTERN)
    return many or bool(a.engine) or (a.outputs is not None and a.outputs.is_dir())


def run(a: Namespace) -> int:
    """Artifact and files -> files."""
    if a.remote or a.tracker:
        raise Error("many files are run here, or with --engine ray, not with --remote")
    parts = _parts(a)
    keywords = flags.read(Executing, a, hint="throughput")
    start = time.perf_counter()
    with Executor(a.artifact, **vars(keywords)) as executor:
        model = _sha256(a.artifact) + executor.variant.isa
        left = [part for part in parts if not part.finished(model)]
        with show.ProgressBar(enabled=not (a.no_progress or a.json)) as bar:
            samples = _run(executor, left, model, bar)
    answer = {
        "files": len(parts),
        "finished_before": len(parts) - len(left),
        "samples": samples,
        "seconds": time.perf_counter() - start,
        "folder": str(a.outputs),
    }
    if a.json:
        show.say_json(answer)
    else:
        show.say(show.facts(answer))
    return 0


def _parts(a: Namespace) -> list[Part]:
    """The files that --inputs names, in the order of their names."""
    if a.inputs is None or a.outputs is None:
        raise Error("many files need --inputs and the folder --outputs")
    where = str(a.inputs)
    found = sorted(glob.glob(where)) if not a.inputs.is_dir() else sorted(a.inputs.iterdir())
    files = [Path(f) for f in found if Path(f).suffix in (".npz", ".npy")]
    if not files:
        raise Error("no .npz or .npy files", where=where)
    try:
        a.outputs.mkdir(exist_ok=True)
    except OSError as e:
        raise Error(f"cannot be made a folder ({e.strerror or e})", where=str(a.outputs)) from e
    made = [Part(file, a.outputs / f"{file.stem}.npz") for file in files]
    if len({part.output for part in made}) < len(made):
        raise Error("two files have the same name", where=where)
    for part in made:
        if part.output.exists() and part.output.samefile(part.source):
            raise Error("this would overwrite what is read", where=str(part.output))
    return made


def _run(executor: Executor, parts: list[Part], model: str, bar: show.ProgressBar) -> int:
    """Run the samples of all parts one after the other, and write each that is complete -> how many
    samples there were.
    """
    from qcompiler.data.samples import samples

    types = {v.name: (v.dtype, v.dims) for v in executor.inputs}
    read: deque[tuple[Part, int]] = deque()
    """Parts all of whose samples have been read, and how many those are."""

    def each() -> Iterator[dict[str, Array]]:
        for part in parts:
            count = 0
            for sample in samples(str(part.source), types):
                count += 1
                yield sample
            read.append((part, count))

    results: deque[dict[str, Array]] = deque()
    begin, done, total = time.perf_counter(), 0, 0

    def write_complete() -> None:
        nonlocal done
        while read and len(results) >= read[0][1]:
            part, count = read.popleft()
            _write(part, [results.popleft() for _ in range(count)], model)
            done += 1
            rest = (time.perf_counter() - begin) / done * (len(parts) - done)
            bar("files", done, len(parts), f"{part.output.name}, {rest:.0f} s left")

    for result in executor.map(each()):
        results.append(result)
        total += 1
        write_complete()
    write_complete()
    return total


def _write(part: Part, results: list[dict[str, Array]], model: str) -> None:
    """A part's results, then the mark that they are whole."""
    part.mark.unlink(missing_ok=True)
    save_npz(part.output, {n: np.stack([r[n] for r in results]) for n in results[0]})
    write_text(part.mark, json.dumps(part.facts(model)) + "\n")


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with opened(path) as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()
