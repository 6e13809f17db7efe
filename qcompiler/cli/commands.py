"""A command's name -> its function: arguments -> exit code."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping

from qcompiler.cli import remote, serving, using

Command = Callable[[Namespace], int]


def _making(name: str) -> Command:
    """A command that makes something; the runtime alone comes without these."""

    def command(arguments: Namespace) -> int:
        from qcompiler.cli import exporting, making, tuning

        rooms = {"export": exporting, "tune": tuning, "records": tuning}
        found: Command = getattr(rooms.get(name, making), name)
        return found(arguments)

    return command


COMMANDS: Mapping[str, Command] = {
    "compile": _making("compile"),
    "quantize": _making("quantize"),
    "retrain": _making("retrain"),
    "export": _making("export"),
    "tune": _making("tune"),
    "records": _making("records"),
    "run": using.run,
    "bench": using.bench,
    "inspect": using.inspect,
    "compare": using.compare,
    "targets": using.targets,
    "serve": serving.serve,
    "serve-device": remote.serve_device,
    "demo": _making("demo"),
}
