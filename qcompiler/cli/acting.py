"""Flags that act only beside others: one that is given and could not act is an Error."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qcompiler.artifact.artifact import is_artifact
from qcompiler.cli import batch, executing
from qcompiler.errors import Error
from qcompiler.options import Options, options_of
from qcompiler.runtime.executor.options import Executing


@dataclass(frozen=True)
class Beside:
    """Flags, by their names in a Namespace, that act only where `acts` holds."""

    flags: tuple[str, ...]
    acts: Callable[[Namespace], object]
    hint: str


def _quantizes(a: Namespace) -> bool:
    return a.precision != "float32" or bool(a.passes) or _searches(a)


def _searches(a: Namespace) -> bool:
    return getattr(a, "max_drop", None) is not None


def _reports(a: Namespace) -> bool:
    return getattr(a, "report", None) is not None


def _calibrates(a: Namespace) -> bool:
    return _quantizes(a) or bool(a.prune) or _reports(a)


_REMOTE = (
    Beside(("wait", "limit", "token_file"), lambda a: a.remote or a.tracker, "with --remote"),
    Beside(("key",), lambda a: a.tracker, "with --tracker"),
)
_INPUTS = (
    Beside(("fill_mode",), lambda a: not a.inputs, "without --inputs"),
    Beside(
        ("seed",),
        lambda a: (not a.inputs and a.fill_mode == "random") or getattr(a, "rate", 0),
        "where inputs are random",
    ),
)
_QUANTIZED = (
    Beside(("calibration",), _calibrates, "with --precision, --prune or --pass"),
    Beside(
        ("calibration_method", "calibration_samples"),
        lambda a: _calibrates(a) and (a.calibration or a.command == "retrain"),
        "with --precision and --calibration",
    ),
    Beside(("exclude",), _quantizes, "with --precision or --pass"),
    Beside(
        ("prune_include", "prune_exclude"), lambda a: a.prune or a.passes, "with --prune or --pass"
    ),
)
_OF_STREAMS = ("engine", "streams", "isolation", "spin_us")
_OF_RUNS = ("threads", "variant", "device")
_LOAD = tuple(o.name for o in options_of(Executing) if o.flags and o.name not in _OF_RUNS)
_COMPILING = tuple(o.name for o in options_of(Options) if o.name != "input_shapes")

RULES: Mapping[str, tuple[Beside, ...]] = {
    "run": (
        *_REMOTE,
        *_INPUTS,
        Beside(_OF_STREAMS, batch.wanted, "with many files: a pattern as --inputs, or --engine"),
    ),
    "bench": (
        *_REMOTE,
        *_INPUTS,
        Beside(_LOAD, executing.wanted, "on many requests: with --hint, --streams or --requests"),
    ),
    "compare": (*_REMOTE, *_INPUTS),
    "compile": (
        Beside(
            ("report", "max_drop", "evaluation", "labels", "metric"),
            lambda a: not a.dry_run,
            "without --dry-run",
        ),
        Beside(
            ("evaluation",), lambda a: _searches(a) or _reports(a), "with --max-drop or --report"
        ),
        *_QUANTIZED,
    ),
    "quantize": _QUANTIZED,
    "retrain": _QUANTIZED,
    "export": (
        Beside(("variant",), lambda a: is_artifact(a.model), "on an artifact"),
        Beside(("dump", "explain"), lambda a: not is_artifact(a.model), "on an ONNX model"),
        *_QUANTIZED,
    ),
    "inspect": (
        Beside(
            (*_COMPILING, "dump", "explain"),
            lambda a: a.plan and not is_artifact(a.model),
            "on an ONNX model, with --plan",
        ),
        Beside(("input_shapes",), lambda a: not is_artifact(a.model), "on an ONNX model"),
        Beside(
            ("text",), lambda a: not a.plan and not is_artifact(a.model), "on an ONNX model alone"
        ),
        *_QUANTIZED,
    ),
    "tune": (
        Beside(("wait", "token_file"), lambda a: a.remote, "with --remote"),
        *_QUANTIZED,
    ),
    "targets": (Beside(("target",), lambda a: not a.probe, "without --probe"),),
}
"""Command -> its flags that act only beside others."""


def demand_acting(a: Namespace, command: ArgumentParser) -> None:
    """Raise Error for the first flag of a parsed command line that could not act."""
    spelled = {action.dest: action.option_strings for action in command._actions}
    for rule in RULES.get(a.command, ()):
        for name in rule.flags:
            known = name in a and getattr(a, name) != command.get_default(name)
            if known and not rule.acts(a):
                what = f"{_long(spelled[name])} does nothing here"
                raise Error(what, hint=f"it acts {rule.hint}")


def _long(spellings: Sequence[str]) -> str:
    """The usual spelling of a flag, in whole words."""
    return next(s for s in spellings if s.startswith("--"))
