"""A process of its own that makes the artifacts of trials, so that no fault of a compiler ends a
tuner: requests and answers are JSON.

    {region, target, threads, choices, evicted, ages, known, most, output}
    -> {places: [...]} or {error}
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from qcompiler.autotune import region_file, trial
from qcompiler.autotune.tasks import Choice, Task
from qcompiler.autotune.trial import Place
from qcompiler.errors import Error, Skip

BUILD_SECONDS = 120.0
"""A trial that is not made by then never will be."""
_ENDING_SECONDS = 5.0


class Builder:
    """The process; a new one is started when it has ended. One thread uses it at a time."""

    def __init__(self, seconds: float = BUILD_SECONDS) -> None:
        self.seconds = seconds
        self._folder = tempfile.TemporaryDirectory(prefix="qcompiler-")
        self.folder = Path(self._folder.name)
        self._process: ForkProcess | None = None
        self._talk: Connection
        self._saved: dict[int, Path] = {}
        self._kept: list[Task] = []  # keeps the numbers of `_saved` from being used again
        self._count = 0

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and remove what it made."""
        self._end()
        self._folder.cleanup()

    def region(self, task: Task) -> Path:
        """The files of a task's region."""
        if id(task) not in self._saved:
            path = self.folder / f"region{len(self._saved)}"
            region_file.save(task.region, path)
            self._kept.append(task)
            self._saved[id(task)] = path
        return self._saved[id(task)]

    def trial(
        self, task: Task, choices: Sequence[Choice], known: Sequence[str] = (), most: int = 0
    ) -> tuple[Path, list[Place | Skip | None]]:
        """Choices of a task's kernel, the default first -> an artifact of them, and where each
        stands in it; see `trial.trial`. Raises Error where the process ends instead, or takes too
        long.
        """
        self._count += 1
        output = self.folder / f"trial{self._count}.qc"
        request = {
            "region": str(self.region(task)),
            "key": task.key.region,
            "target": task.target,
            "threads": task.device.threads,
            "choices": [written(c) for c in choices],
            "evicted": task.evicted,
            "ages": task.ages,
            "known": list(known),
            "most": most,
            "output": str(output),
        }
        try:
            answer = self._ask(request)
        except BaseException:
            self._end()
            raise
        if "error" in answer:
            raise Error(str(answer["error"]))
        return output, [_place(p) for p in answer["places"]]

    def _ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        if self._process is None or not self._process.is_alive():
            self._start()
        try:
            self._talk.send_bytes(json.dumps(request).encode())
            if not self._talk.poll(self.seconds):
                raise Error(f"it was not compiled within {self.seconds:g} s")
            found: dict[str, Any] = json.loads(self._talk.recv_bytes())
            return found
        except (EOFError, OSError) as e:
            assert self._process is not None
            self._process.join(_ENDING_SECONDS)
            raise Error(f"its compiler crashed ({_ending(self._process.exitcode)})") from e

    def _start(self) -> None:
        """A fork has all that is loaded here, at once."""
        fork = multiprocessing.get_context("fork")
        self._talk, theirs = fork.Pipe()
        self._process = fork.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        self._talk.close()
        process.kill()
        process.join()


def _ending(code: int | None) -> str:
    if code is None:
        return "it does not answer"
    if code >= 0:
        return f"status {code}"
    known = -code in set(signal.Signals)
    return signal.Signals(-code).name if known else f"signal {-code}"


def written(choice: Choice) -> dict[str, object]:
    """A choice as JSON takes it."""
    return {**vars(choice), "knobs": dict(choice.knobs)}


def choice_of(facts: Mapping[str, Any]) -> Choice:
    """The same back."""
    return Choice(**{**facts, "knobs": tuple(facts["knobs"].items())})


def _place(facts: Mapping[str, Any] | None) -> Place | Skip | None:
    if facts is None:
        return None
    if "reason" in facts:
        return Skip(facts["reason"])
    return Place(facts["output"], tuple(facts["steps"]), facts["code"])


def _serve(talk: Connection) -> None:
    """Answer requests until there are no more: what this process prints goes nowhere. Whatever else
    its parent has open (a lock, connections) is the parent's alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tuner, which ends this
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, signal.SIG_DFL)
    os.closerange(3, talk.fileno())
    os.closerange(talk.fileno() + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(EOFError, OSError):
        while True:
            request = json.loads(talk.recv_bytes())
            talk.send_bytes(json.dumps(_answered(request)).encode())
    os._exit(0)  # nothing of the parent's is ended by its copy


def _answered(request: Mapping[str, Any]) -> dict[str, object]:
    """Make a trial, as its request says; the file is there before the answer."""
    from qcompiler import plugins
    from qcompiler.kernels.facts import sealed

    device = plugins.device(request["target"], request["threads"])
    region, _ = region_file.load(Path(request["region"]))
    if sealed(region, device).key != request["key"]:
        return {"error": "a region of its own has another key than in its model"}
    choices = [choice_of(c) for c in request["choices"]]
    some = {name: request[name] for name in ("evicted", "ages", "known", "most")}
    made = trial.trial(region, device, choices, **some)
    if isinstance(made, Skip):
        return {"error": made.reason}
    made.artifact.save(Path(request["output"]))
    return {"places": [None if p is None else vars(p) for p in made.places]}
