"""The command-line parser; flag names follow tvmc, trtexec, benchmark_app and polygraphy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from qcompiler.cli import flags
from qcompiler.cli.flags import count
from qcompiler.errors import Error
from qcompiler.options import options_of
from qcompiler.runtime.executor.options import Executing
from qcompiler.version import __version__

_COMPILING = ("compile", "quantize", "retrain", "export", "tune", "records")
"""Commands that need the compiler, whose flags are in compiling.py."""
_OF_JOBS = ("engine", "streams", "isolation", "spin_us")
"""Options of an executor that `run` takes for many files."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are short: `--help` has the list of all flags."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with status 2."""
        names = [str(a.metavar or a.dest) for a in self._get_positional_actions()]
        usage = " ".join([f"usage: {self.prog} [flags]", *names])
        hint = f"`{self.prog} --help` lists all that it takes"
        self.exit(2, f"{usage}\nerror: {message}\nhint: {hint}\n")


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line (None: of this process) -> its arguments. Wrong usage ends the
    process with status 2; flags that mean nothing together raise Error.
    """
    top = parser()
    found, unknown = top.parse_known_args(words)
    if hasattr(found, "absent"):
        return found
    commands = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    command = commands.choices[found.command]
    if unknown:
        wrong = next((w for w in unknown if w.startswith("-")), unknown[0]).partition("=")[0]
        near = get_close_matches(wrong, command._option_string_actions, 1)
        meant = f", did you mean {near[0]}?" if near else ""
        command.error(f"unrecognized argument {wrong}{meant}")
    from qcompiler.cli.acting import demand_acting  # which imports what --help need not wait for

    demand_acting(found, command)
    return found


def parser() -> argparse.ArgumentParser:
    """The whole command line; commands.py maps each command to its function."""
    top = Parser(
        prog="qcompiler",
        description="Turn an ONNX model into a small native artifact that runs it fast.",
    )
    top.add_argument("--version", action="version", version=f"qcompiler {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the answer as JSON")
    common.add_argument(
        "--log-level", default="warning", choices=("debug", "info", "warning", "error")
    )
    common.add_argument("--no-progress", action="store_true", help="show no progress bars")

    compiling = _compiling()
    if compiling is not None:
        compiling.add(commands, common)
    for name in () if compiling is not None else _COMPILING:
        absent = commands.add_parser(name, parents=[common], help="needs the compiler")
        absent.add_argument("words", nargs=argparse.REMAINDER)
        absent.set_defaults(absent=True)

    run = commands.add_parser("run", parents=[common], help="run an artifact once")
    run.add_argument("artifact", type=Path)
    _input_flags(run)
    run.add_argument(
        "--outputs",
        type=Path,
        help=".npz file to write the outputs to; with many files as inputs (a pattern) a folder",
    )
    run.add_argument("--print-time", action="store_true", help="print the time of the run")
    run.add_argument("--threads", type=count(), default=0, help="default: as compiled")
    _variant_flag(run)

    bench = commands.add_parser("bench", parents=[common], help="time an artifact")
    bench.add_argument("artifact", type=Path)
    _input_flags(bench)
    bench.add_argument(
        "--iterations", type=count(), default=0, help="timed runs (default: by time)"
    )
    bench.add_argument("--duration", type=_duration, default=2.0, help="seconds to time for")
    bench.add_argument("--warmup", type=count(), default=5, help="runs before the timed ones")
    bench.add_argument("--threads", type=count(), default=0, help="default: as compiled")
    _variant_flag(bench)
    bench.add_argument(
        "--percentile", default="50,90,99", help="of the times, comma-separated (default: 50,90,99)"
    )
    bench.add_argument("--per-step", action="store_true", help="also time each step alone")
    _executor_flags(bench)

    group = run.add_argument_group("many files", "which are run in streams, each once")
    flags.add(group, Executing, [o.name for o in options_of(Executing) if o.name not in _OF_JOBS])
    _remote_flags(run)
    _remote_flags(bench)

    inspect = commands.add_parser(
        "inspect", parents=[common], help="describe a model or an artifact"
    )
    inspect.add_argument("model", type=Path, help="an .onnx file or an artifact")
    inspect.add_argument(
        "--plan", action="store_true", help="print the plan: steps, offsets, threads"
    )
    inspect.add_argument("--text", action="store_true", help="print the graph's text")
    if compiling is not None:
        compiling.compile_flags(inspect, omit=("compress",))

    compare = commands.add_parser(
        "compare", parents=[common], help="compare an artifact with onnxruntime"
    )
    compare.add_argument("artifact", type=Path)
    compare.add_argument("model", type=Path, help="the .onnx file to compare with")
    _variant_flag(compare)
    _input_flags(compare)
    compare.add_argument("--samples", type=count(1), default=8, help="how many samples to compare")
    compare.add_argument("--atol", type=float, help="fail if an absolute error is larger")
    compare.add_argument("--rtol", type=float, help="fail if error / output range is larger")
    compare.add_argument("--cosine", type=float, help="fail if a cosine similarity is smaller")
    compare.add_argument("--top1", type=float, help="fail if the top-1 agreement is smaller (0..1)")

    _remote_flags(compare)

    _serve_command(commands.add_parser("serve", parents=[common], help="serve artifacts by HTTP"))

    served = commands.add_parser(
        "serve-device", parents=[common], help="let --remote run artifacts on this machine"
    )
    served.add_argument("--port", type=count(), default=8347, help="0: any that is free")
    served.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at; default: this machine only"
    )
    _tracker_flags(served, "offer this device to an RPC tracker of TVM")
    token_flag(served)
    served.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="keep what was sent there (default: until the end)",
    )
    served.add_argument("--store-megabytes", type=count(1), default=8192, metavar="MB")
    served.add_argument(
        "--max-megabytes", type=count(1), default=2048, metavar="MB", help="of one artifact"
    )
    served.add_argument("--limit", type=seconds, default=600.0, help="seconds of one run")

    targets = commands.add_parser("targets", parents=[common], help="list instruction sets")
    targets.add_argument("--target", action="append", default=[], help="also load this file")
    targets.add_argument(
        "--probe", action="store_true", help="measure this machine and print a device's .toml"
    )
    targets.add_argument("-o", "--output", type=Path, help="file for --probe to write")

    demo = commands.add_parser(
        "demo", parents=[common], help="compile and check the embedded model"
    )
    demo.add_argument("-o", "--output", type=Path, default=Path("qcompiler-demo"), help="folder")
    demo.add_argument("--target", default="host")
    return top


def _compiling() -> ModuleType | None:
    """The flags of commands that need the compiler; None where the runtime alone is installed."""
    if find_spec("qcompiler.cli.compiling") is None:
        return None
    from qcompiler.cli import compiling

    return compiling


def _input_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inputs", type=Path, help=".npz or .npy file, or a folder")
    parser.add_argument(
        "--fill-mode",
        default="random",
        choices=("random", "ones", "zeros"),
        help="how to make inputs without --inputs (default: random)",
    )
    parser.add_argument("--seed", type=count(), default=0, help="of random inputs (default: 0)")


def _serve_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artifacts", nargs="+", metavar="[NAME=]FILE", help="artifacts; NAME defaults to the file's"
    )
    parser.add_argument("--port", type=count(), default=8000, help="0: any that is free")
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at; default: this machine only"
    )
    parser.add_argument("--max-body-megabytes", type=count(1), default=64, metavar="MB")
    parser.add_argument("--max-connections", type=count(1), default=256, metavar="N")
    parser.add_argument(
        "--drain-seconds",
        type=count(),
        default=30,
        metavar="S",
        help="for requests that were begun when a signal comes (default: 30)",
    )
    flags.add(parser, Executing, hint="throughput", when_full="refuse")


def _executor_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "many requests", "time an executor under load; any of --hint to --concurrency asks for it"
    )
    group.add_argument(
        "--requests", type=count(), default=0, metavar="N", help="how many (default: by --duration)"
    )
    group.add_argument(
        "--rate",
        type=seconds,
        default=0.0,
        metavar="R",
        help="requests a second that come at random (default: the next when one is answered)",
    )
    group.add_argument(
        "--concurrency",
        type=count(),
        default=0,
        metavar="N",
        help="requests under way without --rate (default: what all streams run)",
    )
    group.add_argument(
        "--report", type=Path, metavar="FILE.html", help="write a page with plots of the latencies"
    )
    flags.add(group, Executing, ("threads", "variant", "device"), hint="")


def _remote_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("another machine")
    group.add_argument(
        "--remote", metavar="HOST:PORT", help="run it there, where `qcompiler serve-device` runs"
    )
    _tracker_flags(group, "ask this RPC tracker of TVM for a device")
    token_flag(group)
    group.add_argument(
        "--wait", type=seconds, default=60.0, help="seconds that others may keep the device busy"
    )
    group.add_argument(
        "--limit", type=seconds, default=600.0, help="seconds that the device may take"
    )


def _tracker_flags(parser: argparse._ActionsContainer, use: str) -> None:
    parser.add_argument("--tracker", metavar="HOST:PORT", help=f"{use} (with --key)")
    parser.add_argument("--key", metavar="NAME", help="the kind of device, as the tracker knows it")


def token_flag(parser: argparse._ActionsContainer) -> None:
    """Add the flag that names the secret of a device."""
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="the secret that both sides share (default: QCOMPILER_TOKEN in the environment)",
    )


def seconds(text: str) -> float:
    """A word -> a number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _duration(text: str) -> float:
    """Seconds, or none at all: what is timed by them runs once at least."""
    return 0.0 if text == "0" else seconds(text)


def _variant_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--variant",
        default="",
        metavar="ISA",
        help="run this variant (default: the best for the CPU)",
    )
    parser.add_argument(
        "--device",
        default="",
        metavar="cpu|cuda[:N]",
        help="where to run it (default: the CPU, or GPU 0 if the artifact is for GPUs alone)",
    )


def percentiles(text: str) -> tuple[float, ...]:
    """ "50,99" -> (50.0, 99.0)."""
    try:
        values = tuple(float(p) for p in text.split(","))
    except ValueError:
        values = (-1.0,)
    if not all(0 <= v <= 100 for v in values):
        raise Error(f"{text!r} is not a list of percentiles", where="--percentile", hint="50,90,99")
    return values
