"""`serve`: artifacts behind HTTP, for any client of the Open Inference Protocol."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from qcompiler.cli import flags, show
from qcompiler.errors import Error
from qcompiler.runtime.executor.options import Executing


def serve(a: Namespace) -> int:
    """Artifacts -> served until a signal."""
    try:
        from qcompiler.runtime.serve.server import serve as run
    except ImportError as e:
        if (e.name or "").split(".")[0] not in ("starlette", "uvicorn", "anyio"):
            raise
        raise Error(f"this needs the package {e.name}", hint="pip install starlette uvicorn") from e
    from qcompiler.runtime.executor import Executor

    keywords = flags.read(Executing, a)
    named = _named(a)
    with ExitStack() as stack:
        executors = {
            name: stack.enter_context(Executor(path, **vars(keywords)))
            for name, path in named.items()
        }
        for name, executor in executors.items():
            show.say(f"{name}: {executor.choice}")
        run(
            executors,
            (a.host, a.port),
            body_bytes=a.max_body_megabytes << 20,
            connections=a.max_connections,
            drain_seconds=a.drain_seconds,
            ready=_say,
        )
    return 0


def _say(url: str) -> None:
    show.say(f"serving at {url}")
    sys.stdout.flush()  # whoever started this waits for it


def _named(a: Namespace) -> dict[str, Path]:
    """The artifacts by the names of their models: those of the files, unless told otherwise."""
    found: dict[str, Path] = {}
    for word in a.artifacts:
        name, equals, path = word.partition("=")
        named, path = (name, path) if equals and "/" not in name else (Path(word).stem, word)
        if named in found:
            raise Error(f"two models are named {named!r}", hint="NAME=FILE names one")
        found[named] = Path(path)
    return found
