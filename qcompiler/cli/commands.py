"""A command's name -> what does it: arguments -> exit code."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping

from qcompiler.cli import making, using

COMMANDS: Mapping[str, Callable[[Namespace], int]] = {
    "compile": making.compile,
    "quantize": making.quantize,
    "retrain": making.retrain,
    "run": using.run,
    "bench": using.bench,
    "inspect": using.inspect,
    "compare": using.compare,
    "targets": using.targets,
    "demo": making.demo,
}
