"""Command-line words -> options, with the flag names people know from tvmc, trtexec, benchmark_app
and polygraphy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from qcompiler.cli import quality
from qcompiler.errors import Error
from qcompiler.version import __version__

PRECISIONS = (
    "float32",
    "bfloat16",
    "float16",
    "int8",
    "int8-dynamic",
    "int8-weights",
    "int4",
    "int4-weights",
)


def parser() -> argparse.ArgumentParser:
    """The whole command line; commands.py says what does each command."""
    top = argparse.ArgumentParser(
        prog="qcompiler",
        description="Turn an ONNX model into a small native artifact that runs it fast.",
    )
    top.add_argument("--version", action="version", version=f"qcompiler {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the answer as JSON")
    common.add_argument(
        "--log-level", default="warning", choices=("debug", "info", "warning", "error")
    )
    common.add_argument("--no-progress", action="store_true", help="draw no progress bars")

    made = commands.add_parser("compile", parents=[common], help="ONNX model -> artifact")
    made.add_argument("model", type=Path, help="an .onnx file")
    made.add_argument("-o", "--output", type=Path, help="artifact to write (default: MODEL.qc)")
    _compile_flags(made)
    quality.flags(made, _some)
    made.add_argument("--dry-run", action="store_true", help="plan only; write nothing")

    quantize = commands.add_parser(
        "quantize", parents=[common], help="ONNX model -> ONNX model in few bits (QDQ)"
    )
    quantize.add_argument("model", type=Path, help="an .onnx file")
    quantize.add_argument(
        "-o", "--output", type=Path, help="model to write (default: MODEL.qdq.onnx)"
    )
    _compile_flags(quantize)
    quantize.set_defaults(precision="int8")

    retrain = commands.add_parser(
        "retrain", parents=[common], help="tune weights to quantization or pruning (needs torch)"
    )
    retrain.add_argument("model", type=Path, help="an .onnx file")
    retrain.add_argument("--data", type=Path, required=True, help="samples, as for --calibration")
    retrain.add_argument("-o", "--output", type=Path, help="default: MODEL.retrained.onnx")
    retrain.add_argument("--epochs", type=_some, default=5)
    retrain.add_argument(
        "--rate", type=float, default=1e-3, help="Adam's steps, as parts of weights"
    )
    retrain.add_argument("--batches", type=_some, default=2000, help="at most so many")
    retrain.add_argument(
        "--teacher", type=Path, help="the .onnx file to learn from (default: MODEL in float)"
    )
    retrain.add_argument(
        "--augment",
        default="",
        metavar="KINDS",
        help="of pictures: flip (left to right), shift, mix; flip,shift",
    )
    retrain.add_argument(
        "--gradual", action="store_true", help="take the weights of --prune little by little"
    )
    _compile_flags(retrain)  # --calibration: by default --data
    retrain.set_defaults(precision="")  # int8, where neither --prune nor --pass says what for

    run = commands.add_parser("run", parents=[common], help="run an artifact once")
    run.add_argument("artifact", type=Path)
    _input_flags(run)
    run.add_argument("--outputs", type=Path, help=".npz file to write the outputs to")
    run.add_argument("--print-time", action="store_true")
    run.add_argument("--threads", type=_count, default=0)

    bench = commands.add_parser("bench", parents=[common], help="time an artifact")
    bench.add_argument("artifact", type=Path)
    _input_flags(bench)
    bench.add_argument("--iterations", type=_count, default=0, help="timed runs (default: by time)")
    bench.add_argument("--duration", type=float, default=2.0, help="seconds to time for")
    bench.add_argument("--warmup", type=_count, default=5, help="runs before the timed ones")
    bench.add_argument("--threads", type=_count, default=0)
    bench.add_argument("--percentile", default="50,90,99", help="comma-separated")
    bench.add_argument("--per-step", action="store_true", help="time every step alone")

    inspect = commands.add_parser(
        "inspect", parents=[common], help="show what a model or an artifact is"
    )
    inspect.add_argument("model", type=Path, help="an .onnx file or an artifact")
    inspect.add_argument(
        "--plan", action="store_true", help="print the plan: steps, offsets, threads"
    )
    inspect.add_argument("--text", action="store_true", help="print the graph's text")
    _compile_flags(inspect)

    compare = commands.add_parser(
        "compare", parents=[common], help="an artifact against onnxruntime on the same inputs"
    )
    compare.add_argument("artifact", type=Path)
    compare.add_argument("model", type=Path, help="the .onnx file to compare with")
    _input_flags(compare)
    compare.add_argument("--samples", type=_some, default=8, help="how many samples to compare")
    compare.add_argument("--atol", type=float, help="fail when an error is larger")
    compare.add_argument("--rtol", type=float, help="fail when error / output range is larger")
    compare.add_argument("--cosine", type=float, help="fail when a cosine similarity is smaller")
    compare.add_argument(
        "--top1", type=float, help="fail when the top-1 agreement is smaller (0..1)"
    )

    targets = commands.add_parser("targets", parents=[common], help="list instruction sets")
    targets.add_argument("--target", action="append", default=[], help="also load this file")
    targets.add_argument(
        "--probe", action="store_true", help="measure this machine -> a device's .toml file"
    )
    targets.add_argument("-o", "--output", type=Path, help="where --probe writes (default: prints)")

    demo = commands.add_parser("demo", parents=[common], help="compile and check the model inside")
    demo.add_argument("-o", "--output", type=Path, default=Path("qcompiler-demo"), help="folder")
    demo.add_argument("--target", default="host")
    return top


def _compile_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", default="host", help="an instruction set, a .py file, or host")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument(
        "--calibration",
        "--calibration-data-path",
        help="data for int8: an .npz or .npy file, a folder, or the word synthetic",
    )
    parser.add_argument("--calibration-method", default="output")
    parser.add_argument("--calibration-samples", type=_some, default=300)
    parser.add_argument(
        "--input-shape", "--input-shapes", action="append", default=[], metavar="NAME=1x3x224x224"
    )
    parser.add_argument(
        "--threads",
        type=_count,
        default=0,
        help="default: all cores, or one where more save little",
    )
    parser.add_argument("--pass", action="append", default=[], dest="passes", metavar="NAME{a=b}")
    parser.add_argument("--disabled-pass", action="append", default=[], metavar="NAME")
    parser.add_argument(
        "--exclude", "--nodes-to-exclude", action="append", default=[], help="keep these in float"
    )
    parser.add_argument(
        "--compress",
        action="store_true",
        help="a small file: entropy-coded, slower to open; float convolutions may be slower",
    )
    pruned = parser.add_argument_group(
        "pruning", "take weights away; --calibration repairs the rest"
    )
    pruned.add_argument(
        "--prune",
        action="append",
        default=[],
        metavar="WHAT",
        help="channels:0.5, magnitude:0.7, second_order:0.7, 2:4, block:0.5, 16x4:0.5",
    )
    pruned.add_argument("--prune-include", action="append", default=[], metavar="NODES")
    pruned.add_argument("--prune-exclude", action="append", default=[], metavar="NODES")
    parser.add_argument("--explain", action="store_true", help="print every Skip and its reason")
    parser.add_argument("--dump", type=Path, metavar="DIR", help="write the graph after each stage")


def _input_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inputs", type=Path, help=".npz or .npy file, or a folder")
    parser.add_argument(
        "--fill-mode",
        default="random",
        choices=("random", "ones", "zeros"),
        help="without --inputs",
    )
    parser.add_argument("--seed", type=_count, default=0)


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count")
    return int(text)


def _some(text: str) -> int:
    value = _count(text)
    if not value:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return value


def input_shapes(words: list[str]) -> dict[str, tuple[int, ...]]:
    """["x=1x3x224x224"] -> {"x": (1, 3, 224, 224)}; also accepts commas and brackets."""
    shapes = {}
    for word in words:
        name, equals, dims = word.rpartition("=")
        try:
            plain = dims.strip("[]").replace(",", "x")
            shape = tuple(int(d) for d in plain.split("x") if d)
        except ValueError:
            shape = (-1,)
        if not equals or not name or any(d < 0 for d in shape):
            raise Error(
                f"{word!r} is not NAME=1x3x224x224", where="--input-shape", hint="x=1x3x224x224"
            )
        shapes[name] = shape
    return shapes


def percentiles(text: str) -> tuple[float, ...]:
    """ "50,99" -> (50.0, 99.0)."""
    try:
        values = tuple(float(p) for p in text.split(","))
    except ValueError:
        values = (-1.0,)
    if not all(0 <= v <= 100 for v in values):
        raise Error(f"{text!r} is not a list of percentiles", where="--percentile", hint="50,90,99")
    return values
