"""A command's name -> its function: arguments -> exit code."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping

from qcompiler.cli import remote, serving, using

Command = Callable[[Namespace], int]


def _compiling(name: str) -> Command:
    """A command that needs the compiler; the runtime alone comes without these."""

    def command(arguments: Namespace) -> int:
        from qcompiler.cli import describing, exporting, making, tuning

        rooms = {"export": exporting, "tune": tuning, "records": tuning, "compare": describing}
        found: Command = getattr(rooms.get(name, making), name)
        return found(arguments)

    return command


COMMANDS: Mapping[str, Command] = {
    "compile": _compiling("compile"),
    "quantize": _compiling("quantize"),
    "retrain": _compiling("retrain"),
    "export": _compiling("export"),
    "tune": _compiling("tune"),
    "records": _compiling("records"),
    "run": using.run,
    "bench": using.bench,
    "inspect": using.inspect,
    "compare": _compiling("compare"),
    "targets": using.targets,
    "serve": serving.serve,
    "serve-device": remote.serve_device,
    "demo": _compiling("demo"),
}
